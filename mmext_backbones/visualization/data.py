"""Images and annotations as the model is given them: after the pipeline, the batching and the data preprocessor.

    python tools/visualize.py data configs/swin_t_maskrcnn_1x.py --shapes
    python tools/visualize.py data mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py
    python tools/visualize.py data configs/swin_t_maskrcnn_1x.py --number 3 --repeat 4

Batches are made as in a run, so what is padded here is padded there; padding is hatched. Only the normalisation is
undone. --repeat loads the same samples several times, as several epochs would.
"""

import argparse
import contextlib
import itertools
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from torch import nn
from torch.utils.data import DataLoader

from ..config.inputs import keep_config_inputs
from ..datasets.metainfo import metainfo_of
from ..drawing.files import check_out, save_picture
from ..drawing.samples import MAPS, add_caption, draw_sample, sheet
from ..utils.console import QuietStdout
from ..utils.errors import UserError
from .configs import add_config_arguments, build_drawer, build_loader, open_config, title_of

__all__ = [
    'add_arguments',
    'build_preprocessor',
    'describe_input',
    'fit_annotations',
    'hatch',
    'model_inputs',
    'run',
    'to_picture',
    'valid_size',
]

EDGE = 420  # pixels, longer side of an image on the sheet
COLUMNS = 4
ALPHA = 0.5  # of masks and maps, so that the image below them is seen; the libraries' is 0.8


def build_preprocessor(cfg: Config) -> nn.Module:
    """That of the model, which is built for it: some models add to what the config says of it."""
    return MODELS.build(cfg.model).data_preprocessor


def model_inputs(
    loader: DataLoader, preprocessor: nn.Module, number: int, *, repeat: int = 1, training: bool
) -> Iterator[tuple[int, int, torch.Tensor, Any]]:
    """Samples as the model is given them, batches in the order of the loader's sampler.

    Args:
        loader: Of a split.
        preprocessor: Of the model.
        number: Samples; fewer if there are not as many.
        repeat: Times that each is loaded, with new random choices.
        training: Preprocess as in a training.

    Yields:
        The sample's index in the data set, which time it is loaded, its input [C, H, W] and its data sample.

    Raises:
        UserError: if the inputs are no images.
    """
    left = number
    for indices in itertools.islice(loader.batch_sampler, number):
        for time in range(repeat):
            batch = loader.collate_fn([loader.dataset[index] for index in indices])
            batch = preprocessor(batch, training)
            inputs, samples = (
                (batch.get(key) for key in ('inputs', 'data_samples')) if isinstance(batch, dict) else (0, 0)
            )
            if (
                not isinstance(inputs, torch.Tensor)
                or inputs.dim() != 4
                or inputs.shape[1] not in (1, 3)
                or not samples
            ):
                raise UserError(
                    f'{type(preprocessor).__name__} gives no batch of labelled images [B, 3, H, W]: such inputs cannot '
                    'be drawn.'
                )
            for index, image, sample in list(zip(indices, inputs, samples, strict=True))[:left]:
                yield index, time, image, sample
        left -= len(indices)
        if left <= 0:
            return


def to_picture(image: torch.Tensor, preprocessor: nn.Module) -> np.ndarray:
    """Undoes the normalisation and the order of the channels: [C, H, W] -> RGB [H, W, 3], uint8."""
    image = image.detach().float().cpu()
    if getattr(preprocessor, '_enable_normalize', False):
        image = image * preprocessor.std.cpu() + preprocessor.mean.cpu()
    image = image.round().clamp(0, 255).to(torch.uint8).numpy().transpose(1, 2, 0)
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    # images are read as BGR, and either conversion is the same swap
    swapped = any(
        getattr(preprocessor, name, False) for name in ('_channel_conversion', 'channel_conversion', 'to_rgb')
    )
    return np.ascontiguousarray(image if swapped else image[..., ::-1])


def valid_size(image: torch.Tensor, sample: Any) -> tuple[int, int]:
    """Height and width of an input without what the batch was padded with, at the right and at the bottom."""
    H, W = image.shape[-2:]
    padding = sample.get('padding_size') or sample.get('img_padding_size')  # left, right, top, bottom, by mmseg
    if padding is not None:
        return H - int(padding[3]), W - int(padding[1])
    h, w = (sample.get('img_shape') or (H, W))[:2]
    return min(H, int(h)), min(W, int(w))


def fit_annotations(sample: Any, H: int, W: int) -> Any:
    """A copy of a sample whose masks and maps have the size of the input, where the preprocessor left that out."""
    sample = sample.clone()
    if 'gt_instances' in sample and 'masks' in sample.gt_instances:
        sample.gt_instances = sample.gt_instances.clone()
        masks = sample.gt_instances.masks
        masks = torch.as_tensor(masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks)
        sample.gt_instances.masks = _pad(masks, H, W, 0)
    for field in MAPS:
        if field in sample:
            maps = {key: _pad(torch.as_tensor(labels), H, W, 255) for key, labels in sample.get(field).items()}
            setattr(sample, field, PixelData(**maps))
    return sample


def _pad(maps: torch.Tensor, H: int, W: int, value: int) -> torch.Tensor:
    """[N, h, w] -> [N, H, W]"""
    h, w = maps.shape[-2:]
    return nn.functional.pad(maps, (0, max(0, W - w), 0, max(0, H - h)), value=value)[..., :H, :W]


def hatch(tile: np.ndarray, valid: tuple[float, float]) -> np.ndarray:
    """Marks padding: what lies to the right of or below a part of the picture.

    Args:
        tile: RGB [h, w, 3].
        valid: Height and width of what is no padding, as parts of the whole.
    """
    h, w = tile.shape[:2]
    rows, columns = np.mgrid[:h, :w]
    bottom, right = round(valid[0] * h), round(valid[1] * w)
    padding = (rows >= bottom) | (columns >= right)
    tile = tile.copy()
    tile[padding & ((rows + columns) % 24 < 3)] = (255, 255, 255)
    if padding.any():
        corner = (right if right < w else w + 2, bottom if bottom < h else h + 2)
        cv2.rectangle(tile, (-2, -2), corner, (255, 0, 200), 2)
    return tile


def describe_input(index: int, image: torch.Tensor, sample: Any, metainfo: Mapping[str, Any]) -> list[str]:
    """Lines about a sample: which file, how it was changed, what is on it. Sizes are width x height."""
    H, W = image.shape[-2:]
    path = sample.get('img_path')
    lines = [f'{str(path).rpartition("/")[2] if path else "sample"} (no. {index})']
    (oh, ow), (h, w) = (sample.get('ori_shape') or (H, W))[:2], valid_size(image, sample)
    change = f'{ow} x {oh} -> {w} x {h}'
    scale = sample.get('scale_factor')
    if scale is not None:
        across, down = np.broadcast_to(np.asarray(scale, float).ravel()[:2], 2)
        change += f', scale {across:.3g}' + (f' x {down:.3g}' if abs(across / down - 1) > 0.02 else '')
    if sample.get('flip'):
        change += f', flip {sample.get("flip_direction") or ""}'.rstrip()
    if (h, w) != (H, W):
        change += f', padded to {W} x {H}'
    return [*lines, change, _content(sample, metainfo.get('classes'))]


def _content(sample: Any, classes: list[str] | None) -> str:
    def name(label: int) -> str:
        return str(classes[label]) if classes is not None and label < len(classes) else f'class {label}'

    if 'gt_score' in sample and int((sample.gt_score > 0).sum()) > 1:  # two images mixed
        top = sample.gt_score.topk(min(3, int((sample.gt_score > 0).sum())))
        return ', '.join(f'{value:.2f} {name(int(label))}' for value, label in zip(*top, strict=True))
    if 'gt_label' in sample:
        return ', '.join(name(int(label)) for label in sample.gt_label)
    parts = []
    if 'gt_instances' in sample:
        labels, counts = np.unique(np.asarray(sample.gt_instances.labels.cpu()), return_counts=True)
        parts += [f'{count} {name(label)}' for label, count in zip(labels, counts, strict=True)] or ['no objects']
        ignored = len(sample.get('ignored_instances') or ())
        parts += [f'{ignored} ignored'] if ignored else []
    if 'gt_sem_seg' in sample:
        labels = torch.unique(next(iter(sample.gt_sem_seg.values()))).tolist()
        known = [label for label in labels if classes is None or label < len(classes)]
        parts += [name(label) for label in known] or ['no labelled pixel']
    return ', '.join(parts)


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
    keep_config_inputs(f'--out {out}', [out], cfg)
    drawer = build_drawer(cfg)
    if 'alpha' not in cfg.visualizer:
        drawer.alpha = ALPHA
    with contextlib.redirect_stdout(QuietStdout(sys.stdout)):
        loader = build_loader(cfg, args.split, seed=args.seed)
    preprocessor = build_preprocessor(cfg)
    random.seed(args.seed), np.random.seed(args.seed), torch.manual_seed(args.seed)

    metainfo = metainfo_of(loader.dataset)
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
