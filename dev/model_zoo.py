"""Writes docs/model_zoo.md from the metafiles, and the costs into the metafiles.

python dev/model_zoo.py            # the tables
python dev/model_zoo.py --costs    # count parameters and FLOPs of every config first; a minute
python dev/model_zoo.py --check    # change nothing; fail where the tables are not those of the metafiles
"""

import argparse
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmext_backbones.analysis.cost import model_cost
from mmext_backbones.utils.cli import add_traceback_option, run_cli
from mmext_backbones.utils.console import silence_libraries
from mmext_backbones.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / 'model-index.yml'
PAGE = ROOT / 'docs' / 'model_zoo.md'
NAME = re.compile(r'(?P<family>[a-z_]+?)_(?P<size>t|s|m|b|l|xl|d[1-5])_(?P<recipe>\w+)')
ORDER = ('t', 's', 'm', 'b', 'l', 'xl', 'd1', 'd2', 'd3', 'd4', 'd5')
TOLERANCE = 0.03  # of FLOPs against the published ones, which project the padding of the windows and ours do not
# section: its recipes, the published figures as they are called in the metafiles
SECTIONS = {
    'Object detection and instance segmentation, COCO val2017': (
        (
            *('maskrcnn_1x', 'maskrcnn_3x', 'cascade_1x', 'cascade_3x', 'cascade_lsj', 'cascade_lsj_640'),
            *('retinanet_1x', 'atss_3x', 'sparsercnn_3x', 'htc_3x', 'htc_6x'),
        ),
        ('box AP', 'mask AP'),
    ),
    'Semantic segmentation, ADE20K val': (
        ('upernet_160k', 'upernet_160k_in22k', 'upernet_160k_in22k_640', 'fpn_40k'),
        ('mIoU', 'mIoU multi-scale + flip'),
    ),
    'Classification, ImageNet-1K val': (('in1k',), ('top-1',)),
}
INTRODUCTION = """# Model zoo

Every config of this package, with what it is built of and what it reaches: sizes, costs, and box AP, mask AP, mIoU or
accuracy. The page is written by `python dev/model_zoo.py` from `configs/metafiles`, so edit those.

**Published** figures are those of the source behind the link, trained and measured by its authors with their code.
Where there is none, nobody published that recipe for that network, and the config says what it follows. **Measured**
figures are ours, of weights trained with the config; an empty field means that nobody has run it yet.

Parameters are those of the whole model, head and all. FLOPs are multiply-adds of one prediction at the size beside
them, as `tools/model_cost.py` counts them (what counts, and on how many regions, stands in
`mmext_backbones/analysis/cost.py`); the published count follows in brackets.
"""


def metafiles() -> list[Path]:
    return [ROOT / name for name in yaml.safe_load(INDEX.read_text())['Import']]


def entries() -> list[dict[str, Any]]:
    """All models of all metafiles, by family, recipe and size."""
    return [entry for path in metafiles() for entry in yaml.safe_load(path.read_text())['Models']]


def image_size(name: str) -> tuple[int, int]:
    """Height and width in pixels at which the papers count the FLOPs of a recipe."""
    recipe = NAME.fullmatch(name)['recipe']
    if 'lsj' in recipe:
        return (640, 640) if recipe.endswith('640') else (896, 896)
    if recipe.startswith(('upernet', 'fpn')):
        return (640, 2560) if recipe.endswith('640') else (512, 2048)
    if recipe == 'in1k':
        return (384, 384) if name.startswith('maxvit_xl') else (224, 224)
    return 800, 1280


def count(entry: dict[str, Any]) -> dict[str, Any]:
    """The `Metadata` of an entry: what the config starts from, and what its model costs."""
    cfg = Config.fromfile(ROOT / entry['Config'])
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model)
    size = image_size(entry['Name'])
    cost = model_cost(model, size)
    if cost.not_counted:
        raise UserError(f'{entry["Name"]}: no formula for {", ".join(cost.not_counted)}')
    pretrained = (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint')
    return {
        'Pretrained': pretrained,
        'Parameters': cost.params,
        'FLOPs': cost.macs,
        'Image Size': f'{size[0]} x {size[1]}',  # not two numbers: `mim` joins lists as strings
    }


def write_costs() -> None:
    for path in metafiles():
        text = path.read_text()
        comments = ''.join(line for line in text.splitlines(keepends=True) if line.startswith('#'))
        content = yaml.safe_load(text)
        for entry in content['Models']:
            print(entry['Name'], flush=True)
            results = entry.pop('Results')
            entry['Metadata'] = count(entry)
            entry['Results'] = results
        path.write_text(comments + yaml.safe_dump(content, sort_keys=False, width=120))


def page() -> str:
    models = entries()
    parts = [INTRODUCTION]
    for title, (recipes, figures) in SECTIONS.items():
        parts += [f'## {title}\n', *table(models, recipes, figures)]
    return '\n'.join(parts)


def table(models: list[dict[str, Any]], recipes: tuple[str, ...], figures: tuple[str, ...]) -> Iterator[str]:
    published = [f'{figure}, published' for figure in figures]
    measured = [f'{figure}, measured' for figure in figures]
    head = ['config', 'starts from', 'params', 'FLOPs', 'at', *published, 'source', *measured]
    yield '| ' + ' | '.join(head) + ' |'
    yield '|' + '---|' * len(head)
    notes = []
    for entry in sorted((m for m in models if NAME.fullmatch(m['Name'])['recipe'] in recipes), key=order(recipes)):
        name, cost, theirs = entry['Name'], entry['Metadata'], entry.get('Published', {})
        flops = f'{cost["FLOPs"] / 1e9:.{1 if cost["FLOPs"] < 1e11 else 0}f} G'
        if 'FLOPs (G)' in theirs:
            difference = cost['FLOPs'] / 1e9 / theirs['FLOPs (G)'] - 1
            flops += f' ({theirs["FLOPs (G)"]})'
            if abs(difference) > TOLERANCE:
                flops += ' *'
                notes.append(f'{name} {difference:+.1%}: {entry["FLOPs Note"]}')
        source = f'[{source_name(theirs["Source"])}]({theirs["Source"]})' if theirs else ''
        results = {key: value for result in entry['Results'] for key, value in result['Metrics'].items()}
        row = [
            f'[{name}](../{entry["Config"]})',
            f'`{cost["Pretrained"]}`' if cost['Pretrained'] else '',
            f'{cost["Parameters"] / 1e6:.1f} M',
            flops,
            cost['Image Size'],
            *(str(theirs.get(figure, '')) for figure in figures),
            source,
            *(str(results.get(figure, '')) for figure in figures),
        ]
        yield '| ' + ' | '.join(row) + ' |'
    yield ''
    if notes:
        yield '\n'.join(['\\* ' + '; '.join(notes) + '.', ''])


def order(recipes: tuple[str, ...]) -> Any:
    def key(entry: dict[str, Any]) -> tuple[int, int, int]:
        family, size, recipe = NAME.fullmatch(entry['Name']).groups()
        families = ('swin', 'elsa_swin', 'maxvit', 'sequencer', 'volo', 'elsa_volo')
        return families.index(family), recipes.index(recipe), ORDER.index(size)

    return key


def source_name(address: str) -> str:
    """Owner and repository of an address, or a paper's number."""
    if '//arxiv.org/' in address:
        return f'arXiv {address.rpartition("/")[2]}'
    return '/'.join(address.split('/')[3:5])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--costs', action='store_true', help='count parameters and FLOPs into the metafiles first')
    parser.add_argument('--check', action='store_true', help='change nothing, fail where the page is out of date')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    silence_libraries()
    logging.disable(logging.INFO)
    if args.costs:
        write_costs()
    text = page()
    if args.check:
        if not PAGE.is_file() or PAGE.read_text() != text:
            raise UserError('docs/model_zoo.md is not what the metafiles say: run dev/model_zoo.py')
        return
    PAGE.write_text(text)
    print(f'{PAGE.relative_to(ROOT)}: {len(entries())} models')


if __name__ == '__main__':
    sys.exit(run_cli(main))
