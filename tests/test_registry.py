"""The package in a process of its own: what importing it needs, and how configs of others find it."""

import pytest


def run(interpreter, code: str) -> str:
    result = interpreter.run(code)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    'library', ['mmdet', *(pytest.param(name, marks=pytest.mark.slow) for name in ('mmseg', 'mmpretrain'))]
)
def test_qualified_type_builds_with_nothing_imported_but_the_library(library, fresh):
    pytest.importorskip(library)
    code = (
        'import sys\n'
        f'from {library}.registry import MODELS\n'
        "assert 'mmext_backbones' not in sys.modules\n"
        'for name in ("ELSASwin", "SwinTransformer"):\n'
        "    model = MODELS.build(dict(type=f'mmext_backbones.{name}', arch='tiny'))\n"
        '    print(type(model).__module__, type(model).__name__)\n'
    )
    assert run(fresh(library), code).splitlines() == [
        'mmext_backbones.backbones.elsa_swin ELSASwin',
        'mmext_backbones.backbones.swin SwinTransformer',
    ]


def test_import_needs_torch_and_mmengine_only(fresh):
    refused = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm', 'torchvision', 'triton')
    code = (
        'import sys\n'
        f'for name in {refused}:\n'
        '    sys.modules[name] = None\n'  # importing any of these now raises ImportError
        'import mmext_backbones, torch\n'
        'from mmext_backbones.backbones import ELSASwin\n'
        "print(len(ELSASwin('tiny')(torch.zeros(1, 3, 32, 32))))\n"
    )
    assert run(fresh(), code) == '4'


def test_import_changes_these_names_of_other_libraries_and_no_more(fresh):
    """The list of CONTRIBUTING.md, "What we change in other libraries"."""
    code = (
        'import sys\n'
        'import torch, torch.serialization, mmengine, mmengine.runner, mmengine.hub.hub, mmengine._strategy\n'
        'def names():\n'
        '    found = {}\n'
        '    for module, value in list(sys.modules.items()):\n'
        "        if module.partition('.')[0] not in ('torch', 'torchvision', 'mmengine', 'numpy'):\n"
        '            continue\n'
        '        for name, of_module in list(vars(value).items()):\n'
        '            found[module, name] = id(of_module)\n'
        '            if isinstance(of_module, type) and of_module.__module__ == module:\n'
        '                found |= {(module, name, x): id(y) for x, y in list(vars(of_module).items())}\n'
        '    return found\n'
        'before = names()\n'
        'import mmext_backbones\n'
        'after = names()\n'
        "print(*sorted('.'.join(key) for key in before if before[key] != after.get(key)))\n"
    )
    by_its_own_function = {'torch._weights_only_unpickler._marked_safe_globals_set'}
    assert set(run(fresh(), code).split()) - by_its_own_function == {
        'mmengine.config.config._get_package_and_cfg_path',
        'mmengine.hub.hub._get_package_and_cfg_path',
        'mmengine.runner.checkpoint.load_from_http',
    }
