"""How a config's test pipeline resizes an image, in the words of a file's metadata: a runtime does the same."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LIBRARIES = ('', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')  # whose transforms of these names are known
NO_PIXELS = ('Load', 'Pack')  # such names begin: they read the image or its labels, or hand them on
RESIZES = ('Resize', 'ResizeEdge', 'CenterCrop')


class ResizeRule(NamedTuple):
    """What a test does to an image before the network's own preprocessing.

    Attributes:
        entry: None where the image stays as it is, or `note` says what cannot be described; else either
            ``{'scale': [w, h], 'keep_ratio', 'interpolation', 'backend'}``, as mmcv's Resize reads them (with
            `keep_ratio` the long edge of the image is at most the longer of the two, the short edge the shorter), or
            ``{'short_edge', 'interpolation', 'backend', 'crop'}``, as of ResizeEdge and CenterCrop, of which a crop or
            a resize may be missing. All in pixels.
        note: What of the pipeline the entry leaves out, in words; None where that is nothing.
    """

    entry: dict[str, Any] | None
    note: str | None = None


def describe_resize(test_pipeline: Sequence[Mapping[str, Any]]) -> ResizeRule:
    """The rule of a pipeline, as of `test_dataloader.dataset.pipeline`."""
    steps = [(_name(step), step) for step in test_pipeline]
    steps = [(name, step) for name, step in steps if not name.startswith(NO_PIXELS)]
    others = [name for name, _ in steps if name not in RESIZES]
    resizes = [(name, step) for name, step in steps if name in RESIZES]
    note = f'the test pipeline also has {", ".join(others)}, which no file repeats' if others else None
    if not resizes:
        return ResizeRule(None, note)
    entry, reason = _described(resizes)
    if entry is None:
        said = ', '.join(name for name, _ in resizes)
        return ResizeRule(None, f'how the test pipeline resizes ({said}) cannot be described: {reason}')
    return ResizeRule(entry, note)


def _described(resizes: list[tuple[str, Mapping]]) -> tuple[dict[str, Any] | None, str | None]:
    """The entry, or None and the reason."""
    names = [name for name, _ in resizes]
    steps = dict(resizes)
    if names == ['Resize']:
        return _scaled(steps['Resize'])
    if names not in (['ResizeEdge'], ['CenterCrop'], ['ResizeEdge', 'CenterCrop']):
        return None, 'known are Resize alone, ResizeEdge, CenterCrop, and a CenterCrop after a ResizeEdge'
    entry = {}
    if 'ResizeEdge' in steps:
        edge = steps['ResizeEdge'].get('edge', 'short')
        if edge != 'short':
            return None, f'edge={edge!r}: known is the short one'
        entry = {'short_edge': steps['ResizeEdge'].get('scale'), **_method(steps['ResizeEdge'])}
    if 'CenterCrop' in steps:
        crop = steps['CenterCrop'].get('crop_size')
        width, height = crop if isinstance(crop, Sequence) else (crop, crop)
        if width != height:
            return None, f'crop_size={crop}: known is a square'
        if steps['CenterCrop'].get('auto_pad'):
            return None, 'auto_pad fills smaller images up'
        entry['crop'] = width
    return entry, None


def _scaled(step: Mapping) -> tuple[dict[str, Any] | None, str | None]:
    scale = step.get('scale')
    if scale is None:
        return None, f'scale_factor={step.get("scale_factor")}: known is a scale in pixels'
    pair = [int(edge) for edge in scale] if isinstance(scale, Sequence) else [int(scale)] * 2
    return {'scale': pair, 'keep_ratio': bool(step.get('keep_ratio', False)), **_method(step)}, None


def _method(step: Mapping) -> dict[str, str]:
    """Both with the default of mmcv."""
    return {'interpolation': step.get('interpolation') or 'bilinear', 'backend': step.get('backend') or 'cv2'}


def _name(step: Mapping) -> str:
    """The name of a transform: without its library where it is known, whole for another."""
    kind = step['type']
    if not isinstance(kind, str):  # a class, of a config in Python's own syntax
        kind = f'{kind.__module__.partition(".")[0]}.{kind.__name__}'
    library, _, name = kind.rpartition('.')
    return name if library in LIBRARIES else kind
