"""What the tests of compiled and of exported backbones share.

A map of a single row or column is their limit: compilers take an axis of size 1 for another case. All levels have two
of each where an image has more than 32 pixels along both axes.
"""

from mmext_backbones.backbones import ELSAVOLO
from mmext_backbones.backbones.two_scales import TwoScaleBackbone

from .test_contract import SMALL, image, small

FIRST = (64, 96)
SIZES = [(96, 64), (160, 128), (65, 97), (33, 33), (51, 401)]  # whole patches, none, the smallest, a long one


def shallow(cls, stages=4, **options):
    """One block a stage, in float64: sums that cancel (biases before a batch norm) are compared too, and with one
    thread PyTorch chooses its convolution for float32 by the size of the map, which is a condition of its own."""
    arch = {key: value[:stages] if isinstance(value, tuple) else value for key, value in SMALL[cls].items()}
    return small(cls, arch={**arch, 'depths': (1,) * stages}, drop_path_rate=0.0, **options).double()


def two_stages(cls, **options):
    """What repeats in the others."""
    if issubclass(cls, TwoScaleBackbone):  # which resamples its last stage
        return shallow(cls, stages=2, **options)
    return shallow(cls, out_indices=(0, 1), **options)


def fewest_stages(cls):
    """One of each kind of block, with what joins the stages where these differ."""
    if cls is ELSAVOLO:  # VOLO has the other stage
        return shallow(cls, stages=2, out_indices=(0, 1))
    return two_stages(cls) if issubclass(cls, TwoScaleBackbone) else shallow(cls, out_indices=(0,))


def picture(size):
    return image(*size, batch=2).double()
