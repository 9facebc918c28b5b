"""The short check of one installed stack: imports, numbers, a training with all that comes after it.

python dev/stack_check.py --json result.json      # run by dev/stacks.py with the interpreter of each stack

Each check is a process of its own in a folder that is removed afterwards. Nothing is fetched. The networks are thin,
the images 64 pixels wide; everything else is what a user runs.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTPUTS = ROOT / 'tests/data/small_backbones.npz'
TOLERANCE = 2e-5  # of the largest value of a map, float32 sums in another order
THIN = {'embed_dims': 24, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}
WIDTHS = [24, 48, 96, 192]
CONFIGS = {
    'detection': f"""
_base_ = 'mmext_backbones::elsa_swin_t_maskrcnn_1x.py'
model = dict(
    backbone=dict(_delete_=True, type='mmext_backbones.ELSASwin', arch={THIN | {'group_width': 4}}),
    neck=dict(in_channels={WIDTHS}, out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        mask_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32)))
""",
    'segmentation': f"""
_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(_delete_=True, type='mmext_backbones.SwinTransformer', arch={THIN}),
    decode_head=dict(in_channels={WIDTHS}, channels=32),
    auxiliary_head=dict(in_channels=96, channels=32))
""",
    'classification': f"""
_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'
model = dict(backbone=dict(_delete_=True, type='mmext_backbones.SwinTransformer', arch={THIN}, out_indices=(3,)),
             head=dict(in_channels=192))
""",
}
CHECKS: dict[str, Callable] = {}


def check(function: Callable) -> Callable:
    CHECKS[function.__name__.replace('_', ' ')] = function
    return function


def run(*command: str) -> str:
    """What a command printed; it has to end with exit code 0."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=900,
        env={**os.environ, 'PYTHONPATH': paths, 'MPLBACKEND': 'Agg'},
    )  # fmt: skip
    text = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f'{" ".join(map(str, command))[:200]}: exit code {done.returncode}\n{text[-3000:]}')
    return text


def line(text: str, part: str) -> str:
    """The line that has `part`; libraries say other things before and after."""
    return next(each for each in text.splitlines() if part in each)


def tool(name: str, *args: str) -> str:
    """A tool on a small drawn set in place of the one that `--shapes` would draw."""
    code = (
        'import sys, runpy\n'
        'from pathlib import Path\n'
        'from pathlib import Path\n'
        'from mmext_backbones.engine import setup\n'
        "setup.make_default_shapes = lambda: Path('made')\n"
        f'sys.argv = {[name, *args]!r}\n'
        f"runpy.run_path({str(ROOT / 'tools' / f'{name}.py')!r}, run_name='__main__')\n"
    )
    return run('-c', code)


def short(iters: int) -> list[str]:
    return ['--shapes', '--cfg-options', f'train_cfg.max_iters={iters}', 'default_hooks.logger.interval=1']


@check
def imports() -> str:
    text = run(
        '-c',
        'import mmext_backbones, mmcv.ops, mmdet.apis, mmseg.apis, mmpretrain.apis\n'
        'from mmext_backbones.mmcv_ops.showing import describe\n'
        'print(describe())',
    )
    return line(text, "mmcv's operators: ")


@check
def backbones() -> str:
    """Maps and the gradient of the image of the four families, in float32, against those that are stored."""
    return line(run(__file__, '--backbones'), ' apart')


@check
def train() -> str:
    run(
        '-c',
        "from mmext_backbones.datasets.shapes import make_shapes; make_shapes('made', size=64, num_train=8, num_val=3)",
    )
    for name, text in CONFIGS.items():
        Path(f'{name}.py').write_text(text)
    text = tool('train', 'detection.py', *short(2))
    assert 'mask' in text.rpartition('Saving checkpoint')[2], text[-2000:]
    return ''


@check
def test() -> str:
    text = tool('test', 'detection.py', 'work_dirs/detection_shapes/iter_2.pth', '--shapes')
    assert 'mask' in text, text[-2000:]
    return ''


@check
def resume() -> str:
    text = tool('train', 'detection.py', *short(3), '--resume')
    assert 'resumed epoch: 0, iter: 2' in text, text[-2000:]
    assert Path('work_dirs/detection_shapes/iter_3.pth').is_file()
    return ''


@check
def segmentation() -> str:
    tool('train', 'segmentation.py', *short(2))
    text = tool('train', 'segmentation.py', *short(3), '--resume')
    assert 'iter: 2' in text, text[-2000:]
    assert 'mIoU' in tool('test', 'segmentation.py', 'work_dirs/segmentation_shapes/iter_3.pth', '--shapes')
    return ''


@check
def classification() -> str:
    tool('train', 'classification.py', *short(2))
    assert 'top1' in tool('test', 'classification.py', 'work_dirs/classification_shapes/iter_2.pth', '--shapes')
    return ''


@check
def weights() -> str:
    """A file in the authors' layout fills a backbone; one that would run a command runs nothing."""
    run('-c', """
import os, pickle, pytest, torch
from mmengine.registry import MODELS
from mmext_backbones.weights.fitting import WeightsError
from mmext_backbones.weights.loading import read
arch = dict(embed_dims=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
def build(**options):
    model = MODELS.build(dict(type='mmext_backbones.SwinTransformer', arch=arch, **options))
    model.init_weights()
    return model
first = build()
torch.save({'model': first.state_dict()}, 'weights.pth')
second = build(init_cfg=dict(type='Pretrained', checkpoint='weights.pth'))
assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
class Command:
    def __reduce__(self):
        return os.system, ('touch ran',)
torch.save({'model': Command()}, 'bad.pth')
with pytest.raises(WeightsError):
    read('bad.pth')
assert not os.path.exists('ran')
""")  # fmt: skip
    return ''


@check
def swap() -> str:
    run('-m', 'mmext_backbones.swap', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '--backbone', 'maxvit_t',
        '-o', 'swapped.py')  # fmt: skip
    assert 'mmext_backbones.MaxViT' in Path('swapped.py').read_text()
    return ''


@check
def doctor() -> str:
    run('-m', 'mmext_backbones.doctor')
    return ''


@check
def tools_of_mmdet() -> str:
    """mmdet's own training tool, which does not know this package, on the config that our training left."""
    folder = Path(importlib.util.find_spec('mmdet').submodule_search_locations[0])
    config = 'work_dirs/detection_shapes/detection.py'
    options = ['--cfg-options', 'resume=False', 'load_from=None']  # it is the config of the resumed training
    text = run(folder / '.mim/tools/train.py', config, '--work-dir', 'theirs', *options)
    assert 'segm_mAP' in text, text[-2000:]
    return ''


def compare_backbones(store: bool) -> None:
    """Compares small networks with the stored file, or writes it."""
    import numpy as np
    import torch

    import mmext_backbones.backbones as families
    from tests.conftest import seeded_tensor
    from tests.test_backbones.test_contract import SMALL

    found = {}
    for cls, arch in SMALL.items():
        model = getattr(families, cls.__name__)(arch).eval()
        state = model.state_dict()
        model.load_state_dict({k: seeded_tensor(k, v.shape) if v.is_floating_point() and 'running' not in k else v
                               for k, v in state.items()})  # fmt: skip
        image = torch.from_numpy(np.random.default_rng(7).standard_normal((1, 3, 33, 49), dtype=np.float32))
        image.requires_grad_()
        outs = model(image)
        sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outs).backward()
        found |= {f'{cls.__name__}.out{i}': out.detach().numpy() for i, out in enumerate(outs)}
        found[f'{cls.__name__}.grad_image'] = image.grad.numpy()
    if store:
        np.savez_compressed(OUTPUTS, **found)
        return
    stored = np.load(OUTPUTS)
    assert found.keys() == set(stored.files)
    worst = max(float(abs(found[name] - stored[name]).max() / abs(stored[name]).max()) for name in found)
    assert worst <= TOLERANCE, f'{worst:.1e} apart from the stored outputs, and {TOLERANCE:.0e} is allowed'
    print(f'{worst:.1e} apart')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results there, too')
    parser.add_argument('--only', nargs='+', choices=CHECKS, metavar='CHECK', help=f'of: {", ".join(CHECKS)}')
    parser.add_argument('--backbones', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--store', action='store_true', help=f'write {OUTPUTS.relative_to(ROOT)} from this stack')
    args = parser.parse_args()
    if args.backbones or args.store:
        sys.path.insert(0, str(ROOT))
        compare_backbones(args.store)
        return 0
    results = {}
    with tempfile.TemporaryDirectory() as folder, inside(folder):
        for name in args.only or CHECKS:
            started = time.time()
            try:
                result = {'ok': True, 'text': CHECKS[name]()}
            except Exception as error:
                result = {'ok': False, 'text': f'{type(error).__name__}: {error}'}
            results[name] = {**result, 'seconds': round(time.time() - started)}
            print(f'{name:<16} {"ok" if result["ok"] else "FAILED"}  {result["text"]}', flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 0 if all(result['ok'] for result in results.values()) else 1


@contextlib.contextmanager
def inside(folder: str) -> Iterator[None]:
    """Works in a folder; `contextlib.chdir` is of Python 3.11."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == '__main__':
    sys.exit(main())
