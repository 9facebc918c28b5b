"""The installed command: every tool by a verb, outside of a checkout, too.

mmext train elsa_swin_t_maskrcnn_1x --shapes
mmext infer CONFIG WEIGHTS photos/
mmext VERB --help
"""

import importlib.util
import runpy
import sys
from pathlib import Path

from .utils.errors import did_you_mean

# A verb, and the tool or the module of this package that it runs.
VERBS = {
    'train': ('train.py', 'train a config'),
    'test': ('test.py', 'evaluate a checkpoint, or predictions saved before'),
    'infer': ('infer.py', 'predict pictures or videos: drawn, and as JSON'),
    'finetune': ('finetune_coco.py', 'train a detector on your own pictures with COCO annotations'),
    'check-data': ('check_dataset.py', 'look at all data of a config before it is trained'),
    'visualize': ('visualize.py', 'draw data, predictions, curves, attention, filters'),
    'app': ('demo_app.py', 'serve a web page that tries trained models on pictures'),
    'swap': ('swap_backbone.py', 'put one of the backbones into any config'),
    'export': ('export.py', 'write a backbone, with or without its neck, as ONNX or by torch.export'),
    'convert': ('convert_weights.py', 'convert weights from one layout to another'),
    'cost': ('model_cost.py', 'count parameters, multiply-adds and activations'),
    'estimate': ('estimate_scaling.py', 'estimate memory and time of a training'),
    'make-shapes': ('make_shapes.py', 'draw the Shapes data set'),
    'replay': ('replay.py', 'run a batch again that gave a loss that is not finite'),
    'doctor': ('doctor', 'look at the installation, and say what is wrong'),
    'operators': ('mmcv_ops', "list mmcv's operators, and where they come from"),
}
TOOLS = Path(__file__).parent / '.mim' / 'tools'


def main(argv: list[str] | None = None) -> int:
    """Runs the tool of the first argument with the others.

    Args:
        argv: Those of the process when None.

    Returns:
        The exit code; a tool ends the process itself.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ('-h', '--help'):
        print('\n'.join(_help()))
        return 0
    verb, *rest = argv
    if verb == '--version':
        from .version import __version__

        print(__version__)
        return 0
    if verb not in VERBS:
        print(f'mmext {verb}: there is no such verb.{did_you_mean(verb, list(VERBS))} mmext --help lists them.',
              file=sys.stderr)  # fmt: skip
        return 2
    target, _ = VERBS[verb]
    sys.argv = [f'mmext {verb}', *rest]
    if target.endswith('.py'):
        _run(TOOLS / target)
    else:
        runpy.run_module(f'{__package__}.{target}', run_name='__main__')
    return 0


def _run(script: Path) -> None:
    """Runs a script as Python does, but for its name in `sys.argv`, which is the verb's: messages and usage show it."""
    spec = importlib.util.spec_from_file_location('__main__', script)
    module = importlib.util.module_from_spec(spec)
    module.__spec__ = None
    sys.modules['__main__'] = module
    spec.loader.exec_module(module)


def _help() -> list[str]:
    lines = ['usage: mmext VERB ...', '', *(__doc__ or '').strip().splitlines(), '', 'verbs:']
    return lines + [f'  {verb:<12} {line}' for verb, (_, line) in VERBS.items()]


if __name__ == '__main__':
    sys.exit(main())
