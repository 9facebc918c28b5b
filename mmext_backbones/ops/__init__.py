"""Functions on tensors: no parameters, no modules."""

from .banded import banded_products, banded_shifts, banded_sum
from .bilstm2d import bilstm2d
from .elsa import elsa, elsa_reference
from .global_attention import global_attention
from .local_filters import filter_norm, neighbour_products, shift_taps, tap_shifts, tap_sum
from .outlook import outlook, outlook_reference
from .partition import grid_merge, grid_partition, padding_mask, window_merge, window_partition
from .product_conv import product_conv, product_conv_reference
from .window_attention import relative_position_index, shifted_window_mask, window_attention

__all__ = [
    'banded_products',
    'banded_shifts',
    'banded_sum',
    'bilstm2d',
    'elsa',
    'elsa_reference',
    'filter_norm',
    'global_attention',
    'grid_merge',
    'grid_partition',
    'neighbour_products',
    'outlook',
    'outlook_reference',
    'padding_mask',
    'product_conv',
    'product_conv_reference',
    'relative_position_index',
    'shift_taps',
    'shifted_window_mask',
    'tap_shifts',
    'tap_sum',
    'window_attention',
    'window_merge',
    'window_partition',
]
