"""What the runs of the survey are made of: a network of one layer for every task, and what records a run.

The toy's loss depends on every label it is given and its predictions on every weight, so that another order of the
data, another sample or another random number is seen in the numbers.
"""

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.registry import HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn

__all__ = ['EVENTS', 'plain']

EVENTS: list[list] = []  # of the run in this process


def number_of(value: Any) -> float:
    """A number that changes with any part of a data sample, a batch or a state."""
    if isinstance(value, BaseDataElement):
        value = dict(sorted(value.all_items()))
    if isinstance(value, dict):
        return sum(number_of(item) for key, item in value.items() if 'path' not in key and 'file' not in key)
    if isinstance(value, (list, tuple)):
        return sum((i + 1) * number_of(item) for i, item in enumerate(value)) / (1 + len(value))
    for name in ('tensor', 'masks'):  # boxes and masks of mmdet
        if not torch.is_tensor(value) and not callable(getattr(value, name, None)):
            value = getattr(value, name, value)
    if isinstance(value, str):
        return len(value) / 100
    try:
        array = torch.as_tensor(value if torch.is_tensor(value) else np.asarray(value, dtype=float)).double().flatten()
    except (TypeError, ValueError):
        return 0.0
    places = torch.linspace(1, 2, len(array), dtype=torch.float64)
    return float((array.nan_to_num(0.5, 0.5, 0.5) * places).sum()) / (1 + len(array)) / 10


def plain(value: Any) -> Any:
    """A value as JSON has it, to the last bit."""
    if torch.is_tensor(value) or isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (int, str)) or value is None else repr(value)


@HOOKS.register_module()
class SurveyRecorder(Hook):
    """Notes losses and batches, metrics, and the weights at the end."""

    priority = 'VERY_LOW'

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        EVENTS.append(['loss', runner.iter, plain(outputs), number_of(data_batch)])

    def after_val_epoch(self, runner: Any, metrics: dict | None = None) -> None:
        EVENTS.append(['validation', runner.iter, plain(metrics)])

    def after_test_epoch(self, runner: Any, metrics: dict | None = None) -> None:
        EVENTS.append(['test', plain(metrics)])

    def after_train(self, runner: Any) -> None:
        EVENTS.append(['weights', number_of(dict(runner.model.state_dict()))])


@TRANSFORMS.register_module()
class SurveySeed:
    """The first step of a pipeline: what the others draw follows from the sample.

    Our runner draws the augmentation of a batch from the seed and the batch's number, mmengine's from a generator that
    goes through the whole run. Neither is wrong; with this step the two draw the same.
    """

    def __call__(self, results: dict) -> dict:
        seed = int(1e6 * abs(number_of(results))) % 2**31
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        return results


@METRICS.register_module()
class SurveyDigest(BaseMetric):
    """One number for all predictions and labels, and how many there were."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [number_of(sample) for sample in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {'digest': number_of(results), 'samples': len(results)}


class ToyHead(nn.Module):
    """What hooks look for in a head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = nn.Conv2d(4, num_classes, 1)
        self.loss_module = nn.MSELoss()
        self.loss_weight = 1.0
        self.use_l1 = False


@MODELS.register_module()
class SurveyToy(BaseModel):
    """A network of one layer that predicts whatever its task asks for.

    Args:
        task: A key of `PREDICTIONS`.
        head: With ``num_classes``.
    """

    def __init__(self, task: str, head: dict, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor)
        self.task = task
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = ToyHead(**head)
        self.loss_lambda = 0.5
        self.epoch = 0

    @property
    def bbox_head(self) -> ToyHead:
        return self.head

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def maps(self, inputs: Any) -> torch.Tensor:
        """[B, ..., H, W] -> [B, classes, H, W]; frames, views and pairs are averaged."""
        while isinstance(inputs, (list, tuple, dict)):
            views = list(inputs.values()) if isinstance(inputs, dict) else inputs
            inputs = torch.stack([view.float() for view in views])
        x = inputs.float()
        x = x.unsqueeze(0) if x.ndim == 3 else x
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 and x.ndim == 4 else x
        x = x.reshape(len(x), -1, 3, *x.shape[-2:]).mean(1) / 255
        return self.head.conv(F.relu(self.norm(self.stem(x))))

    def forward(self, inputs: Any = None, data_samples: Any = None, mode: str = 'tensor', **more: Any) -> Any:
        maps = self.maps(more.get('images', inputs))
        if mode == 'tensor':
            return {'scores': maps.mean((2, 3))} if self.task == 'retrieval' else maps
        if mode == 'loss':
            labels = torch.tensor([np.tanh(number_of(each)) for each in data_samples])
            loss = self.head.loss_module(maps.mean((1, 2, 3)), labels.to(maps)) * self.head.loss_weight
            return {'loss': loss + 0.01 * self.epoch, 'loss_size': self.loss_lambda * maps.square().mean()}
        for one, sample in zip(maps, data_samples, strict=False):
            PREDICTIONS[self.task](one, sample)
        return data_samples

    def predict_all(self, feats: dict, data_samples: list, num_images: int, num_texts: int) -> tuple[list, list]:
        """As retrieval loops ask: each image against all texts, and each text against all images."""
        from mmpretrain.structures import DataSample

        scores = feats['scores'].mean(1)
        pairs = []
        for count, other, key in ((num_images, num_texts, 'gt_text_id'), (num_texts, num_images, 'gt_image_id')):
            samples = [DataSample() for _ in range(count)]
            for i, sample in enumerate(samples):
                true = data_samples[i % len(data_samples)].get(key)
                sample.set_pred_score(torch.sin(scores[i % len(scores)] * (1 + torch.arange(other)))).set_gt_label(true)
            pairs.append(samples)
        return pairs[0], pairs[1]


@MODELS.register_module()
class SurveyPair(BaseModel):
    """A student and its teacher."""

    def __init__(self, data_preprocessor: dict | None = None, **toy: Any) -> None:
        super().__init__(data_preprocessor)
        self.student, self.teacher = (SurveyToy(**toy) for _ in range(2))
        self.semi_test_cfg = {'predict_on': 'teacher'}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        on = 'student' if kwargs.get('mode') == 'loss' else self.semi_test_cfg['predict_on']
        return getattr(self, on)(*args, **kwargs)


@MODELS.register_module()
class SurveyTTA(BaseTTAModel):
    """The first view's prediction stands for all."""

    def merge_preds(self, data_samples_list: list) -> list:
        return [views[0] for views in data_samples_list]


# --------------------------------------------------------------------------------------------------------------------
# Predictions of each task: maps [classes, H, W] and a sample, which is filled


def _instances(maps: torch.Tensor, sample: Any) -> InstanceData:
    """The true boxes a little off, and one that is wrong."""
    height, width = sample.ori_shape[:2]
    true = sample.get('gt_instances', InstanceData())
    boxes = torch.as_tensor(getattr(true.get('bboxes'), 'tensor', true.get('bboxes', torch.zeros(0, 4)))).float()
    labels = torch.as_tensor(true.get('labels', torch.zeros(len(boxes)))).long()
    wide = boxes.new_tensor([[0.1 * width, 0.2 * height, 0.8 * width, 0.9 * height]])
    boxes = torch.cat([boxes.view(-1, 4) + maps.mean(), wide])
    labels = torch.cat([labels[: len(boxes) - 1], labels.new_zeros(1)])
    scores = torch.sigmoid(maps.mean((1, 2))[labels.clamp(0, len(maps) - 1)] - torch.arange(len(boxes)) / 10)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    masks = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    return InstanceData(bboxes=boxes, labels=labels, scores=scores, masks=masks)


def _detect(maps: torch.Tensor, sample: Any) -> None:
    sample.pred_instances = _instances(maps, sample)


def _refer(maps: torch.Tensor, sample: Any) -> None:
    """One mask a sentence."""
    masks = sample.gt_masks.to_tensor(torch.bool, maps.device)
    sample.pred_instances = InstanceData(masks=masks.roll(int(1 + 10 * float(maps.mean().abs())), -1))


def _track(maps: torch.Tensor, sample: Any) -> None:
    for frame in sample.video_data_samples:
        frame.pred_instances = _instances(maps, frame)
        frame.pred_track_instances = _instances(maps, frame)
        frame.pred_track_instances.instances_id = torch.arange(len(frame.pred_instances))


def _resized(maps: torch.Tensor, sample: Any) -> torch.Tensor:
    return F.interpolate(maps[None], sample.ori_shape[:2], mode='bilinear')[0]


def _segment(maps: torch.Tensor, sample: Any) -> None:
    sample.pred_sem_seg = PixelData(data=_resized(maps, sample).argmax(0, keepdim=True))


def _segment_mmdet(maps: torch.Tensor, sample: Any) -> None:
    sample.pred_sem_seg = PixelData(sem_seg=_resized(maps, sample).argmax(0, keepdim=True))


def _measure(maps: torch.Tensor, sample: Any) -> None:
    sample.pred_depth_map = PixelData(data=1 + _resized(maps[:1], sample).abs())


def _classify(maps: torch.Tensor, sample: Any) -> None:
    scores = maps.mean((1, 2)).softmax(0)
    sample.set_pred_score(scores).set_pred_label(scores.argmax(0, keepdim=True))


def _classify_tasks(maps: torch.Tensor, sample: Any) -> None:
    for task in sample.tasks:
        _classify(maps, sample.get(task))
        sample.get(task).set_field(True, 'eval_mask', field_type='metainfo')


def _answer(maps: torch.Tensor, sample: Any) -> None:
    answer = ('yes', 'no', 'A')[int(1000 * float(maps.mean().abs())) % 3]
    for key, value in {'pred_answer': answer, 'pred_caption': f'a {answer}'}.items():
        sample.set_field(value, key)
    if 'gt_bboxes' in sample:
        sample.set_field(torch.as_tensor(np.asarray(sample.get('gt_bboxes'))).float() + maps.mean(), 'pred_bboxes')


def _embed(maps: torch.Tensor, sample: Any) -> None:
    sample.pred_feature = F.adaptive_avg_pool2d(maps, 2).flatten()


PREDICTIONS = {
    'answer': _answer,
    'caption': _answer,
    'classify': _classify,
    'classify several': _classify,
    'classify tasks': _classify_tasks,
    'depth': _measure,
    'detect': _detect,
    'detect boxes': _detect,
    'embed': _embed,
    'refer': _refer,
    'retrieval': _answer,
    'segment': _segment,
    'segment changes': _segment,
    'segment mmdet': _segment_mmdet,
    'track': _track,
    'track masks': _track,
}
