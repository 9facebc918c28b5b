"""The rules of the house that a test can check: which part of the package may import which."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'mmext_backbones'
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob('*.py'))
# what each part may import of the package, besides itself
ALLOWED = {
    'version': set(),
    'utils': set(),
    'registry': set(),
    'ops': set(),
    'runtime': {'utils'},
    'layers': {'ops'},
    'weights': {'utils'},
    'config': {'utils'},
    'drawing': {'utils'},
    'backbones': {'layers', 'ops', 'registry', 'weights'},
    'heads': {'layers', 'registry', 'weights'},
    'necks': {'layers', 'registry'},
    'mmcv_ops': {'config', 'utils'},
    'zoo': {'config', 'registry', 'utils'},
    'datasets': {'config', 'registry', 'utils'},
    'analysis': {'utils', 'zoo'},
    'doctor': {'config', 'ops', 'utils'},
    'finetune': {'config', 'datasets', 'utils', 'weights'},
    'engine': {'config', 'datasets', 'drawing', 'mmcv_ops', 'registry', 'runtime', 'utils', 'version', 'weights',
               'zoo'},
    'inference': {'config', 'datasets', 'drawing', 'engine', 'export', 'runtime', 'utils', 'version',
                  'weights'},
    'visualization': {'backbones', 'config', 'datasets', 'drawing', 'engine', 'inference', 'layers', 'ops', 'utils',
                      'weights', 'zoo'},
    'swap': {'analysis', 'config', 'registry', 'utils', 'weights', 'zoo'},
    'export': {'backbones', 'config', 'layers', 'ops', 'runtime', 'swap', 'utils', 'version', 'weights', 'zoo'},
    'app': {'config', 'datasets', 'engine', 'inference', 'runtime', 'utils'},
    '__main__': {'utils', 'version'},
    '__init__': {'backbones', 'config', 'engine', 'mmcv_ops', 'version', 'weights'},
}  # fmt: skip
OPENMMLAB = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain'}
# the files whose whole purpose is one of them; the registry imports them at their first use
FOR_ONE = {Path('heads.py'): {'mmpretrain'}}


def part_of(path: Path) -> str:
    return path.parts[0].removesuffix('.py')


def imports(path: Path, everywhere: bool = False) -> set[tuple[str, ...]]:
    """Absolute dotted names of everything the file imports at module level, or in its functions too."""
    found = set()
    folder = ('mmext_backbones', *path.parent.parts)
    tree = ast.parse((PACKAGE / path).read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split('.')) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            base += tuple(node.module.split('.')) if node.module else ()
            found |= {(*base, alias.name) for alias in node.names}
    return found


@pytest.mark.parametrize('path', FILES, ids=str)
def test_imports_run_one_way(path):
    part = part_of(path)
    inside = {name[1] for name in imports(path, everywhere=True) if name[0] == 'mmext_backbones' and len(name) > 1}
    assert inside - {part} <= ALLOWED[part]


@pytest.mark.parametrize('path', FILES, ids=str)
def test_no_openmmlab_toolbox_at_module_level(path):
    assert not {name[0] for name in imports(path)} & OPENMMLAB - FOR_ONE.get(path, set())


def test_every_part_is_ruled():
    assert {part_of(path) for path in FILES} == set(ALLOWED)


def test_no_circle():
    """No module imports itself by way of others, when it is loaded."""
    names = {('mmext_backbones', *path.with_suffix('').parts): path for path in FILES}
    names = {name[:-1] if name[-1] == '__init__' else name: path for name, path in names.items()}
    graph = {}
    for name, path in names.items():
        found = {full if full in names else full[:-1] for full in imports(path)}
        graph[name] = {each for each in found if each in names and each != name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
