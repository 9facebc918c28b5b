"""Two computations at once: who waits for whom."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from mmext_backbones.layers import BiLSTM2D
from mmext_backbones.ops.bilstm2d import torch_lstm


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f'{self.name} waits for {other.name}')


def test_one_after_the_other_on_the_cpu():
    x = torch.ones(2)
    first, second = torch_lstm._on_two_streams(x, lambda x: x + 1, lambda x: x + 2)
    assert torch.equal(first, x + 1)
    assert torch.equal(second, x + 2)


def test_who_waits_for_whom_on_cuda(monkeypatch):
    """No GPU is needed: what is queued, and where, is written down."""
    log = []
    x = SimpleNamespace(
        device=torch.device('cuda', 0), record_stream=lambda stream: log.append(f'x is read on {stream.name}')
    )
    here, other = Stream('here', log), Stream('other', log)

    @contextmanager
    def on(stream):
        log.append(f'on {stream.name}')
        yield
        log.append(f'off {stream.name}')

    def computing(name):
        def compute(x):
            log.append(name)
            return SimpleNamespace(record_stream=lambda stream: log.append(f'{name} is read on {stream.name}'))

        return compute

    monkeypatch.setattr(torch_lstm, 'Tensor', SimpleNamespace)
    monkeypatch.setattr(torch_lstm, '_other_stream', lambda device: other)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: here)
    monkeypatch.setattr(torch.cuda, 'stream', on)
    torch_lstm._on_two_streams(x, computing('first'), computing('second'))
    assert log == [
        'other waits for here',
        'x is read on other',
        'on other',
        'second',
        'off other',
        'first',
        'here waits for other',
        'second is read on here',
    ]


def test_gradients_of_weights_leave_the_other_stream_before_they_are_accumulated(monkeypatch):
    """Views made on the caller's stream stand between the LSTM of the other one and its weights. No GPU is needed."""
    taken, lstm = [], torch.lstm

    def recording(x, state, weights, *options):
        taken.append(weights)
        return lstm(x, state, weights, *options)

    monkeypatch.setattr(torch, 'lstm', recording)
    monkeypatch.setattr(torch_lstm, '_has_two_streams', lambda x: True)
    monkeypatch.setattr(torch_lstm, '_on_two_streams', lambda x, first, second: (first(x), second(x)))
    mixer = BiLSTM2D(12, 5)
    mixer.backend = 'torch'
    mixer(torch.randn(1, 4, 6, 12)).sum().backward()
    of_here, of_other = taken
    assert all(weight is parameter for weight, parameter in zip(of_here, mixer.rnn_v.tensors(), strict=True))
    for weight, parameter in zip(of_other, mixer.rnn_h.tensors(), strict=True):
        assert weight.grad_fn is not None
        assert weight.data_ptr() == parameter.data_ptr()  # one piece of memory, as cuDNN wants them
        assert parameter.grad is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason='CUDA: there is no device')
def test_both_axes_at_once_agree_with_the_cpu():
    torch.manual_seed(0)
    mixer = BiLSTM2D(48, 12).double()
    x = torch.randn(2, 31, 45, 48, dtype=torch.float64, requires_grad=True)
    expected = mixer(x)
    wanted = torch.autograd.grad(expected.square().sum(), [x, *mixer.parameters()])
    mixer, on_gpu = mixer.cuda(), x.detach().cuda().requires_grad_()
    for _ in range(20):  # memory is reused from the second on
        out = mixer(on_gpu)
        grads = torch.autograd.grad(out.square().sum(), [on_gpu, *mixer.parameters()])
        torch.testing.assert_close(out.cpu(), expected, rtol=1e-9, atol=1e-11)
        for actual, one in zip(grads, wanted, strict=True):
            torch.testing.assert_close(actual.cpu(), one, rtol=1e-8, atol=1e-9)
