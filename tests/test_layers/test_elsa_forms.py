"""Forms of ELSA's attention that ELSA-Swin never uses, against the authors' layer; the strict Hadamard attention."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmext_backbones.layers import ELSAAttention, Mlp, TransformerBlock
from mmext_backbones.ops import elsa
from tests.vectors import DATA, cases_of, load, relative_error, tensors, weights_of

BLOCKS = cases_of('elsa_block.npz')
STRICT = {name: torch.from_numpy(array) for name, array in np.load(DATA / 'hadamard_strict.npz').items()}
OURS = {'pre_proj.': 'qkv.', 'attn.0.': 'filter_conv.', 'attn.2.': 'filter_proj.', 'post_proj.': 'proj.'}


def renamed(weights, gamma):
    ours = {}
    for key, value in weights.items():
        start = 'attn.' if key.startswith('attn.') and 'norm1.weight' in weights else ''
        name = key.removeprefix(start)
        if name == 'ghost_head':
            halves = value.unbind() if value.dim() == 5 else [value]
            names = ['ghost_mul', 'ghost_head'] if len(halves) == 2 else ['ghost_head' if gamma else 'ghost_mul']
            ours |= {start + half: x for half, x in zip(names, halves, strict=True)}
            continue
        for theirs, new in OURS.items():
            name = name.replace(theirs, new) if name.startswith(theirs) else name
        ours[start + name] = value
    return ours


@pytest.mark.parametrize('case', BLOCKS)
def test_agrees_with_the_authors(case):
    data = BLOCKS[case]
    config = json.loads(str(data['config']))
    kind, C, heads = config.pop('cls'), config.pop('dim'), config.pop('num_heads')
    ratio, scale = config.pop('mlp_ratio', None), config.pop('qk_scale')
    module = attn = ELSAAttention(C, heads, scale=scale, **config)
    if kind == 'ELSABlock':
        module = TransformerBlock(attn, C, mlp=Mlp(C, ratio))
    load(module, renamed(weights_of(data), config['gamma']))

    x, out, grad_out, grad_x = tensors(data, 'x', 'out', 'grad_out', 'grad_x')
    x.requires_grad_()
    actual = module(x)
    actual.backward(grad_out)
    assert relative_error(actual.detach(), out) <= 2e-6
    assert relative_error(x.grad, grad_x) <= 2e-6
    halves = [half.grad for half in (attn.ghost_mul, attn.ghost_head) if half is not None]
    assert bool(halves) == ('grad_ghost_head' in data)
    if halves:
        expected = torch.from_numpy(data['grad_ghost_head'])
        assert relative_error(torch.stack(halves).view(expected.shape), expected) <= 2e-6


def strict_module(dtype=torch.float64):
    """With the strict form of the vectors: three heads, 3 x 3 taps, queries and keys of eight channels."""
    module = ELSAAttention(12, 3, 3, gamma=0.0, strict=True).to(dtype)
    terms = torch.stack((STRICT['rk'], STRICT['rq']), dim=2)  # [heads, K, 2, 8]
    module.load_state_dict(
        module.state_dict() | {'filter_terms.weight': terms.flatten(0, 2), 'filter_bias': STRICT['rb'].flatten()}
    )
    return module


def algorithm_2(s, rk, rq, rb):
    """Unfold s; each neighbour by the vector of its tap. [B, H, W, D] -> [B, H, W, heads * K]."""
    B, H, W, D = s.shape
    neighbours = F.unfold(s.permute(0, 3, 1, 2), 3, padding=1).view(B, D, 9, H, W)
    logits = torch.einsum('byxd,god->byxgo', s, rk) + torch.einsum('bdoyx,god->byxgo', neighbours, rq)
    return (logits + rb).flatten(3)


def algorithm_3(s, rk, rq, rb):
    """A pointwise convolution by r^q, a fixed depthwise one that shifts, and a pointwise one by r^k."""
    image = s.permute(0, 3, 1, 2)
    projected = F.conv2d(image, rq.flatten(0, 1)[..., None, None])
    shifts = torch.eye(9, dtype=s.dtype).view(9, 1, 3, 3).repeat(len(rk), 1, 1, 1)
    shifted = F.conv2d(projected, shifts, padding=1, groups=len(shifts))
    return (shifted + F.conv2d(image, rk.flatten(0, 1)[..., None, None], rb.flatten())).permute(0, 2, 3, 1)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_three_programs_of_the_strict_form_are_one(dtype, tolerance):
    s = torch.randn(2, 6, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    parts = [STRICT[name].to(dtype) for name in ('rk', 'rq', 'rb')]
    with torch.no_grad():
        ours = strict_module(dtype).strict_logits(s)
    for algorithm in (algorithm_2, algorithm_3):
        assert relative_error(ours, algorithm(s, *parts)) <= tolerance
    mirrored = algorithm_2(s, parts[0], parts[1].flip(1), parts[2])
    assert relative_error(ours, mirrored) > 0.1  # the order of the taps matters


def test_the_strict_form_agrees_with_plain_loops():
    s, v = STRICT['s'][None].requires_grad_(), STRICT['v'].permute(2, 0, 1)[None]
    logits = strict_module().strict_logits(s)
    heads_first = logits.unflatten(3, (3, 9)).permute(3, 4, 1, 2, 0)[..., 0]
    assert relative_error(heads_first, STRICT['logits']) <= 1e-12
    filters = logits.permute(0, 3, 1, 2)
    out = elsa(v, filters, num_heads=3, kernel_size=3, gamma=0)
    assert relative_error(out[0].permute(1, 2, 0), STRICT['out_plain']) <= 1e-12
    out.backward(STRICT['grad_out'].permute(2, 0, 1)[None])
    assert relative_error(s.grad[0, :2], STRICT['grad_s_first_two_rows']) <= 1e-7  # differences, good to 1e-8

    mul, add = (STRICT[name].view(6, 3, 3) for name in ('ghost_mul', 'ghost_add'))
    lam, gamma = STRICT['lam_gamma'].tolist()
    options = {'num_heads': 3, 'kernel_size': 3, 'lam': lam, 'gamma': gamma}
    out = elsa(v, filters, mul, add, **options)
    assert relative_error(out[0].permute(1, 2, 0), STRICT['out_ghost_contiguous']) <= 1e-12
    # the paper's order, channel c by head c mod 3, is this one with the channels permuted
    order = [m * 3 + g for g in range(3) for m in range(2)]
    out = torch.empty_like(out)
    out[:, order] = elsa(v[:, order], filters, mul[order], add[order], **options)
    assert relative_error(out[0].permute(1, 2, 0), STRICT['out_ghost_interleaved']) <= 1e-12


@pytest.mark.parametrize('strict', [False, True])
def test_without_a_ghost_head_it_is_its_softmax_filter(strict):
    torch.manual_seed(0)
    attn = ELSAAttention(12, 2, 3, lam=0.0, gamma=0.0, strict=strict).double()
    x = torch.randn(2, 5, 6, 12, dtype=torch.float64)
    q, k, v = attn.qkv(x).split((8, 8, 12), dim=-1)
    filters = attn.logits(q, k).unflatten(3, (2, 9)).softmax(-1)
    padded = F.pad(v, (0, 0, 1, 1, 1, 1))
    expected = torch.zeros_like(v)
    for o in range(9):
        y, c = divmod(o, 3)
        expected += filters[..., o].repeat_interleave(6, dim=3) * padded[:, y : y + 5, c : c + 6]
    torch.testing.assert_close(attn(x), attn.proj(expected), rtol=1e-12, atol=1e-12)
    assert not {'ghost_head', 'ghost_mul'} & set(attn.state_dict())


def test_equal_logits_are_a_mean_that_divides_by_all_taps_at_the_border():
    attn = ELSAAttention(12, 2, 3, gamma=0.0).double()
    for p in attn.filter_proj.parameters():
        p.data.zero_()
    qkv = torch.randn(1, 4, 4, 28, dtype=torch.float64)
    expected = F.avg_pool2d(qkv[..., 16:].permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(attn.attend(qkv), expected)


def test_a_fractional_power_is_refused():
    with pytest.raises(ValueError, match=r'lam=0\.5: expected a whole number'):
        ELSAAttention(12, 2, lam=0.5)


@pytest.mark.parametrize('options', [{'lam': 1.0}, {'strict': True}, {'dilation': 2}, {'scale': None}])
def test_a_block_calls_its_modules_alike_with_hooks(options):
    """The fused form of the block, against calls of each module."""
    torch.manual_seed(0)
    block = TransformerBlock(ELSAAttention(24, 3, 7, 4, **options), 24).double()
    x = torch.randn(2, 6, 5, 24, dtype=torch.float64)
    expected = block(x)
    for module in block.modules():
        module.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-11)
