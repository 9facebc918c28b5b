"""A detector fine-tuned on a person's own pictures: their COCO file made ready, and a config for it."""

from .own_coco import OwnCoco, OwnSplit, read_own_coco
from .own_config import write_own_config

__all__ = ['OwnCoco', 'OwnSplit', 'read_own_coco', 'write_own_config']
