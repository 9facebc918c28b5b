"""mmseg's segmentors as one graph: what `EncoderDecoder.predict` computes, for any size and any number of images.

The decode heads are written anew over the modules of the built ones, because mmseg's own forwards take sizes as numbers
of Python.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import TOLERANCE
from ..recording import BackboneWithNeck
from .pooling import pool_at_any_size
from .refusing import Unsupported, behaves_as, title
from .task import Row, Task

BYTE = 256  # classes that a byte tells apart
PREDICTION = ('predict', 'inference', 'whole_inference', 'encode_decode', 'extract_feat', 'postprocess_result')
OF_EVERY_HEAD = ('forward', 'predict', 'predict_by_feat', 'cls_seg', '_transform_inputs')

Decoder = Callable[[nn.Module, Sequence[Tensor]], Tensor]


def build(model: nn.Module) -> 'Segmentation':
    """The task of a segmentor, whose pools of a fixed number of areas are replaced by those of `pooling`.

    Raises:
        UserError: for another segmentor than mmseg's EncoderDecoder, a decode head that is not written here, or a test
            by sliding windows.
    """
    from mmseg.models import EncoderDecoder

    if not behaves_as(model, EncoderDecoder, PREDICTION):
        raise Unsupported(f'its model is a {title(model)}', [EncoderDecoder.__name__])
    mode = (model.test_cfg or {}).get('mode', 'whole')
    if mode != 'whole':
        whole = "mode='whole', which --cfg-options model.test_cfg.mode=whole asks for"
        raise Unsupported(f'its test_cfg has mode={mode!r}, a prediction window by window', [whole])
    return pool_at_any_size(Segmentation(model, find_decoder(model.decode_head)))


class Segmentation(Task):
    """Classes of pixels, [B, H, W], uint8 (int32 for more than 256), and the logits [B, classes, h, w] they come from.

    The logits are those of the padded images, of the size that the head gives them. mmseg resizes them to the padded
    size, cuts the padding off, resizes to the original size, and takes the largest.
    """

    task = 'semantic segmentation'
    outputs = ('segmentation', 'logits')

    def __init__(self, model: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.maps = BackboneWithNeck(model.backbone, model.neck if model.with_neck else None)
        self.head = model.decode_head
        self.decoder = decoder

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        logits = self.head.cls_seg(self.decoder(self.head, self.maps(x)))
        classes = self.classes(self.resized(logits, x.shape[2:]))
        classes = classes.to(torch.uint8 if self.head.num_classes <= BYTE else torch.int32)
        for axis, pixels in enumerate(size, start=1):  # gathered: a view is not exported for every size
            classes = classes.index_select(axis, torch.arange(pixels, device=x.device))
        return classes, logits

    def resized(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """As mmseg resizes logits."""
        return _resized(logits, size, self.head.align_corners)

    def classes(self, logits: Tensor) -> Tensor:
        """[B, classes, H, W] -> [B, H, W]; of a single channel whether it is above the head's threshold."""
        if self.head.out_channels == 1:
            return logits.sigmoid().squeeze(1) > self.head.threshold
        return logits.argmax(dim=1)

    def settings(self) -> dict[str, Any]:
        binary = {'threshold': self.head.threshold} if self.head.out_channels == 1 else {}
        return {'align_corners': self.head.align_corners, 'original_size': {'logits': True}, **binary}

    def new_sample(self) -> Any:
        from mmseg.structures import SegDataSample

        return SegDataSample()

    def compare(self, samples: Sequence[Any], outputs: Sequence[Tensor], size: tuple[int, int]) -> list[Row]:
        """Of the logits the largest difference, of the classes by how much the model prefers its own where two differ,
        both by the largest logit: of pixels between two classes rounding decides."""
        classes, logits = outputs[0].long(), outputs[1]
        theirs = torch.stack([sample.seg_logits.data for sample in samples])  # of one channel after the sigmoid
        own = torch.stack([sample.pred_sem_seg.data[0] for sample in samples]).long()
        (H, W), (_, right, _, bottom) = size, samples[0].metainfo.get('img_padding_size', (0, 0, 0, 0))
        ours = self.resized(logits, (H + bottom, W + right))[..., :H, :W]
        if self.head.out_channels == 1:
            ours = ours.sigmoid()
            preferred = (theirs[:, 0] - self.head.threshold).abs() * (classes != own)
        else:
            preferred = theirs.gather(1, own[:, None]) - theirs.gather(1, classes[:, None])
        largest = theirs.abs().max().clamp_min(1e-30)
        return [
            Row(size, len(samples), 'segmentation', (preferred.max() / largest).item(), TOLERANCE, own.numel()),
            Row(size, len(samples), 'logits', ((ours - theirs).abs().max() / largest).item(), TOLERANCE, ours.numel()),
        ]


def find_decoder(head: nn.Module) -> Decoder:
    """The function that computes what the head classifies, from the head and the maps.

    Raises:
        UserError: where there is none.
    """
    from mmseg.models.decode_heads import FCNHead, FPNHead, PSPHead, UPerHead

    decoders = {
        UPerHead: (_uper, ('_forward_feature', 'psp_forward')),
        FPNHead: (_semantic_fpn, ()),
        FCNHead: (_fcn, ('_forward_feature',)),
        PSPHead: (_psp, ('_forward_feature',)),
    }
    for cls, (decoder, methods) in decoders.items():
        if behaves_as(head, cls, (*OF_EVERY_HEAD, *methods)):
            return decoder
    raise Unsupported(f'its decode head is a {title(head)}', [cls.__name__ for cls in decoders])


def _uper(head: nn.Module, maps: Sequence[Tensor]) -> Tensor:
    """UPerHead: pyramid pooling of the last map, a top-down path, all levels joined at the size of the first."""
    maps = _inputs(head, maps)
    laterals = [conv(x) for conv, x in zip(head.lateral_convs, maps[:-1], strict=True)]
    laterals.append(head.bottleneck(_pyramid(head.psp_modules, maps[-1])))
    for i in reversed(range(1, len(laterals))):
        laterals[i - 1] = laterals[i - 1] + _resized(laterals[i], laterals[i - 1].shape[2:], head.align_corners)
    levels = [conv(x) for conv, x in zip(head.fpn_convs, laterals[:-1], strict=True)] + laterals[-1:]
    levels = levels[:1] + [_resized(x, levels[0].shape[2:], head.align_corners) for x in levels[1:]]
    return head.fpn_bottleneck(torch.cat(levels, dim=1))


def _psp(head: nn.Module, maps: Sequence[Tensor]) -> Tensor:
    """PSPHead: pyramid pooling."""
    return head.bottleneck(_pyramid(head.psp_modules, _inputs(head, maps)))


def _pyramid(levels: nn.ModuleList, x: Tensor) -> Tensor:
    """mmseg's PPM: the map beside convolutions of its means over 1, 2, 3 and 6 areas each way, at its own size."""
    means = [_resized(level(x), x.shape[2:], levels.align_corners) for level in levels]
    return torch.cat([x, *means], dim=1)


def _semantic_fpn(head: nn.Module, maps: Sequence[Tensor]) -> Tensor:
    """FPNHead: convolutions and doublings of every level, until all have the size of the first; their sum."""
    from mmseg.models.utils import Upsample

    total = None
    for x, layers in zip(_inputs(head, maps), head.scale_heads, strict=True):
        for layer in layers:
            if isinstance(layer, Upsample):
                x = _resized(x, [edge * int(layer.scale_factor) for edge in x.shape[2:]], layer.align_corners)
            else:
                x = layer(x)
        total = x if total is None else total + _resized(x, total.shape[2:], head.align_corners)
    return total


def _fcn(head: nn.Module, maps: Sequence[Tensor]) -> Tensor:
    """FCNHead: convolutions, and one more over their result beside the map."""
    x = _inputs(head, maps)
    out = head.convs(x)
    return head.conv_cat(torch.cat([x, out], dim=1)) if head.concat_input else out


def _inputs(head: nn.Module, maps: Sequence[Tensor]) -> Tensor | list[Tensor]:
    """The maps that a head takes, one or several, or several resized to the first and joined."""
    if head.input_transform is None:
        return maps[head.in_index]
    maps = [maps[i] for i in head.in_index]
    if head.input_transform == 'multiple_select':
        return maps
    return torch.cat([_resized(x, maps[0].shape[2:], head.align_corners) for x in maps], dim=1)


def _resized(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return F.interpolate(x, tuple(size), mode='bilinear', align_corners=align_corners)
