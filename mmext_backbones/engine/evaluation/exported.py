"""A test of an exported file: a model that runs it in place of the network it was made from, on the same data."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData

from ...datasets.metainfo import classes_of
from ...registry import MODELS
from ...runtime.predict import Model, PictureError, PredictError
from ...utils.console import say
from ...utils.errors import UserError
from ...utils.words import plural

__all__ = ['ExportedModel', 'check_classes', 'use_file']

LIBRARIES = {
    'detection': 'mmdet',
    'instance segmentation': 'mmdet',
    'semantic segmentation': 'mmseg',
    'classification': 'mmpretrain',
}


def use_file(cfg: Config, file: str, runtime: str) -> None:
    """Puts an exported file in the place of the model of a config.

    Raises:
        UserError: if it cannot be run, or does another task than the config.
    """
    load_file.cache_clear()  # a file may be written anew between two tests of a process
    task = load_file(file, runtime).task
    scope = cfg.get('default_scope')
    if LIBRARIES.get(task) != scope:
        raise UserError(
            f'--onnx {file} is for {task}, and the config is one of {scope}: name the config it was made of.'
        )
    cfg.model = ConfigDict(type='mmext_backbones.ExportedModel', file=file, runtime=runtime)
    cfg.pop('data_preprocessor', None)
    cfg.load_from = None


def check_classes(file: str, runtime: str, dataset: Any) -> None:
    """Whether a file knows the classes of a data set; a line on the screen where it calls them otherwise.

    Raises:
        UserError: for another number of them.
    """
    names, expected = load_file(file, runtime).classes, classes_of(dataset)
    if not names or expected is None:
        return
    if len(names) != len(expected):
        raise UserError(
            f'--onnx {file} knows {plural(len(names), "class", "classes")}, and the test data of the config has '
            f'{len(expected)}: name the config it was made of, with --shapes if that was trained so.'
        )
    different = [pair for pair in zip(names, expected, strict=True) if pair[0] != pair[1]]
    if different:
        theirs, ours = different[0]
        say(
            f'note: {len(different)} classes have other names in the file, such as {theirs!r} for {ours!r} of the data.'
        )


@functools.lru_cache(maxsize=4)
def load_file(file: str, runtime: str) -> Model:
    """The file, ready to run; it is no part of a network, which hooks may copy.

    Raises:
        UserError: if it cannot be.
    """
    try:
        return Model(file, runtime)
    except PredictError as error:
        raise UserError(f'--onnx: {error}') from error


@MODELS.register_module()
class ExportedModel(BaseModel):
    """Predicts the batches of a test with an exported file, as its `predict.py` does.

    The images are those of the pipeline, before any data preprocessor; those of a batch that are equally large run
    together.

    Args:
        file: An ONNX file of ``tools/export.py --whole``.
        runtime: ``'onnxruntime'`` or ``'openvino'``.
    """

    def __init__(self, file: str, runtime: str = 'onnxruntime') -> None:
        super().__init__()
        self.file = file
        self.runtime = runtime

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to train, and maps are the file's own business."""
        raise NotImplementedError('an exported file predicts, by test_step alone')

    @torch.no_grad()
    def test_step(self, data: dict) -> list:
        """The data samples of a batch, with what the file predicts, as mmdet, mmseg or mmpretrain would fill them.

        Raises:
            UserError: if the pipeline gives something else than one picture each, or the file does not take them.
        """
        model = load_file(self.file, self.runtime)
        samples = list(data['data_samples'])
        for picture in data['inputs']:
            if not isinstance(picture, torch.Tensor) or picture.ndim != 3 or picture.shape[0] != 3:
                raise UserError(
                    f'{self.file}: the test pipeline of the config has to give one picture of three channels each.'
                )
        pairs = zip(data['inputs'], samples, strict=True)
        for _, group in itertools.groupby(pairs, key=lambda pair: pair[0].shape):
            pictures, equal = zip(*group, strict=True)
            _predict(model, [picture.permute(1, 2, 0).cpu().numpy() for picture in pictures], equal)
        if model.task in ('detection', 'instance segmentation'):
            from mmdet.models.utils import samplelist_boxtype2tensor

            samplelist_boxtype2tensor(samples)
        return samples


def _predict(model: Model, pictures: Sequence, samples: Sequence) -> None:
    """Fills the samples of pictures of one size."""
    sizes = [
        sample.metainfo.get('ori_shape', picture.shape)[:2] for picture, sample in zip(pictures, samples, strict=True)
    ]
    seen = pictures[0].shape
    scales = [
        sample.metainfo.get('scale_factor') or (seen[1] / width, seen[0] / height)
        for sample, (height, width) in zip(samples, sizes, strict=True)
    ]
    try:
        results = model.predict_resized(pictures, sizes, scales=[tuple(scale)[:2] for scale in scales])
    except PictureError as error:
        raise UserError(f'image {samples[0].metainfo.get("img_path")} {error}.') from error
    for sample, result in zip(samples, results, strict=True):
        tensors = {key: torch.from_numpy(value) for key, value in result.items() if key != 'size'}
        if 'segmentation' in tensors:
            sample.pred_sem_seg = PixelData(data=tensors['segmentation'][None].long())
        elif 'boxes' in tensors:
            sample.pred_instances = InstanceData(bboxes=tensors.pop('boxes'), **tensors)
        else:
            sample.set_pred_score(tensors['scores']).set_pred_label(tensors['scores'].argmax())
