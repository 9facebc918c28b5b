"""Saves a picture of the web page with two models compared on an example.

python dev/screenshot_app.py docs/images/demo_app.jpg CONFIG_A WEIGHTS_A CONFIG_B WEIGHTS_B
python dev/screenshot_app.py phone.jpg CONFIG_A WEIGHTS_A CONFIG_B WEIGHTS_B --size 390 844 --whole
"""

import argparse
import shutil
import sys

from mmext_backbones.app.serving import serve
from mmext_backbones.utils.cli import add_traceback_option, run_cli
from mmext_backbones.utils.errors import UserError

CHROMIUMS = ('chromium', 'chromium-browser', 'google-chrome')


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', help='the picture to write, .jpg or .png')
    parser.add_argument('models', nargs=4, metavar='CONFIG WEIGHTS', help='two pairs of paths')
    parser.add_argument('--size', type=int, nargs=2, default=(1280, 900), metavar=('W', 'H'), help='of the window')
    parser.add_argument('--whole', action='store_true', help='the whole page, not only what fits into the window')
    parser.add_argument('--example', type=int, default=1, help='which example, from 1 (default: 1)')
    parser.add_argument('--port', type=int, default=7870)
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    chromium = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if chromium is None:
        raise UserError(f'expected one of {", ".join(CHROMIUMS)} on the path.')
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise UserError('playwright is not installed: pip install playwright') from error
    with serve(args.models, port=args.port) as (url, _), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        tab = browser.new_page(viewport={'width': args.size[0], 'height': args.size[1]})
        tab.goto(url)
        tab.locator('#examples button').nth(args.example - 1).click()
        tab.locator('#picture img').wait_for()
        result = tab.locator('#other_text .timing')
        for first in (True, False):  # the first picture of a model may take longer than the next
            tab.get_by_role('button', name='Find').click()
            words = {'has_text' if first else 'has_not_text': 'of loading'}
            result.filter(**words).wait_for(timeout=600_000)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=args.out, full_page=args.whole, **({'quality': 80} if args.out.endswith('.jpg') else {}))
        browser.close()
    print(f'written: {args.out}')


if __name__ == '__main__':
    sys.exit(run_cli(main))
