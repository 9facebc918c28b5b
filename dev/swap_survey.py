"""Swaps the backbone of every config that mmdet and mmsegmentation install, and runs what comes out.

    python dev/swap_survey.py                             # every config with one family, in turn; half an hour
    python dev/swap_survey.py --all-families              # what the page shows; two hours and more, or --jobs 4
    python dev/swap_survey.py --library mmseg --only upernet --limit 20
    python dev/swap_survey.py --resume                    # go on where a run stopped
    python dev/swap_survey.py --again                     # the swap has changed: run the models that are new
    python dev/swap_survey.py --report                    # write the page from the results, run nothing

Results go to docs/swap_survey.jsonl, a line a config, and are counted in docs/swap_survey.md. How a config is judged
stands in that page's introduction and, with the steps themselves, in dev/survey_steps.py.
"""

import argparse
import contextlib
import fnmatch
import json
import logging
import multiprocessing
import os
import random
import resource
import sys
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).parent))

import survey_steps as steps
import torch
from mmengine.logging import MMLogger

from mmext_backbones.swap import SwapRefused, swap_backbone
from mmext_backbones.utils.cli import add_traceback_option, run_cli
from mmext_backbones.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'docs' / 'swap_survey.jsonl'
PAGE = ROOT / 'docs' / 'swap_survey.md'
LIBRARIES = ('mmdet', 'mmseg')
FAMILIES = ('swin_t', 'elsa_swin_t', 'maxvit_t', 'sequencer_s', 'volo_d1', 'elsa_volo_d1')
OUTCOMES = {
    'ran': 'swapped and ran',
    'refused': 'refused',
    'failed': 'failed',
    'no reference': 'original does not run here',
    'no model': 'no model in the config',
    'unreadable': 'unreadable as installed',
}
JUDGED = ('ran', 'refused', 'failed', 'no reference')  # the configs of a model
# backbones that return a pyramid of maps, of whose configs GOAL percent are to run
PYRAMIDS = (
    *('ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt', 'Res2Net', 'RegNet', 'ResNeSt', 'DetectoRS_ResNet', 'HRNet'),
    *('SwinTransformer', 'PyramidVisionTransformer', 'PyramidVisionTransformerV2', 'MixVisionTransformer', 'PCPVT'),
    *('SVT', 'ConvNeXt', 'MSCAN', 'PoolFormer', 'DetectoRS_ResNeXt'),
)
GOAL = 95.0
MEMORY_LIMIT = 10 * 2**30  # bytes of data a worker may hold
MEMORY_RENEW = 4 * 2**30  # a worker that held more than this is replaced by a fresh one
START = 'spawn'  # workers with threads of their own from the beginning
Row = dict[str, Any]


# --------------------------------------------------------------------------------------------------------------------
# One config, in a worker


def serve(connection: Connection) -> None:
    """A worker: answers ('prepare', library, config, family) with a row, and ('run',) with the end of that row."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    quiet()
    prepared = None
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            task, *args = connection.recv()
            if task == 'prepare':
                row, prepared = prepare(*args)
                connection.send(row)
            else:
                used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                connection.send({**prepared.run(), 'renew': used > MEMORY_RENEW})


def quiet() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    for name in ('mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'current'):
        MMLogger.get_instance(name, log_level='ERROR')
    logging.disable(logging.WARNING)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())  # models print


def prepare(library: str, config: str, family: str) -> tuple[Row, 'steps.Swapped | None']:
    """Reads and swaps a config.

    Args:
        library: mmdet or mmseg.
        config: file of its configs, relative to their folder.
        family: name of the backbone that comes in.

    Returns:
        The row, without `outcome` where the swapped model has yet to run, and what runs it.
    """
    row: Row = {'library': library, 'config': config, 'family': family}
    try:
        cfg = steps.load(library, config)
    except Exception as error:
        return {**row, 'outcome': 'unreadable', 'reason': steps.one_line(error)}, None
    if not cfg.get('model'):
        return {**row, 'outcome': 'no model'}, None
    row |= steps.described(cfg.model)
    try:
        swapped = steps.Swapped(cfg, swap_backbone(cfg, family), library)
    except SwapRefused as error:
        return {**row, 'outcome': 'refused', 'reason': ' '.join(str(error).split())}, None
    except Exception as error:
        return {**row, 'outcome': 'failed', 'reason': f'swap: {steps.one_line(error)}'}, None
    return {**row, 'key': swapped.key}, swapped


# --------------------------------------------------------------------------------------------------------------------
# All configs, from the parent


class Survey:
    """The rows so far, and the threads that make more, each with a worker process of its own.

    A worker that dies or takes too long is a failure of its config and is replaced. A model that came out of another
    config already, to the last key, is not run again.

    Args:
        rows: of earlier runs, which are kept.
        earlier: further rows, of which the models are known.
        results: where each new row is written, a line of JSON.
        timeout: seconds a config may take.
    """

    def __init__(self, rows: Sequence[Row], earlier: Sequence[Row], results: TextIO, timeout: float) -> None:
        self.rows = list(rows)
        self.results = results
        self.timeout = timeout
        self.lock = threading.Lock()
        self.known = {(row['family'], row['key']): ending(row) for row in [*earlier, *rows] if row.get('key')}

    def run(self, tasks: Sequence[tuple[str, str, str]], jobs: int) -> None:
        self.tasks, self.total = list(reversed(tasks)), len(tasks)
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        worker = Worker()
        try:
            while True:
                with self.lock:
                    if not self.tasks:
                        return
                    task = self.tasks.pop()
                start = time.time()
                row, worker = self._row(task, worker)
                row['seconds'] = round(time.time() - start, 1)
                self._keep(row)
        finally:
            worker.end()

    def _row(self, task: tuple[str, str, str], worker: 'Worker') -> tuple[Row, 'Worker']:
        row: Row = dict(zip(('library', 'config', 'family'), task, strict=True))
        try:
            row = worker.ask(('prepare', *task), self.timeout)
            if 'outcome' not in row:
                end = self.known.get((row['family'], row['key']))
                end = worker.ask(('run',), self.timeout) if end is None else {**end, 'again': True}
                row |= end
        except WorkerError as error:
            worker.end()
            return {**row, 'outcome': 'failed', 'reason': str(error)}, Worker()
        if row.pop('renew', False):
            worker.end()
            worker = Worker()
        return row, worker

    def _keep(self, row: Row) -> None:
        with self.lock:
            self.rows.append(row)
            if row.get('key'):
                self.known[row['family'], row['key']] = ending(row)
            self.results.write(json.dumps(row) + '\n')
            self.results.flush()
            done = self.total - len(self.tasks)
            print(
                f'[{done}/{self.total}] {row["library"]} {row["config"]} {row["family"]}: {row["outcome"]} '
                f'{row.get("level", "")} {row.get("reason", "")[:150]} ({row["seconds"]} s)',
                flush=True,
            )


def ending(row: Row) -> Row:
    """What a row owes to its swapped model alone."""
    return {name: row[name] for name in ('outcome', 'level', 'reason', 'remark') if name in row}


class WorkerError(Exception):
    """A worker died or took too long."""


class Worker:
    """A process that runs `serve`."""

    def __init__(self) -> None:
        context = multiprocessing.get_context(START)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, task: tuple, timeout: float) -> Row:
        try:
            self.connection.send(task)
            if not self.connection.poll(timeout):
                raise WorkerError(f'not done after {timeout:g} s')
            return self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(5)
            raise WorkerError(f'the process died with exit code {self.process.exitcode}') from error

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def tasks_of(
    libraries: Sequence[str], families: Sequence[str], *, every_family: bool = False, only: str | None = None
) -> list[tuple[str, str, str]]:
    """(library, config, family) for every installed config outside ``_base_``; families in turn, or all of them.

    Args:
        libraries: of which configs are taken.
        families: names of backbones.
        every_family: each config with each family, instead of the next one.
        only: part of the config's path, or a pattern with ``*``.

    Returns:
        The tasks, in the order of libraries and paths. The family of a config does not depend on `only`.
    """
    tasks = []
    for library in libraries:
        for i, config in enumerate(steps.configs_of(library)):
            if only and not fnmatch.fnmatch(config, only if '*' in only else f'*{only}*'):
                continue
            chosen = families if every_family else [families[i % len(families)]]
            tasks += [(library, config, family) for family in chosen]
    return tasks


# --------------------------------------------------------------------------------------------------------------------
# The page

INTRODUCTION = """# Backbone swap over the whole zoo

Written by `python dev/swap_survey.py --report` from `swap_survey.jsonl`, a line a config; do not edit.

Every config that mmdet 3.3.0 and mmsegmentation 1.2.2 install outside `_base_` goes through `swap_backbone` with the
smallest network of a family, at its true channels: {families}; {turns}.
What comes out is built with random weights and runs on the CPU, on two random images of {size} x {size} pixels (up to
{large} x {large} where the original takes none so small) with boxes, masks and labels. For that run alone, SyncBN
becomes BN, images are not padded to a crop size, regions of interest are sampled sparsely, and no weights are fetched.

The step is the strongest one that the *original* model manages here with the same data:

- **loss**: all losses of training, whole model;
- **loss of the detector**: of the detector inside a tracker or a semi-supervised method;
- **forward**: one pass of the whole model, without losses;
- **features**: the backbone and the neck alone.

A model that swaps and then fails a step which its original passes has **failed**. If neither runs at any step, the
config is counted as such and never as a success.
"""


def page(rows: Sequence[Row], expected: int) -> str:
    """The page of a survey.

    Args:
        rows: of all configs that were judged.
        expected: how many a whole survey has.

    Returns:
        Markdown.
    """
    several = len({(row['library'], row['config']) for row in rows}) < len(rows)
    families = sorted({row['family'] for row in rows}, key=lambda name: (*FAMILIES, name).index(name))
    introduction = INTRODUCTION.format(
        families=', '.join(f'`{name}`' for name in families),
        turns='each with each' if several else 'in turn, one a config',
        size=steps.SIZES[0],
        large=steps.SIZES[-1],
    )
    if len(rows) < expected:
        introduction += f'\n**Not the whole zoo: {len(rows)} of {expected} runs.**\n'
    judged = [row for row in rows if row['outcome'] in JUDGED]
    distinct = {(row['family'], row['key']) for row in rows if row.get('key')}
    sections = [
        introduction,
        '## Totals\n',
        table(('', *OUTCOMES.values(), 'all'), counts(rows, 'library', OUTCOMES)),
        f'{len(distinct)} distinct models came out of the swaps; each ran once.\n',
        goal(rows),
        '## By step\n',
        table(('step', 'configs'), Counter(row['level'] for row in rows if row['outcome'] == 'ran').most_common()),
        'What kept the original, and so the swapped model, from a stronger one:\n',
        reasons([{**row, 'reason': row['remark']} for row in rows if row.get('remark')]),
        '## By backbone that came in\n',
        table(('', *(OUTCOMES[name] for name in JUDGED), 'all'), counts(judged, 'family', JUDGED)),
        '## By original backbone\n',
        table(('', *(OUTCOMES[name] for name in JUDGED), 'all'), counts(judged, 'backbone', JUDGED)),
        '## By model\n',
        table(('', *(OUTCOMES[name] for name in JUDGED), 'all'), counts(judged, 'model', JUDGED)),
    ]
    for outcome, title in (
        ('refused', 'Refusals'),
        ('failed', 'Failures'),
        ('no reference', 'The original does not run here'),
        ('unreadable', 'Unreadable as installed'),
    ):
        sections += [f'## {title}\n', reasons([row for row in rows if row['outcome'] == outcome])]
    return '\n'.join(section.rstrip('\n') + '\n' for section in sections)


def counts(rows: Iterable[Row], by: str, outcomes: Iterable[str]) -> list[tuple]:
    """A line for each value of `by`, most frequent first: how many rows have each outcome, and their number."""
    outcomes = list(outcomes)
    groups: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        groups[row.get(by) or '(none)'][row['outcome']] += 1
    lines = [(name, *(group[o] for o in outcomes), group.total()) for name, group in groups.items()]
    lines.sort(key=lambda line: (-line[-1], line[0]))
    if len(lines) > 1:
        lines.append(('**all**', *(sum(line[i] for line in lines) for i in range(1, len(outcomes) + 2))))
    return lines


def is_pyramid(row: Row) -> bool:
    """Whether a row counts towards the goal: a hierarchical backbone that hands on several levels."""
    backbone = (row.get('backbone') or '').rpartition('.')[2]
    return row['outcome'] in JUDGED and backbone in PYRAMIDS and row.get('levels', 0) > 1


def percent_ran(rows: Sequence[Row]) -> float:
    """Percentage of rows that were swapped and ran; everything else counts against it."""
    return 100 * sum(row['outcome'] == 'ran' for row in rows) / len(rows) if rows else 0.0


def goal(rows: Sequence[Row]) -> str:
    """Whether enough of the pyramids ran, and why the others did not."""
    rows = [row for row in rows if is_pyramid(row)]
    others = [row for row in rows if row['outcome'] != 'ran']
    percent = percent_ran(rows)
    return (
        f'Goal: at least {GOAL:g} % of the configs whose original backbone is hierarchical and hands on several levels '
        f'({", ".join(PYRAMIDS)}) swapped and ran. **{percent:.1f} %** ({len(rows) - len(others)} of {len(rows)}): '
        f'{"met" if percent >= GOAL else "not met"}. Refusals and originals that do not run count against it:\n\n'
        f'{reasons(others)}'
    )


def reasons(rows: Sequence[Row]) -> str:
    """A list of reasons, most frequent first, with the number of configs and the first of them."""
    if not rows:
        return 'None.\n'
    groups = defaultdict(list)
    for row in rows:
        groups[row.get('reason', '')].append(row)
    lines = []
    for reason, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        examples = sorted({f'`{row["library"]}::{row["config"]}`' for row in group})
        more = ', ...' if len(examples) > 1 else ''
        lines.append((len(group), reason.replace('|', '\\|'), examples[0] + more))
    return table(('configs', 'reason', 'which'), lines)


def table(head: Sequence[str], lines: Iterable[Sequence]) -> str:
    rows = [head, ['---'] * len(head), *lines]
    return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in rows) + '\n'


# --------------------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """Rows of a results file, the last of each config and family; none where there is no file."""
    if not path.exists():
        return []
    rows = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            rows[row['library'], row['config'], row['family']] = row
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{path}, line {number}: expected a row of the survey as JSON, got {line[:80]!r}'
            ) from error
    return list(rows.values())


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--library', choices=LIBRARIES, help='configs of one library only')
    parser.add_argument('--only', metavar='PATTERN', help="configs whose path has this in it, or matches it with '*'")
    parser.add_argument('--limit', type=int, metavar='N', help='the first N configs only')
    parser.add_argument('--family', nargs='+', default=FAMILIES, metavar='NAME', help='backbones that take turns')
    parser.add_argument('--all-families', action='store_true', help='every config with every backbone')
    parser.add_argument('--jobs', type=int, default=1, help='worker processes')
    parser.add_argument('--timeout', type=float, default=120, metavar='SECONDS', help='per config')
    parser.add_argument('--resume', action='store_true', help='keep the results there are, run what is missing')
    parser.add_argument('--again', action='store_true', help='swap again; run models that are not among the results')
    parser.add_argument('--retry', action='store_true', help='with --resume or --again: run what failed again')
    parser.add_argument('--report', action='store_true', help='write the page only')
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--page', type=Path, default=PAGE)
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    everything = tasks_of(LIBRARIES, args.family, every_family=args.all_families)
    earlier = read_rows(args.results) if args.resume or args.again or args.report else []
    if args.retry:
        earlier = [row for row in earlier if row['outcome'] != 'failed']
    rows = [] if args.again else earlier
    if not args.report:
        done = {(row['library'], row['config'], row['family']) for row in rows}
        libraries = [args.library] if args.library else LIBRARIES
        tasks = tasks_of(libraries, args.family, every_family=args.all_families, only=args.only)
        tasks = [task for task in tasks[: args.limit] if task not in done]
        random.Random(0).shuffle(tasks)  # a run that is stopped has seen some of everything
        with open(args.results, 'w') as results:
            results.writelines(json.dumps(row) + '\n' for row in rows)
            survey = Survey(rows, earlier, results, args.timeout)
            survey.run(tasks, args.jobs)
        rows = survey.rows
    rows.sort(key=lambda row: (row['library'], row['config'], row['family']))
    args.results.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    args.page.write_text(page(rows, len(everything)))
    print(f'{args.page}: {dict(Counter(row["outcome"] for row in rows))}')


if __name__ == '__main__':
    sys.exit(run_cli(main))
