"""Opens the config that a subcommand is about."""

import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..config.data_paths import check_data
from ..config.dialect import refuse_old_config
from ..config.files import load_config
from ..config.options import add_config_options, apply_options
from ..config.values import check_config
from ..datasets.shapes.config import use_shapes
from ..datasets.shapes.files import make_default_shapes
from ..drawing.samples import can_draw
from ..utils.console import silence_libraries
from ..utils.errors import UserError

__all__ = ['add_config_arguments', 'build_drawer', 'build_loader', 'open_config', 'title_of']


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', metavar='CONFIG', help='a config file, or a name like mmdet::path.py')
    parser.add_argument('--shapes', action='store_true', help="use the drawn shapes instead of the config's own data")
    add_config_options(parser, 'config entries to override')


def open_config(args: argparse.Namespace) -> Config:
    """Reads and checks the config of `add_config_arguments`.

    Raises:
        UserError: if it cannot be used.
    """
    silence_libraries()
    cfg = load_config(args.config)
    refuse_old_config(cfg, args.config)
    if cfg.get('model') is None:
        raise UserError(f'config {args.config!r} has no model: is it a part that other configs inherit?')
    if args.shapes:
        check_config(cfg)
        use_shapes(cfg, make_default_shapes())
    apply_options(cfg, args.cfg_options)
    check_config(cfg)
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as a runner does it
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return cfg


def build_loader(cfg: Config, split: str, seed: int | None = None) -> DataLoader:
    """The loader of a split, which loads in this process.

    Raises:
        UserError: if the config has no such data, or they are not there.
    """
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        raise UserError(f'config {cfg.filename!r} has no {split}_dataloader.')
    check_data(cfg, (split,))
    loader = loader.copy()
    loader.update(num_workers=0, persistent_workers=False)
    for key in ('prefetch_factor', 'timeout'):
        loader.pop(key, None)
    if cfg.get('default_scope') == 'mmpretrain':
        loader.setdefault('collate_fn', {'type': 'default_collate'})
    return Runner.build_dataloader(loader, seed=seed)


def build_drawer(cfg: Config) -> object:
    """The config's visualizer, which writes nothing.

    Raises:
        UserError: if it draws no samples.
    """
    from mmengine.registry import VISUALIZERS

    settings = dict(cfg.get('visualizer') or {'type': 'Visualizer'})
    settings.update(name=f'{__name__}.{settings["type"]}', vis_backends=None, save_dir=None)
    drawer = VISUALIZERS.build(settings)
    if not can_draw(drawer):
        raise UserError(
            "the config's visualizer draws no samples: expected mmdet's DetLocalVisualizer, mmseg's SegLocalVisualizer "
            "or mmpretrain's UniversalVisualizer."
        )
    return drawer


def title_of(args: argparse.Namespace) -> str:
    return Path(args.config.rpartition('::')[2]).stem + (', Shapes' if args.shapes else '')
