"""Parameters, multiply-adds and activations of a backbone or of the model of a config.

    python tools/model_cost.py swin_t --size 224 224
    python tools/model_cost.py configs/swin_t_maskrcnn_1x.py --size 800 1280
    python tools/model_cost.py sequencer_s --size 224 224 --cfg-options patch_size=7 pyramid=False

Nothing is computed but shapes: any size takes a second.
"""

import argparse
import json
import sys

from mmext_backbones.analysis.cost import cost_table, model_cost
from mmext_backbones.config.options import add_config_options
from mmext_backbones.utils.cli import add_traceback_option, run_cli, square
from mmext_backbones.utils.console import silence_libraries
from mmext_backbones.utils.errors import UserError
from mmext_backbones.zoo import build_network


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('network', help='a backbone like swin_t, a config file, or a name like mmdet::path.py')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        required=True,
        metavar=('H', 'W'),
        help='of the image in pixels; one number for a square',
    )
    parser.add_argument('--json', action='store_true', help='print all numbers, unrounded, as JSON')
    add_config_options(parser, 'arguments of the backbone, or entries of the config to override')
    add_traceback_option(parser)
    args = parser.parse_args(square(argv))
    silence_libraries()
    model = build_network(args.network, args.cfg_options)
    try:
        cost = model_cost(model, args.size)
    except RuntimeError as error:
        raise UserError(str(error)) from error
    if args.json:
        print(json.dumps({'network': args.network, **cost.to_dict()}, indent=2))
        return
    print(f'{type(model).__name__} on {" x ".join(map(str, cost.input_shape))}\n')
    print('\n'.join(cost_table(cost)))


if __name__ == '__main__':
    sys.exit(run_cli(main))
