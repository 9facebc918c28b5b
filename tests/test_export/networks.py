"""Small networks with every kind of block, of as few stages as show it: recording one takes seconds a stage."""

from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer

from ..test_backbones.test_contract import SMALL, VOLO_ARCH, small

# a block with a shift and one without; a merging; all that resamples
ARCHS = {
    SwinTransformer: ({**SMALL[SwinTransformer], 'depths': (2, 1, 1, 1)}, (0,)),
    ELSASwin: ({**SMALL[ELSASwin], 'depths': (1, 1, 1, 1)}, (0, 1)),
    MaxViT: ({**SMALL[MaxViT], 'depths': (1, 1, 1, 1)}, (0,)),
    Sequencer2D: ({'embed_dims': (16, 32), 'depths': (1, 1), 'hidden_dims': (4, 8)}, (0, 1, 2, 3)),
    VOLO: ({**VOLO_ARCH, 'embed_dims': (32, 64), 'depths': (1, 1), 'num_heads': (1, 2)}, (0, 1, 2, 3)),
    ELSAVOLO: ({**SMALL[ELSAVOLO], 'depths': (1, 1, 1, 1), 'kernel_size': 3}, (0,)),  # its taps are written out
}
SIZES = [(64, 96), (65, 97), (33, 201)]  # in whole patches, and with nothing whole


def network(cls, **options):
    arch, out_indices = ARCHS[cls]
    return small(cls, arch, **{'out_indices': out_indices, **options})


def smallest():
    """One block, for what is the same for every network."""
    return small(SwinTransformer, {**SMALL[SwinTransformer], 'depths': (1, 1, 1, 1)}, out_indices=(0,))
