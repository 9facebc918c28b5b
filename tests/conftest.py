"""Shared by all tests: small networks, and the weights that the test vectors were computed with."""

import ast
import functools
import gc
import importlib.util
import json
import logging
import os
import runpy
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # before torch: spinning threads starve on a busy machine

import mmengine
import mmengine.config.config
import mmengine.config.utils
import mmengine.runner.runner
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import loops
from mmengine.utils.dl_utils import collect_env

from mmext_backbones.registry import MODELS
from mmext_backbones.swap import maps
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.zoo import backbone_names
from tests.fresh import fresh  # noqa: F401 (a fixture)

GIVEN_BACKBONES: dict[type, dict] = {}
LOOKED_AT = {'modules': 0}  # how many there were when garbage was last collected among all of them


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--backbone',
        action='append',
        default=[],
        metavar='MODULE.CLASS=ARCH',
        help='the contract suite is about this backbone instead; ARCH is JSON, a small architecture of two blocks a '
        'stage (docs/add_a_backbone.md)',
    )


def pytest_configure(config: pytest.Config) -> None:
    for given in config.getoption('--backbone'):
        name, _, arch = given.partition('=')
        module, _, cls = name.rpartition('.')
        GIVEN_BACKBONES[getattr(importlib.import_module(module), cls)] = json.loads(arch)


def skip_waits() -> None:
    """Leaves out two waits of the libraries, which no test is about.

    mmengine sleeps two seconds where a training that counts iterations begins its data anew. torch waits five seconds
    for each loader process to end, and one whose loader is collected after an error is never told to.
    """
    loops.time = SimpleNamespace(**{**vars(time), 'sleep': lambda seconds: None})
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5


skip_waits()


def seeded_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that follows from a parameter's name; see tests/data/README.md."""
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        x *= 0.1
        if key.rsplit('.', 1)[-1] == 'weight':
            x += 1
        elif key.endswith('running_var'):
            x = np.abs(x) + np.float32(0.5)
    elif key.endswith('bias'):
        x *= 0.1
    else:
        x *= float(np.prod(shape[1:])) ** -0.5
    return torch.from_numpy(x)


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Random values where a network starts at constants (biases, norms, statistics), which would hide a mistake."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 2.0)
            elif tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn_like(tensor))
            elif name.endswith('bias_table'):
                tensor.normal_()
    return model


def plain_code(code: str, **options: object) -> tuple[str, bool]:
    """In place of yapf's FormatCode, which takes up to a second: it refuses what is no Python, and changes nothing."""
    ast.parse(code)
    return code, True


@pytest.fixture(autouse=True, scope='session')
def _libraries_do_things_once():
    """For each base of a library, mmengine reads what is installed, and every metafile of the library, anew.

    Each runner asks a compiler and others for their versions, and makes the text of its config pretty several times.
    """
    installed = set()

    def is_installed(package: str) -> bool:
        if package not in installed and mmengine.utils.is_installed(package):
            installed.add(package)
        return package in installed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.config, 'is_installed', is_installed, raising=False)
        patch.setattr(mmengine.config.utils, 'load', functools.cache(mmengine.fileio.load), raising=False)
        patch.setattr(mmengine.runner.runner, 'collect_env', functools.cache(collect_env), raising=False)
        if importlib.util.find_spec('yapf'):  # some versions import its function when they need it
            patch.setattr('yapf.yapflib.yapf_api.FormatCode', plain_code)
        patch.setattr(mmengine.config.config, 'FormatCode', plain_code, raising=False)
        yield


@pytest.fixture(autouse=True)
def _what_is_imported_is_no_garbage():
    """mmengine collects garbage for each data set, torch for each graph, among half a million objects of libraries.

    They are left out of it where a test has imported many.
    """
    yield
    if len(sys.modules) > LOOKED_AT['modules'] + 200:
        gc.collect()
        gc.freeze()
        LOOKED_AT['modules'] = len(sys.modules)


@pytest.fixture(autouse=True, scope='module')
def _what_a_module_leaves_is_no_garbage():
    """Recorded graphs leave caches with millions of objects, which mmengine walks for each data set of later tests."""
    yield
    if 'torch._dynamo' in sys.modules:
        sys.modules['torch._dynamo'].reset()
        sys.modules['torch._subclasses.fake_tensor'].FakeTensorMode.cache_clear()
    gc.collect()
    gc.freeze()


FOUND_MAPS: dict[tuple, list] = {}


@pytest.fixture
def maps_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap runs a backbone on shapes alone to see its maps; the same one, of a library or ours, once a session."""
    find = maps._run

    def found(config: object, inputs: Callable[[], object], built: str, run: str, size: int) -> list:
        scope = DefaultScope.get_current_instance()
        with torch.device('meta'):
            shapes = str([x.shape for x in inputs()])
        key = repr(config), shapes, built, run, size, scope and scope.scope_name
        if key not in FOUND_MAPS:
            FOUND_MAPS[key] = find(config, inputs, built, run, size)
        return list(FOUND_MAPS[key])

    monkeypatch.setattr(maps, '_run', found)


@pytest.fixture
def one_block_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network of the zoo has one block a stage, and its own widths: built and run in a fraction of the time."""
    for cls, name in backbone_names().values():
        archs = MODELS.get(cls).ARCHS
        monkeypatch.setitem(archs, name, {**archs[name], 'depths': (1,) * len(archs[name]['depths'])})


@pytest.fixture(autouse=True)
def _no_default_scope():
    """A test that builds an mmdet or mmseg run leaves its default scope behind, which the next one must not see."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_closed_log_files():
    """Whoever configures logging anew, as web servers do, closes every handler; mmengine would write to its own."""
    for logger in MMLogger._instance_dict.values():
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler) and handler.stream is None:
                logger.removeHandler(handler)


class Ended(NamedTuple):
    """How a tool ended, by the names of subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_tool(capsys: pytest.CaptureFixture) -> Callable[..., Ended]:
    """Runs a tool in this process: `run_tool('model_cost', 'swin_t', ...)`."""

    def run(name: str, *arguments: object) -> Ended:
        main = runpy.run_path(str(Path(__file__).parents[1] / 'tools' / f'{name}.py'), run_name='tool')['main']
        capsys.readouterr()
        MMLogger._instance_dict.clear()  # of runs before, which write to a screen that is closed by now
        try:
            code = run_cli(main, [str(argument) for argument in arguments])
        except SystemExit as end:  # of the parser
            code = end.code
        return Ended(code, *capsys.readouterr())

    return run
