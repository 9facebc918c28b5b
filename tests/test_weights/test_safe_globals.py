"""Checkpoints as mmengine writes them are read on every version of torch, and nothing else is.

Every test of what is refused runs with the restricted reader, and with torch's own safe mode where that takes a list.
"""

import builtins
import collections
import contextlib
import copyreg
import functools
import io
import operator
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmext_backbones.weights import safe_globals
from mmext_backbones.weights.fitting import WeightsError
from mmext_backbones.weights.loading import read_file
from mmext_backbones.weights.safe_reading import load, load_restricted

READERS = [load_restricted, load] if safe_globals.TORCH_TAKES_A_LIST else [load_restricted]
readers = pytest.mark.parametrize('reader', READERS, ids=lambda reader: reader.__name__)
formats = pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])


def buffer() -> HistoryBuffer:
    history = HistoryBuffer()
    for value in (1.0, 2.5):
        history.update(value)
    return history


class Call:
    """Pickles as a call; with a state, as an object whose state is set after it."""

    def __init__(self, function: object, *args: object, state: object = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple:
        return self.reduced


@readers
@formats
@pytest.mark.parametrize('mmap', [False, True])
def test_what_mmengine_writes(reader, zipped, mmap, tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    shared = torch.arange(4.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    content = {
        'state_dict': module.state_dict(),  # an OrderedDict with an attribute
        'parameter': weight,
        'optimizer': optimizer.state_dict(),
        'views': [shared[:2], shared[2:]],
        'narrow': torch.ones(2, dtype=torch.bfloat16),
        'bytes': torch.ones(2, dtype=torch.uint8),
        'numbers': torch.get_rng_state(),
        'sparse': torch.eye(3).to_sparse(),
        'quantized': torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
        'param_schedulers': [{'milestones': schedule.milestones, 'last_values': [0.1]}],  # a Counter
        'message_hub': {'log_scalars': {'train/loss': buffer()}},
        'meta': {
            'seed': np.int64(3),
            'lr': np.float32(0.5),
            'list': np.arange(3),
            'dtype': torch.float16,
        },
        'empty': np.zeros((0, 2)),
        'plain': [{1, 2}, (None, True, 2**70, -1, 'ä', b'\x00\xff', 1j), torch.Size([1]), torch.device('cpu')],
        'big': np.arange(3, dtype='>i4'),
        'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    loaded = reader(tmp_path / 'x.pth', 'cpu', mmap=mmap)
    assert loaded.keys() == content.keys()
    assert loaded['state_dict']._metadata == content['state_dict']._metadata
    assert type(loaded['state_dict']) is collections.OrderedDict
    for name, value in module.state_dict().items():
        assert torch.equal(loaded['state_dict'][name], value)
    assert type(loaded['parameter']) is torch.nn.Parameter
    assert torch.equal(loaded['parameter'], weight)
    assert torch.equal(loaded['optimizer']['state'][0]['exp_avg'], optimizer.state[weight]['exp_avg'])
    assert [view.tolist() for view in loaded['views']] == [[0, 1], [2, 3]]
    assert loaded['views'][0].untyped_storage().data_ptr() == loaded['views'][1].untyped_storage().data_ptr()
    assert torch.equal(loaded['sparse'].to_dense(), torch.eye(3))
    for name in ('narrow', 'bytes', 'numbers', 'quantized'):
        assert torch.equal(loaded[name], content[name])
    assert loaded['param_schedulers'] == [{'milestones': collections.Counter([2, 3]), 'last_values': [0.1]}]
    assert type(loaded['param_schedulers'][0]['milestones']) is collections.Counter
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert history.data[0].tolist() == [1.0, 2.5]
    assert history.statistics('mean') == 1.75
    history.update(3.0)
    assert history.max() == 3.0
    assert loaded['meta'].pop('list').tolist() == [0, 1, 2]
    assert loaded['empty'].shape == (0, 2)
    assert loaded['meta'] == {'seed': 3, 'lr': 0.5, 'dtype': torch.float16}
    assert loaded['plain'] == content['plain']
    for name in ('big', 'fortran'):
        assert np.array_equal(loaded[name], content[name])
    assert loaded['fortran'].flags.f_contiguous


@pytest.mark.skipif(not safe_globals.TORCH_TAKES_A_LIST, reason='before torch 2.6 safe mode takes no list')
def test_torchs_safe_mode_was_told(tmp_path):
    """Code that is not ours calls `torch.load` itself."""
    torch.save({'history': buffer()}, tmp_path / 'x.pth')
    assert torch.load(tmp_path / 'x.pth', weights_only=True)['history'].data[0].tolist() == [1.0, 2.5]


@readers
@pytest.mark.parametrize('spelling', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_both_spellings_of_numpy(reader, spelling, tmp_path):
    """A legacy file, whose pickle is plain enough to be respelt."""
    file = io.BytesIO()
    torch.save({'x': np.arange(3.0), 'y': np.float64(2)}, file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    own = np.arange(1).__reduce__()[0].__module__
    assert f'c{own}\n'.encode() in data
    (tmp_path / 'x.pth').write_bytes(data.replace(f'c{own}\n'.encode(), f'c{spelling}\n'.encode()))
    loaded = reader(tmp_path / 'x.pth')
    assert loaded['x'].tolist() == [0.0, 1.0, 2.0]
    assert loaded['y'] == 2


# --------------------------------------------------------------------------------------------------------------------
# Refused


def poisoned_type() -> Call:
    """Numbers whose type says they are pointers."""
    return Call(np.dtype, 'f8', False, True, state=(3, '<', None, None, None, -1, -1, 63))


def exchanged() -> HistoryBuffer:
    """mmengine takes the methods of one object over to its class."""
    history = buffer()
    history._statistics_methods = {'min': HistoryBuffer.max}
    return history


CALLS = {
    'os.system': lambda trace: Call(os.system, f'touch {trace}'),
    'nested': lambda trace: [{'a': (Call(os.system, f'touch {trace}'),)}],
    'eval': lambda trace: Call(eval, f'open({trace!r}, "w")'),
    'exec': lambda trace: Call(exec, f'open({trace!r}, "w")'),
    'open': lambda trace: Call(open, trace, 'w'),
    'import': lambda trace: Call(builtins.__import__, 'this'),
    'getattr of a module': lambda trace: Call(getattr, Call(builtins.__import__, 'os'), 'system'),
    'getattr of the history': lambda trace: Call(getattr, HistoryBuffer, '__init__'),
    'getattr of its method': lambda trace: Call(getattr, HistoryBuffer, 'update'),
    'getattr of numpy': lambda trace: Call(getattr, np.ndarray, 'tofile'),
    'getattr of a method of it': lambda trace: Call(getattr, HistoryBuffer.mean, '__globals__'),
    'a chain of getattr': lambda trace: Call(getattr, Call(getattr, HistoryBuffer, 'mean'), '__globals__'),
    'attrgetter': lambda trace: Call(operator.attrgetter, '__class__'),
    'partial': lambda trace: functools.partial(os.system, f'touch {trace}'),
    'copyreg': lambda trace: Call(copyreg._reconstructor, HistoryBuffer, object, None),
    'torch.load': lambda trace: Call(torch.load, io.BytesIO(b'')),
    'bytes as a storage': lambda trace: Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, 'true'))),
    'torch.hub': lambda trace: Call(torch.hub.load, trace),
    'torch.jit': lambda trace: Call(torch.jit.load, trace),
    'torch.save': lambda trace: Call(torch.save, [1], trace),
    'tensors are no functions': lambda trace: Call(torch.from_numpy, np.arange(2)),
    'torch.nn': lambda trace: torch.nn.Linear(2, 2),
    'an object': lambda trace: Path(trace),
    'a function': lambda trace: torch.save,
    'numpy.load': lambda trace: Call(np.load, trace),
    'objects in an array': lambda trace: np.array([{}, None], dtype=object),
    'an empty array of objects': lambda trace: Call(np.arange(1).__reduce__()[0], np.ndarray, (0,), 'O'),
    'a structure': lambda trace: np.zeros(2, dtype=[('a', 'f8'), ('b', 'O')]),
    'a scalar of objects': lambda trace: Call(np.float64(1).__reduce__()[0], np.dtype('O'), pickle.dumps([])),
    'an array of a class': lambda trace: np.ma.masked_array([1, 2], [0, 1]),
}
ONLY_RESTRICTED = {  # torch's list has no say in what becomes of an object of an allowed type
    'a poisoned type': lambda trace: poisoned_type(),
    'an array of a poisoned type': lambda trace: Call(
        np.arange(1).__reduce__()[0], np.ndarray, (0,), b'b', state=(1, (1,), poisoned_type(), False, b'\x01' * 8)
    ),
    'an exchanged method': lambda trace: exchanged(),
    'an array by its class': lambda trace: Call(np.ndarray, (2,)),
    'a hook': lambda trace: Call(torch._tensor._rebuild_from_type_v2, torch.Size, torch.Tensor, (), {}),
    'another codec': lambda trace: Call(__import__('_codecs').encode, 'x', 'rot13'),
    'much memory': lambda trace: Call(bytes, 10),
}


def refused(reader, path: Path) -> None:
    before = dict(HistoryBuffer._statistics_methods)
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        reader(path, 'cpu')
    assert HistoryBuffer._statistics_methods == before


@readers
@formats
@pytest.mark.parametrize('name', CALLS)
def test_calls_and_objects_are_refused(reader, zipped, name, tmp_path):
    trace = tmp_path / 'trace'
    content = {'state_dict': {'w': torch.ones(2)}, 'x': CALLS[name](str(trace))}
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    refused(reader, tmp_path / 'x.pth')
    assert not trace.exists()


@formats
@pytest.mark.parametrize('name', ONLY_RESTRICTED)
def test_what_the_restricted_reader_refuses_beyond_torch(zipped, name, tmp_path):
    torch.save([ONLY_RESTRICTED[name]('')], tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    refused(load_restricted, tmp_path / 'x.pth')


@readers
def test_a_file_exchanges_no_methods_of_the_process(reader, tmp_path):
    torch.save([exchanged()], tmp_path / 'x.pth')
    before = dict(HistoryBuffer._statistics_methods)
    with contextlib.suppress(pickle.UnpicklingError):
        reader(tmp_path / 'x.pth')
    assert buffer().statistics('min') == 1.0
    assert HistoryBuffer._statistics_methods == before
    assert before['min'] is HistoryBuffer.min


def legacy(body: bytes) -> bytes:
    """A file of the old format with this pickle, and no storages."""
    start = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {'little_endian': True}]
    return b''.join(pickle.dumps(part, 2) for part in start) + body + pickle.dumps([], 2)


PICKLES = {
    'a state for a function': b'\x80\x02ccollections\nOrderedDict\n}X\x08\x00\x00\x00__name__K\x01sb.',
    'a state for a class': b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\nN}X\x04\x00\x00\x00meanNs\x86b.',
    'attributes of a history by slots': b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81N}\x86b.',
    'appending to a set': b'\x80\x02\x8fK\x01a.',
    'items of a list': b'\x80\x02]K\x00K\x01s.',
    'a call of a class that may be named': b'\x80\x02cnumpy\nndarray\nK\x01\x85R.',
    'a call of a call': b'\x80\x02ccollections\nOrderedDict\n)R)R.',
    'an object of a class that may be named': b'\x80\x02cnumpy\nndarray\nK\x01\x85\x81.',
    'an object of protocol 0': b"(ios\nsystem\nS'true'\n.",
    'an object of protocol 1': b'(cos\nsystem\nX\x04\x00\x00\x00trueo.',
    'a name from the stack': b'\x80\x04X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93X\x04\x00\x00\x00true\x85R.',
    'an extension': b'\x80\x02\x82\x01.',
    'keywords': b'\x80\x04ccollections\nOrderedDict\n)}\x92.',
    'a reference in text': b'\x80\x02Px\n.',
    'a module as a reference': b'\x80\x02(X\x06\x00\x00\x00modulecnumpy\nndarray\n'
    b'X\x01\x00\x00\x00aX\x01\x00\x00\x00btQ.',
    'a storage of another type': b'\x80\x02(X\x07\x00\x00\x00storagecnumpy\nndarray\n'
    b'X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01NtQ.',
    'a new object by a call': b'\x80\x02ccopy_reg\n__newobj__\ncnumpy\nndarray\n\x85R.',
    'python 2': b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
    'a dotted name': b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer.update\n.',
    'a storage in a name': b'\x80\x02cos\nsystemStorage\n.',
}  # fmt: skip


@pytest.mark.parametrize('name', PICKLES)
def test_pickles_made_by_hand(name, tmp_path):
    (tmp_path / 'x.pth').write_bytes(legacy(PICKLES[name]))
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load_restricted(tmp_path / 'x.pth', 'cpu')
    if 'may be named' not in name or not safe_globals.TORCH_TAKES_A_LIST:  # torch calls what is on its list
        with pytest.raises(WeightsError, match=r'x\.pth (is not|cannot be) read'):
            read_file(str(tmp_path / 'x.pth'), 'cpu')
    assert HistoryBuffer.mean is not None
    assert collections.OrderedDict.__name__ == 'OrderedDict'


def test_a_legacy_file_made_by_hand_is_read(tmp_path):
    """Else the test above would pass for any file."""
    (tmp_path / 'x.pth').write_bytes(legacy(pickle.dumps({'a': [1, (2.5, 'x')]}, 2)))
    for reader in READERS:
        assert reader(tmp_path / 'x.pth') == {'a': [1, (2.5, 'x')]}


def test_torchscript_is_refused(tmp_path):
    """`torch.load` before 2.6 hands it to `torch.jit.load`, also in safe mode."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / 'x.pth')
    for reader in (load, load_restricted):
        with pytest.raises(WeightsError, match=r'x\.pth is not read: it is a TorchScript archive'):
            reader(tmp_path / 'x.pth', 'cpu')
    with pytest.raises(WeightsError, match=r'torch\.jit\.load'):
        read_file(str(tmp_path / 'x.pth'), mmap=True)


def test_tar_archives_are_not_unpacked(tmp_path, monkeypatch):
    (tmp_path / 'storages').write_bytes(pickle.dumps(0, 2))
    with tarfile.open(tmp_path / 'x.pth', 'w:') as tar:
        tar.add(tmp_path / 'storages', 'storages')
    monkeypatch.setattr(tarfile.TarFile, 'extract', lambda *args, **kwargs: pytest.fail('unpacked'))
    with pytest.raises(pickle.UnpicklingError):
        load_restricted(tmp_path / 'x.pth')
    with pytest.raises(WeightsError, match=r'x\.pth'):
        read_file(str(tmp_path / 'x.pth'))


def test_the_messages_are_those_of_every_version(tmp_path):
    torch.save({'x': Call(os.system, 'true')}, tmp_path / 'x.pth')
    with pytest.raises(WeightsError, match=rf'x\.pth is not read: it refers to {os.system.__module__}\.system, and'):
        read_file(str(tmp_path / 'x.pth'))
    (tmp_path / 'y.pth').write_text('no checkpoint')
    with pytest.raises(WeightsError, match='no checkpoint of torch, or a damaged one'):
        read_file(str(tmp_path / 'y.pth'))


def test_numpy_1_has_an_empty_module_of_the_new_name(fresh):
    code = 'import types, numpy; numpy._core = types.ModuleType("numpy._core"); import mmext_backbones'
    result = fresh().run(code)
    assert result.returncode == 0, result.stderr
