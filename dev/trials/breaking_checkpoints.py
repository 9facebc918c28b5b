"""Faults to put into checkpoints, for `broken_files.py`.

A fault takes a random generator, the content of a good checkpoint and the path to write.
"""

import io
import json
import math
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ['FAULTS', 'RESUME_FAULTS', 'Fault', 'Marker']


class Fault(NamedTuple):
    """One fault.

    Attributes:
        apply: Takes (generator, content of a good training checkpoint, path).
        suffix: Of the file.
        harmless: Whether any consumer may take the file as it is.
        loose: Whether those may that do not know the whole model: a start from weights, and the conversion.
    """

    apply: Callable[[random.Random, dict[str, Any], Path], None]
    suffix: str
    harmless: bool
    loose: bool


FAULTS: dict[str, Fault] = {}
RESUME_FAULTS: dict[str, Fault] = {}


def fault(
    name: str, suffix: str = '.pth', *, harmless: bool = False, loose: bool = False, resume: bool = False
) -> Callable:
    def register(function: Callable) -> Callable:
        (RESUME_FAULTS if resume else FAULTS)[name] = Fault(function, suffix, harmless, loose)
        return function

    return register


class Marker:
    """Pickles as a call that leaves a file, by which a trial sees that something was run."""

    path: str = ''

    def __init__(self, how: str = 'open') -> None:
        self.how = how

    def __reduce__(self) -> tuple:
        if self.how == 'system':
            return os.system, (f'touch {self.path}',)
        if self.how == 'eval':
            return eval, (f'open({self.path!r}, "w").close()',)
        return open, (self.path, 'w')


# --------------------------------------------------------------------------------------------------------------------
# Bytes


def raw(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@fault('cut')
def cut(rng, good, path):
    data = raw(good)
    path.write_bytes(data[: int(len(data) * rng.random())])


@fault('cut by a few bytes')
def cut_end(rng, good, path):
    path.write_bytes(raw(good)[: -rng.randint(1, 40)])


@fault('bytes changed', harmless=True)
def garbled(rng, good, path):
    data = bytearray(raw(good))
    for _ in range(rng.randint(1, 200)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)


@fault('a bit of a tensor changed')
def flipped(rng, good, path):
    """What torch reads without a word: its zip has checksums, which it does not compare."""
    content = raw(good)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        record = rng.choice([record for record in file.infolist() if '/data/' in record.filename and record.file_size])
    data = bytearray(content)
    name, extra = struct.unpack_from('<HH', data, record.header_offset + 26)  # their lengths
    start = record.header_offset + 30 + name + extra
    data[start + rng.randrange(record.file_size)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@fault('head changed')
def garbled_head(rng, good, path):
    data = bytearray(raw(good))
    data[: rng.randint(4, 64)] = rng.randbytes(8)
    path.write_bytes(data)


@fault('pickle inside changed', harmless=True)
def garbled_pickle(rng, good, path):
    data = bytearray(raw(good))
    start = data.index(b'data.pkl') + 60
    for _ in range(rng.randint(1, 20)):
        data[start + rng.randrange(2000)] = rng.randrange(256)
    path.write_bytes(data)


@fault('empty file')
def empty(rng, good, path):
    path.write_bytes(b'')


@fault('zeros')
def zeros(rng, good, path):
    path.write_bytes(bytes(rng.randint(1, 10000)))


@fault('random bytes')
def noise(rng, good, path):
    path.write_bytes(rng.randbytes(rng.randint(1, 10000)))


@fault('a page of HTML')
def html(rng, good, path):
    path.write_text('<!DOCTYPE html><html><body>404: not found</body></html>')


@fault('a pointer of git-lfs')
def lfs(rng, good, path):
    path.write_text(f'version https://git-lfs.github.com/spec/v1\noid sha256:{rng.randbytes(32).hex()}\nsize 3\n')


@fault('a folder')
def folder(rng, good, path):
    path.mkdir()


@fault('no file')
def absent(rng, good, path):
    return


@fault('a link to nothing')
def dangling(rng, good, path):
    path.symlink_to(path.parent / 'gone')


@fault('not readable as a zip of torch')
def other_zip(rng, good, path):
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('readme.txt', 'hello')


# --------------------------------------------------------------------------------------------------------------------
# Pickles


@fault('another object')
def other_object(rng, good, path):
    torch.save(rng.choice([None, 3, 'weights', [1, 2], (), {}, {'a': 1}, True, 1.5, set()]), path)


@fault('a list of tensors')
def tensor_list(rng, good, path):
    torch.save(list(good['state_dict'].values()), path)


@fault('a tensor alone')
def tensor_alone(rng, good, path):
    torch.save(torch.ones(3), path)


@fault('a pickle without torch')
def plain_pickle(rng, good, path):
    path.write_bytes(pickle.dumps({'state_dict': {'a': 1}}, protocol=rng.choice([0, 2, 4])))


@fault('code: torch.save')
def evil(rng, good, path):
    torch.save({**good, 'hook': Marker(rng.choice(['open', 'system', 'eval']))}, path)


@fault('code: among the weights')
def evil_inside(rng, good, path):
    torch.save({'state_dict': {**good['state_dict'], 'backbone.x': Marker('open')}}, path)


@fault('code: a pickle without torch')
def evil_raw(rng, good, path):
    path.write_bytes(pickle.dumps(Marker(rng.choice(['open', 'system', 'eval'])), protocol=rng.choice([0, 2, 4])))


@fault('code: the file of torch before 1.6')
def evil_legacy(rng, good, path):
    torch.save({**good, 'x': Marker('system')}, path, _use_new_zipfile_serialization=False)


@fault('code: the name of a safe file', '.safetensors')
def evil_named_safe(rng, good, path):
    torch.save(Marker('eval'), path)


@fault('a whole model')
def whole_model(rng, good, path):
    torch.save(torch.nn.Linear(2, 2), path)


@fault('getattr on a type')
def evil_getattr(rng, good, path):
    # the one call that mmengine's checkpoints need, on something else
    path.write_bytes(b'\x80\x02cbuiltins\ngetattr\nccollections\nOrderedDict\nX\x08\x00\x00\x00__init____\x86R.')


# --------------------------------------------------------------------------------------------------------------------
# Tensors


def weights(good: dict[str, Any]) -> dict[str, Tensor]:
    return dict(good['state_dict'])


def some(rng: random.Random, tensors: dict[str, Tensor], least: int = 1) -> list[str]:
    """Names of floating point tensors of the backbone."""
    keys = [key for key, value in tensors.items() if key.startswith('backbone.') and value.is_floating_point()]
    return rng.sample(keys, rng.randint(least, min(len(keys), 20)))


def changed(name: str, change: Callable[[random.Random, Tensor], Any], suffix: str = '.pth', **options: Any) -> None:
    @fault(name, suffix, **options)
    def apply(rng, good, path):
        tensors = weights(good)
        for key in some(rng, tensors):
            tensors[key] = change(rng, tensors[key])
        save(tensors, path)


def save(tensors: dict[str, Any], path: Path) -> None:
    if path.suffix == '.safetensors':
        from safetensors.torch import save_file

        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)
    else:
        torch.save({'state_dict': tensors}, path)


def spoilt(value: float) -> Callable[[random.Random, Tensor], Tensor]:
    def change(rng: random.Random, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[rng.randrange(tensor.numel())] = value
        return tensor

    return change


changed('NaN', spoilt(math.nan))
changed('infinity', spoilt(-math.inf))
changed('NaN in safetensors', spoilt(math.nan), '.safetensors')
changed('another length', lambda rng, t: torch.cat([t, t[:1]]), loose=True)
changed('another length in safetensors', lambda rng, t: torch.cat([t, t[:1]]), '.safetensors', loose=True)
changed('another number of axes', lambda rng, t: t[None], loose=True)
changed('no elements', lambda rng, t: t[:0], loose=True)
changed('a scalar', lambda rng, t: t.sum(), loose=True)
changed('integers', lambda rng, t: t.to(rng.choice([torch.int64, torch.int8, torch.uint8])))
changed('booleans', lambda rng, t: t > 0)
changed('complex numbers', lambda rng, t: t.to(torch.complex64))
changed('half precision', lambda rng, t: t.to(rng.choice([torch.float16, torch.bfloat16])), harmless=True)
changed('double precision', lambda rng, t: t.double(), harmless=True)
changed('numbers beyond float32', lambda rng, t: t.double() * 1e300)
changed('sparse', lambda rng, t: t.to_sparse())
changed('without values', lambda rng, t: t.to('meta'))
changed('quantised', lambda rng, t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8))
changed('lists of numbers', lambda rng, t: t.tolist())
changed('None', lambda rng, t: None)
changed('texts', lambda rng, t: 'weights')


@fault('keys missing', loose=True)
def missing(rng, good, path):
    tensors = weights(good)
    for key in some(rng, tensors):
        del tensors[key]
    save(tensors, path)


@fault('keys misspelt', loose=True)
def misspelt(rng, good, path):
    tensors = weights(good)
    for key in some(rng, tensors):
        tensors[key.replace('a', 'e') + rng.choice(['', 's', '.x'])] = tensors.pop(key)
    save(tensors, path)


@fault('keys too many', harmless=True)  # the network has all it needs
def extra(rng, good, path):
    tensors = weights(good)
    for key in some(rng, tensors):
        tensors[f'{key}_{rng.choice("xyz")}'] = torch.ones(3)
    save(tensors, path)


@fault('keys that are numbers')
def numbered(rng, good, path):
    torch.save({'state_dict': dict(enumerate(weights(good).values()))}, path)


@fault('a prefix on some keys', loose=True)
def half_prefixed(rng, good, path):
    tensors = weights(good)
    save({(f'model.{key}' if rng.random() < 0.5 else key): value for key, value in tensors.items()}, path)


@fault('tensors swapped', loose=True)
def swapped(rng, good, path):
    tensors = weights(good)
    keys = [key for key in tensors if key.startswith('backbone.')]
    other = keys[1:] + keys[:1]
    save({**tensors, **{a: tensors[b] for a, b in zip(keys, other, strict=True)}}, path)


@fault('two layouts mixed', loose=True)
def mixed(rng, good, path):
    from mmext_backbones.weights import swin

    convert = rng.choice([swin.to_timm, swin.to_openmmlab])
    mine = {key.removeprefix('backbone.'): value for key, value in weights(good).items() if key.startswith('backbone.')}
    other = convert(mine)
    halves = [dict(list(part.items())[rng.randrange(2) :: 2]) for part in (mine, other)]
    save({f'backbone.{key}': value for key, value in (halves[0] | halves[1]).items()}, path)


@fault('another family', loose=True)
def other_family(rng, good, path):
    from mmext_backbones.backbones import Sequencer2D

    arch = {'embed_dims': (16, 32, 32, 32), 'depths': (1, 1, 1, 1), 'hidden_dims': (4, 8, 8, 8)}
    save({f'backbone.{key}': value for key, value in Sequencer2D(arch).state_dict().items()}, path)


@fault('another network')
def other_network(rng, good, path):
    save(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)).state_dict(), path)


@fault('a list under state_dict')
def listed(rng, good, path):
    torch.save({'state_dict': list(weights(good).items())}, path)


@fault('nothing under state_dict')
def nothing(rng, good, path):
    torch.save({**good, 'state_dict': rng.choice([{}, None, [], 'x'])}, path)


@fault('nested four deep')
def nested(rng, good, path):
    torch.save({'model': {'model': {'model': {'model': weights(good)}}}}, path)


# --------------------------------------------------------------------------------------------------------------------
# Safetensors


def safe_bytes(good: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    from safetensors.torch import save as to_bytes

    data = to_bytes({key: value.contiguous().clone() for key, value in weights(good).items()})
    size = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_safe(path: Path, header: Any, body: bytes, size: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text) if size is None else size) + text + body)


@fault('safetensors: header', '.safetensors')
def safe_header(rng, good, path):
    header, body = safe_bytes(good)
    text = json.dumps(header).encode()
    case = rng.randrange(6)
    if case == 0:
        write_safe(path, header, body, size=rng.choice([2**63, 2**64 - 1, 2**40, 0, 1]))
    elif case == 1:
        write_safe(path, text[: rng.randrange(len(text))], body)
    elif case == 2:
        write_safe(path, rng.randbytes(200), body)
    elif case == 3:
        write_safe(path, rng.choice([b'[]', b'null', b'{}', b'{"a": 1}', b'{"a": {}}']), body)
    else:
        entry = header[rng.choice([key for key in header if key != '__metadata__'])]
        entry.update(
            rng.choice(
                [
                    {'dtype': 'F7'},
                    {'data_offsets': [5, 1]},
                    {'data_offsets': [0, 2**50]},
                    {'shape': [-1]},
                    {'shape': 'x'},
                    {'shape': [2**40, 2**40]},
                    {'data_offsets': [-4, 4]},
                ]
            )
        )
        write_safe(path, header, body)


@fault('safetensors: cut', '.safetensors')
def safe_cut(rng, good, path):
    save(weights(good), path)
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


@fault('safetensors: empty', '.safetensors')
def safe_empty(rng, good, path):
    path.write_bytes(b'')


@fault('safetensors: a file of torch', '.safetensors')
def safe_name(rng, good, path):
    torch.save(good, path)


@fault('a file of torch: safetensors')
def torch_name(rng, good, path):
    safe = path.with_suffix('.safetensors')
    save(weights(good), safe)
    safe.replace(path)


# --------------------------------------------------------------------------------------------------------------------
# What only resuming reads


def entry(name: str, change: Callable[[random.Random, dict[str, Any]], None], **options: Any) -> None:
    @fault(name, resume=True, **options)
    def apply(rng, good, path):
        content = pickle.loads(pickle.dumps(good))
        change(rng, content)
        torch.save(content, path)


def put(*keys: str, values: list) -> Callable[[random.Random, dict[str, Any]], None]:
    def change(rng: random.Random, content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = rng.choice(values)

    return change


for key in ('meta', 'optimizer', 'message_hub', 'param_schedulers'):
    entry(f'resume: no {key}', lambda rng, content, key=key: content.pop(key))
    entry(f'resume: {key} of another kind', put(key, values=[3, 'x', [1], {'a': 1}, None]))
entry('resume: iter', put('meta', 'iter', values=['x', None, -5, 1.5, [1]]))
entry('resume: epoch', put('meta', 'epoch', values=['x', None, -5, [1]]))
entry('resume: no iter', lambda rng, content: content['meta'].pop('iter'))
entry('resume: parameter groups', put('optimizer', 'param_groups', values=[[], None, 'x', [{}], [{'params': [0]}]]))
entry('resume: optimizer state', put('optimizer', 'state', values=[None, 'x', [], {0: 'x'}, {0: {'exp_avg': 1}}]))
entry('resume: random state', put('mmext_random_state', values=[3, 'x', {}, {'torch': 1}]), harmless=True)
entry(
    'resume: code in the config it carries',
    lambda rng, content: content['meta'].update(config=f'open({Marker.path!r}, "w").close()'),
    harmless=True,
)
entry('resume: seed', put('meta', 'seed', values=['x', -1, 2**70]), harmless=True)


@fault('resume: weights alone', resume=True)
def weights_alone(rng, good, path):
    save(weights(good), path)


@fault('resume: moments of another shape', resume=True)
def moments(rng, good, path):
    content = pickle.loads(pickle.dumps(good))
    for state in content['optimizer']['state'].values():
        state['exp_avg'] = torch.zeros(7)
    torch.save(content, path)


@fault('resume: NaN in the moments', resume=True)
def nan_moments(rng, good, path):
    content = pickle.loads(pickle.dumps(good))
    next(iter(content['optimizer']['state'].values()))['exp_avg'].fill_(math.nan)
    torch.save(content, path)


@fault('resume: after the end', resume=True, harmless=True)
def after_end(rng, good, path):
    content = pickle.loads(pickle.dumps(good))
    content['meta']['iter'] = 10**6
    torch.save(content, path)
