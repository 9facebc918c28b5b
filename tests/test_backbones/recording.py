"""What the tests of compiled and of exported backbones share.

A map of a single row or column is their limit: compilers take an axis of size 1 for another case. All levels have two
of each where an image has more than 32 pixels along both axes.
"""

from mmext_backbones.backbones.two_scales import TwoScaleBackbone

from .test_contract import SMALL, image, small

FIRST = (64, 96)
SIZES = [(96, 64), (160, 128), (65, 97), (33, 33), (51, 401)]  # whole patches, none, the smallest, a long one


def shallow(cls, **options):
    """One block a stage, in float64: sums that cancel (biases before a batch norm) are compared too, and with one
    thread PyTorch chooses its convolution for float32 by the size of the map, which is a condition of its own."""
    arch = {**SMALL[cls], 'depths': (1, 1, 1, 1)}
    return small(cls, arch=arch, drop_path_rate=0.0, **options).double()


def two_stages(cls, **options):
    """What repeats in the others; all of two scales, which resample their last one."""
    return shallow(cls, **({} if issubclass(cls, TwoScaleBackbone) else {'out_indices': (0, 1)}), **options)


def picture(size):
    return image(*size, batch=2).double()
