"""Checkpoints as mmengine writes them are read safely, by torch's safe mode and by ours, and nothing else is."""

import collections
import copyreg
import functools
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmext_backbones.weights import restricted_pickle, safe_globals

READERS = {
    'own': lambda path: restricted_pickle.read(path, safe_globals.CHECKPOINT),
    'default': safe_globals.safe_load,  # torch's from 2.6 on, ours before
}
# torch's own safe mode ends in one of these where a file is none
REFUSALS = (pickle.UnpicklingError, RuntimeError, AttributeError, TypeError, ValueError)


@pytest.fixture(params=READERS)
def read(request):
    return READERS[request.param]


@pytest.fixture(params=['zip', 'legacy'])
def save(request, tmp_path):
    """Writes content in a format of torch, and returns the path."""

    def write(content, pickle_module=pickle):
        path = tmp_path / 'file.pth'
        torch.save(content, path, pickle_module, _use_new_zipfile_serialization=request.param == 'zip')
        return path

    return write


def buffer() -> HistoryBuffer:
    history = HistoryBuffer()
    for value in (1.0, 2.5):
        history.update(value)
    return history


def test_history_and_numpy_values(read, save):
    content = {
        'state_dict': {'w': torch.ones(2), 'p': torch.nn.Parameter(torch.zeros(3, dtype=torch.float16))},
        'message_hub': {'log_scalars': {'train/loss': buffer()}},
        'meta': {
            'seed': np.int64(3),
            'lr': np.float32(0.5),
            'list': np.arange(3),
            'empty': np.zeros((0, 2)),
        },
        'bytes': b'x',
        'more': collections.OrderedDict(a=torch.Size([1]), b=torch.bfloat16, c={1, 2}, d=torch.device('cpu')),
    }
    loaded = read(save(content))
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert history.data[0].tolist() == [1.0, 2.5]
    assert history.mean() == 1.75
    assert loaded['meta']['seed'] == 3
    assert loaded['meta']['list'].tolist() == [0, 1, 2]
    assert loaded['meta']['empty'].shape == (0, 2)
    assert loaded['bytes'] == b'x'
    assert loaded['more'] == content['more']
    assert isinstance(loaded['state_dict']['p'], torch.nn.Parameter)


@pytest.mark.parametrize('spelling', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_both_spellings_of_numpy(read, spelling, tmp_path):
    """A legacy file, whose pickle is plain enough to be respelt."""
    file = io.BytesIO()
    torch.save({'x': np.arange(3.0), 'y': np.float64(2)}, file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    own = np.arange(1).__reduce__()[0].__module__
    assert f'c{own}\n'.encode() in data
    (tmp_path / 'x.pth').write_bytes(data.replace(f'c{own}\n'.encode(), f'c{spelling}\n'.encode()))
    loaded = read(tmp_path / 'x.pth')
    assert loaded['x'].tolist() == [0.0, 1.0, 2.0]
    assert loaded['y'] == 2


class Call:
    """Pickles as a call of a function, and then as a state of what that returns."""

    def __init__(self, function, *args, state=None):
        self.result = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.result


ATTACKS = {
    'os.system': lambda trace: Call(os.system, f'touch {trace}'),
    'eval': lambda trace: Call(eval, f'open({str(trace)!r}, "w")'),
    'open': lambda trace: Call(open, str(trace), 'w'),
    'partial': lambda trace: Call(functools.partial, os.system, f'touch {trace}'),
    'getattr of a method': lambda trace: Call(getattr, HistoryBuffer, '__init__'),
    'getattr of update': lambda trace: Call(getattr, HistoryBuffer, 'update'),
    'getattr of an array': lambda trace: Call(getattr, np.ndarray, 'tofile'),
    'copyreg': lambda trace: Call(copyreg._reconstructor, io.StringIO, object, None),
    'array of objects': lambda trace: np.array([Call(os.system, f'touch {trace}')], dtype=object),
    'array of anything': lambda trace: np.array([{}], dtype=object),
    'storage of bytes': lambda trace: Call(
        torch.storage._load_from_bytes, pickle.dumps(Call(os.system, f'touch {trace}'))
    ),
    'torch.load': lambda trace: Call(torch.load, str(trace)),
    'torch.hub': lambda trace: Call(torch.hub.load, str(trace), 'model'),
    'a function of torch': lambda trace: Call(torch.set_num_threads, 1),
    'a module of torch': lambda trace: torch.nn.Linear(1, 1),
    'another object': lambda trace: io.BytesIO(b''),
}


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('nested', [False, True])
def test_nothing_is_run_or_built(name, nested, read, save, tmp_path):
    trace = tmp_path / 'trace'
    threads = torch.get_num_threads()
    attack = ATTACKS[name](trace)
    path = save({'state_dict': {'w': torch.ones(1)}, 'x': [{'y': (attack,)}]} if nested else attack)
    with pytest.raises(REFUSALS):
        read(path)
    assert not trace.exists()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    'operations',
    [
        # a state on the class HistoryBuffer, on a function, on a type of torch
        b'cmmengine.logging.history_buffer\nHistoryBuffer\n}X\x04\x00\x00\x00meanX\x01\x00\x00\x00xsb.',
        b'ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__)sb.',
        b'ctorch\nSize\n}X\x01\x00\x00\x00xX\x01\x00\x00\x00ysb.',
        b'\x80\x02\x82\x01.',  # an entry of copyreg's
        b'\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R.',
        b'\x80\x04\x8c\x02os\x8c\x06system\x93X\x04\x00\x00\x00exit\x85R.',  # a name from the stack
        b"(S'true'\nios\nsystem\n.",  # an instance of protocol 0
        b"(cos\nsystem\nS'true'\no.",
    ],
)
def test_bare_operations(operations, tmp_path):
    """Files that no pickler writes: a zip as torch has it, around operations written by hand."""
    path = tmp_path / 'file.pth'
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, operations if name.endswith('/data.pkl') else data)
    before = HistoryBuffer.mean, torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(pickle.UnpicklingError):
        restricted_pickle.read(path, safe_globals.CHECKPOINT)
    assert (HistoryBuffer.mean, torch._utils._rebuild_tensor_v2.__defaults__) == before


def test_programs_and_archives_are_refused(read, tmp_path):
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / 'x.pth'))
    with pytest.raises(REFUSALS):
        read(tmp_path / 'x.pth')
    import tarfile

    with tarfile.open(tmp_path / 'y.pth', 'w') as archive:
        archive.add(tmp_path / 'x.pth', 'storages')
    with pytest.raises(pickle.UnpicklingError):
        restricted_pickle.read(tmp_path / 'y.pth', {})


def test_numpy_1_beside_a_stub_of_numpy_2(monkeypatch):
    """numpy 1.26 has an `np._core` without `multiarray`; what it is comes from its version."""
    import sys
    import types

    core = sys.modules.get('numpy.core.multiarray') or sys.modules['numpy._core.multiarray']
    monkeypatch.setattr(np, '__version__', '1.26.4')
    monkeypatch.setattr(np, '_core', types.ModuleType('numpy._core'), raising=False)
    monkeypatch.setitem(sys.modules, 'numpy.core.multiarray', core)
    found = restricted_pickle._numpy()
    assert found['numpy._core.multiarray._reconstruct'] is found['numpy.core.multiarray._reconstruct']


def test_bytes_of_a_codec(save):
    """torch takes any encoding there; ours takes what pickle writes."""
    with pytest.raises(pickle.UnpicklingError, match='rot13'):
        restricted_pickle.read(save(Call(__import__('_codecs').encode, 'a', 'rot13')), {})
