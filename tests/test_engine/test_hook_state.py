"""What hooks count goes on in a resumed training; see `toy` for the training."""

import json

import pytest
import torch
from mmengine.hooks import EarlyStoppingHook, Hook

from mmext_backbones.engine.resume import hook_state
from mmext_backbones.engine.resume.hook_state import VALIDATED, HookStateHook
from mmext_backbones.engine.resume.position import find_checkpoint
from mmext_backbones.weights.loading import read

from .toy import At, LogCapture, make_run

STOPPING = {'monitor': 'accuracy', 'rule': 'greater', 'patience': 3, 'min_delta': 2.0}  # no accuracy is better by two


def train(folder, epochs, hooks=(), resume=None, **options):
    runner = make_run(folder, hooks=hooks, resume=resume, **{'train_cfg.max_epochs': epochs, **options})
    runner.train()
    return runner


def test_early_stopping_goes_on_counting(tmp_path):
    """The checkpoint is older than the validation after it, whose score counts all the same."""
    whole = train(tmp_path / 'whole', 8, [EarlyStoppingHook(**STOPPING)])
    assert whole.epoch == 4
    train(tmp_path / 'broken', 3, [EarlyStoppingHook(**STOPPING)])
    hook = EarlyStoppingHook(**STOPPING)
    with LogCapture(runner := make_run(tmp_path / 'broken', hooks=[hook], resume=str(tmp_path / 'broken/epoch_3.pth'),
                                       **{'train_cfg.max_epochs': 8})) as log:  # fmt: skip
        runner.train()
    assert runner.epoch == 4
    assert hook.wait_count == 3
    assert 'was not finished' not in log.text  # the validation is not repeated for it


def test_without_the_note_the_validation_is_made_up_for(tmp_path):
    train(tmp_path, 3, [EarlyStoppingHook(**STOPPING)])
    for content in (b'', b'PK', b'[]', b'\xff' * 10**6):
        (tmp_path / VALIDATED).write_bytes(content)
        assert hook_state._read_note(tmp_path / VALIDATED) is None
    hook = EarlyStoppingHook(**STOPPING)
    assert train(tmp_path, 8, [hook], find_checkpoint(tmp_path, print)).epoch == 4


def test_a_note_of_an_earlier_version(tmp_path):
    (tmp_path / VALIDATED).write_text('21\n')
    assert hook_state._read_note(tmp_path / VALIDATED) == {'iter': 21}


def test_a_training_that_was_stopped_early_stays_so(tmp_path):
    train(tmp_path, 8, [EarlyStoppingHook(**STOPPING)])
    checkpoint = find_checkpoint(tmp_path, print)
    assert train(tmp_path, 8, [EarlyStoppingHook(**STOPPING)], checkpoint).epoch == 4
    patient = {**STOPPING, 'patience': 5}
    assert train(tmp_path, 8, [EarlyStoppingHook(**patient)], checkpoint).epoch == 6


class Counter(Hook):
    """Any hook that says what it keeps."""

    def __init__(self, kept=None):
        self.count = 0
        self.kept = kept

    def after_train_iter(self, runner, *args, **kwargs):
        self.count += 1

    def state_dict(self):
        return {'count': self.count} if self.kept is None else self.kept

    def load_state_dict(self, state):
        self.count = state['count']


def test_any_hook_with_a_state(tmp_path):
    """Two of a kind are not mixed up, and one whose state is no plain value is left out."""
    train(tmp_path, 1, [Counter(), Counter({'count': 100}), Counter({'code': print})])
    hooks = [Counter(), Counter(), Counter()]
    train(tmp_path, 2, hooks, str(tmp_path / 'epoch_1.pth'))
    assert [hook.count for hook in hooks] == [14, 107, 7]
    assert read(tmp_path / 'epoch_1.pth')['mmext_hooks']['hooks'] == {
        'Counter': {'count': 7}, 'Counter 2': {'count': 100},
    }  # fmt: skip


def test_the_best_score_of_the_last_validation_is_known(tmp_path):
    best = {'default_hooks.checkpoint.save_best': 'accuracy', 'default_hooks.checkpoint.rule': 'greater'}
    first = train(tmp_path, 2, **best)
    score, path = (first.message_hub.get_info(key) for key in ('best_score', 'best_ckpt'))
    seen = []

    class See(Hook):
        priority = 'LOWEST'

        def before_train(self, runner):
            hook = next(hook for hook in runner.hooks if hasattr(hook, 'best_ckpt_path'))
            seen.append((runner.message_hub.get_info('best_score'), hook.best_ckpt_path))
            seen.append(runner.message_hub.get_info('max_epochs'))

    train(tmp_path, 3, [See()], str(tmp_path / 'epoch_2.pth'), **best)
    assert seen == [(score, path), 3]


def test_a_schedule_that_follows_the_metric_validates_again(tmp_path):
    """What it did to the rates at the end of the validation is not noted."""
    options = {'param_scheduler': [{'type': 'ReduceOnPlateauLR', 'monitor': 'accuracy', 'rule': 'greater',
                                    'patience': 0, 'threshold': 2.0, 'threshold_rule': 'abs'}]}  # fmt: skip

    def die() -> None:
        raise KeyboardInterrupt

    whole = train(tmp_path / 'whole', 4, **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'broken', 4, [At(15, die)], **options)
    resumed = train(tmp_path / 'broken', 4, resume=str(tmp_path / 'broken/epoch_2.pth'), **options)
    rates = [runner.optim_wrapper.param_groups[0]['lr'] for runner in (whole, resumed)]
    assert rates[0] == rates[1] == pytest.approx(1e-4)


def test_strange_states_are_told(tmp_path):
    train(tmp_path, 1, [Counter()])
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    for strange in (5, {'hooks': {'Counter': 5}}):
        torch.save({**checkpoint, 'mmext_hooks': strange}, tmp_path / 'epoch_1.pth')
        assert train(tmp_path, 2, [Counter()], str(tmp_path / 'epoch_1.pth')).epoch == 2
    assert isinstance(HookStateHook(), Hook)
    assert json.dumps(hook_state._counted(EarlyStoppingHook(**STOPPING)))
