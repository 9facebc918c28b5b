"""Files of torch.export: for any size, loaded where this package is not."""

import subprocess
import sys

import pytest
import torch

from mmext_backbones.backbones import ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.export import export_torch

from ..test_backbones.test_contract import image
from .networks import ARCHS, SIZES, network, smallest

LOAD = """
import sys
sys.modules['mmext_backbones'] = sys.modules['mmengine'] = None  # as if they were not installed
import torch
for path in sys.argv[1:]:
    inputs, expected = torch.load(path + '.maps')
    extra = {'mmext_backbones.backbone': ''}
    module = torch.export.load(path + '.pt2', extra_files=extra).module()
    with torch.no_grad():
        for x, maps in zip(inputs, expected, strict=True):
            torch.testing.assert_close(module(x), maps, rtol=1e-5, atol=1e-5)
    print(extra['mmext_backbones.backbone'])
"""

# ELSA's taps are written out; windows that grow with the image
OPTIONS = {ELSASwin: {'out_indices': (0,)}, MaxViT: {'window_size': 'scaled'}}


def load_without_the_package(*stems):
    """Runs LOAD; the names of the backbones that the files say."""
    ran = subprocess.run([sys.executable, '-c', LOAD, *map(str, stems)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def save_maps(model, inputs, stem):
    with torch.no_grad():
        torch.save((inputs, [model(x) for x in inputs]), stem.with_suffix('.maps'))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The file of one block for two images, its maps beside it."""
    model, stem = smallest().eval(), tmp_path_factory.mktemp('torch') / 'net'
    save_maps(model, [image(*size, batch=2) for size in SIZES], stem)
    return export_torch(model, stem.with_suffix('.pt2'), size=(64, 96), batch=2)


def test_a_file_needs_pytorch_alone(made):
    assert load_without_the_package(made.path.with_suffix('')) == ['"SwinTransformer"']
    assert b'torch.ops.mmext_backbones' not in made.path.read_bytes()


@pytest.mark.slow
def test_files_of_all_families_need_pytorch_alone(tmp_path):
    """Of all networks by what stands in their graphs; two of them, one with loops, in a process without the package."""
    stems = []
    for cls in ARCHS:
        model = network(cls, **OPTIONS.get(cls, {})).eval()
        stem = tmp_path / cls.__name__
        made = export_torch(model, stem.with_suffix('.pt2'), size=(64, 96))
        assert {row.size for row in made.differences} == {(64, 96), (41, 109), (85, 49)}
        assert all(row.relative < 1e-5 for row in made.differences)
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        assert made.path.stat().st_size < 2 * weights + 2**20  # no images beside them
        assert b'torch.ops.mmext_backbones' not in made.path.read_bytes()
        if cls in (SwinTransformer, Sequencer2D):
            save_maps(model, [image(*size) for size in SIZES], stem)
            stems.append(stem)
    assert load_without_the_package(*stems) == ['"SwinTransformer"', '"Sequencer2D"']


def test_other_images_than_recorded_are_refused(made):
    with pytest.raises(RuntimeError, match=r'shape\[2\] to be >= 33, but got 32'):
        made.run(image(32, 64, batch=2))
    with pytest.raises((RuntimeError, AssertionError), match=r'shape\[0\]'):
        made.run(image(64, 64))
    assert made.run(image(33, 64, batch=2))[0].shape == (2, 16, 9, 16)
