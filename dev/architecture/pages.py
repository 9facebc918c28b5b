"""The drawing and the tables of each family's page under docs/backbones."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from mmext_backbones.analysis.cost import Cost, model_cost
from mmext_backbones.backbones import DenseBackbone
from mmext_backbones.registry import MODELS
from mmext_backbones.utils.errors import UserError, did_you_mean
from mmext_backbones.utils.files import write_whole
from mmext_backbones.zoo import FAMILIES, backbone_names

from .drawing import write_drawing
from .tracing import Architecture, trace

__all__ = ['SIZE', 'build', 'renew', 'sizes_table', 'stage_table', 'title_of', 'with_tables']

SIZE = (800, 1280)  # of the image on the pages, as in the model zoo
SMALL_SIZE = (224, 224)
TITLES = {'swin': 'Swin', 'elsa_swin': 'ELSA-Swin', 'maxvit': 'MaxViT', 'sequencer': 'Sequencer2D'}
TITLES |= {'volo': 'VOLO', 'elsa_volo': 'ELSA-VOLO'}
TABLE = r'(<!-- {}: begin \(dev/architecture\) -->\n).*?(<!-- {}: end -->)'


def build(name: str) -> DenseBackbone:
    """A backbone like `swin_t`, on the meta device.

    Raises:
        UserError: for an unknown name.
    """
    names = backbone_names()
    if name not in names:
        raise UserError(f'no backbone {name!r}.{did_you_mean(name, list(names))}\nBackbones: {", ".join(names)}.')
    cls, arch = names[name]
    with torch.device('meta'):
        return MODELS.build({'type': cls, 'arch': arch})


def title_of(name: str) -> str:
    """'swin_t' -> 'Swin-T'."""
    family, _, size = name.rpartition('_')
    return f'{TITLES[family]}-{size.upper()}'


def names_of(family: str) -> list[str]:
    """The backbones of a family, smallest first."""
    return [name for name in backbone_names() if name.rpartition('_')[0] == family]


def renew(folder: Path) -> Iterator[Path]:
    """Draws the smallest backbone of each family and writes the tables of all; yields what is written.

    Raises:
        UserError: where a page is missing, or has no place for a table.
    """
    for family in FAMILIES:
        name = names_of(family)[0]
        backbone = build(name)
        architecture = trace(backbone, SIZE)
        drawing = folder / f'{name}.svg'
        write_drawing(architecture, title_of(name), drawing)
        yield drawing
        page = folder / f'{family}.md'
        if not page.is_file():
            raise UserError(f'{page} is missing: write it first, with marks for the tables as the other pages have.')
        tables = {'stages': stage_table(backbone, architecture), 'sizes': sizes_table(family)}
        write_whole(page, with_tables(page.read_text(), tables))
        yield page


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """A page with each table between its marks.

    Raises:
        UserError: if the marks of one are not there.
    """
    for name, table in tables.items():
        text, found = re.subn(TABLE.format(name, name), rf'\g<1>{table}\n\g<2>', text, flags=re.DOTALL)
        if found != 1:
            raise UserError(
                f'the page has {found} places for the table "{name}": expected one, between '
                f'<!-- {name}: begin (dev/architecture) --> and <!-- {name}: end -->'
            )
    return text


def stage_table(backbone: DenseBackbone, architecture: Architecture) -> str:
    """A row for each part: its map, its blocks, and what it costs."""
    cost = model_cost(backbone, architecture.size)
    H, W = architecture.size
    rows = [
        f'| | stride | channels | map at {H} x {W} | blocks | parameters | multiply-adds |',
        '|---|---|---|---|---|---|---|',
    ]
    stem = [name for name, module in backbone.named_children() if module in backbone.stem_modules()]
    stages = [f'stages.{i}' for i in range(len(architecture.stages))]
    rows.append(f'| stem | | | | | {_costs(cost, stem)} |')
    for i, stage in enumerate(architecture.stages):
        C, h, w = stage.shape
        blocks = ', '.join(f'{stage.blocks.count(kind)} {kind}' for kind in sorted(set(stage.blocks)))
        rows.append(f'| stage {i} | {stage.stride} | {C} | {h} x {w} | {blocks} | {_costs(cost, [stages[i]])} |')
    rest = [name for name in cost.parts if name not in (*stem, *stages)]
    if rest:
        rows.append(f'| outputs | | | | | {_costs(cost, rest)} |')
    rows.append(
        f'| all | | | | {sum(len(stage.blocks) for stage in architecture.stages)} | {_costs(cost, cost.parts)} |'
    )
    return '\n'.join(rows)


def sizes_table(family: str) -> str:
    """A row for each architecture of a family: its numbers and its costs."""
    names = names_of(family)
    numbers = [key for key in build(names[0]).ARCHS[backbone_names()[names[0]][1]] if key != 'embed_dims']
    sizes = [f'{H} x {W}' for H, W in (SMALL_SIZE, SIZE)]
    heads = ['`arch`', 'channels', *(f'`{key}`' for key in numbers), 'parameters']
    heads += [f'multiply-adds at {size}' for size in sizes] + [f'activations at {sizes[-1]}']
    rows = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    for name in names:
        _, arch = backbone_names()[name]
        backbone = build(name)
        small, large = (model_cost(backbone, size) for size in (SMALL_SIZE, SIZE))
        channels = [stage.shape[0] for stage in trace(backbone, SIZE).stages]
        values = [f'`{arch}`', _listed(channels), *(_listed(backbone.ARCHS[arch][key]) for key in numbers)]
        values += [f'{large.params / 1e6:.1f} M', f'{small.macs / 1e9:.1f} G', f'{large.macs / 1e9:.0f} G']
        rows.append(f'| {" | ".join(values)} | {large.activations / 1e6:.0f} M |')
    return '\n'.join(rows)


def _costs(cost: Cost, parts: Iterable[str]) -> str:
    params, macs = (sum(getattr(cost.parts[part], what) for part in parts) for what in ('params', 'macs'))
    return f'{params / 1e6:.2f} M | {macs / 1e9:.1f} G'


def _listed(numbers: int | tuple[int, ...] | list[int]) -> str:
    return str(numbers) if isinstance(numbers, int) else ', '.join(map(str, numbers))
