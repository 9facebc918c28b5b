"""Files of `pickle` are read as far as they hold tensors and plain values; nothing they name is run or changed."""

import codecs
import os
import pickle

import numpy as np
import pytest
import torch

from mmext_backbones.engine.evaluation.predictions import _read_json, _read_pickle
from mmext_backbones.utils.errors import UserError
from mmext_backbones.weights.safe_pickle import load_pickle
from mmext_backbones.weights.safe_reading import load_restricted

from .test_safe_globals import CALLS, ONLY_RESTRICTED, Call

SAMPLE = {
    'pred_instances': {
        'labels': torch.arange(3),
        'bboxes': torch.arange(12.0).view(3, 4)[1:],
        'half': torch.ones(2, dtype=torch.bfloat16),
        'none': torch.zeros(0, 4),
        'masks': [{'size': [4, 5], 'counts': b'ab\xff'}],
    },
    'scale_factor': (np.float64(0.5), 0.5),
    'array': np.arange(6, dtype=np.uint8).reshape(2, 3),
    'plain': [None, True, 2**70, -1, 'ä', {1, 2}, (1, (2, (3, (4,)))), b'x' * 300, 'y' * 300],
    'size': torch.Size([2, 3]),
}


def rebuilt(size: tuple, stride: tuple, offset: int = 0) -> Call:
    """A tensor over four numbers."""
    storage = torch.arange(4.0).storage()
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_what_a_test_saves(protocol, tmp_path):
    (tmp_path / 'p.pkl').write_bytes(pickle.dumps([SAMPLE, SAMPLE], protocol))
    read, again = load_pickle(tmp_path / 'p.pkl')
    assert read is again  # what is named twice is one
    assert read.keys() == SAMPLE.keys()
    for name in ('labels', 'bboxes', 'half', 'none'):
        expected = SAMPLE['pred_instances'][name]
        found = read['pred_instances'].pop(name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)
    assert read['pred_instances'] == {'masks': SAMPLE['pred_instances']['masks']}
    assert np.array_equal(read['array'], SAMPLE['array'])
    for name in ('scale_factor', 'plain', 'size'):
        assert read[name] == SAMPLE[name]


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('name', [*CALLS, *ONLY_RESTRICTED])
def test_calls_and_objects_are_refused(name, protocol, tmp_path):
    trace = tmp_path / 'trace'
    made = (CALLS | ONLY_RESTRICTED)[name](str(trace))
    (tmp_path / 'p.pkl').write_bytes(pickle.dumps([made], protocol))
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        load_pickle(tmp_path / 'p.pkl')
    assert not trace.exists()


@pytest.mark.parametrize(
    ('module', 'name', 'attribute'),
    [
        ('torch._utils', '_rebuild_tensor_v2', '__defaults__'),
        ('torch._utils', '_rebuild_tensor_v2', '__kwdefaults__'),
        ('torch.storage', '_load_from_bytes', '__code__'),
        ('_codecs', 'encode', '__name__'),
        ('numpy', 'ndarray', 'x'),
        ('torch', 'Size', 'x'),
        ('collections', 'OrderedDict', 'x'),
        ('collections', 'OrderedDict', '__init__'),
    ],
)
@pytest.mark.parametrize('slots', [False, True])
def test_attributes_of_what_may_be_named_stay(module, name, attribute, slots, tmp_path):
    state = b'}X' + len(attribute).to_bytes(4, 'little') + attribute.encode() + b'K\x07s'
    state = b'N' + state + b'\x86' if slots else state
    (tmp_path / 'p.pkl').write_bytes(b'\x80\x02c' + f'{module}\n{name}\n'.encode() + state + b'b.')
    with pytest.raises(pickle.UnpicklingError, match='sets attributes'):
        load_pickle(tmp_path / 'p.pkl')
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


@pytest.mark.parametrize('load', [load_pickle, load_restricted])
@pytest.mark.parametrize(
    ('size', 'stride', 'offset'),
    [((10**12,), (1,), 0), ((5,), (1,), 0), ((2, 2), (3, 1), 0), ((4,), (1,), 1), ((2,), (-1,), 1), ((-1,), (1,), 0),
     ((2, 2), (1,), 0), ((1.5,), (1,), 0)],
)  # fmt: skip
def test_a_tensor_lies_within_its_numbers(load, size, stride, offset, tmp_path):
    made = rebuilt(size, stride, offset)
    if load is load_pickle:
        (tmp_path / 'x').write_bytes(pickle.dumps(made, 2))
    else:
        torch.save(made, tmp_path / 'x')
    with pytest.raises(pickle.UnpicklingError, match='makes a tensor'):
        load(tmp_path / 'x')


def test_a_tensor_that_does_is_read(tmp_path):
    (tmp_path / 'x').write_bytes(
        pickle.dumps([rebuilt((2, 2), (2, 1)), rebuilt((3,), (0,), 3), rebuilt((0,), (1,))], 2)
    )
    assert [tensor.tolist() for tensor in load_pickle(tmp_path / 'x')] == [[[0, 1], [2, 3]], [3, 3, 3], []]


DAMAGED = {
    'empty': b'',
    'cut': pickle.dumps([SAMPLE])[:-20],
    'a call of a number': b'\x80\x02I1\n)R.',
    'an item of a number': b'\x80\x02K\x01K\x02K\x03s.',
    'a length of 2**63': b'\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.',
    'a frame of 2**62': b'\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x3f.',
    'an array of 2**62': pickle.dumps(
        Call(np.arange(1).__reduce__()[0], np.ndarray, (0,), b'b', state=(1, (2**62,), np.dtype('u1'), False, b'x')), 2
    ),
    'a negative array': pickle.dumps(
        Call(np.arange(1).__reduce__()[0], np.ndarray, (0,), b'b', state=(1, (-1,), np.dtype('u1'), False, b'')), 2
    ),
    'an unknown encoding': pickle.dumps(Call(codecs.encode, 'x', 'nocodec'), 2),
    'a type that is none': pickle.dumps(Call(np.dtype, '((('), 2),
    'a size that is none': pickle.dumps(Call(torch.Size, ('x',)), 2),
    'a memo that is none': b'\x80\x02h\x07.',
    'nothing on the stack': b'\x80\x02.',
    'text': b'hello',
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_files_are_told(name, tmp_path):
    (tmp_path / 'p.pkl').write_bytes(DAMAGED[name])
    with pytest.raises(UserError, match=r"predictions '.*p\.pkl' cannot be read: ."):
        _read_pickle(tmp_path / 'p.pkl')


@pytest.mark.parametrize('content', [b'[' * 100_000, b'\xff', b'{', b''])
def test_damaged_json_is_told(content, tmp_path):
    (tmp_path / 'p.json').write_bytes(content)
    with pytest.raises(UserError, match=r"predictions '.*p\.json' cannot be read: ."):
        _read_json(tmp_path / 'p.json')


def test_what_is_refused_is_named(tmp_path):
    (tmp_path / 'p.pkl').write_bytes(pickle.dumps(os.system))
    with pytest.raises(UserError, match=rf'{os.system.__module__}\.system is neither a tensor nor a plain value'):
        _read_pickle(tmp_path / 'p.pkl')
