"""Window and grid attention from operators that every exporter knows, for any size.

Which token stands at which place of which window follows from arithmetic on ranges: one gather cuts and rolls the map
and fills it up, another puts it together and crops it. No view is taken whose strides would lead to a question about
the size.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from ..partition import Size
from .reference import MASKED


class Plan(NamedTuple):
    """Where the tokens of a map go; the same for every layer of a stage.

    Attributes:
        groups: Windows, or grid groups, of an image.
        token: int64 [groups * N], the token of the map for each place of a window, row-major; 0 in the padding.
        inside: bool [groups, N], whether there is one.
        apart: [groups, N, N], whether only the roll brought two places together; None without a roll.
        place: int64 [H * W], the inverse of `token`.
    """

    groups: int
    token: Tensor
    inside: Tensor
    apart: Tensor | None
    place: Tensor


_SHARED: ContextVar[dict | None] = ContextVar('shared plans', default=None)


@contextlib.contextmanager
def shared_plans() -> Iterator[None]:
    """Within it every plan is made once: for one recording, whose tensors must not be seen by another."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def window_attention_export(
    qkv: Tensor,
    bias: Tensor,
    *,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int,
    shift_single_window: bool,
    grid: bool,
    padding: Tensor | None,
) -> Tensor:
    """`ops.window_attention` after its checks."""
    (B, H, W, C3), N = qkv.shape, window_size[0] * window_size[1]
    plan = window_plan((H, W), window_size, shift_size, grid, qkv.device, shift_single_window)
    windows = qkv.reshape(B, H * W, C3).index_select(1, plan.token)
    mask = None if plan.apart is None else plan.apart.to(qkv.dtype) * MASKED
    if padding is not None:
        windows = torch.where(plan.inside.view(plan.groups * N, 1), windows, padding.to(qkv.dtype))
    else:
        hidden = qkv.new_zeros(()).masked_fill(~plan.inside, float('-inf'))[:, None]  # [groups, 1, N]
        mask = hidden if mask is None else mask + hidden

    heads = windows.view(B * plan.groups, N, 3, num_heads, C3 // 3 // num_heads)
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # [B * groups, num_heads, N, head_dim]
    logits = (scale * q) @ k.transpose(-1, -2) + bias.to(q.dtype)
    if mask is not None:
        logits = (logits.view(B, plan.groups, num_heads, N, N) + mask[:, None]).view(-1, num_heads, N, N)
    out = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, plan.groups * N, C3 // 3)
    return out.index_select(1, plan.place).view(B, H, W, C3 // 3)


def window_plan(
    size: Size,
    window_size: Size,
    shift_size: int,
    grid: bool,
    device: torch.device,
    shift_single_window: bool = True,
) -> Plan:
    """Of a map of `size` tokens; made anew, or shared (`shared_plans`). Arguments as of `ops.window_attention`."""
    shared = _SHARED.get()
    if shared is None:
        return _make_plan(size, window_size, shift_size, grid, device, shift_single_window)
    key = (*map(str, (*size, *window_size)), shift_size, grid, device, shift_single_window)  # symbols: as written
    if key not in shared:
        shared[key] = _make_plan(size, window_size, shift_size, grid, device, shift_single_window)
    return shared[key]


def _make_plan(
    size: Size, window_size: Size, shift_size: int, grid: bool, device: torch.device, shift_single_window: bool
) -> Plan:
    (H, W), (h, w) = size, window_size
    if shift_size and not shift_single_window:  # a tensor, since the size may be unknown: 0 within one window
        zero = torch.arange(1, device=device)
        shift_size = shift_size * ((zero + H > h) | (zero + W > w)).long()
    rows, cols, N = -(-H // h), -(-W // w), h * w
    y, x = (_tokens(n, edge, shift_size, grid, device) for n, edge in ((rows, h), (cols, w)))
    inside = _pairs(y < H, x < W, torch.logical_and)
    token = torch.where(inside, _pairs(y * W, x, torch.add), 0).flatten()
    apart = None
    if _rolls(shift_size):
        vertical, horizontal = (_regions(n, edge, shift_size, device) for n, edge in ((rows, h), (cols, w)))
        region = _pairs(3 * vertical, horizontal, torch.add)
        apart = region[:, :, None] != region[:, None, :]
    (r, i), (c, j) = (_places(*axis, shift_size, grid, device) for axis in ((H, rows, h), (W, cols, w)))
    place = ((r * cols * N + i * w)[:, None] + c * N + j).flatten()
    return Plan(rows * cols, token, inside, apart, place)


def _rolls(shift_size: int | Tensor) -> bool:
    """Whether the map may be rolled; which a tensor says at other sizes."""
    return isinstance(shift_size, Tensor) or shift_size != 0


def _tokens(windows: int, edge: int, shift_size: int | Tensor, grid: bool, device: torch.device) -> Tensor:
    """Of every window along one axis: which tokens of the padded map stand in it, [windows, edge]."""
    window, inside = torch.arange(windows, device=device)[:, None], torch.arange(edge, device=device)
    if grid:
        return inside * windows + window
    token = window * edge + inside + shift_size
    return torch.where(token < windows * edge, token, token - windows * edge) if _rolls(shift_size) else token


def _places(
    size: int, windows: int, edge: int, shift_size: int | Tensor, grid: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The inverse of `_tokens`: for the tokens of the map along one axis, their window and the place in it, [size]."""
    window, inside = torch.arange(windows, device=device), torch.arange(edge, device=device)
    window, inside = (window, inside[:, None]) if grid else (window[:, None], inside)
    both = (window + 0 * inside).flatten(), (0 * window + inside).flatten()
    if _rolls(shift_size):
        before = torch.arange(windows * edge, device=device) - shift_size
        before = torch.where(before < 0, before + windows * edge, before)
        both = (each.index_select(0, before) for each in both)
    return tuple(each[:size] for each in both)


def _regions(windows: int, edge: int, shift_size: int | Tensor, device: torch.device) -> Tensor:
    """0 before the last window, 1 for what of it stays, 2 for what was rolled in: [windows, edge]."""
    last = (torch.arange(windows, device=device) == windows - 1)[:, None]
    return last * (1 + (torch.arange(edge, device=device) >= edge - shift_size).long())


def _pairs(vertical: Tensor, horizontal: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[rows, h] and [cols, w] -> [rows * cols, h * w], as windows lie and as tokens lie in them."""
    (rows, h), (cols, w) = vertical.shape, horizontal.shape
    return join(vertical[:, None, :, None], horizontal[:, None, :]).reshape(rows * cols, h * w)
