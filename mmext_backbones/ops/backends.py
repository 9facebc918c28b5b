"""The forms of an operator, and which of them runs.

An operator has some of these forms, which compute the same but for roundings:

    reference   the formula as it stands; derivatives of every order, function transforms
    torch       PyTorch's operators in their fastest form, on any device
    cpu         a kernel in C; needs a C compiler at its first use on a machine
    gpu         a kernel in Triton
    export      operators that exporters know, at sizes they need not know

The argument `backend` names one. With 'auto' it is the one that the environment variable MMEXT_BACKEND names, for the
operators that have it, else the fastest that can run.
"""

import os
from collections.abc import Callable, Sequence

from torch import Tensor

from .derivatives import is_transformed
from .dispatcher import constant_in_graphs

ENVIRONMENT = 'MMEXT_BACKEND'
FORMS = ('reference', 'torch', 'cpu', 'gpu', 'export')
ALIASES = {  # of earlier versions
    'compiled': 'cpu',
    'triton': 'gpu',
    'taps': 'torch',
    'gathered': 'export',
    'shifts': 'export',
    'node': 'export',
    'operator': 'export',
}


def choose(operator: str, backend: str, forms: Sequence[str], why_not: Callable[..., str | None], *args: object) -> str:
    """The form that runs.

    Args:
        operator: its name, as of its function.
        backend: 'auto', or the form that the caller asks for.
        forms: those of the operator, the fastest first. 'auto' takes the first that can run; under function transforms
            and forward-mode derivatives the reference.
        why_not: called with a form and `args`; why it cannot run, or None.

    Raises:
        ValueError: for a backend that the operator does not have.
        RuntimeError: where a form is asked for by name and cannot run; the reason is in the message.
    """
    asked = from_environment(operator) if backend == 'auto' else backend
    form = ALIASES.get(asked, asked)
    if backend == 'auto' and form in FORMS and form not in forms:
        form = 'auto'
    if form == 'auto':
        if is_transformed():
            return 'reference'
        for each in forms:
            if why_not(each, *args) is None:
                return each
    if form not in forms:
        raise ValueError(f'backend={asked!r}: expected one of auto, {", ".join(forms)}')
    reason = why_not(form, *args)
    if reason is not None:
        raise RuntimeError(f'backend={asked!r}: {reason}')
    return form


def is_named(form: str, operator: str, backend: str) -> bool:
    """Whether a person asks for a form of an operator by name: by the argument `backend`, or in the environment."""
    asked = from_environment(operator) if backend == 'auto' else backend
    return ALIASES.get(asked, asked) == form


@constant_in_graphs
def from_environment(operator: str = '') -> str:
    """The form that the environment names for an operator, or without one for all of them; else 'auto'.

    torch 2.4 cannot trace `os.environ`.
    MMEXT_ELSA_BACKEND and its like, of earlier versions, name that of one operator.
    """
    of_one = os.environ.get(f'MMEXT_{operator.upper()}_BACKEND') if operator else None
    return of_one or os.environ.get(ENVIRONMENT) or 'auto'


def check_devices(**tensors: Tensor | None) -> None:
    """Raise ValueError unless the arguments of an operator lie on one device.

    PyTorch takes a tensor of the meta device, which has no values, for one of the CPU, and computes from unwritten
    memory.
    """
    (first, one), *others = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    for name, tensor in others:
        if tensor.device != one.device:
            raise ValueError(f'{first} is on {one.device} and {name} on {tensor.device}: expected one device')
