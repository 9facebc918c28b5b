"""Predicts pictures or videos: boxes, masks, semantic segments or classes, drawn and as JSON.

python tools/infer.py configs/elsa_swin_t_maskrcnn_1x.py work_dirs/.../iter_310.pth photo.jpg --out predicted
python tools/infer.py work_dirs/my_run/my_config.py work_dirs/my_run/iter_160000.pth photos/ 'more/**/*.png' --tta
python tools/infer.py configs/swin_t_upernet_160k.py work_dirs/.../iter_160000.pth street.mp4 --video
find photos -name '*.jpg' | python tools/infer.py CONFIG WEIGHTS - --classes person dog --save-crop

The folder of results has pictures/, for detectors predictions.json in COCO's result format, for segmentors segments/
with a palette, and run.json. The exit code is 0, 1 where a file could not be read (the others are predicted), 2 after
a mistake.
"""

import argparse
import os
import sys

os.environ.setdefault('GOMP_SPINCOUNT', '20000')  # see tools/test.py

try:
    from mmext_backbones.config.options import add_config_options
    from mmext_backbones.inference.command import infer
    from mmext_backbones.runtime import RUNTIMES
    from mmext_backbones.utils.cli import add_traceback_option, run_cli
except ImportError as error:
    if '--traceback' in sys.argv:
        raise
    print(f'Error: {error}\npython -m mmext_backbones.doctor says what is missing and what helps.', file=sys.stderr)
    sys.exit(2)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config file, also of a work dir, or a name like mmdet::path.py')
    parser.add_argument('weights', help='a checkpoint, or an address like https:// or timm://')
    parser.add_argument(
        'images',
        nargs='+',
        help='files, folders or quoted patterns, with --video video files; - for names on the standard input',
    )
    parser.add_argument('--out', metavar='DIR', help='folder of results (default: predictions/<config>)')
    parser.add_argument('--video', action='store_true', help='predict videos frame by frame and write MP4')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    parser.add_argument(
        '--runtime',
        choices=['torch', *RUNTIMES],
        default='torch',
        help='what computes: for the others, on the CPU, the model is exported at the first use (default: torch)',
    )
    parser.add_argument('--tta', action='store_true', help='predict several views of each picture and merge them')
    parser.add_argument(
        '--threshold',
        type=float,
        default=0.3,
        metavar='SCORE',
        help='draw detections from here on (default: 0.3)',
    )
    parser.add_argument('--classes', nargs='+', metavar='CLASS', help='only these classes, by name or number')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='pictures at a time (default: 1)')
    parser.add_argument('--save-crop', action='store_true', help='also write the box of each object, cut out')
    parser.add_argument('--no-pictures', action='store_true', help='draw nothing, write the rest')
    parser.add_argument('--overwrite', action='store_true', help='replace the results of another run in the folder')
    parser.add_argument('--shapes', action='store_true', help='the weights come from a run with --shapes')
    add_config_options(parser, 'config entries to override, applied after everything else')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    return infer(
        args.config,
        args.weights,
        args.images,
        out=args.out,
        video=args.video,
        device=args.device,
        tta=args.tta,
        threshold=args.threshold,
        pictures=not args.no_pictures,
        overwrite=args.overwrite,
        shapes=args.shapes,
        options=args.cfg_options,
        batch_size=args.batch_size,
        only=args.classes,
        save_crop=args.save_crop,
        runtime=args.runtime,
    )


if __name__ == '__main__':
    sys.exit(run_cli(main))
