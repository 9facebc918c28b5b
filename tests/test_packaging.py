"""What a release holds: source archive and wheel, built as docs/releasing.md says and used in an empty environment."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import mmext_backbones

ROOT = Path(__file__).parents[1]


def run(*command, cwd) -> str:
    """Runs a command that must succeed; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """(source archive, wheel); the wheel is built from the archive, as `python -m build` does."""
    source = folder / 'source'  # a build leaves files behind
    skipped = shutil.ignore_patterns('.*', 'data', 'work_dirs', 'site', 'build', 'dist', '*.egg-info', '__pycache__')
    shutil.copytree(ROOT, source, ignore=lambda folder, names: skipped(folder, names) if folder == str(ROOT) else set())
    run(sys.executable, '-m', 'build', '--no-isolation', source, cwd=source.parent)
    (archive,), (wheel,) = source.glob('dist/*.tar.gz'), source.glob('dist/*.whl')
    return archive, wheel


def install(wheel: Path, folder: Path) -> Path:
    """The interpreter of a new environment with the wheel, and the libraries of this one, but not this checkout."""
    venv.create(folder, with_pip=False)
    python = folder / 'bin' / 'python'
    (packages,) = folder.glob('lib/python*/site-packages')
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', wheel, cwd=folder)
    # a line of a .pth file adds a folder without reading the .pth files in it, among them that of this checkout
    (packages / 'libraries.pth').write_text(str(Path(torch.__file__).parents[1]))
    return python


def shipped(*patterns) -> set[str]:
    files = {str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern) if p.is_file()}
    return {name for name in files if '__pycache__' not in name and '.mim' not in name}


CODE = shipped('mmext_backbones/**/*.py', 'mmext_backbones/**/*.c')
PARTS = shipped('configs/**/*.py', 'configs/**/*.yml', 'tools/**/*.py', 'tools/*.sh', 'model-index.yml')


def test_what_is_installed_is_whole(tmp_path):
    run(sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', tmp_path, cwd=ROOT)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file()}
    assert CODE | {f'mmext_backbones/.mim/{name}' for name in PARTS} <= names
    assert not [name for name in names if not name.startswith('mmext_backbones/')]


@pytest.fixture(scope='module')
def release(tmp_path_factory):
    pytest.importorskip('build', reason='the package `build` is not installed (requirements/extras.txt)')
    return build(tmp_path_factory.mktemp('release'))


@pytest.mark.slow
def test_a_release_is_whole(release):
    source, wheel = release
    with tarfile.open(source) as archive:
        names = {name.split('/', 1)[-1] for name in archive.getnames()}
    assert CODE | PARTS | {'LICENSE', 'README.md', 'CHANGELOG.md', 'CITATION.cff'} <= names
    names = set(zipfile.ZipFile(wheel).namelist())
    assert CODE | {f'mmext_backbones/.mim/{name}' for name in PARTS} <= names
    assert not [name for name in names if name.startswith(('tests/', 'docs/')) or '__pycache__' in name]


@pytest.mark.slow
def test_a_release_works_in_an_empty_environment(release, tmp_path):
    _, wheel = release
    code = """
import importlib, pkgutil
import torch, mmext_backbones
from mmengine.config import Config
from mmext_backbones.registry import MODELS
assert 'site-packages' in mmext_backbones.__file__, mmext_backbones.__file__
for module in pkgutil.walk_packages(mmext_backbones.__path__, 'mmext_backbones.'):
    if not module.name.endswith(('__main__', 'gpu_kernels')):
        importlib.import_module(module.name)
for name in ('SwinTransformer', 'ELSASwin', 'MaxViT', 'Sequencer2D'):
    backbone = MODELS.build(dict(type='mmext_backbones.' + name)).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    print(name, [tuple(m.shape[-2:]) for m in maps], bool(all(torch.isfinite(m).all() for m in maps)))
open('mine.py', 'w').write("_base_ = 'mmext_backbones::elsa_swin_t_maskrcnn_1x.py'")
print(Config.fromfile('mine.py').model.backbone.type)
from mmext_backbones.config.files import load_config
print(load_config('swin_t_maskrcnn_1x').model.backbone.type)
"""
    python = install(wheel, tmp_path / 'empty')
    lines = run(python, '-c', code, cwd=tmp_path).strip().splitlines()[-6:]
    sizes = '[(16, 24), (8, 12), (4, 6), (2, 3)]'
    names = ('SwinTransformer', 'ELSASwin', 'MaxViT', 'Sequencer2D')
    of_configs = ['mmext_backbones.ELSASwin', 'mmext_backbones.SwinTransformer']
    assert lines == [f'{name} {sizes} True' for name in names] + of_configs
    assert 'SwinTransformer on 1 x 3 x 32 x 32' in run(
        python.parent / 'mmext', 'cost', 'swin_t', '--size', '32', cwd=tmp_path
    )


def test_versions_agree():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert str(citation['version']) == mmext_backbones.__version__
    assert {'cff-version', 'message', 'title', 'authors'} <= citation.keys()
    hooks = (ROOT / '.pre-commit-config.yaml').read_text()
    pinned = re.search(r'^ruff==(\S+)$', (ROOT / 'requirements/tests.txt').read_text(), re.M).group(1)
    assert set(re.findall(r'ruff==([\d.]+)', hooks)) == {pinned}


def test_issue_templates_and_hooks_can_be_read():
    for path in ROOT.glob('.github/ISSUE_TEMPLATE/*.yml'):
        form = yaml.safe_load(path.read_text())
        if path.name == 'config.yml':
            continue
        assert {'name', 'description', 'body'} <= form.keys(), path
        fields = [field['id'] for field in form['body']]
        assert len(fields) == len(set(fields)), path
    validate = pytest.importorskip(
        'pre_commit.clientlib', reason='pre-commit is not installed (requirements/extras.txt)'
    )
    assert validate.load_config(ROOT / '.pre-commit-config.yaml')['repos']
