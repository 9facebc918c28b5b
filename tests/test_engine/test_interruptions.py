"""Trainings that are asked to stop, or killed, and go on: the end is that of an unbroken run, bit for bit."""

import os
import signal
from pathlib import Path

import pytest
import torch

from mmext_backbones.engine.preemption import EXIT_CODE, Preempted
from mmext_backbones.engine.resuming import find_checkpoint

from .toy import At, make_run


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def state(runner) -> dict[str, torch.Tensor]:
    """All that a training has learned: weights and averages over the gradients."""
    tensors = {f'model.{name}': value for name, value in runner.model.state_dict().items()}
    for index, values in runner.optim_wrapper.state_dict()['state'].items():
        tensors |= {f'optimizer.{index}.{name}': value for name, value in values.items()}
    for hook in runner.hooks:
        if hasattr(hook, 'ema_model'):
            tensors |= {f'ema.{name}': value for name, value in hook.ema_model.state_dict().items()}
    return {name: torch.as_tensor(value).clone() for name, value in tensors.items()}


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


def interrupted(folder: Path, iteration: int, stage: str = 'after_train_iter', **options):
    """A run that is stopped once and goes on: the second runner, and the checkpoint between."""
    with pytest.raises(Preempted) as stopped:
        make_run(folder, hooks=[At(iteration, stop, stage)], **options).train()
    assert stopped.value.code == EXIT_CODE == 75
    checkpoint = find_checkpoint(folder, print)
    assert checkpoint == stopped.value.checkpoint
    runner = make_run(folder, resume=checkpoint, **options)
    runner.train()
    return runner, checkpoint


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(('loop', 'iteration'), [('epoch', 10), ('epoch', 14), ('iter', 10), ('finite', 10)])
def test_a_stopped_training_goes_on_exactly_there(loop, iteration, workers, tmp_path):
    unbroken = make_run(tmp_path / 'unbroken', loop)
    unbroken.train()
    runner, checkpoint = interrupted(tmp_path / 'broken', iteration, loop=loop, workers=workers)
    names = {10: 'epoch_1_iter_10.pth', 14: 'epoch_1_iter_14.pth'} if loop == 'epoch' else {10: 'iter_10.pth'}
    assert Path(checkpoint).name == names[iteration]
    assert_equal(state(runner), state(unbroken))
    accuracies = runner.message_hub.get_scalar('val/accuracy').data[0]
    assert list(accuracies) == list(unbroken.message_hub.get_scalar('val/accuracy').data[0])
    if workers == 0:  # what came before is not loaded again
        assert len(runner.train_dataloader.dataset.loaded) <= (21 - iteration) * 4
