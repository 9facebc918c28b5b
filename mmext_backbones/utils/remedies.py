"""Which versions fit together, and what helps against the errors that people meet."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .errors import first_line

DOCTOR = 'python -m mmext_backbones.doctor'
MMCV = 'pip install --no-deps "mmcv-lite==2.1.0" && python -m mmext_backbones.mmcv_ops --install'
# where mmcv is there and its own operators are not: nothing of it has to be compiled
OPERATORS = 'python -m mmext_backbones.mmcv_ops --install'
NOT_COMPILED = f'pip uninstall -y mmcv && {MMCV}'
# from this torch on its headers are C++20, and mmcv's build asks for C++17
NO_COMPILING = '2.14'
COMPILED = (
    'pip install "setuptools<82" wheel ninja && pip install --no-build-isolation --no-deps --no-cache-dir '
    '--force-reinstall "mmcv==2.1.0"'
)


class Window(NamedTuple):
    """A library, in versions before `below`, takes another one in versions from `first` on and before `last`."""

    library: str
    below: str
    other: str
    first: str
    last: str
    remedy: str


# What the libraries assert when they are imported (their `__init__.py`), and what setup.py of this package asks for.
# The maintained forks of mmdet (3.5) and mmseg (1.4) assert nothing, that of mmpretrain (1.3) what mmpretrain does.
WINDOWS = (
    Window('mmdet', '3.4', 'mmcv', '2.0', '2.2', NOT_COMPILED),
    Window('mmseg', '1.3', 'mmcv', '2.0', '2.2', NOT_COMPILED),
    Window('mmpretrain', '2', 'mmcv', '2.0', '2.4', NOT_COMPILED),
    Window('mmdet', '3.4', 'mmengine', '0.7.1', '1', 'pip install "mmengine>=0.10.5,<1.0"'),
    Window('mmseg', '1.3', 'mmengine', '0.5', '1', 'pip install "mmengine>=0.10.5,<1.0"'),
    Window('mmpretrain', '2', 'mmengine', '0.8.3', '1', 'pip install "mmengine>=0.10.5,<1.0"'),
    Window('mmext_backbones', '1', 'mmengine', '0.10.5', '1', 'pip install "mmengine>=0.10.5,<1.0"'),
    Window('mmext_backbones', '1', 'torch', '2.1', '99', 'pip install "torch>=2.1"'),
    Window('mmext_backbones', '1', 'python', '3.10', '99', 'make the environment with Python 3.10 or later'),
)

# Pairs that work, but not in everything: (library, below, other, from this version on, what happens, what helps).
CAUTIONS = (
    # mmengine calls torch.load without weights_only, True since torch 2.6; its checkpoints hold classes of its own
    ('mmengine', '0.10.8', 'torch', '2.6', 'torch.load of mmengine refuses the checkpoints that mmengine writes; this '
     'package makes them readable wherever it is imported', 'elsewhere: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1'),
    # wheels of torch before 2.3 are built against numpy 1
    ('torch', '2.3', 'numpy', '2', 'this torch was built against numpy 1', 'pip install "numpy<2"'),
    ('mmdet', '3.4', 'numpy', '2', 'the YouTube-VIS metric of mmdet uses names that numpy 2 has dropped; everything '
     'else works', 'pip install "numpy<2" where you need it'),
    ('mmpretrain', '1.3', 'numpy', '2', 'the retrieval metric of mmpretrain uses names that numpy 2 has dropped; '
     'everything else works', 'pip install "numpy<2" where you need it'),
)  # fmt: skip

# Words of an error, and what helps. The first that is found counts.
SYMPTOMS = (
    (r"No module named 'mmcv\._ext'", 'mmcv has no operators (mmcv-lite, or built without them), and torchvision and '
     f'PyTorch can stand in for them: {OPERATORS}'),
    (r'mmcv.*undefined symbol|mmcv.*_ext.*cannot open shared object', 'mmcv was compiled for another torch; without '
     f'compiling: {NOT_COMPILED}'),
    (r'torchvision::nms does not exist|torchvision.*undefined symbol', 'torchvision was built for another torch: '
     'install the pair from one index, https://pytorch.org/get-started/locally'),
    (r'undefined symbol', 'it was compiled against another version of a library it uses: install it again'),
    (r'libGL\.so|libgthread|libglib', 'pip uninstall -y opencv-python opencv-contrib-python && pip install '
     '--force-reinstall opencv-python-headless (or, as root: apt-get install libgl1 libglib2.0-0)'),
    (r"No module named 'pkg_resources'", 'setuptools 82 has removed pkg_resources: pip install "setuptools<82"'),
    (r"pkgutil.*'ImpImporter'", 'this setuptools is too old for this Python: pip install -U "setuptools<82"'),
    (r"No module named '(ftfy|regex)'", 'mmsegmentation uses them and does not name them: pip install ftfy regex'),
    (r"No module named '(imgaug|skimage|imageio)'", 'the fork of mmdet uses them: pip install scikit-image imageio && '
     'pip install --no-deps imaug'),
    (r'MMCV==(\S+) is used but incompatible|mmcv.* incompatible', NOT_COMPILED),
    (r'MMEngine==(\S+) is used but incompatible', 'pip install "mmengine>=0.10.5,<1.0"'),
    (r'numpy\.core\.multiarray failed to import|compiled using NumPy 1|numpy\.dtype size changed', 'it was compiled '
     'against another numpy: pip install -U it, or pip install "numpy<2"'),
    (r'`?np\.(float|int|bool|object|sctypes|in1d)\b|numpy.*has no attribute', 'it was written for numpy 1: pip install '
     '-U it, or pip install "numpy<2"'),
    (r'Adafactor is already registered', 'pip install "mmengine>=0.10.6"'),
    (r'CUDA driver version is insufficient|driver on your system is too old', 'update the NVIDIA driver, or install a '
     'torch for an older CUDA'),
    (r'no kernel image is available', 'this torch (or mmcv) was not built for this GPU: install one that names it'),
    (r"No module named 'torch'", 'pip install "torch>=2.1"'),
    (r"No module named 'mmengine'", 'pip install "mmengine>=0.10.5,<1.0"'),
    (r"No module named 'mmcv", MMCV),
    (r"No module named 'torchvision'", 'the torchvision of your torch: https://pytorch.org/get-started/locally'),
    (r"No module named 'mmdet'", 'pip install "mmdet>=3.3,<4"'),
    (r"No module named 'mmseg'", 'pip install "mmsegmentation>=1.2,<2" ftfy regex'),
    (r"No module named 'mmpretrain'", 'pip install "mmpretrain>=1.2,<2"'),
    (r"No module named 'cv2'", 'pip install opencv-python-headless'),
)  # fmt: skip


def release(version: str) -> tuple[int, ...]:
    """The numbers a version starts with: '2.0.0rc4' and '2.0+cpu' are (2,), zeros at the end left out."""
    match = re.match(r'\d+(\.\d+)*', version)
    numbers = [int(part) for part in match.group().split('.')] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def remedy_of(text: str) -> str | None:
    """What helps against an error, by its words."""
    return next((remedy for pattern, remedy in SYMPTOMS if re.search(pattern, text, re.DOTALL)), None)


def compiling(torch: str) -> str:
    """Whether mmcv's own operators can be had with a version of torch, and how."""
    if torch and release(torch) >= release(NO_COMPILING):
        return f'mmcv does not compile on torch {NO_COMPILING} and later'
    return f'to compile them instead, some minutes with a C++ compiler: {COMPILED}'


def misfits(versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(what does not fit, what helps) among the versions of what is there."""
    for window in WINDOWS:
        own, other = versions.get(window.library), versions.get(window.other)
        if not own or not other or release(own) >= release(window.below):
            continue
        if not release(window.first) <= release(other) < release(window.last):
            last = '' if window.last == '99' else f', before {window.last}'
            yield (
                f'{window.library} {own} does not take {window.other} {other}: it needs {window.first} or later{last}',
                window.remedy,
            )


def cautions(versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(what to know, what helps) about pairs of versions that are there."""
    for library, below, other, first, what, remedy in CAUTIONS:
        own, installed = versions.get(library), versions.get(other)
        if own and installed and release(own) < release(below) and release(installed) >= release(first):
            yield f'{library} {own} with {other} {installed}: {what}', remedy


def diagnose(error: BaseException) -> str | None:
    """What broke and what helps, for an error at the import of a library; None for what is not known."""
    if not isinstance(error, (ImportError, AssertionError, AttributeError, OSError)):
        return None
    text = f'{error} {getattr(error, "path", None) or ""}'
    remedy = remedy_of(text)
    if remedy is None:
        return None
    return f'{first_line(error)}\nRemedy: {remedy}\n{DOCTOR} looks at the whole installation.'
