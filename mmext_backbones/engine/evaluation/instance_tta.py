"""Test-time augmentation for instance segmentation: views of several scales and flips, merged to boxes and masks.

As in Detectron's test with augmentations, in two passes over the views of a batch:

1. Each view's box head gives a box and a score for every proposal and class, before any NMS. The boxes are flipped
   back, brought to the original size and put together; one multi-class NMS over all views keeps the best.
2. The boxes that were kept are mapped into each view, and its mask head predicts a mask for exactly those. Masks are
   flipped back, averaged over the views, and pasted once at the original size.

Scores go into the merge as the head gives them: NMS within a view first would let one view discard a box that the
others support, and thin out what soft-NMS has to weigh. Boxes are not averaged, as the proposals of two views differ.

What is averaged of a mask is its probability, not its logit: that is how mmdet's cascades combine their stages, so
that stages and views are one mean, and ``mask_thr_binary`` is a threshold on probabilities.

Feature maps of one view are alive at a time. The second pass computes them again: a backbone run more a view, instead
of memory that grows with the number of views.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseTTAModel
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from ...registry import MODELS

__all__ = ['META_KEYS', 'InstanceTTAModel']

META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
GEOMETRY = META_KEYS[2:]  # how a view came from its image
FLIPPED_AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


@MODELS.register_module()
class InstanceTTAModel(BaseTTAModel):
    """Merges boxes and masks over the views of each image.

    Made for Mask R-CNN, Cascade Mask R-CNN and HTC, and for heads that change no more of them than the training or
    the box head. A detector without masks has the final boxes of its views merged, as mmdet's ``DetTTAModel`` does it.
    A single view that is not flipped is left to the detector: there is nothing to merge, and the prediction is that of
    a test without augmentation to the last bit, with the NMS of the model's ``test_cfg``.

    The views come from a ``TestTimeAug`` of ``Resize`` and ``RandomFlip``, packed with `META_KEYS`. Their flips are
    undone about ``img_shape``: a ``Pad`` has to stand before the flip.

    Args:
        module: The detector, or its config.
        tta_cfg: ``nms``, the config of the NMS over all views, and ``max_per_img``, how many boxes it keeps.
        data_preprocessor: Replaces the detector's in its config.

    Raises:
        ValueError: if `tta_cfg` lacks a key, or the detector has a mask head that works in another way.
    """

    def __init__(
        self, module: dict | nn.Module, tta_cfg: dict, data_preprocessor: dict | nn.Module | None = None
    ) -> None:
        if set(tta_cfg) != {'nms', 'max_per_img'}:
            raise ValueError(f'tta_cfg={dict(tta_cfg)}: expected the keys nms and max_per_img')
        super().__init__(module, data_preprocessor)
        self.tta_cfg = tta_cfg
        self.with_mask = bool(getattr(self.module, 'with_mask', False))
        if self.with_mask and not _works_by_boxes(self.module):
            raise ValueError(_refusal(self.module))

    @torch.no_grad()
    def test_step(self, data: dict[str, Sequence]) -> list[BaseDataElement]:
        """Predicts a batch.

        Args:
            data: ``inputs`` and ``data_samples``, each a list of views, each view a list of the batch's images.

        Returns:
            A data sample an image: that of its first view, with the merged ``pred_instances``: ``bboxes`` [N, 4] as
            (x1, y1, x2, y2) in pixels of the original image, ``scores`` [N], ``labels`` [N] and, of a detector with
            masks, ``masks`` bool [N, H, W]; best score first.

        Raises:
            ValueError: if a view does not say how it came from its image, or the detector predicts masks in a way that
                does not follow from boxes.
        """
        num_views = len(data['data_samples'])
        views = [{key: value[i] for key, value in data.items()} for i in range(num_views)]
        for view in views:
            for sample in view['data_samples']:
                _check_geometry(sample.metainfo)
        if num_views == 1 and not any(sample.flip for sample in views[0]['data_samples']):
            return self.module.test_step(views[0])
        if not self.with_mask:
            return super().test_step(data)
        return self._merge_instances(views)

    def _merge_instances(self, views: Sequence[dict]) -> list[BaseDataElement]:
        candidates = [self._predict_boxes(view) for view in views]  # of each view, of each image
        merged = [self._merge_boxes(of_image) for of_image in zip(*candidates, strict=True)]
        del candidates
        if any(len(instances) for instances in merged):
            boxes = [instances.bboxes for instances in merged]
            masks = self._predict_masks(views[0], boxes)
            for view in views[1:]:
                for total, of_view in zip(masks, self._predict_masks(view, boxes), strict=True):
                    total += of_view
            masks = [total / len(views) for total in masks]
        else:
            masks = [None] * len(merged)

        roi_head = self.module.roi_head
        _, samples = self._preprocess(views[0])
        mask_head = roi_head.mask_head[-1] if isinstance(roi_head.mask_head, nn.ModuleList) else roi_head.mask_head
        merged = mask_head.predict_by_feat(
            mask_preds=masks,
            results_list=merged,
            batch_img_metas=[{'ori_shape': sample.ori_shape, 'scale_factor': (1.0, 1.0)} for sample in samples],
            rcnn_test_cfg=roi_head.test_cfg,
            rescale=True,
            activate_map=True,
        )
        return self.module.add_pred_to_datasample(samples, merged)

    def _preprocess(self, view: dict) -> tuple[Tensor, list[BaseDataElement]]:
        """The normalised and padded images [B, 3, H, W] of a view, and data samples that know the padding."""
        data = self.module.data_preprocessor(view, False)
        return data['inputs'], data['data_samples']

    def _predict_boxes(self, view: dict) -> list[tuple[Tensor, Tensor]]:
        """Of each image what its view offers: boxes [P, 4 * classes or 4] in the original image and scores
        [P, classes + 1], the last of them the background's.
        """
        inputs, samples = self._preprocess(view)
        x = self.module.extract_feat(inputs)
        metas = [sample.metainfo for sample in samples]
        proposals = self.module.rpn_head.predict(x, samples, rescale=False)
        results = self.module.roi_head.predict_bbox(
            x=x,
            batch_img_metas=metas,
            rpn_results_list=proposals,
            rcnn_test_cfg=None,  # asks for the boxes before NMS
            rescale=False,
            **_semantic(self.module.roi_head, x),
        )
        return [(_to_image(one.bboxes, meta), one.scores) for one, meta in zip(results, metas, strict=True)]

    def _merge_boxes(self, of_image: Sequence[tuple[Tensor, Tensor]]) -> InstanceData:
        from mmdet.models.layers import multiclass_nms

        # where nothing was proposed the boxes have four columns, elsewhere four a class
        some = [pair for pair in of_image if len(pair[0])] or of_image[:1]
        boxes, scores = (torch.cat(parts) for parts in zip(*some, strict=True))
        score_thr = self.module.roi_head.test_cfg.score_thr
        dets, labels = multiclass_nms(boxes, scores, score_thr, self.tta_cfg['nms'], self.tta_cfg['max_per_img'])
        return InstanceData(bboxes=dets[:, :4], scores=dets[:, 4], labels=labels)

    def _predict_masks(self, view: dict, boxes: Sequence[Tensor]) -> list[Tensor]:
        """Of each image the probabilities [N, classes or 1, h, w] of its `boxes` [N, 4], seen in a view."""
        from mmdet.structures.bbox import bbox2roi

        inputs, samples = self._preprocess(view)
        x = self.module.extract_feat(inputs)
        metas = [sample.metainfo for sample in samples]
        rois = bbox2roi([_to_view(one, meta) for one, meta in zip(boxes, metas, strict=True)])
        masks = _mask_probabilities(self.module.roi_head, x, rois).split([len(one) for one in boxes])
        return [
            one.flip(FLIPPED_AXES[meta['flip_direction']]) if meta['flip'] else one
            for one, meta in zip(masks, metas, strict=True)
        ]

    def merge_preds(self, data_samples_list: Sequence[Sequence[BaseDataElement]]) -> list[BaseDataElement]:
        """Merges the final boxes of a detector without masks.

        Args:
            data_samples_list: Of each image its views, as the detector predicted them.

        Raises:
            ValueError: if there are masks.
        """
        return [self._merge_final_boxes(views) for views in data_samples_list]

    def _merge_final_boxes(self, views: Sequence[BaseDataElement]) -> BaseDataElement:
        from mmcv.ops import batched_nms
        from mmdet.structures.bbox import bbox_flip

        if any('masks' in view.pred_instances for view in views):
            raise ValueError(_refusal(self.module))
        # at the original size already, and still flipped
        boxes = torch.cat(
            [
                bbox_flip(view.pred_instances.bboxes, view.ori_shape, view.flip_direction)
                if view.flip
                else view.pred_instances.bboxes
                for view in views
            ]
        )
        scores = torch.cat([view.pred_instances.scores for view in views])
        labels = torch.cat([view.pred_instances.labels for view in views])
        if len(boxes):
            dets, keep = batched_nms(boxes, scores, labels, self.tta_cfg['nms'])
            boxes, scores, labels = dets[:, :4], dets[:, 4], labels[keep]
        instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        views[0].pred_instances = instances[: self.tta_cfg['max_per_img']]
        return views[0]


# --------------------------------------------------------------------------------------------------------------------
# Two-stage heads


def _works_by_boxes(detector: nn.Module) -> bool:
    """Whether masks follow from boxes as this module assumes: no part of a head's prediction is redefined."""
    from mmdet.models.detectors import TwoStageDetector
    from mmdet.models.roi_heads import CascadeRoIHead, HybridTaskCascadeRoIHead, StandardRoIHead

    if not isinstance(detector, TwoStageDetector) or not (detector.with_rpn and detector.with_roi_head):
        return False
    kind = type(detector.roi_head)
    return type(detector).predict is TwoStageDetector.predict and any(
        all(getattr(kind, name) is getattr(known, name) for name in ('predict', 'predict_bbox', 'predict_mask'))
        for known in (StandardRoIHead, CascadeRoIHead, HybridTaskCascadeRoIHead)
    )


def _refusal(detector: nn.Module) -> str:
    roi_head = getattr(detector, 'roi_head', None)
    name = type(detector).__name__ + (f' with {type(roi_head).__name__}' if roi_head is not None else '')
    return (
        f'{name} predicts masks in another way than from boxes by the roi_head of Mask R-CNN, Cascade Mask R-CNN or '
        'HTC: its views cannot be merged. Test it without test-time augmentation.'
    )


def _semantic(roi_head: nn.Module, x: Sequence[Tensor]) -> dict[str, Any]:
    """The further input of HTC's heads: the features of its semantic branch."""
    return {'semantic_feat': roi_head.semantic_head(x)[1]} if getattr(roi_head, 'with_semantic', False) else {}


def _mask_probabilities(roi_head: nn.Module, x: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Masks [N, classes or 1, h, w] of the regions [N, 5] of a view, averaged over the stages that the head itself
    averages: all of Cascade R-CNN, the last of HTC.
    """
    from mmdet.models.roi_heads import CascadeRoIHead, HybridTaskCascadeRoIHead

    if isinstance(roi_head, HybridTaskCascadeRoIHead):
        stages = roi_head._mask_forward(-1, x, rois, training=False, **_semantic(roi_head, x))['mask_preds']
    elif isinstance(roi_head, CascadeRoIHead):
        stages = [roi_head._mask_forward(stage, x, rois)['mask_preds'] for stage in range(roi_head.num_stages)]
    else:
        stages = [roi_head._mask_forward(x, rois)['mask_preds']]
    return torch.stack([logits.float().sigmoid() for logits in stages]).mean(dim=0)


# --------------------------------------------------------------------------------------------------------------------
# Views


def _to_image(boxes: Tensor, meta: dict) -> Tensor:
    """Boxes of a view [..., 4 * k] in the original image: first the flip is undone, then the scale."""
    from mmdet.structures.bbox import bbox_mapping_back

    return bbox_mapping_back(boxes, meta['img_shape'], 2 * tuple(meta['scale_factor']), *_flip(meta))


def _to_view(boxes: Tensor, meta: dict) -> Tensor:
    """Boxes of the original image [N, 4] in a view."""
    from mmdet.structures.bbox import bbox_mapping

    return bbox_mapping(boxes, meta['img_shape'], 2 * tuple(meta['scale_factor']), *_flip(meta))


def _flip(meta: dict) -> tuple[bool, str | None]:
    return meta['flip'], meta['flip_direction']


def _check_geometry(meta: dict) -> None:
    missing = [key for key in GEOMETRY if key not in meta]
    if missing:
        raise ValueError(
            f'the views do not say their {", ".join(missing)}: a view needs a Resize, a RandomFlip (prob=0.0 for '
            f'none) and PackDetInputs with meta_keys={META_KEYS}'
        )
    if meta['flip'] and meta['flip_direction'] not in FLIPPED_AXES:
        raise ValueError(f'flip_direction={meta["flip_direction"]!r}: expected one of {sorted(FLIPPED_AXES)}')
