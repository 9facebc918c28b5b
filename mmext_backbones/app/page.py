"""The layout of the page, and which handler serves which event. Only this file and `serving` know gradio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..utils.printable import one_line
from .captions import Found, note_text
from .handlers import TYPED_OFF, Handlers, Shown

__all__ = ['CSS', 'build_page', 'theme']

THRESHOLD = 0.3
DELETE = (600, 3600)  # every ten minutes, uploaded pictures older than an hour
FORGET = 1800  # seconds after which the server forgets what a browser that is still open has last looked at
FONTS = ('system-ui', '-apple-system', 'Segoe UI', 'Roboto', 'Helvetica', 'Arial', 'sans-serif')
MONO = ('ui-monospace', 'Menlo', 'Consolas', 'monospace')
PRIVATE = {'api_visibility': 'private'}  # a page for people: no programming interface is described
ALONE = {**PRIVATE, 'concurrency_id': 'model', 'concurrency_limit': 1}  # such events run one at a time

CSS = """
.gradio-container { max-width: 1400px !important; width: 100% !important; margin: 0 auto !important; }
.gradio-container h1 { margin: 0.1em 0 0; }
.picture img, .drawn img { object-fit: contain !important; }
.drawn img { max-height: 75vh; }
#examples .gallery-item { width: 54px; height: 54px; }
#examples .gallery-item :is(span, .container, img) { display: block; width: 100%; height: 100%; }
input[role=combobox] { text-overflow: ellipsis; padding-right: 2.2em !important; }
@media (max-width: 760px) { #results { min-height: 95vh; } }
.found h3 { margin: 0 0 0.2em; font-size: 1em; overflow-wrap: anywhere; }
.found p { margin: 0.15em 0; }
.found .timing { opacity: 0.85; }
.failure, .note { white-space: pre-wrap; overflow-wrap: anywhere; padding: 0.6em 0.8em; border-radius: 8px;
                  border-left: 4px solid; }
.failure { border-color: #c62828; background: rgba(198, 40, 40, 0.10); }
.note { border-color: #2b6cb0; background: rgba(43, 108, 176, 0.10); }
"""

TITLE = 'Try a model on a picture'
# on a phone the results lie below the window
SCROLL = """compare => {
  const result = document.getElementById('one_text');
  if (result.getBoundingClientRect().top > 0.7 * window.innerHeight) result.scrollIntoView({behavior: 'smooth'});
  return [compare];
}"""
WELCOME = f"""# {TITLE}
Drop a picture or take an example, choose a model, press **Find**."""

ABOUT_THRESHOLD = 'Lowest score of a box or mask that is shown.'
ABOUT_TTA = 'Merges several views of the picture: slower.'
HERE = note_text('The result appears here.')
WORKING = note_text('Looking ...')
WAITING = note_text('Waiting for the first model ...')
NOTHING_YET = (
    'No trained model was found in {folder}. `make demo` trains one on drawn shapes in a few minutes; then load this '
    'page again.{typed}'
)


def theme() -> gr.themes.Base:
    """Fonts of the reader's own machine: nothing is fetched."""
    chosen = gr.themes.Default(primary_hue='blue', font=list(FONTS), font_mono=list(MONO))
    return chosen.set(block_info_text_color='*neutral_600', block_info_text_color_dark='*neutral_300')


def build_page(
    handlers: Handlers, examples: Sequence[Path], *, compare: bool = False, typed: bool = False, folder: str = ''
) -> gr.Blocks:
    """The page.

    Args:
        handlers: What answers.
        examples: Pictures that can be taken with one click.
        compare: Whether two models are compared from the start.
        typed: Whether models can be added by their paths.
        folder: Where trained models were looked for, to be told where there is none.
    """
    names = handlers.choices({})
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=DELETE) as page:
        added = gr.State({})
        gr.Markdown(WELCOME)
        hint = gr.Markdown(_hint(names, typed, folder), visible=not names)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                picture = _picture()
                gr.Examples([[str(path)] for path in examples], picture, elem_id='examples', **PRIVATE, preload=False)
                first = _chooser('Model', names, 0)
                both = gr.Checkbox(compare, label='Compare with a second model')
                second = _chooser('Second model', names, 1, visible=compare)
                press = gr.Button('Find', variant='primary', size='lg')
                threshold = gr.Slider(0, 1, THRESHOLD, step=0.01, label='Threshold', info=ABOUT_THRESHOLD)
                tta = gr.Checkbox(False, label='Test-time augmentation', info=ABOUT_TTA)
                _adder(handlers, added, [first, second], typed=typed, open_now=typed and not names)
            with gr.Column(scale=8, min_width=320, elem_id='results'), gr.Row(equal_height=False):
                one = _View('Result', 'one')
                other = _View('Result of the second model', 'other', visible=compare)

        def refresh(mine: dict) -> tuple[Any, Any, Any]:
            now = handlers.choices(mine)
            hidden = gr.update(value=_hint(now, typed, folder), visible=not now)
            return hidden, *(gr.update(choices=now, value=_at(now, position)) for position in (0, 1))

        def show_second(on: bool) -> tuple[Any, Any]:
            return gr.update(visible=on), gr.update(visible=on)

        def start(on: bool) -> tuple[Any, ...]:
            return *Shown(text=WORKING), *Shown(text=WAITING if on else HERE)

        def look(*inputs: Any, progress: gr.Progress = gr.Progress()) -> Shown:  # noqa: B008  gradio finds it so
            return handlers.look(*inputs, tell=lambda share, what: progress(share, desc=what))

        def look_second(on: bool, *inputs: Any, progress: gr.Progress = gr.Progress()) -> Shown:  # noqa: B008
            return look(*inputs, progress=progress) if on else Shown(text=HERE)

        def redraw(threshold: float, *found: Found | None) -> tuple[Any, ...]:
            panels = [handlers.drawn(each, threshold) if each else (gr.skip(), gr.skip()) for each in found]
            return tuple(value for panel in panels for value in panel[:2])

        page.load(refresh, added, [hint, first, second], show_progress='hidden', **PRIVATE)
        both.change(show_second, both, [second, other.column], show_progress='hidden', **PRIVATE)
        settings = [added, threshold, tta]
        press.click(start, both, [*one.outputs, *other.outputs], js=SCROLL, show_progress='hidden', **PRIVATE).then(
            look, [picture, first, *settings], one.outputs, show_progress_on=one.image, **ALONE
        ).then(look_second, [both, picture, second, *settings], other.outputs, show_progress_on=other.image, **ALONE)
        threshold.change(
            redraw,
            [threshold, one.found, other.found],
            [*one.outputs[:2], *other.outputs[:2]],
            show_progress='hidden',
            trigger_mode='always_last',
            **PRIVATE,
        )
    return page


class _View:
    """The parts of the page that show one model's result."""

    def __init__(self, label: str, name: str, visible: bool = True) -> None:
        with gr.Column(min_width=300, visible=visible) as self.column:
            self.text = gr.HTML(HERE, elem_id=f'{name}_text')
            self.image = gr.Image(
                label=label,
                show_label=False,  # it would lie on the picture
                interactive=False,
                elem_id=f'{name}_image',
                elem_classes='drawn',
                buttons=['download', 'fullscreen'],
            )
        self.found = gr.State(None, time_to_live=FORGET)

    @property
    def outputs(self) -> list[Any]:
        """In the order of `Shown`."""
        return [self.image, self.text, self.found]


def _adder(
    handlers: Handlers, added: gr.State, choosers: Sequence[gr.Dropdown], *, typed: bool, open_now: bool
) -> None:
    """Where a model is added by its paths; the first chooser takes it. The handlers refuse where that is off."""
    with gr.Accordion('Add a model by its paths', open=open_now):
        box = {'max_lines': 1, 'interactive': typed}
        config = gr.Textbox(label='Config', placeholder='configs/swin_t_maskrcnn_1x.py', **box)
        weights = gr.Textbox(label='Weights', placeholder='path/to/checkpoint.pth', **box)
        press = gr.Button('Add this model', interactive=typed)
        answer = gr.HTML('' if typed else note_text(TYPED_OFF))

    def add_model(config: str, weights: str, mine: dict) -> tuple[Any, ...]:
        mine, name, message = handlers.add(config, weights, mine)
        now = handlers.choices(mine)
        chosen = gr.update(choices=now, value=name) if name else gr.update()
        return mine, message, chosen, gr.update(choices=now)

    pressed = [press.click, config.submit, weights.submit]
    gr.on(pressed, add_model, [config, weights, added], [added, answer, *choosers], **ALONE)


def _picture() -> gr.Image:
    picture = gr.Image(
        label='Picture',
        type='filepath',
        sources=['upload', 'clipboard'],
        height=250,
        elem_id='picture',
        elem_classes='picture',
    )
    # the file as it came: a damaged one gets our message, gradio would only say that there was an error
    picture.preprocess = lambda payload: None if payload is None else payload.path
    move = picture.move_resource_to_block_cache

    def move_files(path: Any) -> str | None:
        """gradio would fetch an address that a request names."""
        if '://' in str(path):
            raise gr.Error('Upload the picture: no address is fetched.')
        return move(path)

    picture.move_resource_to_block_cache = move_files
    return picture


def _chooser(label: str, names: Sequence[str], position: int, visible: bool = True) -> gr.Dropdown:
    return gr.Dropdown(list(names), value=_at(names, position), label=label, visible=visible, filterable=False)


def _at(names: Sequence[str], position: int) -> str | None:
    """The name at a position, or the last one."""
    return names[min(position, len(names) - 1)] if names else None


def _hint(names: Sequence[str], typed: bool, folder: str) -> str:
    folder = one_line(folder).replace('`', '')
    return '' if names else NOTHING_YET.format(folder=f'`{folder}`', typed=' Or add one by its paths.' if typed else '')
