"""Conversion tables: no key is lost or invented in silence."""

import pytest
import torch

from mmext_backbones.weights import swin
from mmext_backbones.weights.rules import Rule, convert


def test_unknown_keys_raise():
    with pytest.raises(ValueError, match='1 keys of an unknown layout, among them stranger'):
        convert({'known': torch.zeros(1), 'stranger': torch.zeros(1)}, [Rule('known', 'k')])


def test_two_keys_of_one_name_raise():
    with pytest.raises(ValueError, match='b: another key was already converted to k'):
        convert({'a': torch.zeros(1), 'b': torch.zeros(1)}, [Rule('a|b', 'k')])


def test_the_first_rule_wins_and_values_change():
    rules = [Rule(r'x\.(\d)', r'y.\1', lambda t: t + 1), Rule(r'x\..*', None)]
    assert convert({'x.1': torch.zeros(1), 'x.drop': torch.zeros(1)}, rules) == {'y.1': torch.ones(1)}


def test_patch_merging_order():
    # The 4C inputs as OpenMMLab's unfold gives them: channel-major, then parity (row, column).
    parities = ['00', '01', '10', '11']
    unfold = [f'{c}{p}' for c in 'ab' for p in parities]
    ours = [f'{c}{p}' for p in ('00', '10', '01', '11') for c in 'ab']
    order = swin.unfold_order_to_authors(torch.arange(8))
    assert [unfold[i] for i in order] == ours
