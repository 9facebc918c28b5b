"""Whether a training step computes its norms, GELUs and gates again (`recompute` of every backbone).

    True or False   as the argument says
    'auto'          on CUDA where the maps would take more than a quarter of the GPU's memory, on the CPU where they
                    would take more than 128 MiB or `with_cp` saves memory, elsewhere always

On the CPU recomputing large maps takes no longer than keeping them: it works in parts that stay in the cache. Small
maps are there anyway. On a GPU it passes over the maps once more, which costs time where the memory to keep them is
there. What they take follows from the shapes: equal GPUs come to the same answer for the same batch, before it runs.
Without a gradient nothing is kept in any case.
"""

from torch import Tensor, cuda, nn

from mmext_backbones.ops.torch_versions import is_autocast_enabled

ON_CPU = 2**27  # bytes; about an image of 224 x 224 pixels in a tiny network
SHARE = 0.25  # of the memory of a GPU; the rest is for necks, heads, weights and the state of their optimizer


def recomputes(backbone: nn.Module, x: Tensor) -> bool:
    """The answer for a `DenseBackbone` and an image batch, by the table above."""
    if backbone.recompute != 'auto':
        return bool(backbone.recompute)
    if x.device.type == 'cpu':
        return bool(backbone.with_cp) or kept_bytes(backbone, x) > ON_CPU  # who asks for with_cp has little memory
    if x.device.type != 'cuda' or not cuda.is_available():
        return True
    return kept_bytes(backbone, x) > SHARE * cuda.get_device_properties(x.device).total_memory


def kept_bytes(backbone: nn.Module, x: Tensor) -> float:
    """About what autograd keeps of a step on x without recomputation, the stages of `with_cp` left out."""
    itemsize = 2 if is_autocast_enabled(x.device.type) else x.element_size()
    stages = zip(backbone.stages, backbone.stage_channels, backbone.stage_strides, strict=False)  # those that are built
    numbers = sum(
        len(stage.blocks) * channels / stride**2 * backbone.KEPT_MAPS
        for i, (stage, channels, stride) in enumerate(stages)
        if i not in backbone.with_cp
    )  # a pixel
    return itemsize * numbers * x.shape[0] * x.shape[2] * x.shape[3]
