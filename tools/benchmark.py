"""Time and peak memory of our networks and operators beside those of others, with the same weights, in one run.

    python tools/benchmark.py                                    # the networks and the ELSA operator on this CPU
    python tools/benchmark.py swin --size 800 1344 --json swin.json --chart swin.png
    python tools/benchmark.py swin maxvit --device cuda --batch 2 --size 896 1344 --dtype bf16 --compile
    python tools/benchmark.py elsa_vs_swin   # our ELSA-Swin beside our Swin: what the operator costs
    python tools/benchmark.py op:window_attention --size 800 1344
    python tools/benchmark.py --growth swin maxvit --mode forward --chart growth.png

Outputs, and where the backward pass is timed all gradients, are compared before anything is timed; rounds are
interleaved. `mmext_backbones/benchmark` says what is timed, and how the work on both sides is made equal.
"""

import sys

from mmext_backbones.benchmark.command import benchmark, parser
from mmext_backbones.engine.screen import quiet
from mmext_backbones.errors import run_cli


def main(argv: list[str]) -> int:
    args = parser(__doc__).parse_args(argv)
    quiet()
    return benchmark(args)


if __name__ == '__main__':
    sys.exit(run_cli(main))
