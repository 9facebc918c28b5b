"""Package metadata. Nothing is compiled at install.

No OpenMMLab package stands among the requirements: a pin on ``mmdet`` would pull the stock distribution over a
maintained fork that owns the same import name. They are the extras ``det``, ``seg`` and ``cls`` instead.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r"^__version__ = '(.+)'$", (ROOT / 'mmext_backbones/version.py').read_text(), re.M).group(1)


# mmcv without compiled operators: torchvision and PyTorch stand in for them (mmext_backbones.mmcv_ops)
MMCV = ['mmengine>=0.10.5,<1.0', 'mmcv-lite>=2.0.1,<2.2', 'torchvision']


class BuildWithConfigs(build_py):
    """Puts configs, tools and model index where `mim` and `mmext_backbones::` names look: under `.mim` of the package.

    In a checkout, links stand there.
    """

    PARTS = ('configs', 'tools', 'model-index.yml')

    def run(self) -> None:
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        target = Path(self.build_lib, 'mmext_backbones', '.mim')
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in self.PARTS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy(ROOT / name, target / name)


setup(
    name='mmext-backbones',
    version=VERSION,
    description='Swin, MaxViT, ELSA-Swin, Sequencer2D, VOLO as dense-prediction backbones for the OpenMMLab toolboxes',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    package_data={'mmext_backbones': ['ops/*/*.c', 'doctor/*.json']},
    packages=find_packages(include=['mmext_backbones', 'mmext_backbones.*']),
    cmdclass={'build_py': BuildWithConfigs},
    entry_points={'console_scripts': ['mmext = mmext_backbones.__main__:main']},
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.1',
        # mmengine <= 0.10.7 imports pkg_resources to find the `mmdet::` base configs; setuptools 82 removed it
        'setuptools<82',
    ],
    extras_require={
        'mmengine': ['mmengine>=0.10.5,<1.0'],
        'det': [*MMCV, 'mmdet>=3.3,<4'],
        'seg': [*MMCV, 'mmsegmentation>=1.2,<2', 'ftfy', 'regex'],
        'cls': [*MMCV, 'mmpretrain>=1.2,<2'],
        'hub': ['huggingface_hub', 'safetensors'],  # timm:// and hf:// addresses, safetensors files
        'export': ['onnx>=1.18', 'onnxruntime>=1.20', 'onnxscript>=0.3'],
        'app': ['gradio>=6'],
        'tracking': ['tensorboard', 'mlflow-skinny', 'wandb'],
        'docs': ['mkdocs-material>=9.5', 'mkdocstrings-python>=2'],
        'tests': ['pytest', 'ruff', 'timm>=1.0.31'],
    },
    zip_safe=False,
)
