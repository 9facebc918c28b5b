"""Adds test-time augmentation to a config: the views of a picture, and the model that merges them."""

import re
from copy import deepcopy

from mmengine.config import Config, ConfigDict

from ...config.editing import walk
from ...utils.errors import UserError
from .instance_tta import META_KEYS

__all__ = ['use_tta']

INSTANCE_TTA_MODEL = 'mmext_backbones.InstanceTTAModel'


def use_tta(cfg: Config) -> None:
    """Wraps the model and takes the pipeline of views; a flip where the config has none and its library has one."""
    scope = cfg.get('default_scope')
    tta_cfg = {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100}
    defaults = {
        'mmdet': {'type': 'DetTTAModel', 'tta_cfg': tta_cfg},
        'mmpretrain': {'type': 'AverageClsScoreTTA'},
    }
    if scope == 'mmdet' and _predicts_masks(cfg):
        if not (cfg.model.get('roi_head') or {}).get('mask_head'):
            raise UserError(
                f'--tta: {cfg.model.type} predicts masks without a roi_head, and only masks that follow from boxes can '
                'be merged over views. Test it without --tta.'
            )
        defaults['mmdet'] = {'type': INSTANCE_TTA_MODEL, 'tta_cfg': tta_cfg}
        if str((cfg.get('tta_model') or {}).get('type')).endswith('DetTTAModel'):
            raise UserError(
                "--tta: the config's tta_model, mmdet's DetTTAModel, merges boxes only, and this model predicts masks. "
                f'Take the one that merges both: --cfg-options tta_model.type={INSTANCE_TTA_MODEL}'
            )
    if cfg.get('tta_model') is None:
        if scope not in defaults:
            raise UserError('--tta: the config has no tta_model. Add one, e.g. tta_model=dict(type="SegTTAModel").')
        cfg.tta_model = ConfigDict(defaults[scope])
    leaves = [node for _, node in walk(cfg.test_dataloader.dataset) if node.get('pipeline') and not _wraps(node)]
    if not leaves:
        raise UserError('--tta: the test data set of the config has no pipeline, whose views could be taken.')
    dataset = leaves[0]
    if cfg.get('tta_pipeline') is None:
        if scope not in defaults:
            raise UserError('--tta: the config has no tta_pipeline, the views to predict. Add one to it.')
        pack = deepcopy(dataset.pipeline[-1])
        if scope == 'mmdet':
            pack['meta_keys'] = META_KEYS
        # the flipped view last: a merged prediction keeps the ground truth of the first
        flips = [{'type': 'RandomFlip', 'prob': prob} for prob in (0.0, 1.0)]
        cfg.tta_pipeline = [*dataset.pipeline[:-1], {'type': 'TestTimeAug', 'transforms': [flips, [pack]]}]
    for leaf in leaves:
        leaf.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _wraps(dataset: dict) -> bool:
    return 'dataset' in dataset or 'datasets' in dataset


def _predicts_masks(cfg: Config) -> bool:
    """Whether a detector does: it has a mask head, one or a list of them, or is measured by masks."""
    heads = any(re.search(r'mask_head(\.\d+)?$', path) for path, _ in walk(cfg.model))
    return heads or any('segm' in (node.get('metric') or []) for _, node in walk(cfg.get('test_evaluator')))
