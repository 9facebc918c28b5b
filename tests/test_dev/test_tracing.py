"""Drawings say what the networks do: of small networks built otherwise, and those in docs/backbones."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.text import Text

from dev.architecture import pages
from dev.architecture.drawing import draw, write_drawing
from dev.architecture.tracing import trace
from mmext_backbones.backbones import ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.utils.errors import UserError
from mmext_backbones.zoo import FAMILIES

DOCS = Path(__file__).parents[2] / 'docs' / 'backbones'
SWIN = {'embed_dims': 16, 'depths': (2, 1, 3, 2), 'num_heads': (1, 2, 4, 8)}
MAXVIT = {'embed_dims': (32, 64, 64, 96), 'depths': (2, 1, 1, 2), 'stem_dims': 32}
SEQUENCER = {'embed_dims': (16, 32, 32, 32), 'depths': (2, 1, 1, 1), 'hidden_dims': (4, 8, 8, 8)}


def traced(cls, arch, size=(64, 96), **options):
    with torch.device('meta'):
        backbone = cls(arch, **options)
    return trace(backbone, size)


def test_swin_alternates_windows_and_shifted_ones():
    swin = traced(SwinTransformer, SWIN, window_size=4)
    assert [stage.blocks for stage in swin.stages] == ['AB', 'A', 'ABA', 'AB']
    assert [stage.shape for stage in swin.stages] == [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]
    assert [output.stride for output in swin.outputs] == [4, 8, 16, 32]
    (plain, mlp), (shifted, _) = (kind.branches for kind in swin.kinds)
    assert plain == (
        'LayerNorm',
        'linear 128 → 384',
        'attention in windows of 4 x 4,\n8 heads',
        'linear 128 → 128',
    )
    assert mlp == ('LayerNorm', 'linear 128 → 512', 'GELU', 'linear 512 → 128')
    assert shifted[2] == 'attention in windows of 4 x 4,\nshifted by 2, 8 heads'
    assert swin.stem == ('conv 4 x 4, 3 → 16, stride 4', 'LayerNorm')


def test_elsa_filters_until_the_last_stage():
    elsa = traced(ELSASwin, {**SWIN, 'group_width': 4})
    assert [stage.blocks for stage in elsa.stages] == ['AA', 'A', 'AAA', 'BC']
    assert elsa.kinds[0].branches[0][2:4] == ('query times key,\nconv 7 x 7, 44 → 44,\ngroups of 4', 'GELU')
    assert elsa.kinds[0].branches[0][5] == 'ELSA, 7 x 7 taps,\n4 heads'


def test_the_first_block_of_a_maxvit_stage_strides():
    maxvit = traced(MaxViT, MAXVIT, (64, 128), window_size='scaled')
    assert [stage.blocks for stage in maxvit.stages] == ['AB', 'A', 'A', 'AB']
    strided, other = maxvit.kinds
    assert strided.shortcuts == ('2 x 2 mean, conv 1 x 1, 64 → 96', '', '', '', '')
    assert other.shortcuts == ('',) * 5
    assert strided.branches[0][4] == 'conv 3 x 3, depthwise, 384, stride 2'
    assert other.branches[3][2] == 'attention in a grid of 2 x 4,\n3 heads'
    assert not any(output.steps for output in maxvit.outputs)


def test_the_pyramid_of_sequencer_comes_from_two_stages():
    sequencer = traced(Sequencer2D, SEQUENCER)
    assert [(output.stage, output.stride) for output in sequencer.outputs] == [(0, 4), (0, 8), (3, 16), (3, 32)]
    assert sequencer.outputs[0].steps[0] == 'transposed conv 2 x 2, 16 → 16, stride 2'
    assert sequencer.outputs[3].steps == ('2 x 2 mean', 'LayerNorm')
    published = traced(Sequencer2D, SEQUENCER, (224, 224), patch_size=7, pyramid=False, out_indices=(1, 3))
    assert [(output.index, output.stage, output.stride) for output in published.outputs] == [(1, 1, 14), (3, 3, 14)]


def test_a_backbone_stays_as_it_is():
    with torch.device('meta'):
        backbone = SwinTransformer(SWIN).train()
    trace(backbone, (32, 32))
    assert backbone.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def test_refused():
    with torch.device('meta'):
        backbone = SwinTransformer(SWIN)
    with pytest.raises(ValueError, match='expected multiples of 32'):
        trace(backbone, (64, 65))
    with pytest.raises(RuntimeError, match='meta device'):
        trace(SwinTransformer(SWIN), (32, 32))
    with pytest.raises(UserError, match=r'no backbone .swin_x.*swin_t'):
        pages.build('swin_x')
    with pytest.raises(UserError, match='the page has 0 places for the table "sizes"'):
        pages.with_tables('# A page', {'sizes': '| a |'})


@pytest.mark.parametrize(('cls', 'arch'), [(SwinTransformer, SWIN), (MaxViT, MAXVIT), (Sequencer2D, SEQUENCER)])
def test_a_drawing_shows_every_map_and_step_and_no_two_texts_overlap(tmp_path, cls, arch):
    architecture = traced(cls, arch)
    figure = draw(architecture, 'A title')
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    words = '\n'.join(text.get_text() for text in texts)
    for kind in architecture.kinds:
        assert all(step in words for branch in kind.branches for step in branch)
    for part in (*architecture.stages, *architecture.outputs):
        assert ' x '.join(map(str, part.shape)) in words
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts]
    assert not [(texts[i], texts[j]) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]
    page = figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 for box in boxes)
    write_drawing(architecture, 'A title', tmp_path / 'a.svg')
    assert drawn_from(tmp_path / 'a.svg') == as_json(architecture)
    assert [path.name for path in tmp_path.iterdir()] == ['a.svg']


def drawn_from(path: Path) -> dict:
    """The data that an SVG says it was drawn from."""
    (description,) = ElementTree.parse(path).iter('{http://purl.org/dc/elements/1.1/}description')
    return json.loads(description.text)


def as_json(architecture) -> dict:
    return json.loads(json.dumps(architecture.to_dict()))


@pytest.mark.parametrize(
    'family', [pytest.param(family, marks=() if family == 'sequencer' else pytest.mark.slow) for family in FAMILIES]
)
def test_the_pages_are_of_the_networks_as_they_are_now(family):
    name = pages.names_of(family)[0]
    backbone = pages.build(name)
    architecture = trace(backbone, pages.SIZE)
    advice = 'python -m dev.architecture --docs'
    assert drawn_from(DOCS / f'{name}.svg') == as_json(architecture), advice
    text = (DOCS / f'{family}.md').read_text()
    tables = {'stages': pages.stage_table(backbone, architecture), 'sizes': pages.sizes_table(family)}
    assert pages.with_tables(text, tables) == text, advice
    assert f'![{pages.title_of(name)}' in text
    # blocks that the text names are there
    named = set(re.findall(r'\b[Bb]locks? ([A-Z])\b', text)) | set(re.findall(r'\band\s+([A-Z])\b', text))
    assert named <= {kind.name for kind in architecture.kinds}
