"""Time and peak memory of ELSA-Swin with our operator against the same network with the unfolded form, on the CPU.

    python tools/benchmark.py --size 512 672

Both share the weights; the outputs are compared before anything is timed. Rounds are interleaved, each peak is that of
a fresh process, less what the same process takes before the first forward pass.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from mmext_backbones.backbones import ELSASwin
from mmext_backbones.layers import ELSAAttention

BACKENDS = {'ours': 'taps', 'unfold': 'reference'}
MODES = ('forward', 'forward+backward')


def build(arch: str, side: str) -> ELSASwin:
    torch.manual_seed(0)
    model = ELSASwin(arch, drop_path_rate=0.0)
    for module in model.modules():
        if isinstance(module, ELSAAttention):
            module.backend = BACKENDS[side]
    return model


def step(model: ELSASwin, image: torch.Tensor, mode: str) -> tuple[torch.Tensor, ...]:
    if mode == 'forward':
        with torch.no_grad():
            return model.eval()(image)
    model.train().zero_grad()
    outs = model(image)
    sum(out.sum() for out in outs).backward()
    return outs


def peak_memory(args: argparse.Namespace, side: str, mode: str) -> float:
    """Peak of one step in MiB, in a fresh process."""
    command = [
        sys.executable,
        __file__,
        '--arch',
        args.arch,
        '--batch',
        str(args.batch),
        '--size',
        *map(str, args.size),
    ]
    command += ['--threads', str(args.threads), '--peak-of', side, mode]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def resident_memory(field: str) -> float:
    """VmRSS (now) or VmHWM (its peak) of this process in MiB. Linux; getrusage would report the parent's peak."""
    status = Path('/proc/self/status').read_text()
    return int(re.search(rf'^{field}:\s+(\d+) kB$', status, re.MULTILINE).group(1)) / 1024


def print_peak(args: argparse.Namespace, image: torch.Tensor) -> None:
    model = build(args.arch, args.peak_of[0])
    before = resident_memory('VmRSS')
    step(model, image, args.peak_of[1])
    print(resident_memory('VmHWM') - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--arch', default='tiny', choices=list(ELSASwin.ARCHS))
    parser.add_argument('--size', type=int, nargs=2, default=(512, 672), metavar=('H', 'W'), help='pixels')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--peak-of', nargs=2, metavar=('SIDE', 'MODE'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    image = torch.randn(args.batch, 3, *args.size, generator=torch.Generator().manual_seed(1))
    if args.peak_of:
        print_peak(args, image)
        return

    models = {side: build(args.arch, side) for side in BACKENDS}
    outs = {side: step(model, image, 'forward') for side, model in models.items()}
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*outs.values(), strict=True))
    size = 'x'.join(map(str, args.size))
    print(
        f'ELSA-Swin {args.arch}, batch {args.batch}, {size}, float32, {args.threads} threads, torch {torch.__version__}'
    )
    print(f'largest relative difference of the outputs: {error:.1e}')
    if error > 2e-5:
        raise SystemExit('the two forms disagree: no timing')

    print(f'{"":18}{"ours":>22}{"unfold":>22}{"unfold / ours":>18}')
    for mode in MODES:
        seconds = {side: [] for side in models}
        for i in range(args.rounds + 1):  # the first round warms up
            for side, model in models.items():
                start = time.perf_counter()
                step(model, image, mode)
                if i:
                    seconds[side].append(time.perf_counter() - start)
        ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
        cells = [f'{statistics.median(s):.3f} ({min(s):.3f}-{max(s):.3f}) s' for s in seconds.values()]
        print(f'{mode:18}{cells[0]:>22}{cells[1]:>22}{f"{statistics.median(ratios):.1f} x":>18}')
        peaks = [peak_memory(args, side, mode) for side in models]
        cells = [f'{peak:.0f} MiB' for peak in peaks]
        print(f'{"  peak memory":18}{cells[0]:>22}{cells[1]:>22}{f"{peaks[1] / peaks[0]:.1f} x":>18}')


if __name__ == '__main__':
    main()
