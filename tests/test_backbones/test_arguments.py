"""Whatever an argument of a backbone can be wrong in, the error names the argument, its value and what was expected."""

import pytest
from mmengine.config import ConfigDict

from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from tests.test_backbones.test_contract import VOLO_ARCH, small

CLASSES = (SwinTransformer, ELSASwin, MaxViT, Sequencer2D, VOLO, ELSAVOLO)
ARCH = {
    SwinTransformer: {'embed_dims': 16, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)},
    ELSASwin: {'embed_dims': 16, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8), 'group_width': 4},
    MaxViT: {'embed_dims': (32, 64, 64, 96), 'depths': (1, 1, 1, 1), 'stem_dims': 32},
    Sequencer2D: {'embed_dims': (16, 32, 32, 32), 'depths': (1, 1, 1, 1), 'hidden_dims': (4, 8, 8, 8)},
    VOLO: {**VOLO_ARCH, 'depths': (1, 1, 1, 1)},
    ELSAVOLO: {**VOLO_ARCH, 'depths': (1, 1, 1, 1), 'kernel_size': 5, 'group_width': 8},
}
# what stands for one value, and is none
NO_WHOLE_NUMBER = (0, -1, 1.5, '7', None, True, (7,), float('nan'))
NO_PROBABILITY = (-0.1, 1.5, '0.1', None, True, (0.1,), float('nan'))
NO_STAGES = (4, -1, (4,), (-1,), (), 'abc', (1, 0), (1, 1), (0.0, 1.0), (False, True), None, ('0',), ((0,), (1,)))
NO_FLAG = ('False', None, 2, 0.5, ())
NO_NUMBERS = (2, '2222', (2, 2, 2), (2, 2, 2, 0), (2, 2, 2, -2), (2, 2, 2, 1.5), (2, 2, 2, True), (), None, {})

OF_ALL = {
    'in_channels': NO_WHOLE_NUMBER,
    'out_indices': NO_STAGES,
    'frozen_stages': (-2, 5, 9, 1.0, '1', None, True, (1,)),
    'with_cp': (4, 1, 'all', None, (4,), (0, 0), (0.0,), (True,), {0}),
    'recompute': ('yes', 'True', None, 2, 0.5, (), (0, 1)),
    'drop_path_rate': (*NO_PROBABILITY, 1.0),
    'autocast_dtype': ('float16', 'bf16', True, 16, ['bfloat16']),
    'out_dtype': ('int8', 'half', True, 32),
    'init_cfg': (
        *('swin_t.pth', 3, {'checkpoint': 'x.pth'}, ['x.pth'], [{'type': 'Pretrained'}], {'type': 'Pretrained'}),
        *({'type': 'Pretrained', 'checkpoint': 3}, {'type': 'Pretrained', 'checkpoint': 'x.pth', 'stirct': False}),
    ),
    'arch': ('gigantic', None, 3, ('tiny',), {}, {'embed_dims': 16}),
}
OF_ONE = {
    SwinTransformer: {
        'window_size': NO_WHOLE_NUMBER,
        'drop_rate': NO_PROBABILITY,
        'attn_drop_rate': NO_PROBABILITY,
        'shift_single_window': NO_FLAG,
    },
    ELSASwin: {'window_size': NO_WHOLE_NUMBER, 'drop_rate': NO_PROBABILITY},
    MaxViT: {'window_size': (*NO_WHOLE_NUMBER, 'large'), 'out_norm': NO_FLAG, 'norm_eval': NO_FLAG},
    Sequencer2D: {'patch_size': (*NO_WHOLE_NUMBER, 7), 'pyramid': NO_FLAG},
    VOLO: {
        'pyramid': NO_FLAG,
        'window_size': [value for value in NO_WHOLE_NUMBER if value is not None],
        'pos_embed_size': NO_WHOLE_NUMBER,
        'norm_eval': NO_FLAG,
    },
    ELSAVOLO: {'pyramid': NO_FLAG},
}
OF_ARCH = {
    SwinTransformer: {'embed_dims': NO_WHOLE_NUMBER, 'depths': NO_NUMBERS, 'num_heads': (*NO_NUMBERS, (3, 6, 12, 24))},
    ELSASwin: {'group_width': NO_WHOLE_NUMBER, 'embed_dims': (*NO_WHOLE_NUMBER, 2), 'num_heads': NO_NUMBERS},
    MaxViT: {'embed_dims': (*NO_NUMBERS, 32, (32, 64, 64, 80)), 'depths': NO_NUMBERS, 'stem_dims': NO_WHOLE_NUMBER},
    Sequencer2D: {'embed_dims': (*NO_NUMBERS, 32), 'depths': (*NO_NUMBERS, (1,)), 'hidden_dims': NO_NUMBERS},
    VOLO: {
        'embed_dims': (*NO_NUMBERS, 32, (32, 64, 64, 96)),
        'depths': (*NO_NUMBERS, (1,)),
        'num_heads': (*NO_NUMBERS, (3, 2, 2, 2)),
        'mlp_ratio': NO_WHOLE_NUMBER,
        'stem_dims': NO_WHOLE_NUMBER,
    },
    ELSAVOLO: {'kernel_size': (*NO_WHOLE_NUMBER, 4), 'group_width': NO_WHOLE_NUMBER},
}


def refused(cls, name, **options):
    with pytest.raises(ValueError, match=rf'\b{name}=[\s\S]*expected') as caught:
        cls(**({'arch': ARCH[cls]} | options))
    return str(caught.value)


@pytest.mark.parametrize('cls', CLASSES)
def test_arguments_are_named(cls):
    for name, values in (OF_ALL | OF_ONE[cls]).items():
        for value in values:
            refused(cls, name, **{name: value})


@pytest.mark.parametrize('cls', CLASSES)
def test_numbers_of_an_architecture_are_named(cls):
    for name, values in OF_ARCH[cls].items():
        for value in values:
            # where every other number agrees with a wrong number of depths, it is one of those that is named
            refused(
                cls,
                r'(embed_dims|depths|num_heads|hidden_dims|stem_dims|group_width|kernel_size|mlp_ratio)',
                arch={**ARCH[cls], name: value},
            )


@pytest.mark.parametrize('cls', CLASSES)
def test_keys_of_an_architecture_are_listed(cls):
    message = refused(cls, 'arch', arch={**ARCH[cls], 'width': 3})
    assert ', '.join(ARCH[cls]) in message
    assert all(arch in refused(cls, 'arch', arch='gigantic') for arch in cls.ARCHS)


@pytest.mark.parametrize('cls', CLASSES)
def test_what_a_config_writes_is_taken(cls):
    arch = ConfigDict({key: list(value) if isinstance(value, tuple) else value for key, value in ARCH[cls].items()})
    options = {'out_indices': [0, 2], 'with_cp': [0], 'recompute': False, 'drop_path_rate': 0, 'frozen_stages': 1}
    cls(arch, init_cfg=ConfigDict(type='Pretrained', checkpoint='x.pth', _scope_='mmdet'), **options)
    small(cls, init_cfg=[{'type': 'TruncNormal', 'layer': 'Linear', 'std': 0.02}]).init_weights()
