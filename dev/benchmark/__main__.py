"""Time and peak memory of our networks and operators beside those of others, with the same weights, in one run.

    python -m dev.benchmark                                    # the networks and the ELSA operator on this CPU
    python -m dev.benchmark swin --size 800 1344 --json swin.json --chart swin.png
    python -m dev.benchmark swin maxvit --device cuda --batch 2 --size 896 1344 --dtype bf16 --compile
    python -m dev.benchmark elsa_vs_swin   # our ELSA-Swin beside our Swin: what the operator costs
    python -m dev.benchmark op:window_attention --size 800 1344
    python -m dev.benchmark --growth swin maxvit --mode forward --chart growth.png

Outputs, and where the backward pass is timed all gradients, are compared before anything is timed; rounds are
interleaved. The modules of this folder say what is timed, and how the work on both sides is made equal.
"""

import sys

from mmext_backbones.utils.cli import run_cli, square
from mmext_backbones.utils.console import silence_libraries

from .command import benchmark, parser


def main(argv: list[str]) -> int:
    args = parser(__doc__).parse_args(square(argv))
    silence_libraries()
    return benchmark(args)


if __name__ == '__main__':
    sys.exit(run_cli(main))
