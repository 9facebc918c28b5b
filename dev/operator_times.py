"""Times a training step of whole detectors with mmcv's compiled operators and with the stand-ins, in turn.

python dev/operator_times.py --rounds 9      # in the environment of `make env MMCV=compiled`

Two processes hold the same model, images and weights; they take a step (losses, backward pass) each, one after the
other, so that what else the machine does meets both. Printed are the medians, and the median of the pairs' ratios.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'dev')]

SIZE = 256  # pixels, height and width of the two images
CONFIGS = (
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
)


def work(name: str, stand_ins: bool) -> None:
    """A process: a line on stdin asks for a step, the answer is its time in seconds and its loss."""
    import logging

    logging.disable(logging.INFO)
    import survey_steps as steps
    import torch

    from dev.operator_losses import use_stand_ins

    if stand_ins:
        use_stand_ins()
    library, _, path = name.partition('::')
    cfg = steps.load(library, path)
    with steps._environment(cfg, library):
        plain = steps._plain(cfg.model, SIZE)
        model = steps.build(plain).train()
        data = model.data_preprocessor(steps.batch(plain, library, SIZE), True)
        for _ in sys.stdin:
            torch.manual_seed(0)
            model.zero_grad()
            started = time.perf_counter()
            loss = model.parse_losses(model(**data, mode='loss'))[0]
            loss.backward()
            print('TIME', time.perf_counter() - started, float(loss.detach()), flush=True)


def step(process: subprocess.Popen) -> tuple[float, float]:
    process.stdin.write('go\n')
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith('TIME '):
            return tuple(map(float, line.split()[1:]))
    raise RuntimeError('a process ended')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=9, help='pairs of steps of each config')
    parser.add_argument('--work', help=argparse.SUPPRESS)
    parser.add_argument('--stand-ins', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.stand_ins)
        return 0
    print(f'{"config":<62}{"compiled":>10}{"ours":>10}{"ratio":>8}')
    for name in CONFIGS:
        command = [sys.executable, __file__, '--work', name]
        sides = [
            subprocess.Popen([*command, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for more in ([], ['--stand-ins'])
        ]
        for side in sides:
            step(side)  # not counted
        pairs = [tuple(step(side) for side in sides) for _ in range(args.rounds)]
        compiled, ours = ([pair[side][0] for pair in pairs] for side in (0, 1))
        ratio = statistics.median(a / b for a, b in zip(compiled, ours, strict=True))
        medians = f'{statistics.median(compiled):>9.2f}s{statistics.median(ours):>9.2f}s'
        print(f'{name:<62}{medians}{ratio:>8.2f}', flush=True)
        assert all(abs(a[1] - b[1]) <= 1e-5 * abs(a[1]) for a, b in pairs), 'the losses differ'
        for side in sides:
            side.stdin.close()
            side.wait()
    return 0


if __name__ == '__main__':
    sys.exit(main())
