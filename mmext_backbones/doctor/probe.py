"""The script that imports and runs what may be broken: ``probe.py CONFIG NAME...`` in a process that may crash.

Each probe is announced on stdout, {"begin": name}, and answered, {"end": name, ...facts}: `version`, `owners` (the
distributions that hold the import name), `details`; `absent` where there is nothing to import; `error` where it broke.
What the libraries print goes to stderr.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any


def library(name: str) -> dict[str, Any]:
    """Imports a library, and asks it for its version; where it does not import, its source."""
    spec = None
    with contextlib.suppress(ImportError, ValueError):  # ValueError: half a module in sys.modules
        spec = importlib.util.find_spec(name)
    if spec is None:
        return {'absent': True}
    facts: dict[str, Any] = {'owners': OWNERS.get(name, [])}
    try:
        module = importlib.import_module(name)
        facts['version'] = str(getattr(module, '__version__', '') or _written_version(spec))
        facts['details'] = DETAILS.get(name, lambda module: {})(module)
    except BaseException as error:  # a library may even call sys.exit
        facts.setdefault('version', _written_version(spec))
        facts['error'] = told(error)
    return facts


def _written_version(spec: importlib.machinery.ModuleSpec) -> str:
    for folder in spec.submodule_search_locations or ():
        for file in ('version.py', '__init__.py'):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                match = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", Path(folder, file).read_text(), re.MULTILINE)
                if match:
                    return match.group(1)
    return ''


def told(error: BaseException) -> str:
    path = getattr(error, 'path', None)
    text = ' '.join(str(error).split())[:400]
    return f'{type(error).__name__}: {text}' + (f' ({path})' if path and path not in text else '')


# --------------------------------------------------------------------------------------------------------------------
# More about some libraries


def _torch(torch) -> dict[str, Any]:
    build = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU only'
    build = f'ROCm {torch.version.hip}' if torch.version.hip else build
    details = {'build': build, 'hub': torch.hub.get_dir(), 'threads': torch.get_num_threads()}
    if torch.version.cuda:
        details['cudnn'] = torch.backends.cudnn.version()
    if torch.cuda.is_available():
        details['devices'] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return details


def _cv2(cv2) -> dict[str, Any]:
    return {'headless': bool(getattr(getattr(cv2, 'version', None), 'headless', False))}


DETAILS = {'torch': _torch, 'cv2': _cv2}


# --------------------------------------------------------------------------------------------------------------------
# Running something small. Each answers with details, or {'skipped': why}


def run_cuda() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {'skipped': 'no GPU that torch can use'}
    x = torch.eye(64, device='cuda')
    if not torch.equal((x @ x).cpu(), torch.eye(64)):
        raise RuntimeError('a product of matrices on the GPU is wrong')
    return {}


def run_mmcv_ops() -> dict[str, Any]:
    if importlib.util.find_spec('mmcv') is None:
        return {'skipped': 'mmcv is not installed'}
    # in its own folder: compiled, or forwarded to this package; the package's finder would find it anywhere
    own = importlib.machinery.PathFinder.find_spec('mmcv._ext', importlib.import_module('mmcv').__path__) is not None
    operators = None
    with contextlib.suppress(ImportError):  # what is wrong with the package is told elsewhere
        operators = importlib.import_module('mmext_backbones.mmcv_ops.showing').describe()
    ops = importlib.import_module('mmcv.ops')
    import torch

    for device in ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]:
        boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7.5], [20, 20, 30, 30]], device=device)
        kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)[1]
        if kept.tolist() != [0, 2]:
            raise RuntimeError(f'nms on {device} keeps {kept.tolist()} instead of [0, 2]')
        rois = torch.cat([torch.zeros(3, 1, device=device), boxes], dim=1)
        pooled = ops.roi_align(torch.ones(1, 2, 32, 32, device=device), rois, (2, 2), 1.0)
        if pooled.shape != (3, 2, 2, 2) or not torch.allclose(pooled, torch.ones_like(pooled)):
            raise RuntimeError(f'roi_align on {device} is wrong')
    return {'operators': operators, 'own': own}


def run_kernels() -> dict[str, Any]:
    import mmext_backbones  # noqa: F401 (every kernel of the package is listed when its module loads)
    from mmext_backbones.ops.c_kernels import KERNELS

    return {'kernels': {one.name: one.why_not() for one in KERNELS}}


def run_triton() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {'skipped': 'no GPU: the kernels in Triton are not used'}
    from mmext_backbones.doctor.triton_check import check_kernels

    return {'equal': check_kernels(torch.device('cuda', 0))}


def run_models(name: str) -> dict[str, Any]:
    if importlib.util.find_spec(name) is None:
        return {'skipped': f'{name} is not installed'}
    importlib.import_module(f'{name}.models')
    return {}


def run_bases(name: str) -> dict[str, Any]:
    """Reads a base by a name like `mmseg::...`, for which mmengine looks in mmsegmentation: a fork is not called so."""
    if importlib.util.find_spec(name) is None:
        return {'skipped': f'{name} is not installed'}
    from mmengine.config import Config

    import mmext_backbones  # noqa: F401  (finds the module)

    Config.fromstring(f"_base_ = '{name}::_base_/default_runtime.py'\n", '.py')
    return {}


def config() -> dict[str, Any]:
    """Whether a config can be read, and where its data is."""
    from mmext_backbones.config.data_paths import check_data
    from mmext_backbones.config.files import load_config
    from mmext_backbones.utils.errors import UserError

    cfg = load_config(CONFIG)
    missing = {}
    for split in ('train', 'val', 'test'):
        try:
            check_data(cfg, (split,))
        except UserError as error:
            missing[split] = str(error)
    return {'scope': cfg.get('default_scope'), 'work_dir': cfg.get('work_dir'), 'missing': missing}


RUNS = {
    'run cuda': run_cuda,
    'run mmcv.ops': run_mmcv_ops,
    'run kernels': run_kernels,
    'run triton': run_triton,
    'config': config,
}


def probe(name: str) -> dict[str, Any]:
    if name in RUNS or name.startswith('run '):
        try:
            if name in RUNS:
                return {'details': RUNS[name]()}
            run = run_bases if name.endswith(':: bases') else run_models
            return {'details': run(re.match(r'run (\w+)', name).group(1))}
        except BaseException as error:
            return {'error': told(error)}
    return library(name)


def _owners() -> dict[str, list[str]]:
    try:
        from importlib.metadata import packages_distributions

        return {name: sorted(set(owners)) for name, owners in packages_distributions().items()}
    except Exception:  # metadata of some distribution is damaged
        return {}


if __name__ == '__main__':
    CONFIG, *NAMES = sys.argv[1:]
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what the libraries print
    OWNERS = _owners()
    for each in NAMES:
        print(json.dumps({'begin': each}), file=answers, flush=True)
        print(json.dumps({'end': each, **probe(each)}), file=answers, flush=True)
