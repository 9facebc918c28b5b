"""CUDA tensors without data, where there is no GPU: networks run on them forward, backward and under autocast.

Autograd's engine asks the driver for the streams of the tensors' device, and where there is no GPU that is an error. So
the nodes that a forward pass has recorded are called here, one after another, as the engine would call them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import Node

__all__ = ['fake_cuda']


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Inside, tensors have a shape, a type and a device, and neither CUDA, autocast nor autograd needs a driver."""
    with ExitStack() as stack:
        patches = {
            'torch.cuda.amp.common.amp_definitely_not_available': lambda: False,
            'torch.autograd.backward': _backward,
            'torch.autograd.grad': _grad,
        }
        for name, stand_in in patches.items():
            stack.enter_context(mock.patch(name, stand_in))
        yield stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))


def _backward(tensors, grad_tensors=None, *_args, inputs=None, **_kwargs) -> None:
    """torch.autograd.backward, for outputs whose gradients are given."""
    outputs, grads = ([x] if isinstance(x, Tensor) else list(x) for x in (tensors, grad_tensors))
    for node, found in _walk(outputs, grads).items():
        if hasattr(node, 'variable'):  # a leaf
            leaf = node.variable
            leaf.grad = found[0] if leaf.grad is None else leaf.grad + found[0]


def _grad(outputs, inputs, grad_outputs=None, *_args, allow_unused=False, **_kwargs) -> tuple[Tensor | None, ...]:
    """torch.autograd.grad, for outputs whose gradients are given."""
    outputs, grads = ([x] if isinstance(x, Tensor) else list(x) for x in (outputs, grad_outputs))
    found = _walk(outputs, grads)
    edges = [torch.autograd.graph.get_gradient_edge(x) for x in ([inputs] if isinstance(inputs, Tensor) else inputs)]
    return tuple(found.get(edge.node, {}).get(edge.output_nr) for edge in edges)


@torch.no_grad()
def _walk(outputs: Sequence[Tensor], grads: Sequence[Tensor]) -> dict[Node, dict[int, Tensor]]:
    """What arrives at every node: for each output of its forward pass, by number, the sum of the gradients."""
    roots = [torch.autograd.graph.get_gradient_edge(x) for x in outputs]
    missing = _dependencies([root.node for root in roots])
    found: dict[Node, dict[int, Tensor]] = {}

    def arrive(node: Node, number: int, grad: Tensor | None) -> None:
        if grad is not None:
            grad = _as_recorded(grad, node, number)
            arrived = found.setdefault(node, {})
            arrived[number] = arrived[number] + grad if number in arrived else grad

    for root, grad in zip(roots, grads, strict=True):
        arrive(root.node, root.output_nr, grad)
    ready = [node for node in dict.fromkeys(root.node for root in roots) if not missing[node]]
    while ready:
        node = ready.pop()
        if hasattr(node, 'variable'):
            continue
        edges = [edge for edge in node.next_functions if edge[0] is not None]
        for (following, number), grad in zip(edges, _call(node, found.get(node)), strict=True):
            arrive(following, number, grad)
            missing[following] -= 1
            if not missing[following]:
                ready.append(following)
    return found


def _dependencies(nodes: list[Node]) -> Counter[Node]:
    """How many edges lead to each node."""
    counts, seen, left = Counter(), set(nodes), list(nodes)
    while left:
        for following, _ in left.pop().next_functions:
            if following is not None:
                counts[following] += 1
                if following not in seen:
                    seen.add(following)
                    left.append(following)
    return counts


def _call(node: Node, arrived: dict[int, Tensor] | None) -> list[Tensor | None]:
    """What a node sends along its edges, those left out that lead nowhere."""
    python = isinstance(node, torch.autograd.function.BackwardCFunction)
    if not arrived:
        return [None] * sum(following is not None for following, _ in node.next_functions)
    inputs = [arrived.get(i) for i in range(max(1 + max(arrived), len(_recorded(node))))]
    results = node.apply(*inputs) if python else node(*inputs)
    results = results if isinstance(results, (tuple, list)) else (results,)
    if python:  # one for every argument, tensor or not
        return [result for result, needed in zip(results, node.needs_input_grad, strict=True) if needed]
    return [result for result, edge in zip(results, node.next_functions, strict=True) if edge[0] is not None]


def _recorded(node: Node) -> Sequence:
    """Shape and type of each output of the forward pass, where a node tells them."""
    return getattr(node, '_input_metadata', ())


def _as_recorded(grad: Tensor, node: Node, number: int) -> Tensor:
    """A gradient in shape and type of the tensor that it is of, as the engine makes it."""
    if number >= len(_recorded(node)):
        return grad
    recorded = _recorded(node)[number]
    shape = tuple(recorded.shape)
    grad = grad if grad.shape == shape else grad.sum_to_size(shape)
    return grad if grad.dtype == recorded.dtype else grad.to(recorded.dtype)
