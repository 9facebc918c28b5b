"""The doctor names what is broken and what helps, whatever is broken; fake libraries stand for the broken ones."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from mmext_backbones.doctor import __main__ as doctor
from mmext_backbones.doctor import findings, machine, probing, stacks, triton_check
from mmext_backbones.doctor.findings import Finding, examine
from mmext_backbones.utils import remedies
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.utils.explain import explain
from tests.torch_features import needs_interpreter

ROOT = Path(__file__).parents[1]

# as the libraries write it; (file, text) by what is broken
WINDOW = """
import mmcv
from .version import __version__
assert mmcv.__version__ < '2.2', f'MMCV=={mmcv.__version__} is used but incompatible. Please install mmcv>=2.0.0rc4.'
"""
FAKES = {
    'mmcv': {'mmcv/__init__.py': "__version__ = '2.1.0'\n"},
    'mmcv 2.2': {'mmcv/__init__.py': "__version__ = '2.2.0'\n"},
    'mmdet 3.3': {'mmdet/__init__.py': WINDOW, 'mmdet/version.py': "__version__ = '3.3.0'\n"},
    'fork of mmdet': {'mmdet/__init__.py': "__version__ = '3.5.1'\n"},
    'mmengine': {'mmengine/__init__.py': "__version__ = '0.10.7'\n"},
    'old mmengine': {'mmengine/__init__.py': "__version__ = '0.9.0'\n"},
    'cv2 without libGL': {
        'cv2/__init__.py': "raise ImportError('libGL.so.1: cannot open shared object file: No such file')\n"
    },
    'cv2 that crashes': {'cv2/__init__.py': 'import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n'},
    'cv2 that leaves': {'cv2/__init__.py': 'import sys\nprint("half a line")\nsys.exit(3)\n'},
    'cv2 that hangs': {'cv2/__init__.py': 'import time\ntime.sleep(60)\n'},
    'mmaction with configs': {
        'mmaction/__init__.py': '',
        'mmaction/.mim/model-index.yml': 'Import: []',
        'mmaction/.mim/configs/_base_/default_runtime.py': 'x = 1',
    },
    'mmtrack without': {'mmtrack/__init__.py': ''},
    'numpy': {'numpy/__init__.py': "__version__ = '2.4.0'\n"},
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Puts fake libraries before the real ones, or hides all others from the probes."""
    monkeypatch.chdir(tmp_path)

    def put(*names: str) -> None:
        for name in names:
            for file, text in FAKES[name].items():
                path = tmp_path / 'site' / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path / 'site')

    return put


def found(topic: str, findings: list[Finding]) -> Finding:
    first = [finding for finding in findings if finding.topic == topic]
    assert first, f'nothing is said of {topic}: {findings}'
    return first[0]


def version_in(finding: Finding) -> str:
    """Without where the distribution comes from: where a fake stands before a fork, that of the fork is named."""
    assert finding.level == 'ok'
    return finding.text.partition(', from ')[0]


def probe(*names: str, timeout: float = 60.0) -> list[Finding]:
    return examine(probing.run_probes(names, timeout=timeout))


def test_mmcv_that_mmdet_refuses(fakes):
    fakes('mmcv 2.2', 'mmdet 3.3')
    findings = probe('mmcv', 'mmdet')
    mmdet = found('mmdet', findings)
    assert mmdet.level == 'problem'
    assert mmdet.text.startswith('3.3.0: AssertionError: MMCV==2.2.0')  # the version from its source
    assert 'pip uninstall -y mmcv' in mmdet.remedy
    assert 'mmcv-lite==2.1.0' in mmdet.remedy
    assert version_in(found('mmcv', findings)) == '2.2.0'
    assert found('versions', findings).text == 'mmdet 3.3.0 does not take mmcv 2.2.0: it needs 2.0 or later, before 2.2'


def test_the_fork_takes_it(fakes):
    fakes('mmcv 2.2', 'fork of mmdet')
    findings = probe('mmcv', 'mmdet')
    assert version_in(found('mmdet', findings)) == '3.5.1'
    assert not [finding for finding in findings if finding.topic == 'versions']


RUNS = 'run mmcv.ops'
STAND_INS = "mmcv's operators: torchvision 0.29.1 and PyTorch; this mmcv (2.1.0) has no compiled ones"


def operators(torch: str = '2.14.1', **found) -> Finding:
    """What is said of mmcv's operators, with mmdet installed."""
    return next(
        each for each in examine({**facts(torch=torch, mmdet='3.3.0'), RUNS: found}) if each.topic == 'mmcv.ops'
    )


def test_mmcv_without_operators():
    missing = operators(error="ModuleNotFoundError: No module named 'mmcv._ext'")
    assert missing.level == 'problem'
    assert 'python -m mmext_backbones.mmcv_ops --install' in missing.remedy


def test_mmcv_compiled_for_another_torch():
    error = 'ImportError: /x/mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c104impl'
    new, old = operators(error=error), operators(torch='2.13.0', error=error)
    for finding in (new, old):
        assert finding.level == 'problem'
        assert 'pip uninstall -y mmcv && pip install --no-deps "mmcv-lite==2.1.0"' in finding.remedy
    assert 'mmcv does not compile on torch 2.14 and later' in new.remedy
    assert '--force-reinstall "mmcv==2.1.0"' in old.remedy


def test_whose_operators_run():
    here = operators(details={'operators': STAND_INS, 'own': False})
    assert here.level == 'note'
    assert 'torchvision 0.29.1' in here.text
    assert here.remedy == 'python -m mmext_backbones.mmcv_ops --install'
    forwarded = operators(details={'operators': STAND_INS, 'own': True})
    assert forwarded.level == 'ok'
    assert 'does not compile on torch 2.14' in forwarded.text
    compiled = operators(details={'operators': "mmcv's operators: compiled (mmcv 2.1.0)", 'own': True})
    assert compiled == Finding('mmcv.ops', 'ok', 'runs: compiled (mmcv 2.1.0)')


@pytest.mark.slow  # some processes that import PyTorch
def test_the_operators_of_this_installation():
    pytest.importorskip('mmcv')
    found_here = found('mmcv.ops', probe('mmcv', 'torch', RUNS))
    assert found_here.level in ('ok', 'note')
    assert found_here.text.startswith('runs: ')


def test_operators_nobody_needs():
    finding = found('mmcv.ops', examine({RUNS: {'error': "ModuleNotFoundError: No module named 'mmcv._ext'"}}))
    assert finding.level == 'note'


RECORDS = [
    {'name': 'torch 2.14', 'date': '2026-11-30', 'versions': {'torch': '2.14.1', 'python': '3.11.7', 'mmdet': '3.3.0'},
     'failed': []},
    {'name': 'Python 3.13', 'date': '2026-11-30', 'versions': {'torch': '2.14.1', 'python': '3.13.0', 'mmdet': '3.3.0'},
     'failed': []},
    {'name': 'torch 2.4', 'date': '2026-11-30', 'versions': {'torch': '2.4.1', 'python': '3.11.7'},
     'failed': ['resume']},
    {'name': 'not installed', 'date': '2026-11-30', 'versions': {}, 'failed': ['no Python']},
]  # fmt: skip


@pytest.mark.parametrize(
    ('versions', 'level', 'words'),
    [
        (
            {'torch': '2.14.1+cu130', 'python': '3.11.2', 'mmdet': '3.3.0'},
            'ok',
            'torch 2.14, measured on 2026-11-30: all',
        ),
        ({'torch': '2.14.0', 'python': '3.13.0'}, 'ok', 'Python 3.13, measured'),
        ({'torch': '2.14.1', 'python': '3.11.7', 'mmdet': '3.2.0'}, 'ok', 'pass; here differ: mmdet 3.2.0 (3.3.0)'),
        ({'torch': '2.4.0', 'python': '3.11.7'}, 'note', 'fails in resume'),
        ({'torch': '2.9.1', 'python': '3.11.7'}, 'note', 'torch 2.9.1 was not measured; 2.4, 2.14 were'),
    ],
)
def test_stacks_that_were_measured(versions, level, words, tmp_path):
    (tmp_path / 'stacks.json').write_text(json.dumps(RECORDS))
    said = stacks.compare(versions, tmp_path / 'stacks.json')
    assert said[0] == level
    assert words in said[1]
    assert stacks.compare({}, tmp_path / 'stacks.json') is None
    assert stacks.compare(versions, tmp_path / 'none.json') is None


def test_opencv_without_its_libraries(fakes):
    fakes('cv2 without libGL')
    cv2 = found('cv2', probe('cv2'))
    assert cv2.level == 'problem'
    assert 'opencv-python-headless' in cv2.remedy


@pytest.mark.parametrize(
    ('name', 'timeout', 'words'),
    [
        ('cv2 that crashes', 60, r'Python crashed \(SIGSEGV\)'),
        ('cv2 that leaves', 60, 'SystemExit: 3'),
        ('cv2 that hangs', 3, 'no answer within 3 seconds'),
    ],
)
def test_a_library_that_takes_the_process_down(fakes, name, timeout, words):
    fakes(name, 'mmcv')
    findings = probe(
        'mmengine.nothing', 'cv2', 'mmcv', timeout=timeout
    )  # what stands behind it is looked at all the same
    cv2 = found('cv2', findings)
    assert cv2.level == 'problem'
    assert re.search(words, cv2.text)
    assert version_in(found('mmcv', findings)) == '2.1.0'


def test_bases_by_name(fakes):
    """One toolbox is of no distribution mmaction2, one has no configs, one is not there."""
    fakes('mmaction with configs', 'mmtrack without')
    findings = probe('run mmaction:: bases', 'run mmtrack:: bases', 'run mmpose:: bases')
    assert found('mmaction:: bases', findings) == Finding('mmaction:: bases', 'ok', 'are found')
    broken = found('mmtrack:: bases', findings)
    assert broken.level == 'problem'
    assert '.mim' in broken.text
    assert 'install it again' in broken.remedy
    assert found('mmpose:: bases', findings).level == 'note'


def facts(**versions: str) -> dict:
    return {name: {'version': version, 'owners': []} for name, version in versions.items()}


def test_pkg_resources():
    gone = {'setuptools': {'version': '82.0.0'}, 'pkg_resources': {'absent': True}}
    stock = found('pkg_resources', examine({**facts(mmengine='0.10.7'), **gone}))
    assert stock.level == 'problem'
    assert 'setuptools<82' in stock.remedy
    assert found('pkg_resources', examine({**facts(mmengine='0.10.12'), **gone})).level == 'ok'
    assert found('pkg_resources', examine(gone)).level == 'problem'


def test_no_toolbox_is_no_problem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    findings = examine({**facts(torch='2.6.0', mmengine='0.10.7', numpy='2.0'), 'mmdet': {'absent': True}})
    assert found('mmdet', findings) == Finding('mmdet', 'note', 'not installed (detection)')
    assert not [finding for finding in findings if finding.level == 'problem' and not finding.topic.startswith('/')]
    assert found('torch', examine({'torch': {'absent': True}})).level == 'problem'


def test_a_config_needs_its_toolbox():
    config = {'details': {'scope': 'mmdet', 'missing': {}}}
    findings = examine({'mmdet': {'absent': True}, 'config': config}, 'x.py')
    assert found('config', findings).text == 'x.py needs mmdet'
    assert found('data', findings).level == 'ok'
    told = 'the data is not there. Missing:\n  data/a\nIf you have it elsewhere, link it'
    data = found(
        'data (train, val)', examine({'config': {'details': {'missing': {'train': told, 'val': told}}}}, 'x.py')
    )
    assert data.text == 'the data is not there. Missing: data/a'
    assert data.remedy == 'If you have it elsewhere, link it'


def test_two_distributions_of_one_name():
    both = {'mmdet': {'version': '3.5.1', 'owners': ['mmdet', 'onedl-mmdetection']}}
    finding = [finding for finding in examine(both) if finding.topic == 'mmdet' and finding.level == 'problem']
    assert 'pip uninstall -y mmdet onedl-mmdetection' in finding[0].remedy
    fork = {'mmdet': {'version': '3.5.1', 'owners': ['onedl-mmdetection']}}
    assert found('mmdet', examine(fork)).text == '3.5.1, from onedl-mmdetection'


@pytest.mark.parametrize(
    ('versions', 'misfit'),
    [
        ({'mmdet': '3.3.0', 'mmcv': '2.1.0', 'mmengine': '0.10.7'}, None),
        ({'mmdet': '3.3.0', 'mmcv': '2.2.0'}, 'mmdet'),
        ({'mmdet': '3.3.0', 'mmcv': '1.7.1'}, 'mmdet'),
        ({'mmdet': '3.3.0', 'mmcv': '2.0.0rc4'}, None),
        ({'mmdet': '3.5.1', 'mmcv': '2.3.6'}, None),
        ({'mmseg': '1.2.2', 'mmcv': '2.2.0'}, 'mmseg'),
        ({'mmpretrain': '1.2.0', 'mmcv': '2.2.0'}, None),
        ({'mmpretrain': '1.2.0', 'mmcv': '2.4.0'}, 'mmpretrain'),
        ({'mmext_backbones': '0.1.0', 'mmengine': '0.9.0'}, 'mmext_backbones'),
        ({'mmext_backbones': '0.1.0', 'torch': '2.0.1+cu118'}, 'mmext_backbones'),
        ({'mmext_backbones': '0.1.0', 'torch': '2.13.0+cpu'}, None),
    ],
)
def test_version_windows(versions, misfit):
    assert [what.split()[0] for what, _ in remedies.misfits(versions)] == [misfit] * bool(misfit)


def test_windows_are_those_of_the_installed_libraries():
    """What mmdet and mmseg assert here is what the table says."""
    mmdet = pytest.importorskip('mmdet', exc_type=ImportError)
    limit = getattr(mmdet, 'mmcv_maximum_version', None)
    if limit is None:
        pytest.skip('this mmdet, a fork, asserts no version')
    window = next(window for window in remedies.WINDOWS if (window.library, window.other) == ('mmdet', 'mmcv'))
    assert remedies.release(window.last) == remedies.release(limit)
    assert remedies.release(window.first) == remedies.release(mmdet.mmcv_minimum_version)


@pytest.mark.parametrize(('limits', 'level'), [((10, 20), 'ok'), ((10, 200), 'note'), ((150, 200), 'problem')])
def test_space(limits, level):
    assert machine._space('x', 100, limits, 'free', 'make room')[1] == level


def test_folder_that_cannot_be_written(tmp_path):
    file = tmp_path / 'file'
    file.write_text('')
    (line,) = machine._folder('hub cache', file / 'hub', (0, 0), 'set TORCH_HOME')
    assert line[1] == 'problem'
    (line,) = machine._folder('hub cache', tmp_path / 'a' / 'b', (0, 0), 'set TORCH_HOME')
    assert line[1] == 'ok'


def test_no_compiler(monkeypatch):
    monkeypatch.setenv('CC', 'no-such-compiler')
    finding = findings._kernels({'elsa/cpu.c': 'no C compiler'})
    assert finding.level == 'note'
    assert 'apt-get install gcc' in finding.remedy
    assert findings._kernels({'elsa/cpu.c': None}).level == 'ok'


def test_command(fakes, tmp_path, monkeypatch, capsys):
    """Exit code, JSON and one line a problem, with rich and without."""
    fakes('numpy', 'mmengine', 'cv2 without libGL')
    monkeypatch.setattr(probing, 'LIBRARIES', ('numpy', 'mmengine', 'cv2'))
    monkeypatch.setattr(findings, 'LIBRARIES', ('numpy', 'mmengine', 'cv2'))
    assert doctor.main(['--quick', '--json', 'out/doctor.json']) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith('cv2: ImportError: libGL.so.1') and ' -> pip' in line]
    assert lines[-1] == '1 problem to be mended.'
    written = json.loads((tmp_path / 'out/doctor.json').read_text())
    assert written['ok'] is False
    assert written['facts']['mmengine']['version'] == '0.10.7'
    assert {'topic', 'level', 'text', 'remedy'} == set(written['findings'][0])

    (tmp_path / 'site/cv2/__init__.py').write_text("__version__ = '4.13.0'\n")
    monkeypatch.setitem(sys.modules, 'rich.console', None)
    assert doctor.main(['--quick']) == 0
    out = capsys.readouterr().out
    assert 'Nothing that matters is broken.' in out
    assert 'mmengine' in out


def test_it_runs_where_the_package_cannot_be_imported(tmp_path):
    """Neither torch nor mmengine: an interpreter without site-packages."""
    code = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv, sys.orig_argv = ['-m', '--quick'], [sys.executable, '-m', 'mmext_backbones.doctor', '--quick']  # as -m does
runpy.run_module('mmext_backbones.doctor', run_name='__main__', alter_sys=True)
"""
    command = [sys.executable, '-I', '-S', '-c', code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert 'Traceback' not in done.stderr
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'torch: not installed -> pip install' in done.stdout
    assert "mmext_backbones: 0.1.0: ModuleNotFoundError: No module named 'torch' -> pip install" in done.stdout


# --------------------------------------------------------------------------------------------------------------------
# The tools


def failing(statement: str):
    def tool(argv):
        exec(statement, {})

    return tool


def test_tools_tell_the_remedy(fakes, monkeypatch, capsys):
    fakes('mmcv 2.2', 'mmdet 3.3')
    for name in [name for name in sys.modules if name.partition('.')[0] in ('mmcv', 'mmdet')]:
        monkeypatch.delitem(sys.modules, name)
    assert run_cli(failing('import mmdet'), []) == 2
    told = capsys.readouterr().err
    assert 'MMCV==2.2.0' in told
    assert 'mmcv-lite==2.1.0' in told
    assert remedies.DOCTOR in told
    for name in ('mmcv', 'mmdet'):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_what_is_not_known_stays_a_bug():
    for statement in (
        'import no_such_module',
        'assert 1 > 2, "mmcv"',
        'def f(): raise AttributeError("numpy has no attribute")\nf()',
    ):
        with pytest.raises((ImportError, AssertionError, AttributeError)) as caught:
            failing(statement)([])
        assert explain(caught.value) is None


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (ModuleNotFoundError("No module named 'mmdet'"), 'pip install "mmdet'),
        (RuntimeError('of another kind'), 'mmdet cannot be imported: RuntimeError: of another kind'),
    ],
)
def test_unknown_component_of_a_library_that_cannot_be_imported(monkeypatch, error, words):
    """mmengine only warns then, and looks the component up among its own."""

    def fail(name):
        assert name == 'mmdet.registry'
        raise error

    DefaultScope.get_instance('doctor', scope_name='mmdet')
    monkeypatch.setattr(importlib, 'import_module', fail)
    assert words in explain(KeyError('MaskRCNN is not in the mmengine::model registry.'))


def test_showing_of_nothing(capsys):
    doctor.show([])
    assert 'Nothing that matters is broken.' in capsys.readouterr().out


IN_THE_INTERPRETER = """
import torch
from mmext_backbones.doctor import triton_check

print(*triton_check.check_kernels(torch.device('cpu')), sep='\\n')
for module in (triton_check.elsa, triton_check.windows):
    right = module.BACKWARD

    def wrong(*args):
        first, *others = right.kernel(*args)
        return 1.1 * first, *others

    module.BACKWARD = right._replace(kernel=wrong)
    try:
        triton_check.check_kernels(torch.device('cpu'))
    except RuntimeError as error:
        print(error)
    module.BACKWARD = right
"""


@needs_interpreter
@pytest.mark.slow
def test_the_check_of_tritons_kernels_runs_all_of_them_and_finds_a_wrong_gradient():
    pytest.importorskip('triton')
    command = [sys.executable, '-c', IN_THE_INTERPRETER]
    environment = os.environ | {'TRITON_INTERPRET': '1'}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    *checked, wrong_filters, wrong_windows = done.stdout.splitlines()
    names = {line.partition(' in torch.')[0] for line in checked}
    assert names == {case.name for case in triton_check.CASES}
    assert {line.partition(' in torch.')[2] for line in checked} == {'float32', 'float16', 'bfloat16'}
    assert len(checked) == 3 * len(names) == 18
    assert wrong_filters.startswith('elsa in torch.float32: the gradient of v is off by 1.0e-01')
    assert wrong_windows.startswith('window attention in torch.float32: the gradient of qkv is off by 1.0e-01')


def rounded(launcher):
    """A launcher whose kernel is PyTorch's form, rounded as a kernel's results are."""

    def kernel(*args):
        wide = launcher.in_torch(*(x.double() if isinstance(x, torch.Tensor) else x for x in args))
        types = [x.dtype for x in compared(launcher.in_torch(*args))]
        return tuple(x.to(dtype) for x, dtype in zip(compared(wide), types, strict=True))

    return launcher._replace(kernel=kernel)


def compared(results):
    return (results,) if isinstance(results, torch.Tensor) else results


def test_what_the_check_compares(monkeypatch):
    """Forward and backward of every operator and type, with PyTorch's form in the kernels' place."""
    cases = [
        case._replace(
            why_not=lambda *args: None,
            passes=lambda dtype, case=case: [(rounded(launcher), args) for launcher, args in case.passes(dtype)],
        )
        for case in triton_check.CASES
    ]
    monkeypatch.setattr(triton_check, 'CASES', cases)
    assert len(triton_check.check_kernels(torch.device('cpu'))) == 18
    for case in cases:
        for number in range(len(case.passes(torch.float32))):

            def passes(dtype, case=case, number=number):
                chosen = case.passes(dtype)
                launcher, args = chosen[number]
                wrong = launcher._replace(kernel=lambda *args: [1.1 * x for x in compared(launcher.kernel(*args))])
                return [*chosen[:number], (wrong, args), *chosen[number + 1 :]]

            monkeypatch.setattr(triton_check, 'CASES', [case._replace(passes=passes)])
            with pytest.raises(RuntimeError, match=f'{case.name} in torch.float32: the .* is off by 1.0e-01'):
                triton_check.check_kernels(torch.device('cpu'))
    monkeypatch.setattr(triton_check, 'CASES', [cases[0]._replace(why_not=lambda *args: 'no such kernel')])
    with pytest.raises(RuntimeError, match=r'window attention in torch.float32: no such kernel'):
        triton_check.check_kernels(torch.device('cpu'))
