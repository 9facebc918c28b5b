"""Turns an exception into one message for a person.

`explain` recognises a few mistakes that surface deep inside the libraries: an unreadable image, an unknown component,
an unknown key of a component, a damaged checkpoint, a library that cannot be imported. It answers None for everything
else, which keeps its traceback: a bug must look like a bug.
"""

import importlib
import inspect
import linecache
import os
import pickle
import re
import traceback
from collections.abc import Iterator
from types import FrameType

from .errors import UserError, did_you_mean, first_line, unreadable_checkpoint

_PACKAGE = __name__.partition('.')[0]
# how mmengine's functions name what the config has under another key
_KEYS = {'train_loop': 'train_cfg', 'val_loop': 'val_cfg', 'test_loop': 'test_cfg', 'random_seed': 'randomness.seed'}


def explain(error: BaseException) -> str | None:
    """One message for a mistake that is recognised, in `error` or in what it was raised from; None for all else."""
    for link in _causes(error):
        for recognise in (
            _user_error,
            _own_error,
            _unknown_type,
            _bad_arguments,
            _open_files,
            _memory,
            _checkpoint,
            _image,
            _file,
            _killed,
            _class_weight,
            _library,
        ):
            message = recognise(link)
            if message is not None:
                return message
    for link in _causes(error):
        message = _component(link)
        if message is not None:
            return message
    return None


def ran_out(error: BaseException) -> tuple[str, str] | None:
    """Which memory an error says has run out, in itself or in what it was raised from, and the line that says so.

    The first is ``'gpu'``, ``'host'`` or ``'shared'`` (what loader workers hand over their batches in).
    """
    for link in _causes(error):
        if isinstance(link, UserError):
            return None
        lines = str(link).strip().splitlines() or [type(link).__name__]
        if isinstance(link, (RuntimeError, OSError, MemoryError)) or type(link).__module__.startswith('cv2'):
            for kind, pattern in _RAN_OUT.items():
                for line in reversed(lines):  # what a worker sent ends in its error
                    if re.search(pattern, line) and not re.search(_OPEN_FILES, line):
                        return kind, line.strip()
        if isinstance(link, MemoryError):
            return 'host', lines[-1].strip()
        if type(link).__name__ == 'OutOfMemoryError':  # torch's
            return 'gpu', lines[0].strip()
    return None


def _user_error(error: BaseException) -> str | None:
    return str(error) if isinstance(error, UserError) else None


def _own_error(error: BaseException) -> str | None:
    """An error that this package raised on purpose, not one that broke out of a call it made."""
    frames = _frames(error)
    if not isinstance(error, (ValueError, FileNotFoundError, ImportError)) or not frames:
        return None
    frame, line = frames[-1]
    ours = frame.f_globals.get('__name__', '').partition('.')[0] == _PACKAGE
    on_purpose = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith('raise ')
    if not (ours and on_purpose):
        return None
    owner = frame.f_locals.get('self')
    return f'{type(owner).__name__}: {error}' if owner is not None else str(error)


def _unknown_type(error: BaseException) -> str | None:
    match = re.search(r'(\S+) is not in the (\S+?)::(.+?) registry', str(error))
    if match is None or not isinstance(error, KeyError):
        return None
    name, scope, kind = match.groups()
    name = name.strip('\'"')
    broken = _broken_scope(name)
    if broken is not None:
        return broken
    message = f'type={name!r}: {scope} knows no such {kind}.'
    for build in _builds(error):
        registry = build.get('registry')
        if registry is not None:
            return message + did_you_mean(name.rpartition('.')[2], _names(registry))
    return message


def _broken_scope(name: str) -> str | None:
    """Why the library that should know a component cannot be imported: mmengine goes on with a warning."""
    from mmengine.registry import DefaultScope

    default = DefaultScope.get_current_instance()
    for scope in filter(None, (name.rpartition('.')[0], default and default.scope_name)):
        try:
            importlib.import_module(f'{scope}.registry')
        except Exception as error:
            return _library(error) or f'{name}: {scope} cannot be imported: {type(error).__name__}: {error}'
    return None


def _open_files(error: BaseException) -> str | None:
    """More files, sockets and pieces of shared memory than a process may have open."""
    lines = str(error).strip().splitlines()
    line = next((line.strip() for line in reversed(lines) if re.search(_OPEN_FILES, line)), None)
    if line is None or not isinstance(error, (OSError, RuntimeError)):
        return None
    return (
        f'too many open files: {line}\nRaise the limit of this shell (ulimit -n shows it; ulimit -n 4096), or load '
        'with fewer processes (--cfg-options train_dataloader.num_workers=0 train_dataloader.persistent_workers=False).'
    )


def _library(error: BaseException) -> str | None:
    """A library that is missing, broken, or of a version that another one refuses; with the remedy."""
    from .remedies import diagnose

    frames = _frames(error)
    while_importing = bool(frames) and frames[-1][0].f_code.co_name == '<module>'
    return diagnose(error) if while_importing or isinstance(error, ImportError) else None


def _bad_arguments(error: BaseException) -> str | None:
    """An unknown or a missing key of a component, if that component was built from a config."""
    if not isinstance(error, TypeError):
        return None
    unknown = re.search(r"got an unexpected keyword argument '(\w+)'", str(error))
    missing = re.search(r'missing \d+ required (?:positional|keyword-only) arguments?: (.+)', str(error))
    for build in _builds(error):
        cls, args = build.get('obj_cls'), build.get('args')
        if cls is None or args is None:
            continue
        if unknown and unknown.group(1) in args:
            return _unknown_key(cls, unknown.group(1))
        if missing and build is _last_locals(error):
            return f'{cls.__name__} ({cls.__module__}) needs {missing.group(1)} in its config.'
    return None


def _unknown_key(cls: type, key: str) -> str:
    accepted = _accepted_keys(cls)
    return (
        f'{cls.__name__} ({cls.__module__}) accepts no key {key!r}.{did_you_mean(key, accepted)}\n'
        f'It accepts: {", ".join(accepted)}.'
    )


def _memory(error: BaseException) -> str | None:
    """Outside of a run, which knows its settings; see `engine.memory`."""
    found = ran_out(error)
    if found is None:
        return None
    kind, reason = found
    what = {'gpu': 'the GPU', 'host': 'this machine', 'shared': 'what processes share (/dev/shm)'}[kind]
    return f'the memory of {what} ran out: {reason}'


def _checkpoint(error: BaseException) -> str | None:
    """A file that `torch.load` could not read, found by the frame of `torch.load` itself."""
    if not isinstance(error, (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError)):
        return None
    for frame, _ in reversed(_frames(error)):
        if frame.f_code.co_name == 'load' and frame.f_globals.get('__name__') == 'torch.serialization':
            source = frame.f_locals.get('f')
            named = isinstance(source, (str, os.PathLike))
            path = os.fspath(source) if named else getattr(source, 'name', 'in memory')
            return str(unreadable_checkpoint(str(path), error))
    return None


def _component(error: BaseException) -> str | None:
    """Which component of the config failed, where nothing more is known: as it was built, or in its part of the run.

    A mistake in the config and a bug of the component look the same from here, so the type of the error is told. Only
    errors of the kinds that a wrong value leads to are looked at.
    """
    told = f'{type(error).__name__}: {first_line(error)[:300]}'
    kinds = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
    for build in _builds(error) if isinstance(error, (*kinds, RuntimeError)) else ():
        cls, args = build.get('obj_cls'), build.get('args', build.get('cfg'))
        if cls is None or not isinstance(cls, type):
            return f'a component of the config cannot be built: {told}\nIts entry: {_shown(args)}{_SEE}'
        return f'{cls.__name__} ({cls.__module__}) cannot be built from its config: {told}\nIt: {_shown(args)}{_SEE}'
    for frame, _ in reversed(_frames(error)) if isinstance(error, kinds) else ():
        module, function = frame.f_globals.get('__name__', ''), frame.f_code.co_name
        if module == 'mmengine.dataset.base_dataset' and function == '__call__' and 't' in frame.f_locals:
            step = type(frame.f_locals['t'])
            return f'{step.__name__} ({step.__module__}), a step of the data pipeline, fails: {told}{_SEE}'
        owner = frame.f_locals.get('self')
        if (module, function) == ('mmengine.evaluator.metric', 'evaluate'):
            return f'{type(owner).__name__} ({type(owner).__module__}), a metric, fails: {told}{_SEE}'
        if (module, function) == ('mmengine.model.base_module', 'init_weights'):
            return f'the init_cfg of {type(owner).__name__} ({type(owner).__module__}) cannot be used: {told}{_SEE}'
        hook = frame.f_locals.get('hook') if function == 'call_hook' else None
        if hook is not None and type(hook).__module__.partition('.')[0] != _PACKAGE:
            return f'{type(hook).__name__} ({type(hook).__module__}), a hook, fails: {told}{_SEE}'
        match = re.fullmatch(r'(?:build|register|set|setup)_(\w+)', function)
        if match and module.startswith(('mmengine.runner', 'mmengine._strategy', 'mmengine.visualization')):
            return f"the config's {_key(match.group(1), error)} cannot be used: {told}{_SEE}"
    return _network(error, told) if isinstance(error, (*kinds, RuntimeError)) else None


def _key(name: str, error: BaseException) -> str:
    """The key of the config behind the name of a function of mmengine's runner."""
    if name == 'dataloader':
        loops = (re.fullmatch(r'build_(\w+)_loop', frame.f_code.co_name) for frame, _ in _frames(error))
        return next((f'{loop.group(1)}_dataloader' for loop in loops if loop), name)
    return _KEYS.get(name, name)


def _network(error: BaseException, told: str) -> str | None:
    """The innermost part of a network of the toolboxes, where a step of a run failed in it."""
    frames = [frame for frame, _ in _frames(error)]
    if not any(frame.f_code.co_name in ('train_step', 'val_step', 'test_step') for frame in frames):
        return None
    parts = [type(frame.f_locals['self']) for frame in frames if hasattr(frame.f_locals.get('self'), 'named_modules')]
    parts = [cls for cls in parts if not cls.__module__.startswith(('torch.', 'mmengine.'))]
    if not parts or parts[-1].__module__.partition('.')[0] not in ('mmdet', 'mmseg', 'mmpretrain'):
        return None  # a bug of ours looks like a bug
    name = f'{parts[-1].__name__} ({parts[-1].__module__})'
    return f'{name} fails as the network runs: {told}\nParts of the model may not fit each other or the data.{_SEE}'


_SEE = '\nIf it is a bug instead: --traceback shows where.'


def _shown(value: object) -> str:
    text = ' '.join(repr(value).split())
    return text if len(text) <= 300 else f'{text[:296]} ...'


_IMAGE = (
    r'failed to load image: (?P<path>[^\n]+)',  # mmcv's LoadImageFromFile
    r"cannot identify image file '?(?P<path>[^'\n]+)'?",  # Pillow
)


def _image(error: BaseException) -> str | None:
    """An image that cannot be decoded, in this process or inside the text a DataLoader worker sent."""
    for pattern in _IMAGE:
        match = re.search(pattern, str(error))
        if match:
            path = match.group('path').strip()
            return f'image {path!r} cannot be read: it is damaged or no image. Replace it, or take it out of the data.'
    return None


def _file(error: BaseException) -> str | None:
    """A file of the data set that is listed but not there; other missing files keep their traceback."""
    if not isinstance(error, FileNotFoundError):
        return None
    match = re.search(r"\[Errno 2\] No such file or directory: '([^'\n]+)'", str(error))
    in_worker = 'DataLoader worker' in str(error)
    in_dataset = any(frame.f_code.co_name == '__getitem__' for frame, _ in _frames(error))
    if match is None or not (in_worker or in_dataset):
        return None
    return f'the data set lists {match.group(1)!r}, but there is no such file.'


def _killed(error: BaseException) -> str | None:
    """A process of a DataLoader that did not end by itself."""
    match = re.search(
        r'DataLoader worker \(pid\(?s?\)? [^)]+\) (is killed by signal: [^.]+|exited unexpectedly)', str(error)
    )
    if match is None or not isinstance(error, RuntimeError):
        return None
    return (
        f'a process that loads data {match.group(1)}. The system kills one where memory runs out: try fewer '
        'num_workers. If it is always at the same place, look at the data: python tools/check_dataset.py CONFIG'
    )


def _class_weight(error: BaseException) -> str | None:
    """mmseg 1.2 looks up the weight of every label before it leaves out those that are ignored."""
    if not (isinstance(error, IndexError) or 'device-side assert' in str(error)):
        return None
    for frame, _ in _frames(error):
        module, function = frame.f_globals.get('__name__'), frame.f_code.co_name
        weighed = frame.f_locals.get('class_weight') is not None
        if (module, function) == ('mmseg.models.losses.cross_entropy_loss', 'cross_entropy') and weighed:
            return (
                "mmseg's CrossEntropyLoss fails: it has a class_weight, and looks up the weight of every label, of "
                f'those that are ignored, too (255: padded and unlabelled pixels): {str(error).splitlines()[0]}\n'
                'Set reduction of the loss to none (the mean is then taken over all pixels): --cfg-options '
                'model.decode_head.loss_decode.reduction=none, and so for each auxiliary head with a class_weight; or '
                'leave class_weight out. If the labels are not 255: python tools/check_dataset.py CONFIG'
            )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what it was raised from, outermost first."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """(frame, line) of the traceback, outermost first."""
    return list(traceback.walk_tb(error.__traceback__))


def _builds(error: BaseException) -> Iterator[dict]:
    """Locals of each frame in which mmengine was building a component, innermost first."""
    for frame, _ in reversed(_frames(error)):
        if frame.f_code.co_name == 'build_from_cfg' and frame.f_globals.get('__name__', '').startswith('mmengine'):
            yield frame.f_locals


def _last_locals(error: BaseException) -> dict | None:
    frames = _frames(error)
    return frames[-1][0].f_locals if frames else None


def _names(registry: object) -> list[str]:
    """Every name a registry and its ancestors know."""
    names = []
    while registry is not None:
        names += registry.module_dict
        registry = registry.parent
    return names


def _accepted_keys(cls: type) -> list[str]:
    """Parameter names of a class, through the bases its ``**kwargs`` are handed to."""
    if not inspect.isclass(cls):
        return list(inspect.signature(cls).parameters)
    keys = {}
    for base in cls.__mro__:
        if '__init__' not in vars(base) or base is object:
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        keys.update(dict.fromkeys(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(keys)


_OPEN_FILES = r'Too many open files|received 0 items of ancdata'
_RAN_OUT = {
    'shared': r'Bus error|unable to (?:open|allocate) shared memory|unable to (?:mmap|write to file|resize) .*torch_',
    'gpu': r'(?:CUDA|HIP|MPS backend|XPU|NPU)\b.*out of memory|CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED',
    'host': r"not enough memory|can't allocate memory|Cannot allocate memory|Insufficient memory|signal: Killed",
}
