"""Time and peak memory of a backbone against a peer with the same weights, on the CPU.

    python tools/benchmark.py elsa_swin --size 512 672     # our operator against its unfolded form
    python tools/benchmark.py maxvit --size 448 672        # against timm
    python tools/benchmark.py sequencer --size 448 672     # the published network, patches of 7, against timm

The outputs are compared before anything is timed. Rounds are interleaved; each peak is that of a fresh process, less
what the same process takes before the first forward pass.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmext_backbones.backbones import ELSASwin, MaxViT, Sequencer2D
from mmext_backbones.layers import ELSAAttention

SIDES = ('ours', 'peer')
MODES = ('forward', 'forward+backward')


class SequencerMaps(nn.Module):
    """The maps of timm's stages; its own feature extraction drops the last stage."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.stem, self.stages = model.stem, model.stages

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [(x := stage(x)).permute(0, 3, 1, 2) for stage in self.stages]


def build_elsa_swin(arch: str, size: Sequence[int], side: str) -> nn.Module:
    model = ELSASwin(arch, drop_path_rate=0.0)
    for module in model.modules():
        if isinstance(module, ELSAAttention):
            module.backend = {'ours': 'auto', 'peer': 'reference'}[side]
    return model


def build_maxvit(arch: str, size: Sequence[int], side: str) -> nn.Module:
    import timm

    options = {
        'img_size': tuple(size),
        'transformer_window_size': (7, 7),
        'features_only': True,
        'out_indices': (1, 2, 3, 4),
    }
    peer = timm.create_model(f'maxvit_{arch}_tf_224', **options)
    if side == 'peer':
        return peer
    model = MaxViT(arch, drop_path_rate=0.0)
    model.load_state_dict(peer.state_dict())  # timm's layout is converted
    return model


def build_sequencer(arch: str, size: Sequence[int], side: str) -> nn.Module:
    import timm

    peer = timm.create_model(f'sequencer2d_{arch[0]}')
    if side == 'peer':
        return SequencerMaps(peer)
    model = Sequencer2D(arch, patch_size=7, pyramid=False, drop_path_rate=0.0)
    model.load_state_dict(peer.state_dict(), strict=False)  # timm's layout is converted; its head has no place
    return model


# family -> class, builder, name of the peer
FAMILIES = {
    'elsa_swin': (ELSASwin, build_elsa_swin, 'unfold'),
    'maxvit': (MaxViT, build_maxvit, 'timm'),
    'sequencer': (Sequencer2D, build_sequencer, 'timm'),
}


def build(args: argparse.Namespace, side: str) -> nn.Module:
    torch.manual_seed(0)  # the peer is made first on both sides, so that the weights agree
    return FAMILIES[args.family][1](args.arch, args.size, side)


def step(model: nn.Module, image: Tensor, mode: str) -> Sequence[Tensor]:
    if mode == 'forward':
        with torch.no_grad():
            return model.eval()(image)
    model.train().zero_grad()
    outs = model(image)
    sum(out.sum() for out in outs).backward()
    return outs


def peak_memory(side: str, mode: str) -> float:
    """Peak of one step in MiB, in a fresh process with this one's arguments."""
    command = [sys.executable, *sys.argv, '--peak-of', side, mode]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def resident_memory(field: str) -> float:
    """VmRSS (now) or VmHWM (its peak) of this process in MiB. Linux; getrusage would report the parent's peak."""
    status = Path('/proc/self/status').read_text()
    return int(re.search(rf'^{field}:\s+(\d+) kB$', status, re.MULTILINE).group(1)) / 1024


def print_peak(args: argparse.Namespace, image: Tensor) -> None:
    model = build(args, args.peak_of[0])
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew: building may have taken more than a step
    before = resident_memory('VmRSS')
    step(model, image, args.peak_of[1])
    print(resident_memory('VmHWM') - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('family', nargs='?', default='elsa_swin', choices=list(FAMILIES))
    parser.add_argument('--arch', help='the smallest when not given')
    parser.add_argument('--size', type=int, nargs=2, default=(448, 672), metavar=('H', 'W'), help='pixels')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--peak-of', nargs=2, metavar=('SIDE', 'MODE'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    backbone, _, peer = FAMILIES[args.family]
    args.arch = args.arch or next(iter(backbone.ARCHS))
    if args.arch not in backbone.ARCHS:
        parser.error(f'--arch {args.arch}: expected one of {", ".join(backbone.ARCHS)}')
    torch.set_num_threads(args.threads)
    image = torch.randn(args.batch, 3, *args.size, generator=torch.Generator().manual_seed(1))
    if args.peak_of:
        print_peak(args, image)
        return

    models = {side: build(args, side) for side in SIDES}
    outs = {side: step(model, image, 'forward') for side, model in models.items()}
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*outs.values(), strict=True))
    size = 'x'.join(map(str, args.size))
    print(f'{backbone.__name__} {args.arch}, batch {args.batch}, {size}, float32, {args.threads} threads, ', end='')
    print(f'torch {torch.__version__}')
    print(f'largest relative difference of the outputs: {error:.1e}')
    if error > 2e-5:
        raise SystemExit('the two disagree: no timing')

    print(f'{"":18}{"ours":>22}{peer:>22}{f"{peer} / ours":>18}')
    for mode in MODES:
        seconds = {side: [] for side in SIDES}
        for i in range(args.rounds + 1):  # the first round warms up
            for side in SIDES if i % 2 else reversed(SIDES):  # neither is always the first
                start = time.perf_counter()
                step(models[side], image, mode)
                if i:
                    seconds[side].append(time.perf_counter() - start)
        ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
        cells = [f'{statistics.median(s):.3f} ({min(s):.3f}-{max(s):.3f}) s' for s in seconds.values()]
        print(f'{mode:18}{cells[0]:>22}{cells[1]:>22}{f"{statistics.median(ratios):.2f} x":>18}')
        peaks = [peak_memory(side, mode) for side in SIDES]
        cells = [f'{peak:.0f} MiB' for peak in peaks]
        print(f'{"  peak memory":18}{cells[0]:>22}{cells[1]:>22}{f"{peaks[1] / peaks[0]:.2f} x":>18}')


if __name__ == '__main__':
    main()
