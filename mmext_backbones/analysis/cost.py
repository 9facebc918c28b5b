"""What a network costs: parameters, multiply-adds (MACs) and activations, of a backbone or of a whole model.

The network runs once on the meta device, where a tensor is a shape: 800 x 1280 pixels take no memory and no time, and
no kernel is chosen. Every operator passes a dispatch mode on its way, written as a module or not. So the same network
has the same cost whichever backend would run its attention or its ELSA operator.

What counts, and as how much (FLOPs in the papers' sense, 1 FLOP = 1 multiply-add):

    convolution     outputs * weights of one output; transposed: inputs * weights of one input
    linear          outputs * inputs of one output
    product         of activations, attention's two among them: outputs * length of the sum; of windows, whole ones
    recurrent       every weight matrix once a step: an LSTM has 4 * h * (in + h) a direction, step and sequence
    elsa            k * k * C a pixel for the dynamic filters, and as much for static ones (a depthwise convolution)

Biases, norms, activation functions, softmax, pooling, resampling and RoIAlign do not count. Padding does, where the
network computes on it. Activations are the elements that counted operators return, attention's logits included
(Radosavovic et al., "Designing Network Design Spaces", arXiv 2003.13678, counts those of convolutions).

A two-stage detector is counted as its published numbers were: all up to the RPN's convolutions on the image, each box
head on 1000 regions of interest, or on as many as it learns, each mask head on 100. A segmentor is counted as it
predicts, without auxiliary head. The authors' numbers for Swin in either come out up to 2.6 % higher: they count norms
and biases, and their attention projects the padding of the windows, which ours never does.
"""

import copy
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ['DEFINITION', 'Cost', 'Part', 'cost_table', 'model_cost']

DEFINITION = (
    '1 FLOP of the papers = 1 multiply-add (MAC) of a convolution, linear layer, product, LSTM or ELSA operator'
)
BOX_ROIS = 1000  # regions of interest a box head is counted on
MASK_ROIS = 100
ROOT = '(itself)'  # the part of what belongs to no child


@dataclass
class Part:
    """The cost of one part: parameters, MACs by kind of operator, activations."""

    params: int = 0
    macs_by_operator: Counter[str] = field(default_factory=Counter)
    activations: int = 0

    @property
    def macs(self) -> int:
        return sum(self.macs_by_operator.values())


@dataclass(frozen=True)
class Cost:
    """The cost of a network on one input.

    Attributes:
        input_shape: of the input, [B, C, H, W].
        parts: the network's children in the order they are declared; the stages of a backbone and the heads of a RoI
            head are listed one by one.
        not_counted: calls of operators that look like products, or are not PyTorch's own, and have no formula.
        not_run: modules with parameters that took no part, such as an auxiliary head.
    """

    input_shape: tuple[int, ...]
    parts: dict[str, Part]
    not_counted: dict[str, int]
    not_run: tuple[str, ...]

    @property
    def params(self) -> int:
        return sum(part.params for part in self.parts.values())

    @property
    def macs(self) -> int:
        return sum(part.macs for part in self.parts.values())

    @property
    def activations(self) -> int:
        return sum(part.activations for part in self.parts.values())

    @property
    def macs_by_operator(self) -> dict[str, int]:
        return dict(sum((part.macs_by_operator for part in self.parts.values()), Counter()))

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types, as JSON takes them."""

        def totals(cost: Cost | Part) -> dict[str, Any]:
            names = ('params', 'macs', 'activations', 'macs_by_operator')
            return {name: getattr(cost, name) for name in names}

        return {
            'input_shape': list(self.input_shape),
            **totals(self),
            'parts': {name: totals(part) for name, part in self.parts.items()},
            'not_counted': self.not_counted,
            'not_run': list(self.not_run),
        }


def model_cost(model: nn.Module, inputs: Sequence[int] | Tensor) -> Cost:
    """Counts one prediction of `model`, which stays as it is.

    Args:
        model: A backbone, any other module of one tensor, or a model of mmdet, mmseg or mmpretrain; on any device, the
            meta device included.
        inputs: Height and width in pixels of one image, or a batch [B, C, H, W] of which the shape is used.

    Returns:
        The cost.

    Raises:
        ValueError: if a height or width is not positive.
        RuntimeError: if the model cannot run without numbers, for example because of a kernel outside PyTorch's
            dispatcher, or a loop that depends on values.
    """
    if not isinstance(inputs, Tensor):
        if len(inputs) != 2 or min(inputs) < 1:
            raise ValueError(f'size={tuple(inputs)}: expected a positive height and width in pixels')
        inputs = torch.empty(1, _in_channels(model), *inputs, device='meta')
    model = _on_meta(model).eval()
    counter = _Counter(model)
    with torch.inference_mode(), counter:  # in inference mode `linear` or `lstm` arrive as one operator
        try:
            _run(model, inputs.to('meta'))
        except Exception as error:
            reason = str(error).partition(' This could be because')[0]  # torch before 2.4 goes on with its backends
            raise RuntimeError(
                f'{type(model).__name__} cannot be counted: {counter.module or "it"} does not run on tensors without '
                f'numbers (the meta device): {reason}'
            ) from error
    return Cost(tuple(inputs.shape), counter.parts, dict(counter.not_counted), tuple(_not_run(model, counter.called)))


# --------------------------------------------------------------------------------------------------------------------
# Running a model without numbers


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are shapes; theirs are never copied."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        meta = tensor.detach().to('meta')
        memo[id(tensor)] = nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
    return copy.deepcopy(model, memo)


def _in_channels(model: nn.Module) -> int:
    return getattr(getattr(model, 'backbone', model), 'in_channels', 3)


def _run(model: nn.Module, x: Tensor) -> None:
    if not isinstance(model, BaseModel):
        model(x)
    elif hasattr(model, 'rpn_head') and hasattr(model, 'roi_head'):
        _run_two_stage(model, x)
    else:
        size = tuple(x.shape[-2:])
        metainfo = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), size)
        samples = [BaseDataElement(metainfo={**metainfo, 'scale_factor': (1.0, 1.0)}) for _ in x]
        model(x, samples, mode='tensor')


def _run_two_stage(model: nn.Module, x: Tensor) -> None:
    """All of a detector but the choice of its proposals, which take values: the heads get a fixed number of them, with
    a feature each where proposals are learnt (Sparse R-CNN)."""
    features = model.extract_feat(x)
    rois = model.roi_head
    learnt = getattr(model.rpn_head, 'num_proposals', None)
    if learnt is None:
        model.rpn_head(features)
    if getattr(rois, 'with_semantic', False):  # hybrid task cascades
        rois.semantic_head(features)
    for kind, number in (('bbox', learnt or BOX_ROIS), ('mask', MASK_ROIS)):
        extractors = listed(getattr(rois, f'{kind}_roi_extractor', None))
        for extractor, head in zip(extractors, listed(getattr(rois, f'{kind}_head', None)), strict=True):
            edges = extractor.roi_layers[0].output_size
            edges = edges if isinstance(edges, Sequence) else (edges, edges)
            regions = features[0].new_empty(number * len(x), extractor.out_channels, *edges)
            if getattr(rois, 'with_shared_head', False):
                regions = rois.shared_head(regions)
            if learnt is None:
                head(regions)
            else:
                head(regions, features[0].new_empty(len(x), number, extractor.out_channels))


def listed(modules: nn.Module | None) -> list[nn.Module]:
    """Heads as a list, whether a model has none, one or several."""
    if modules is None:
        return []
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


def _not_run(model: nn.Module, called: set[str], prefix: str = '') -> Iterator[str]:
    """The outermost modules with parameters that were not called, nor anything inside them.

    Tables are left out: DETR reads its queries from a table without calling it.
    """
    for name, child in model.named_children():
        path = f'{prefix}{name}'
        owners = [module for module in child.modules() if any(True for _ in module.parameters(recurse=False))]
        if path in called or all(isinstance(owner, nn.Embedding) for owner in owners):
            continue
        if any(other.startswith(f'{path}.') for other in called):
            yield from _not_run(child, called, f'{path}.')
        else:
            yield path


# --------------------------------------------------------------------------------------------------------------------
# Counting


class _Counter(TorchDispatchMode):
    """Counts every operator for the part whose module is running."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.split = {
            name
            for name, child in model.named_children()
            if isinstance(child, (nn.ModuleList, nn.Sequential)) or name == 'roi_head'
        }
        self.running: list[str] = []
        self.called: set[str] = set()
        self.not_counted: Counter[str] = Counter()
        self.parts: dict[str, Part] = defaultdict(Part)
        for name, parameter in model.named_parameters():
            self.parts[self.part_of(name.rpartition('.')[0])].params += parameter.numel()
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.enter(name))
            module.register_forward_hook(lambda *_: self.leave())

    @property
    def module(self) -> str:
        """The name of the module that is running."""
        return self.running[-1] if self.running else ''

    def enter(self, name: str) -> None:
        self.running.append(name)
        self.called.add(name)

    def leave(self) -> None:
        self.running.pop()

    def part_of(self, name: str) -> str:
        child, _, inside = name.partition('.')
        return f'{child}.{inside.partition(".")[0]}' if child in self.split and inside else child or ROOT

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.rstrip('_')
        if name in FORMULAS:
            kind, macs = FORMULAS[name]
            out = _lstm_shapes(args) if func is LSTM else func(*args, **kwargs)
            outs = out if isinstance(out, Tensor) else out[0]
            part = self.parts[self.part_of(self.module)]
            part.macs_by_operator[kind] += macs(args, outs)
            part.activations += outs.numel() + LOGITS.get(name, lambda args: 0)(args)
            return out
        with self:
            out = func.decompose(*args, **kwargs)  # what is composed of others (einsum) is counted by those
        if out is not NotImplemented:
            return out
        if func.namespace not in NATIVE or PRODUCTS.search(name.partition('::')[2]):
            self.not_counted[name] += 1
        return func(*args, **kwargs)


def _linear(args: tuple, out: Tensor) -> int:
    return out.numel() * args[0].shape[-1]


def _add_product(args: tuple, out: Tensor) -> int:
    return out.numel() * args[1].shape[-1]


def _convolution(args: tuple, out: Tensor) -> int:
    return out.numel() * args[1][0].numel()


def _transposed_convolution(args: tuple, out: Tensor) -> int:
    return args[0].numel() * args[1][0].numel()


def _any_convolution(args: tuple, out: Tensor) -> int:
    return (_transposed_convolution if args[6] else _convolution)(args, out)


def _attention(args: tuple, out: Tensor) -> int:
    return _logits(args) * (args[0].shape[-1] + args[2].shape[-1])


def _logits(args: tuple) -> int:
    """Elements of q @ k^T, for q [..., N, d] and k [..., M, d]."""
    return math.prod(args[0].shape[:-1]) * args[1].shape[-2]


def _recurrent(args: tuple, out: Tensor) -> int:
    """Each step of each sequence passes every matrix once, those of all layers and directions."""
    weights = next(arg for arg in args[2:] if isinstance(arg, (list, tuple)) and arg[0].dim() == 2)
    steps = math.prod(args[0].shape[:-1])
    return steps * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _lstm_shapes(args: tuple) -> tuple[Tensor, ...]:
    """The results of aten::lstm without its walk over all steps."""
    x, (hidden, cell), *_, bidirectional, _ = args
    width = hidden.shape[-1] * (2 if bidirectional else 1)
    return x.new_empty(*x.shape[:-1], width), torch.empty_like(hidden), torch.empty_like(cell)


def _window_attention(args: tuple, out: Tensor) -> int:
    return 2 * _window_logits(args) // args[3] * out.shape[-1]


def _window_logits(args: tuple) -> int:
    """Elements of q @ k^T of all windows, those that reach beyond the map as any other."""
    (B, H, W, _), heads, (h, w) = args[0].shape, args[3], args[4]
    return B * -(-H // h) * -(-W // w) * heads * (h * w) ** 2


def _elsa(args: tuple, out: Tensor) -> int:
    add = args[2]  # [k * k, C], or [k * k, 0] where there are no static filters
    return out.numel() * args[3] ** 2 + math.prod(out.shape[:3]) * add.numel()


def _outlook(args: tuple, out: Tensor) -> int:
    """Weights of all places, those beyond the map as any other, times the channels of a head."""
    return args[1].numel() * (out.shape[-1] // args[1].shape[3])


def _bilstm2d(args: tuple, out: Tensor) -> int:
    """Every matrix once a token."""
    x, weights = args
    return math.prod(x.shape[:3]) * sum(weight.numel() for weight in weights if weight.dim() == 2)


LSTM = torch.ops.aten.lstm.input
# operator -> kind, and MACs from its arguments and its (first) result
ATTENTION = (
    'aten::scaled_dot_product_attention',
    'aten::_scaled_dot_product_attention_math',
    'aten::_scaled_dot_product_flash_attention',
    'aten::_scaled_dot_product_flash_attention_for_cpu',
    'aten::_scaled_dot_product_efficient_attention',
    'aten::_scaled_dot_product_cudnn_attention',
)
WINDOW_ATTENTION = ('mmext_backbones::window_attention', 'mmext_backbones::window_attention_triton')
FORMULAS: dict[str, tuple[str, Callable[[tuple, Tensor], int]]] = {
    **{f'aten::conv{n}d': ('convolution', _convolution) for n in (1, 2, 3)},
    **{f'aten::conv_transpose{n}d': ('convolution', _transposed_convolution) for n in (1, 2, 3)},
    **{f'aten::{name}': ('convolution', _any_convolution) for name in ('convolution', '_convolution')},
    'aten::linear': ('linear', _linear),
    'aten::mm': ('linear', _linear),
    'aten::addmm': ('linear', _add_product),
    **{f'aten::{name}': ('product', _linear) for name in ('matmul', 'bmm', 'mv', 'dot', 'vdot')},
    **{f'aten::{name}': ('product', _add_product) for name in ('baddbmm', 'addmv')},
    **dict.fromkeys(ATTENTION, ('product', _attention)),
    **{f'aten::{name}': ('recurrent', _recurrent) for name in ('lstm', 'gru', 'rnn_tanh', 'rnn_relu')},
    **dict.fromkeys(WINDOW_ATTENTION, ('product', _window_attention)),
    'mmext_backbones::elsa': ('elsa', _elsa),
    'mmext_backbones::outlook': ('product', _outlook),
    'mmext_backbones::bilstm2d': ('recurrent', _bilstm2d),
}
LOGITS = {**dict.fromkeys(ATTENTION, _logits), **dict.fromkeys(WINDOW_ATTENTION, _window_logits)}
NATIVE = ('aten', 'prim', 'prims')
# names of PyTorch's operators that multiply and sum, for those without a formula
PRODUCTS = re.compile(
    r'(^|_)(\w*mm|mv|addr|v?dot|vecdot|matmul|conv(olution\w*|_\w+|\d\w*)|\w*lstm\w*|\w*gru\w*|\w*rnn\w*|linear|trilinear'
    r'|attention\w*|transformer\w*|\w*cdist\w*|fft\w*|matrix_exp|linalg_(?!\w*norm)\w+)(_|$)'
)


def cost_table(cost: Cost) -> list[str]:
    """Lines of a table: a row for each part and their sum, then what the numbers mean and leave out."""
    rows = [(name, part.params, part.macs, part.activations) for name, part in cost.parts.items()]
    rows.append(('total', cost.params, cost.macs, cost.activations))
    width = max(len(name) for name, *_ in rows)
    header = f'{"":{width}}  {"params (M)":>12}{"MACs (G)":>12}{"activations (M)":>18}'
    lines = [
        f'{name:{width}}  {params / 1e6:>12.2f}{macs / 1e9:>12.3f}{activations / 1e6:>18.2f}'
        for name, params, macs, activations in rows
    ]
    kinds = sorted(cost.macs_by_operator.items(), key=lambda item: -item[1])
    lines = [header, *lines[:-1], '-' * len(header), lines[-1], '']
    lines.append(f'MACs by operator: {", ".join(f"{kind} {macs / 1e9:.3f} G" for kind, macs in kinds)}')
    lines.append(f'{DEFINITION}.')
    if any(name.startswith('roi_head.') for name in cost.parts):
        lines.append(f'Counted on {BOX_ROIS} regions of interest (box heads) and {MASK_ROIS} (mask heads) an image.')
    if cost.not_run:
        lines.append(f'Not run in a prediction, so not counted: {", ".join(cost.not_run)}.')
    if cost.not_counted:
        calls = ', '.join(f'{name} ({number} calls)' for name, number in cost.not_counted.items())
        lines.append(f'Not counted, for want of a formula: {calls}.')
    return lines
