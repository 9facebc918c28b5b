"""The parameters of the token mixer, beside those of torch's LSTM."""

import copy
import itertools
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

from mmext_backbones.layers import BiLSTM2D
from mmext_backbones.layers.bilstm import LSTMParameters
from tests.torch_features import needs_fake_cuda


def test_parameters_are_those_of_nn_lstm():
    torch.manual_seed(0)
    expected, after = nn.LSTM(12, 5, bidirectional=True).state_dict(), torch.get_rng_state()
    torch.manual_seed(0)
    actual = LSTMParameters(12, 5).state_dict()
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    assert torch.equal(torch.get_rng_state(), after)


def test_copies_and_casts_compute_the_same():
    mixer, x = BiLSTM2D(12, 5), torch.randn(1, 4, 6, 12)
    expected = mixer(x)
    for other in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        assert torch.equal(other(x), expected)
    torch.testing.assert_close(copy.deepcopy(mixer).double()(x.double()).float(), expected)
    assert {p.dtype for p in copy.deepcopy(mixer).half().parameters()} == {torch.float16}
    with torch.device('meta'):
        empty = BiLSTM2D(12, 5)
    empty = empty.to_empty(device='cpu')
    empty.load_state_dict(mixer.state_dict())
    assert torch.equal(empty(x), expected)


def test_parametrised_weights_are_read():
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    mixer, x = BiLSTM2D(12, 5), torch.randn(1, 4, 6, 12)
    doubled = copy.deepcopy(mixer)
    with torch.no_grad():
        doubled.rnn_h.weight_hh_l0.mul_(2)
    parametrize.register_parametrization(mixer.rnn_h, 'weight_hh_l0', Double())
    assert torch.equal(mixer.double()(x.double()), doubled.double()(x.double()))


@needs_fake_cuda
def test_cudnn_is_asked_for_the_layout_as_by_nn_lstm(monkeypatch):
    """On tensors of CUDA without data, so that it needs no such device."""
    asked, addresses = [], itertools.count()
    monkeypatch.setattr(torch, '_cudnn_rnn_flatten_weight', lambda *args: asked.append(args))
    monkeypatch.setattr(torch.backends.cudnn, 'is_acceptable', lambda tensor: True)
    monkeypatch.setattr(torch.cuda, 'device_of', lambda tensor: nullcontext())
    monkeypatch.setattr(torch.Tensor, 'data_ptr', lambda tensor: next(addresses))
    with FakeTensorMode(), torch.device('cuda'):
        lstm, ours = nn.LSTM(12, 5, bidirectional=True), LSTMParameters(12, 5)
    (theirs, *expected), (tensors, *options) = asked
    assert options == expected
    for given, module in ((theirs, lstm), (tensors, ours)):
        assert all(a is b for a, b in zip(given, module.parameters(), strict=True))


def test_the_layout_follows_every_change_of_the_parameters(monkeypatch):
    layouts = []
    monkeypatch.setattr(LSTMParameters, 'flatten_parameters', lambda self: layouts.append(self.weight_ih_l0.dtype))
    nn.Sequential(LSTMParameters(12, 5)).double()
    assert layouts == [torch.float32, torch.float64]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='CUDA: there is no device')
def test_one_piece_of_memory_on_cuda(recwarn):
    mixer = BiLSTM2D(12, 5).cuda()
    for rnn in (mixer.rnn_v, mixer.rnn_h):
        assert len({p.untyped_storage().data_ptr() for p in rnn.parameters()}) == 1
    mixer(torch.randn(1, 4, 6, 12, device='cuda')).sum().backward()
    assert not [warning for warning in recwarn if 'contiguous chunk' in str(warning.message)]


def test_the_layout_follows_tensors_that_are_assigned(monkeypatch):
    """`load_state_dict(assign=True)` puts each in a piece of memory of its own."""
    layouts, mixer = [], copy.deepcopy(nn.Sequential(BiLSTM2D(12, 5)))
    state = {name: tensor.double() for name, tensor in mixer.state_dict().items()}
    monkeypatch.setattr(LSTMParameters, 'flatten_parameters', lambda self: layouts.append(self.weight_ih_l0.dtype))
    pickle.loads(pickle.dumps(mixer)).load_state_dict(state, assign=True)
    assert layouts == [torch.float64] * 2
