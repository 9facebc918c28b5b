"""Images and annotations as the model is given them: after the pipeline, the batching and the data preprocessor.

    python tools/visualize.py data configs/swin_t_maskrcnn_1x.py --shapes
    python tools/visualize.py data mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py
    python tools/visualize.py data configs/swin_t_maskrcnn_1x.py --number 3 --repeat 4

Batches are made as in a run, so what is padded here is padded there; padding is hatched. Only the normalisation is
undone. --repeat loads the same samples several times, as several epochs would.
"""

import argparse
import contextlib
import random
import sys

import numpy as np
import torch

from ..drawing.samples import add_caption, draw_sample, sheet
from ..utils.console import Chatter
from ..utils.errors import UserError
from .files import check_out, save_picture
from .model_inputs import (
    build_preprocessor,
    describe_input,
    fit_annotations,
    hatch,
    model_inputs,
    to_picture,
    valid_size,
)
from .opening import add_config_arguments, build_drawer, build_loader, open_config, title_of

__all__ = ['add_arguments', 'run']

EDGE = 420  # pixels, longer side of an image on the sheet
COLUMNS = 4
ALPHA = 0.5  # of masks and maps, so that the image below them is seen; the libraries' is 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train', help='default: %(default)s')
    parser.add_argument('--number', type=int, default=8, help='samples (default: %(default)s)')
    parser.add_argument(
        '--repeat', type=int, default=1, metavar='TIMES', help='load each sample this often, a row for each of them'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the choice of samples and of their augmentation')
    parser.add_argument('--out', default='data.png', metavar='FILE', help='the picture (default: %(default)s)')


def run(args: argparse.Namespace) -> None:
    for name in ('number', 'repeat'):
        if getattr(args, name) < 1:
            raise UserError(f'--{name} {getattr(args, name)}: expected 1 or more')
    out = check_out(args.out)
    cfg = open_config(args)
    drawer = build_drawer(cfg)
    if 'alpha' not in cfg.visualizer:
        drawer.alpha = ALPHA
    with contextlib.redirect_stdout(Chatter(sys.stdout)):
        loader = build_loader(cfg, args.split, seed=args.seed)
    preprocessor = build_preprocessor(cfg)
    random.seed(args.seed), np.random.seed(args.seed), torch.manual_seed(args.seed)

    metainfo = loader.dataset.metainfo
    found = list(model_inputs(loader, preprocessor, args.number, repeat=args.repeat, training=args.split == 'train'))
    tiles, texts = [], []
    for index, _, image, sample in found:
        picture = to_picture(image, preprocessor)
        H, W = picture.shape[:2]
        tile = draw_sample(drawer, metainfo, picture, fit_annotations(sample, H, W), EDGE, draw_pred=False)
        h, w = valid_size(image, sample)
        tiles.append(hatch(tile, (h / H, w / W)))
        texts.append(describe_input(index, image, sample, metainfo))
    order = range(len(found))
    if args.repeat > 1:  # those of a sample side by side; batches come one after another
        places = {index: place for place, (index, *_) in reversed(list(enumerate(found)))}
        order = sorted(order, key=lambda place: (places[found[place][0]], found[place][1]))
    columns = args.repeat if args.repeat > 1 else COLUMNS
    height = max(len(tile) for tile in tiles)
    tiles = [add_caption(tiles[place], texts[place], height) for place in order]
    title = f'{title_of(args)}, {args.split}: what the model is given (normalisation undone; hatched: padding)'
    save_picture(out, sheet(tiles, title, columns))
