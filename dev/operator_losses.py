"""Losses of configs that use mmcv's operators, with whichever operators run in this environment.

python dev/operator_losses.py --json compiled.json     # with mmcv compiled: make env MMCV=compiled VENV=...
python dev/operator_losses.py --against compiled.json  # with the stand-ins: prints the largest difference of each
python dev/operator_losses.py --stand-ins              # the stand-ins where a compiled mmcv is, too

tests/data/mmcv_losses.json holds what the first line wrote; tests/test_mmcv_ops/test_losses_of_configs.py compares.
"""

import argparse
import copy
import importlib.util
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'dev'))

SIZE = 128  # pixels, height and width of the images
LARGE = {'dino': 256}  # where 128 pixels have fewer tokens than the model has queries
# config -> the operators it is here for
CONFIGS = {
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': 'nms, roi_align',
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': 'nms, roi_align',
    'mmdet::htc/htc_r50_fpn_1x_coco.py': 'nms, roi_align',
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': 'sigmoid_focal_loss',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': 'nms',
    'mmdet::dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py': 'deform_conv',
    'mmdet::dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py': 'deform_roi_pool',
    'mmdet::dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py': 'modulated_deform_conv',
    'mmdet::dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py': 'deform_roi_pool with a mask',
    'mmdet::detectors/cascade-rcnn_r50-sac_1x_coco.py': 'deform_conv (SAC)',
    'mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py': 'deform_conv',
    'mmdet::vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py': 'deform_conv, modulated_deform_conv',
    'mmdet::tood/tood_r50_fpn_1x_coco.py': 'deform_conv',
    'mmdet::guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py': 'deform_conv, masked_conv',
    'mmdet::pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py': 'nms_match',
    'mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py': 'carafe',
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py': 'softnms',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': 'ms_deform_attn',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py': 'ms_deform_attn',
    'mmseg::psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py': 'psamask',
    'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py': 'ms_deform_attn',
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py': 'none',
}


def figures(name: str) -> dict[str, float]:
    """A model with random weights on one random batch, in numbers.

    Args:
        name: Of the config.

    Returns:
        Every loss; the norm of all gradients; then, in eval mode and with every score let through, how many boxes are
        predicted and the sums of their scores and sides, or the sum of the classes of all pixels.
    """
    import survey_steps as steps

    library, _, path = name.partition('::')
    size = next((size for part, size in LARGE.items() if path.startswith(part)), SIZE)
    cfg = steps.load(library, path)
    with steps._environment(cfg, library):
        plain = steps._plain(cfg.model, size)
        let_all_through(plain.get('test_cfg') or {})
        model = steps.build(plain).train()
        batch = steps.batch(plain, library, size)
        losses = model(**model.data_preprocessor(copy.deepcopy(batch), True), mode='loss')
        found = {}
        total = 0
        for key, value in losses.items():
            terms = value if isinstance(value, (list, tuple)) else [value]
            value = sum(term.mean() for term in terms)
            found[key] = float(value.detach())
            total = total + value if 'loss' in key else total
        total.backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found['norm of the gradients'] = float(torch.stack([grad.norm() for grad in grads]).norm())
        model.eval()
        batch = {key: value[:1] for key, value in batch.items()}  # guided anchoring takes one image at a time
        with torch.no_grad():
            samples = model(**model.data_preprocessor(batch, False), mode='predict')
    return found | predicted(samples)


def let_all_through(test_cfg: Mapping) -> None:
    """Scores of random weights lie below what counts as a detection."""
    for key, value in test_cfg.items():
        if key == 'score_thr':
            test_cfg[key] = 0.0
        elif isinstance(value, Mapping):
            let_all_through(value)


def predicted(samples: Sequence) -> dict[str, float]:
    if hasattr(samples[0], 'pred_sem_seg'):
        return {'classes': float(sum(sample.pred_sem_seg.data.double().sum() for sample in samples))}
    boxes = torch.cat([sample.pred_instances.bboxes for sample in samples]).double().clamp(-1000, 1000)
    scores = torch.cat([sample.pred_instances.scores for sample in samples]).double()
    sides = boxes[:, 2:] - boxes[:, :2]
    return {
        'boxes': len(boxes),
        'scores': float(scores.sum()),
        'sides': float(sides.mean()) if len(boxes) else 0.0,
    }


def apart(found: dict[str, float], given: dict[str, float]) -> float:
    """Largest difference, relative to the value where it is above 1."""
    assert found.keys() == given.keys(), f'{sorted(found)} and {sorted(given)}'
    return max(abs(found[key] - given[key]) / max(1, abs(given[key])) for key in found)


def use_stand_ins() -> None:
    """The stand-ins also where mmcv is compiled."""
    from mmext_backbones.mmcv_ops.finder import EXTENSION, ExtensionFinder

    finder = ExtensionFinder()
    module = sys.modules[EXTENSION] = importlib.util.module_from_spec(finder.find_spec(EXTENSION))
    finder.exec_module(module)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the losses there')
    parser.add_argument('--against', type=Path, metavar='FILE', help='compare with losses written before')
    parser.add_argument('--stand-ins', action='store_true', help='even where mmcv is compiled')
    args = parser.parse_args()
    logging.disable(logging.INFO)  # mmengine tells how every parameter is initialised
    import mmext_backbones  # noqa: F401  (finds the stand-ins where there is no compiled mmcv)

    if args.stand_ins:
        use_stand_ins()
    given = json.loads(args.against.read_text()) if args.against else {}
    all_found, worst = {}, 0.0
    for name, operators in CONFIGS.items():
        try:
            all_found[name] = found = figures(name)
        except Exception as error:
            all_found[name] = found = {'error': f'{type(error).__name__}: {error}'.partition('\n')[0][:200]}
        told = found.get('error', 'ran')
        if name in given and 'error' not in given[name] and 'error' not in found:
            difference = apart(found, given[name])
            worst = max(worst, difference)
            told = f'{difference:.1e} apart'
        print(f'{name:<88} {operators:<28} {told}', flush=True)
    if args.against:
        print(f'largest difference: {worst:.1e}')
    if args.json:
        args.json.write_text(json.dumps(all_found, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
