"""Pictures of the data, of a network's inside and of what a training gave: one subcommand each.

    python tools/visualize.py data configs/swin_t_maskrcnn_1x.py --shapes
    python tools/visualize.py predictions configs/swin_t_maskrcnn_1x.py work_dirs/.../iter_310.pth --shapes --worst
    python tools/visualize.py curves work_dirs/first work_dirs/second --keys loss 'coco/*'
    python tools/visualize.py attention swin_t --stage 0 --block 1 --point 60 80
    python tools/visualize.py receptive-field

Each subcommand has its own --help. docs/visualization.md shows what they draw.
"""

import argparse
import importlib
import sys

from mmext_backbones.utils.cli import add_traceback_option, run_cli

# Each is a module of mmext_backbones.visualization, with add_arguments(parser) and run(args).
COMMANDS = {
    'data': 'what the model is trained on: after the pipeline, the batching and the data preprocessor',
    'predictions': 'what a model predicts beside the ground truth, on request the worst images first',
    'curves': 'losses, learning rate and metrics of one or several trainings',
    'features': 'the maps of every level of a backbone',
    'attention': 'where a token looks: windows, grids and ELSA filters over the picture',
    'filters': 'the filters of ELSA, computed and learnt',
    'receptive-field': 'what an output depends on, of several networks side by side',
}


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in argv[:1]:  # only the module that is used is imported
            module = importlib.import_module(f'mmext_backbones.visualization.{name.replace("-", "_")}')
            command.description = module.__doc__
            module.add_arguments(command)
            add_traceback_option(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == '__main__':
    sys.exit(run_cli(main))
