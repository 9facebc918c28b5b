"""Measures every mixer of docs/study.md: costs and times into its table, receptive fields into its picture.

    python -m dev.study                     # docs/study.json, the table from it, and the picture; ten minutes
    python -m dev.study --only numbers      # without the picture
    python -m dev.study --only table        # from docs/study.json as it is
    python -m dev.study --only picture

One Swin-T with each mixer, in rounds: every network takes one pass a round, so that what else the machine does meets
all of them. What the table says of formulas and of published accuracies is written by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmext_backbones.analysis.cost import model_cost
from mmext_backbones.backbones import LocalSwin
from mmext_backbones.backbones.local_mixers import MIXERS
from mmext_backbones.drawing.files import save_figure
from mmext_backbones.utils.cli import add_traceback_option, run_cli
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.files import write_whole
from mmext_backbones.visualization.networks import ViewedBackbone, draw_shapes
from mmext_backbones.visualization.receptive_field import draw_fields, level_panels

from .benchmark.machine import describe
from .benchmark.timing import MODES, Pass, interleave, spread

DOCS = Path(__file__).parents[1] / 'docs'
PAGE, RESULTS, PICTURE = DOCS / 'study.md', DOCS / 'study.json', DOCS / 'images' / 'receptive_field_study.png'
SIZE = (224, 224)
LEVEL = 1  # that is drawn: behind two blocks of stride 4 and two of stride 8
SCENES = 4  # of Shapes, over which a field is averaged
COLUMNS = 7
FIRST = 4  # cell of a row that is measured
CPU = torch.device('cpu')


def measure(rounds: int, warmup: int) -> dict[str, Any]:
    """What docs/study.json holds: costs of every mixer, and quartiles of its seconds, of one image of `SIZE`."""
    mixers: dict[str, dict[str, Any]] = {}
    for name in MIXERS:
        with torch.device('meta'):
            cost = model_cost(LocalSwin(mixer=name), SIZE)
        mixers[name] = {'params': cost.params, 'macs': cost.macs}
    x = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    nets = {name: LocalSwin(mixer=name, drop_path_rate=0.0) for name in MIXERS}

    def free() -> None:  # or the gradients of all stay until their next turn
        for net in nets.values():
            net.zero_grad(set_to_none=True)

    for mode in MODES:
        passes = {name: Pass(net, [x], mode, torch.float32) for name, net in nets.items()}
        for name, seconds in interleave(passes, rounds, warmup, CPU, free).items():
            mixers[name][mode] = spread(seconds)._asdict()
    return {
        'date': date.today().isoformat(),
        'machine': describe(CPU),
        'size': SIZE,
        'rounds': rounds,
        'mixers': mixers,
    }


def page(text: str, found: Mapping[str, Any]) -> str:
    """docs/study.md with the measured cells of its table, and what they were measured on.

    Args:
        text: of the page, which has a row for every mixer.
        found: what `measure` returns.

    Raises:
        UserError: where a mixer has no row.
    """
    for name, one in found['mixers'].items():
        times = [f'{one[mode]["median"] * 1e3:.0f} ms' for mode in MODES]
        cells = [f'{one["params"] / 1e6:.2f} M', f'{one["macs"] / 1e9:.2f} G', *times]
        row = re.search(rf'^\| `{re.escape(name)}` \|.*$', text, re.MULTILINE)
        if row is None:
            raise UserError(f'{PAGE.name}: the table has no row of the mixer {name!r}')
        old = row.group().split(' | ')
        text = text.replace(row.group(), ' | '.join([*old[:FIRST], *cells, *old[FIRST + len(cells) :]]))
    machine = found['machine']
    said = (
        f'Times are of the same image in float32: medians of {found["rounds"]} rounds of all mixers in turn, with '
        f'{machine["threads"]} threads on {machine["cores"]} cores\nof an {machine["processor"]}, torch '
        f'{machine["packages"]["torch"].partition("+")[0]}, {found["date"]}.'
    )
    return re.sub(
        r'(<!-- measured: begin .*?-->\n).*?(\n<!-- measured: end)', rf'\g<1>{said}\g<2>', text, flags=re.DOTALL
    )


def draw() -> None:
    """A panel for every mixer: what the token in the middle of level `LEVEL` depends on, random weights."""
    rows = {}
    for name in MIXERS:
        torch.manual_seed(0)
        backbone = LocalSwin(mixer=name, out_indices=(LEVEL,)).eval().requires_grad_(False)
        network = ViewedBackbone(name, backbone)
        rows[name] = level_panels(network, [network.prepare(draw_shapes(i, SIZE[0])) for i in range(SCENES)])
    title = (
        f'Effective receptive fields in the frame of Swin-T, {SIZE[0]} x {SIZE[1]} pixels, mean over {SCENES} scenes'
    )
    save_figure(PICTURE, draw_fields(rows, title, 'pixels', columns=COLUMNS), dpi=60)
    Image.open(PICTURE).convert('RGB').quantize().save(PICTURE)  # half of the bytes


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7, help='that count')
    parser.add_argument('--warmup', type=int, default=2, help='rounds before them')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--only', choices=('numbers', 'table', 'picture'), help='numbers: with the table')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    if args.only in (None, 'numbers'):
        torch.set_num_threads(args.threads)
        write_whole(RESULTS, json.dumps(measure(args.rounds, args.warmup), indent=1) + '\n')
    if args.only != 'picture':
        write_whole(PAGE, page(PAGE.read_text(), json.loads(RESULTS.read_text())))
    if args.only in (None, 'picture'):
        draw()


if __name__ == '__main__':
    sys.exit(run_cli(main))
