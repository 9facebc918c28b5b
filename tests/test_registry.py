"""The package in a process of its own: what importing it needs, and how configs of others find it."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_qualified_type_builds_with_nothing_imported_but_the_library(library):
    pytest.importorskip(library)
    code = (
        'import sys\n'
        f'from {library}.registry import MODELS\n'
        "assert 'mmext_backbones' not in sys.modules\n"
        'for name in ("ELSASwin", "SwinTransformer"):\n'
        "    model = MODELS.build(dict(type=f'mmext_backbones.{name}', arch='tiny'))\n"
        '    print(type(model).__module__, type(model).__name__)\n'
    )
    assert run(code).splitlines() == [
        'mmext_backbones.backbones.elsa_swin ELSASwin',
        'mmext_backbones.backbones.swin SwinTransformer',
    ]


def test_import_needs_torch_and_mmengine_only():
    refused = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm', 'torchvision', 'triton')
    code = (
        'import sys\n'
        f'for name in {refused}:\n'
        '    sys.modules[name] = None\n'  # importing any of these now raises ImportError
        'import mmext_backbones, torch\n'
        'from mmext_backbones.backbones import ELSASwin\n'
        "print(len(ELSASwin('tiny')(torch.zeros(1, 3, 32, 32))))\n"
    )
    assert run(code) == '4'
