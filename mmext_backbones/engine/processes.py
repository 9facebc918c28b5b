"""Distributed runs: checks of the launcher, and gloo groups on the CPU, which mmengine does not start.

mmengine (0.10.7) starts processes for GPUs only: it asks for a CUDA device before it joins a group, and hands the
number of one to every wrapper of a model. Without a GPU the group is joined here, with gloo, and the wrappers get no
device.
"""

import contextlib
import datetime
import functools
import os
from collections.abc import Callable, Iterator

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.device import utils as mmengine_device
from mmengine.dist import is_distributed

from ..utils.devices import find_device
from ..utils.errors import UserError

__all__ = ['check_launcher', 'join_processes', 'on_device', 'use_device', 'world_size']

# launcher -> what it sets: the number of processes, the number of this one on its machine, and what else is read
VARIABLES = {
    'pytorch': ('WORLD_SIZE', 'LOCAL_RANK', 'RANK', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_PROCID', 'SLURM_NODELIST'),
    'mpi': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_RANK', 'MASTER_ADDR'),
}
STARTERS = {
    'pytorch': 'torchrun, e.g. tools/dist_train.sh CONFIG NUM_PROCESSES',
    'slurm': 'srun, e.g. tools/slurm_train.sh PARTITION JOB_NAME CONFIG',
    'mpi': 'mpirun of Open MPI, with MASTER_ADDR set',
}


@contextlib.contextmanager
def use_device(device: str | None, launcher: str = 'none') -> Iterator[None]:
    """What runs inside runs on this device: mmengine's runners ask `get_device`, which would name the first GPU.

    Args:
        device: As torch calls it; mmengine's own choice when None.
        launcher: What started this process.

    Raises:
        UserError: if there is no such device, or a GPU is named to one of several processes.
    """
    if device is None:
        yield
        return
    found = find_device(device)
    if launcher != 'none' and found.index is not None:
        raise UserError(f'--device {device}: each of several processes has a GPU of its own. Leave the number out.')
    before = mmengine_device.DEVICE
    one_gpu = torch.cuda.device(found) if found.type == 'cuda' and found.index is not None else contextlib.nullcontext()
    mmengine_device.DEVICE = found.type
    try:
        with one_gpu:
            yield
    finally:
        mmengine_device.DEVICE = before


def on_device(run: Callable) -> Callable:
    """A training or a test that runs on the device of its options."""

    @functools.wraps(run)
    def run_there(*args: object, **options: object) -> object:
        with use_device(options.get('device'), options.get('launcher', 'none')):
            return run(*args, **options)

    return run_there


def world_size(launcher: str) -> int:
    """The number of processes of the run, before they know each other."""
    return 1 if launcher == 'none' else int(os.environ[VARIABLES[launcher][0]])


def check_launcher(launcher: str) -> None:
    """Whether this process was started as `launcher` says, and has a GPU to itself where there are any.

    Raises:
        UserError: if it was not.
    """
    if launcher == 'none':
        return
    size, local_rank, *_ = VARIABLES[launcher]
    missing = [name for name in VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {launcher}: {", ".join(missing)} is not set, so nothing started this process as one of '
            f'several. Start it with {STARTERS[launcher]}; or leave --launcher out for a single process.'
        )
    count, local = torch.cuda.device_count(), int(os.environ[local_rank])
    if get_device() == 'cuda' and local >= count:
        raise UserError(
            f'--launcher {launcher}: process {local} of this machine has no GPU, {count} can be seen here. Start one '
            f'process for each GPU (of {os.environ[size]} in all).'
        )
    if get_device() == 'cpu' and launcher != 'pytorch':
        raise UserError(f'--launcher {launcher} needs GPUs, and torch sees none here. pytorch works on the CPU.')


def join_processes(cfg: Config) -> None:
    """Without a GPU: joins the group, as a runner would do on GPUs."""
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu' or is_distributed():
        return
    options = dict(cfg.env_cfg.dist_cfg)
    if 'timeout' in options:
        options['timeout'] = datetime.timedelta(seconds=options['timeout'])
    torch.distributed.init_process_group(**options)
