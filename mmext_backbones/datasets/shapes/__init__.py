"""The synthetic Shapes data: scenes drawn here, their files, and any config rewritten to use them."""

from .files import default_shapes_dir, make_shapes

__all__ = ['default_shapes_dir', 'make_shapes']
