"""The table of estimates in docs/scaling.md, and a row of it for any config: what tools/estimate_scaling.py prints."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import UserError
from ..zoo import build_network
from .estimate import Estimate, estimate

__all__ = ['ROWS', 'Recipe', 'replace_table', 'row', 'table']

GB = 1e9
# NVIDIA's figures of an A100: float32 (without TF32, which PyTorch does not use by itself), and dense bfloat16
PEAKS = {False: 19.5e12, True: 312e12}
UTILISATION = 0.33
BEGIN, END = '<!-- estimates: begin (tools/estimate_scaling.py --docs) -->', '<!-- estimates: end -->'
HEADER = (
    '| config | images a GPU | settings | weights, gradients, state (GB) | activations (GB) | sum (GB) '
    '| images/s a GPU |\n'
    '|---|---|---|---:|---:|---:|---:|'
)


@dataclass(frozen=True)
class Recipe:
    """A training to be estimated; `with_cp` as the backbones take it, the rest as `estimate` does."""

    config: str
    batch: int
    size: tuple[int, int]
    amp: bool = False
    with_cp: bool | tuple[int, ...] = False
    strategy: str = 'ddp'
    processes: int = 8

    @property
    def settings(self) -> str:
        checkpointed = 'with_cp' if self.with_cp is True else f'with_cp={self.with_cp}'
        parts = ['bf16' if self.amp else 'fp32', *([checkpointed] if self.with_cp else [])]
        return ', '.join([*parts, f'{self.strategy.upper()} x {self.processes}'])

    def estimate(self) -> Estimate:
        """Raises UserError if the config or `with_cp` cannot be."""
        options = {'model.backbone.with_cp': self.with_cp} if self.with_cp is not False else {}
        model = build_network(self.config, options)
        try:
            return estimate(
                model, self.batch, self.size, amp=self.amp, strategy=self.strategy, processes=self.processes
            )
        except RuntimeError as error:
            raise UserError(str(error)) from error


DETECTION = {'batch': 2, 'size': (800, 1344)}
ROWS = (
    Recipe('configs/swin_t_maskrcnn_1x.py', **DETECTION),
    Recipe('configs/swin_t_maskrcnn_1x.py', **DETECTION, with_cp=(0, 1)),
    Recipe('configs/swin_t_maskrcnn_1x.py', **DETECTION, amp=True),
    Recipe('configs/swin_t_maskrcnn_1x.py', **DETECTION, amp=True, with_cp=(0, 1)),
    Recipe('configs/swin_t_maskrcnn_1x.py', **DETECTION, amp=True, with_cp=True),
    Recipe('configs/elsa_swin_t_maskrcnn_1x.py', **DETECTION, amp=True),
    Recipe('configs/maxvit_t_maskrcnn_1x.py', **DETECTION, amp=True),
    Recipe('configs/sequencer_s_maskrcnn_1x.py', **DETECTION, amp=True),
    Recipe('configs/swin_l_maskrcnn_1x.py', **DETECTION),
    Recipe('configs/swin_l_maskrcnn_1x.py', **DETECTION, amp=True),
    Recipe('configs/swin_l_maskrcnn_1x.py', **DETECTION, amp=True, with_cp=True),
    Recipe('configs/swin_l_maskrcnn_1x.py', **DETECTION, amp=True, with_cp=True, strategy='fsdp'),
    Recipe('configs/swin_t_upernet_160k.py', batch=2, size=(512, 512), amp=True),
    Recipe('configs/swin_l_upernet_160k_in22k_640.py', batch=2, size=(640, 640), amp=True),
    Recipe('configs/maxvit_xl_upernet_160k.py', batch=2, size=(512, 512), amp=True),
    Recipe('configs/maxvit_xl_upernet_160k.py', batch=2, size=(512, 512), amp=True, with_cp=True, strategy='fsdp'),
    Recipe('configs/swin_t_in1k.py', batch=128, size=(224, 224), amp=True),
    Recipe('configs/elsa_swin_t_in1k.py', batch=128, size=(224, 224), amp=True),
    Recipe('configs/maxvit_t_in1k.py', batch=128, size=(224, 224), amp=True),
    Recipe('configs/sequencer_s_in1k.py', batch=128, size=(224, 224), amp=True),
)


def row(recipe: Recipe) -> str:
    """A line of the table, in Markdown."""
    found = recipe.estimate()
    state = (found.memory - found.activations) / GB
    speed = recipe.batch / found.seconds(PEAKS[recipe.amp], UTILISATION)
    rate = f'{speed:.1f}' if speed < 100 else f'{speed:.0f}'
    height, width = recipe.size
    name = Path(recipe.config).stem if '::' not in recipe.config else recipe.config
    cells = [name, f'{recipe.batch} x {height} x {width}', recipe.settings]
    numbers = [
        f'{state:.2f}',
        f'{found.activations / GB:.2f}',
        f'{found.memory / GB:.1f}',
        rate,
    ]
    return f'| {" | ".join([*cells, *numbers])} |'


def table(recipes: Iterable[Recipe]) -> str:
    return '\n'.join([HEADER, *map(row, recipes)])


def replace_table(text: str, new: str, begin_mark: str = BEGIN, end_mark: str = END) -> str:
    """A page with `new` between its marks.

    Raises:
        UserError: if the marks are not there.
    """
    before, begin, rest = text.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise UserError(f'the page has no marks for the table: expected {begin_mark} and {end_mark}.')
    return f'{before}{begin_mark}\n{new}\n{end_mark}{after}'
