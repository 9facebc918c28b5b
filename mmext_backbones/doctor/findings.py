"""Turns facts about an installation into findings, each with a remedy where something is wrong."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..utils.remedies import MMCV, OPERATORS, cautions, compiling, misfits, release, remedy_of
from . import machine
from .probing import LIBRARIES, TOOLBOXES
from .stacks import compare

Facts = Mapping[str, Mapping[str, Any]]

# without these nothing of the package runs
NEEDED = {'torch': 'pip install "torch>=2.1"', 'mmengine': 'pip install "mmengine>=0.10.5,<1.0"', 'numpy': None}
OPTIONAL = {
    'mmcv': 'the toolboxes need it',
    'mmdet': 'detection',
    'mmseg': 'segmentation',
    'mmpretrain': 'classification',
    'torchvision': 'mmdet and mmpretrain need it',
    'triton': 'kernels on GPUs; there are others',
    'timm': 'only compared with',
    'cv2': 'mmcv needs it',
    'setuptools': '',
    'pkg_resources': '',
}


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        topic: what, in a word or two.
        level: 'ok'; 'note' for what may matter to somebody; 'problem' for what is broken and has to be mended.
        text: what was found.
        remedy: what helps, where something does.
    """

    topic: str
    level: str
    text: str
    remedy: str | None = None


def examine(facts: Facts, config: str | None = None) -> list[Finding]:
    """All findings: the machine, the libraries, what fits together, what runs, the data."""
    return [
        *_python(),
        *(finding for name in LIBRARIES if name in facts for finding in _library(name, facts)),
        *_fits(facts),
        *_owners(facts),
        *_runs(facts),
        *_data(facts, config),
        *(Finding(*each) for each in machine.spaces(_details(facts, 'torch').get('hub'))),
    ]


def _details(facts: Facts, name: str) -> Mapping[str, Any]:
    return facts.get(name, {}).get('details') or {}


def _python() -> Iterator[Finding]:
    yield Finding('python', 'ok', machine.python())


def _library(name: str, facts: Facts) -> Iterator[Finding]:
    found = facts[name]
    if found.get('absent'):
        if name in NEEDED:
            yield Finding(name, 'problem', 'not installed', NEEDED[name] or f'pip install {name}')
        elif name == 'pkg_resources':
            yield _no_pkg_resources(facts)
        else:
            yield Finding(name, 'note', f'not installed ({OPTIONAL[name]})' if OPTIONAL.get(name) else 'not installed')
    elif 'error' in found:
        version = f'{found["version"]}: ' if found.get('version') else ''
        yield Finding(name, 'problem', f'{version}{found["error"]}', _remedy(name, found['error'], facts))
    else:
        yield Finding(name, 'ok', _described(name, found))


def _remedy(name: str, error: str, facts: Facts) -> str:
    """By the words of the error, or by the versions, or at least a try."""
    by_version = next((remedy for what, remedy in misfits(_versions(facts)) if what.startswith(f'{name} ')), None)
    return by_version or remedy_of(error) or f'import {name} fails by itself: install it again'


def _no_pkg_resources(facts: Facts) -> Finding:
    """mmengine up to 0.10.7 finds the `mmdet::` base configs with it; setuptools 82 removed it."""
    mmengine = facts.get('mmengine', {}).get('version', '')
    if mmengine and release(mmengine) > (0, 10, 7):
        return Finding('pkg_resources', 'ok', f'not there; mmengine {mmengine} does without')
    text = 'not there, and mmengine reads no config with a base like mmdet::... without it'
    return Finding('pkg_resources', 'problem', text, remedy_of("No module named 'pkg_resources'"))


def _described(name: str, found: Mapping[str, Any]) -> str:
    details = found.get('details') or {}
    words = [found.get('version') or 'there']
    owners = [owner for owner in found.get('owners', ()) if owner.lower().replace('-', '_') != name]
    if owners:
        words.append(f'from {", ".join(owners)}')
    if name == 'torch':
        words.append(details.get('build', ''))
        words += [f'cuDNN {details["cudnn"]}'] if details.get('cudnn') else []
        words += details.get('devices') or ['no GPU that it can use']
    if name == 'cv2':
        words.append('headless' if details.get('headless') else 'with windows: needs libGL')
    return ', '.join(word for word in words if word)


def _versions(facts: Facts) -> dict[str, str]:
    versions = {name: found['version'] for name, found in facts.items() if found.get('version')}
    return {**versions, 'python': machine.python_version()}


def _fits(facts: Facts) -> Iterator[Finding]:
    versions = _versions(facts)
    for what, remedy in misfits(versions):
        yield Finding('versions', 'problem', what, remedy)
    for what, remedy in cautions(versions):
        yield Finding('versions', 'note', what, remedy)
    measured = compare(versions)
    if measured is not None:
        yield Finding('stack', *measured)


def _owners(facts: Facts) -> Iterator[Finding]:
    """Two distributions of one import name write over each other's files: a library and its fork, two OpenCVs."""
    for name in ('mmengine', 'mmcv', *TOOLBOXES, 'cv2'):
        owners = facts.get(name, {}).get('owners') or []
        if len(owners) > 1:
            level = 'note' if name == 'cv2' else 'problem'
            text = f'{" and ".join(owners)} are installed over each other'
            yield Finding(name, level, text, f'pip uninstall -y {" ".join(owners)}, then install one of them')


def _runs(facts: Facts) -> Iterator[Finding]:
    for name, found in facts.items():
        if not name.startswith('run '):
            continue
        topic, details = name.removeprefix('run '), found.get('details') or {}
        if 'error' in found:
            yield _broken_run(topic, found['error'], facts)
        elif 'kernels' in details:
            yield _kernels(details['kernels'])
        elif details.get('operators'):
            yield _operators(details['operators'], details['own'], facts)
        elif 'skipped' in details:
            yield Finding(topic, 'note', f'not run: {details["skipped"]}')
        else:
            done = 'are found' if topic.endswith(':: bases') else 'imports'
            yield Finding(topic, 'ok', 'runs' if topic in ('cuda', 'mmcv.ops', 'triton') else done)


def _broken_run(topic: str, error: str, facts: Facts) -> Finding:
    of_bases = topic.endswith(':: bases')
    remedy = _remedy(topic.partition('.')[0], error, facts)
    if of_bases:
        remedy = remedy_of(error) or 'its configs are not in .mim of its folder, or not to be read: install it again'
    if topic == 'mmcv.ops':
        if not any(facts.get(name, {}).get('owners') or 'version' in facts.get(name, {}) for name in TOOLBOXES):
            return Finding(topic, 'note', f'{error}; without a toolbox nobody needs them', remedy)
        remedy = f'{remedy_of(error) or MMCV}; {compiling(facts.get("torch", {}).get("version", ""))}'
    needs_ours = of_bases or topic in ('triton', 'kernels')
    if needs_ours and any('error' in facts.get(name, {}) for name in ('torch', 'mmengine')):
        return Finding(topic, 'note', 'not run: the package cannot be imported')
    level = 'note' if topic == 'triton' else 'problem'  # there are other forms of the operators
    return Finding(topic, level, error, remedy)


def _operators(told: str, own: bool, facts: Facts) -> Finding:
    """Whose operators run; those of this package are found without it only where a module forwards to them."""
    text = f'runs: {told.partition(": ")[2]}'
    if 'compiled (' not in text:
        text += f'; {compiling(facts.get("torch", {}).get("version", ""))}'
    if own:
        return Finding('mmcv.ops', 'ok', text)
    return Finding('mmcv.ops', 'note', f'{text}; programs that do not import this package miss them', OPERATORS)


def _kernels(reasons: Mapping[str, str | None]) -> Finding:
    broken = {name: reason for name, reason in reasons.items() if reason is not None}
    if not broken:
        return Finding('CPU kernels', 'ok', f'{len(reasons)} built and loaded')
    text = '; '.join(f'{name}: {reason}' for name, reason in broken.items())
    return Finding('CPU kernels', 'note', f'{text} (PyTorch runs instead, more slowly)', machine.compiler_remedy())


def _data(facts: Facts, config: str | None) -> Iterator[Finding]:
    if config is None:
        yield from (Finding(*each) for each in machine.standard_data())
        return
    found = facts.get('config', {})
    if 'error' in found:
        yield Finding('config', 'problem', found['error'].removeprefix('UserError: '), remedy_of(found['error']))
        return
    details = _details(facts, 'config')
    scope = details.get('scope')
    state = facts.get(scope, {})
    if scope in TOOLBOXES and state.get('absent'):
        yield Finding('config', 'problem', f'{config} needs {scope}', remedy_of(f"No module named '{scope}'"))
    missing = details.get('missing') or {}
    for text in dict.fromkeys(missing.values()):
        splits = ', '.join(split for split, other in missing.items() if other == text)
        lines = [line.strip() for line in text.splitlines()]
        advice = [line for line in lines if line.startswith(('If ', 'To '))]
        what = ' '.join(line for line in lines if line not in advice)
        yield Finding(f'data ({splits})', 'problem', what, ' '.join(advice) or None)
    if not missing:
        yield Finding('data', 'ok', f'all that {config} names is there')
