"""--cfg-options: values as mmengine reads them, dicts besides, and one message for anything else."""

import argparse

import pytest
from mmengine.config import DictAction

from mmext_backbones.config.options import ConfigOptions


def read(*values, action=ConfigOptions):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=action)
    return parser.parse_args(['--cfg-options', *values]).cfg_options


@pytest.mark.parametrize(
    'pair', ['a=1', 'a.b=1,2', 'a=[(1,2),x]', 'a=None', 'a=', 'a="x=y"', 'a=1e-4', 'a=epoch_{}.pth', 'a=timm://x.y']
)
def test_as_mmengine_reads_it(pair):
    assert read(pair) == read(pair, action=DictAction)


def test_dicts_and_several_pairs():
    backbone = {'_delete_': True, 'type': 'mmext_backbones.MaxViT', 'out_indices': (0, 1)}
    assert read('n=3', f'model.backbone={backbone}', f'hooks=[{backbone}]') == {
        'n': 3,
        'model.backbone': backbone,
        'hooks': [backbone],
    }


@pytest.mark.parametrize(
    ('pair', 'expected'),
    [
        ('a', "'a': expected KEY=VALUE"),
        ('=1', "'=1': expected KEY=VALUE"),
        ('a={b:(1,2)}', 'expected a dict as Python writes it'),
        ('a={[1]: 2}', 'expected a dict as Python writes it'),
        ("a={'b': 1", 'expected a dict as Python writes it'),
        ('a=[1,(2]', 'expected brackets in pairs, or none'),
        ('a=x(1,2)', 'expected brackets in pairs, or none'),
    ],
)
def test_what_cannot_be_read_is_told(pair, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        read('n=3', pair)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert expected in message
    assert pair in message
