"""Every command and every piece of Python in README.md, CONTRIBUTING.md and docs/ is run, or cannot be run here.

A command of this repository is read by the parser of its tool, so that no option of it is stale. Beyond that it is run
here, or a row of `COMMANDS` names the test that runs it, or what it would need. Python is run here, or a row of
`PYTHON` names the test that does. What is in no row fails: run it, or say who does.
"""

import argparse
import ast
import fnmatch
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import Registry

from mmext_backbones import registry
from mmext_backbones.__main__ import VERBS
from mmext_backbones.registry import MODELS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
RUNS = 'tests/test_tools/test_runs.py::test_train_test_and_resume'
DATA = 'needs COCO, ADE20K, ImageNet or data of your own, or a trained or published network'
PERSON = 'for a person: an environment of its own, or one that is changed'

# What a command runs, as a pattern -> how. The first row that fits counts. How: the name of a test that runs it (with
# data and networks of its own); 'needs ...' or 'for ...', why nobody can run it here; or a list: it is run here, with
# these arguments behind its own.
COMMANDS: dict[str, str | list[str]] = {
    'make demo': RUNS,
    'make test': PERSON,
    'make test-all': PERSON,
    'make lint': PERSON,
    'make env*': PERSON,
    'make bench': 'tests/test_dev/test_benchmark.py::test_table_json_and_chart',
    'make stacks': PERSON,
    'make docs*': 'tests/test_docs_site.py::test_every_page_is_there',
    'make': ['--dry-run'],
    'cd *': PERSON,
    'pip *': PERSON,
    'git *': PERSON,
    'source *': PERSON,
    'python -c *': 'tests/test_config/test_bases.py::test_a_leaf_is_a_base_by_name',
    'python -m build *': 'tests/test_packaging.py::test_a_release_works_in_an_empty_environment',
    'python -': 'tests/test_inference/test_infer.py::test_a_video',
    'python -m pytest tests/test_backbones/test_contract.py --backbone *': (
        'tests/test_add_a_backbone.py::test_it_keeps_the_contract'
    ),
    'python -m pytest *': 'for a person: a test',
    'python -m mmext_backbones.mmcv_ops': [],
    'python -m mmext_backbones.mmcv_ops *': (
        'tests/test_mmcv_ops/test_extension.py::test_installed_for_every_program_and_taken_back'
    ),
    'python -m mmext_backbones.doctor*': 'tests/test_doctor.py::test_command',
    'python -m mmext_backbones.swap mmdet::dino*': 'tests/test_swap_docs.py::test_by_command',
    'python -m mmext_backbones.swap my_config.py *': 'tests/test_swap_docs.py::test_by_command',
    'python -m mmext_backbones.swap *': ['--size', '64'],
    'python tools/swap_backbone.py *': 'tests/test_swap_docs.py::test_by_command',
    'python tools/train.py * --launcher slurm*': 'needs Slurm',
    'python tools/train.py * --shapes*': RUNS,
    'python tools/train.py CONFIG --bad-data *': (
        'tests/test_tools/test_check_dataset.py::test_a_training_leaves_bad_data_out_and_says_so'
    ),
    'python tools/train.py *': DATA,
    'python tools/test.py *': DATA,
    'python tools/make_shapes.py *': ['--size', '32', '--train', '6', '--val', '2'],
    'python tools/model_cost.py *': [],
    'python dev/model_zoo.py': 'tests/test_dev/test_model_zoo.py::test_the_page_is_made_of_the_metafiles',
    'python dev/model_zoo.py --check': [],
    'python dev/model_zoo.py --costs': 'tests/test_dev/test_model_zoo.py::test_written_costs_are_those_of_the_model',
    'python -m dev.components*': 'tests/test_dev/test_components.py::test_a_sample_by_both_runners',
    'python -m dev.overhead*': 'for a person: it trains four times',
    'python -m dev.study*': 'tests/test_study.py::test_measured_and_drawn',
    'python -m dev.architecture --docs': (
        'tests/test_dev/test_tracing.py::test_the_pages_are_of_the_networks_as_they_are_now'
    ),
    'python -m dev.architecture *': ['--size', '64', '64'],
    'python tools/convert_weights.py *': 'tests/test_weights/test_loading.py::test_converter_there_and_back',
    'python tools/check_dataset.py *': 'tests/test_tools/test_check_dataset.py::test_check_dataset',
    'python -m dev.benchmark * --device cuda*': 'needs a GPU',
    'python -m dev.benchmark * --growth*': 'tests/test_dev/test_benchmark.py::test_growth',
    'python -m dev.benchmark *': 'tests/test_dev/test_benchmark.py::test_table_json_and_chart',
    'python tools/estimate_scaling.py *': 'tests/test_analysis/test_estimate.py::test_docs_are_current',
    'python tools/replay.py *': (
        'tests/test_engine/test_nonfinite.py::test_nan_in_an_image_stops_before_the_weights_are_spoilt'
    ),
    'python -m dev.gpu_check*': 'tests/test_dev/test_gpu_check.py::test_a_dry_run_by_its_path_without_mmengine',
    'python dev/gpu_kernels.py *': 'tests/test_dev/test_gpu_kernels.py::test_the_command_writes_numbers_and_page',
    'python dev/swap_survey.py *': ('tests/test_dev/test_swap_survey.py::test_page_counts_outcomes_and_groups_reasons'),
    'python dev/trials/broken_data.py *': 'tests/test_tools/test_check_dataset.py::test_a_handful_of_the_trial',
    'python dev/trials/broken_files.py *': 'tests/test_dev/test_broken_files.py::test_a_handful',
    'python dev/trials/forwards.py *': 'tests/test_dev/test_trials.py::test_random_forwards',
    'python dev/trials/kills.py *': 'tests/test_dev/forking_kills.py::test_a_few_kills',
    'python dev/trials/outputs.py *': 'tests/test_tools/test_outputs.py::test_a_handful_of_the_trial',
    'python dev/trials/soak.py *': 'tests/test_dev/test_trials.py::test_training_is_sampled',
    'python predict.py *': (
        'tests/test_runtime/test_predict.py::test_a_detector_draws_and_writes_what_pycocotools_reads'
    ),
    'python tools/export.py * --whole*': 'tests/test_export/test_whole/test_tool.py::test_a_detector_with_weights',
    'python tools/export.py *': 'tests/test_export/test_tool.py::test_backbone_and_neck_with_weights',
    'find *': 'tests/test_inference/test_infer.py::test_names_on_the_standard_input',
    'mmext --help': 'tests/test_tools/test_command.py::test_help_lists_the_verbs',
    'mmext *': 'tests/test_tools/test_command.py::test_a_verb_is_its_tool',
    'python tools/infer.py *': 'tests/test_inference/test_infer.py::test_the_tool',
    'python tools/finetune_coco.py *': (
        'tests/test_tools/test_finetune_coco.py::test_from_pictures_to_a_tested_detector'
    ),
    'python tools/visualize.py data *': 'tests/test_visualization/test_data.py::test_a_picture_of_each_task',
    'python tools/visualize.py predictions *': (
        'tests/test_visualization/test_predictions.py::test_the_worst_come_first'
    ),
    'python tools/visualize.py curves *': 'tests/test_visualization/test_curves.py::test_from_the_command_line',
    'python tools/visualize.py *': (
        'tests/test_visualization/test_inside.py::test_every_command_runs_without_weights_and_data'
    ),
    'python tools/demo_app.py*': 'tests/test_app/test_browser.py::test_upload_find_and_move_the_threshold',
    'python dev/screenshot_app.py *': 'needs a browser and two checkpoints',
    'tools/dist_*.sh *': 'tests/test_tools/test_launchers.py::test_one_machine_and_a_free_port',
    'tools/slurm_*.sh *': 'tests/test_tools/test_launchers.py::test_slurm',
    'tensorboard *': PERSON,
    'mlflow *': PERSON,
    'wandb *': PERSON,
    'ffmpeg *': PERSON,
    'srun *': 'needs Slurm',
    '[[] *': 'needs Slurm',
    'scontrol *': 'needs Slurm',
}
# Page and first line of a piece of Python, as a pattern -> the test that runs it. All others are run here.
PYTHON = {
    'docs/swap.md: from mmengine.config import read_base': 'tests/test_swap_docs.py::test_python_style_by_hand',
    'docs/swap.md: from mmengine.config import Config': 'tests/test_swap_docs.py::test_in_code',
    'docs/swap.md: _base_ = *': 'tests/test_swap_docs.py::test_by_hand',
    'docs/add_a_backbone.md: """ConvNeXt*': 'tests/test_add_a_backbone.py::test_it_keeps_the_contract',
    'docs/add_a_backbone.md: from mmext_backbones.weights*': (
        'tests/test_add_a_backbone.py::test_weights_of_timm_give_its_numbers'
    ),
    'docs/add_a_backbone.md: _base_ = *': 'tests/test_add_a_backbone.py::test_the_config_trains',
    'docs/get_started.md: from mmext_backbones.inference *': (
        'tests/test_guides.py::test_predictor_of_getting_started'
    ),
    'docs/faq.md: model.backbone = torch.compile*': 'tests/test_backbones/test_compiled.py',
    'docs/faq.md: axes = {2: torch.export.Dim*': 'tests/test_guides.py::test_exporting',
    'docs/migration.md: _base_ = *': 'tests/test_guides.py::test_the_worked_example_is_our_recipe',
    'docs/export.md: from mmext_backbones.backbones import *': (
        'tests/test_export/test_onnx.py::test_three_sizes_were_run'
    ),
    'docs/deployment.md: from pycocotools*': (
        'tests/test_runtime/test_predict.py::test_a_detector_draws_and_writes_what_pycocotools_reads'
    ),
    'docs/deployment.md: from predict import Model*': (
        'tests/test_runtime/test_predict.py::test_boxes_and_masks_at_the_size_of_the_picture'
    ),
    'docs/export.md: from mmext_backbones.export import export_whole': (
        'tests/test_export/test_whole/test_detection_onnx.py::test_what_was_compared'
    ),
    'docs/inference.md: from pycocotools*': (
        'tests/test_inference/test_infer.py::test_results_are_what_pycocotools_reads'
    ),
    '*: from mmext_backbones.inference import *': 'tests/test_inference/test_predictor.py::test_as_a_dict',
}

# --------------------------------------------------------------------------------------------------------------------
# Collecting

FENCE = re.compile(r'^( *)(`{3,})(\w*)[^\n]*\n(.*?)^\1\2$', re.DOTALL | re.MULTILINE)
BEGINS = ('python ', 'make ', 'tools/', 'pip ', '$ ')  # a block of no language that begins so is of commands
SHELLS = ('bash', 'sh', 'console', 'shell')


class Command(NamedTuple):
    """Of a page: its words after variables and comments, and the variables set for it alone."""

    page: str
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        return ' '.join(self.words)


def commands_of(page: str, text: str) -> list[Command]:
    """All commands in blocks, and those of this repository in the running text."""
    found = []
    for _, _, language, block in FENCE.findall(text):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if language in SHELLS or (not language and lines and lines[0].startswith(BEGINS)):
            prompts = any(line.startswith('$ ') for line in lines)  # then the others are what the screen shows
            if prompts:
                block = '\n'.join(line[2:] for line in lines if line.startswith('$ '))
            found += shell_commands(page, block)
    for span in re.findall(r'`([^`]+)`', FENCE.sub('', text)):
        span = ' '.join(span.split())
        if (
            re.match(r'(\w+=\S+ )*(python (tools/|-m mmext)|tools/\w+\.sh |make \w|mmext [\w-])', span)
            and '...' not in span
        ):
            found += shell_commands(page, span)
    return found


def shell_commands(page: str, block: str) -> list[Command]:
    """The commands of a block: lines joined, documents within left out, variables filled in, chains taken apart."""
    block = re.sub(r"<<-?\s*'?(\w+)'?\n.*?^\1$", '', block.replace('\\\n', ' '), flags=re.DOTALL | re.MULTILINE)
    variables, found = {}, []
    for line in block.splitlines():
        line = re.sub(r'\$\{?([A-Z_]+)\}?', lambda name, known=variables: known.get(name.group(1), name.group()), line)
        lexer = shlex.shlex(line, posix=True, punctuation_chars='&|;')
        lexer.whitespace_split, lexer.commenters = True, '#'
        words: list[str] = []
        for word in [*lexer, ';']:
            if not re.fullmatch('[&|;]+', word):
                words.append(word)
                continue
            given = []
            while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
                given.append(tuple(words.pop(0).split('=', 1)))
            if words:
                found.append(Command(page, tuple(words), tuple(given)))
            else:
                variables.update(given)
            words = []
    return found


def python_of(text: str) -> list[str]:
    return [block for _, _, language, block in FENCE.findall(text) if language in ('python', 'py')]


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


ALL = [command for page in PAGES for command in commands_of(relative(page), page.read_text())]
UNIQUE = list({(command.words, command.variables): command for command in ALL}.values())
SCRIPTS = [(relative(page), i, block) for page in PAGES for i, block in enumerate(python_of(page.read_text()))]
each_command = pytest.mark.parametrize('command', UNIQUE, ids=lambda command: f'{command.page}: {command.text}'[:100])


def row_of(command: Command) -> str | list[str] | None:
    text = command.text + ' '
    return next((how for pattern, how in COMMANDS.items() if fnmatch.fnmatchcase(text, pattern.rstrip() + ' ') or
                 fnmatch.fnmatchcase(text, pattern)), None)  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# Every command has somebody who runs it, and options that exist


class Parsed(Exception):
    """A tool has read its arguments."""


@pytest.fixture
def parse(monkeypatch):
    """A function that has a tool read arguments, and stops it there."""

    def parse_args(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise Parsed

    real = argparse.ArgumentParser.parse_args

    def parse(tool: str, arguments: list[str]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
            patch.setattr(sys, 'argv', [tool, *arguments])
            patch.syspath_prepend(str((ROOT / tool).parent))
            with pytest.raises(Parsed):
                start(tool, arguments)

    return parse


def start(tool: str, arguments: list[str]) -> int | None:
    """Runs a tool in this process; its exit code."""
    if tool.startswith('-m '):
        package = importlib.util.find_spec(tool[3:]).submodule_search_locations is not None
        module = importlib.import_module(f'{tool[3:]}.__main__' if package else tool[3:])
    else:
        spec = importlib.util.spec_from_file_location(Path(tool).stem, ROOT / tool)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    takes_arguments = module.main.__code__.co_argcount > 0
    return module.main(arguments) if takes_arguments else module.main()


def tool_of(command: Command) -> tuple[str, list[str]] | None:
    """The tool of this repository that a command starts, and its arguments; None for other programs."""
    words = [word.strip('[]') for word in command.words]  # [--option] of a synopsis
    words = ['1' if word == 'N' else word for word in words]
    if words[:1] == ['srun']:
        words = words[1:]
    if words[:2] == ['python', '-m'] and words[2].startswith(('mmext_backbones.', 'dev.')):
        return f'-m {words[2]}', words[3:]
    if words[0] == 'python' and words[1].startswith(('tools/', 'dev/')):
        return words[1], words[2:]
    if re.fullmatch(r'tools/\w+\.sh', words[0]):
        return words[0], words[1:]
    if words[0] == 'mmext' and words[1] in VERBS:
        target, _ = VERBS[words[1]]
        return f'tools/{target}' if target.endswith('.py') else f'-m mmext_backbones.{target}', words[2:]
    return None


@each_command
def test_somebody_runs_it(command):
    how = row_of(command)
    assert how is not None, f'{command.page}: {command.text!r} is in no row of COMMANDS'
    if isinstance(how, str) and not how.startswith(('needs ', 'for ')):
        assert_test_exists(how)


def assert_test_exists(name: str) -> None:
    file, _, function = name.partition('::')
    path = ROOT / file
    assert path.is_file(), f'{name}: there is no such file'
    functions = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    assert not function or function.partition('[')[0] in functions, f'{name}: there is no such test'


@each_command
def test_its_options_exist(command, parse, tmp_path, monkeypatch):
    for word in command.words:
        if re.fullmatch(r'configs/[\w/]+\.py', word):
            assert (ROOT / word).is_file(), f'there is no {word}'
    if command.words[0] == 'make' and len(command.words) > 1:
        targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
        assert {word for word in command.words[1:] if '=' not in word} <= set(targets)
    found = tool_of(command)
    if found is None:
        return
    tool, arguments = found
    if tool.endswith('.sh'):
        tool, arguments = launched(tool, arguments, dict(command.variables), tmp_path)
    parse(tool, arguments)


def launched(script: str, arguments: list[str], variables: dict[str, str], folder: Path) -> tuple[str, list[str]]:
    """What a launcher starts in each process, seen by a torchrun and an srun that print what they are told."""
    for word in arguments:
        if word == 'CONFIG' or word.endswith('.py'):
            (folder / word).parent.mkdir(parents=True, exist_ok=True)
            (folder / word).touch()
    for name in ('bash', 'env', 'dirname', 'cat'):
        (folder / name).symlink_to(shutil.which(name))
    for name in ('torchrun', 'srun'):
        (folder / name).write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
        (folder / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / script, *arguments], cwd=folder, env={'PATH': str(folder), **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    (i,) = [i for i, word in enumerate(words) if word.endswith(('/train.py', '/test.py'))]
    return str(Path(words[i]).relative_to(ROOT)), words[i + 1 :]


# --------------------------------------------------------------------------------------------------------------------
# What is run here

HERE = [command for command in UNIQUE if isinstance(row_of(command), list)]
SWAPS = [command for command in HERE if command.text.startswith('python -m mmext_backbones.swap ')]
SLOW = SWAPS[1:]  # of test_swap.py and test_swap_docs.py


@pytest.mark.parametrize(
    'command',
    [
        pytest.param(command, id=command.text[:100], marks=pytest.mark.slow if command in SLOW else ())
        for command in HERE
    ],
)
def test_it_runs(command, tmp_path, monkeypatch):
    more = row_of(command)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('mmext_backbones.swap.__main__.FORWARD_SIZE', 64)
    if command.words[0] == 'make':
        done = subprocess.run([*command.words, *more], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    tool, arguments = tool_of(command)
    assert start(tool, [*arguments, *more]) in (None, 0)
    for option in ('-o', '--out', '--preview', '--json', '--chart'):
        if option in arguments:
            assert Path(arguments[arguments.index(option) + 1]).exists(), option


@pytest.mark.parametrize(('page', 'number', 'code'), SCRIPTS, ids=[f'{page}-{number}' for page, number, _ in SCRIPTS])
def test_python_runs(page, number, code, tmp_path, monkeypatch):
    ast.parse(code)
    first = f'{page}: {code.lstrip().splitlines()[0]}'
    elsewhere = next((test for pattern, test in PYTHON.items() if fnmatch.fnmatchcase(first, pattern)), None)
    if elsewhere is not None:
        assert_test_exists(elsewhere)
        return
    monkeypatch.chdir(tmp_path)
    Path('code.py').write_text(code)
    is_config = '_base_' in code
    content = Config.fromfile('code.py')._cfg_dict.to_dict() if is_config else runpy.run_path('code.py')
    for name in set(re.findall(r"'mmext_backbones\.(\w+)'", code)):
        registries = [thing for thing in vars(registry).values() if isinstance(thing, Registry)]
        assert any(each.get(name) is not None for each in registries), f'{name} is registered nowhere'
    model = content.get('model')
    if isinstance(model, dict) and 'backbone' in model and not is_config:
        assert_fits(model)


def assert_fits(model: dict) -> None:
    """A backbone takes its options, and a neck that states channels states those of its maps."""
    options = {key: value for key, value in model['backbone'].items() if key not in ('_delete_', 'init_cfg')}
    with torch.device('meta'):
        backbone = MODELS.build(options)
    if 'neck' in model:
        assert tuple(model['neck']['in_channels']) == backbone.out_channels


# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('page', PAGES, ids=relative)
def test_tests_that_a_page_names_exist(page):
    for name in re.findall(r'`(tests/[\w/]+\.py(?:::\w+)?)`', page.read_text()):
        assert_test_exists(name)


def test_commands_are_found():
    text = """
Say `python tools/train.py x.py` or `make lint`, not `python` alone.

```bash
FILE=a.pth
NUM=2 python tools/test.py c.py $FILE \\
    --tta   # a comment
cd x && make test; python - <<'END'
make nothing
END
```

```
$ tools/dist_train.sh c.py 8
make no command: the screen
```

```
a text
```

```python
make = 1
```
"""
    found = commands_of('page', text)
    assert [command.text for command in found] == [
        'python tools/test.py c.py a.pth --tta',
        'cd x',
        'make test',
        'python -',
        'tools/dist_train.sh c.py 8',
        'python tools/train.py x.py',
        'make lint',
    ]
    assert found[0].variables == (('NUM', '2'),)
    assert python_of(text) == ['make = 1\n']


def test_what_is_wrong_is_noticed(parse, tmp_path):
    assert row_of(Command('page', ('frobnicate', 'x'))) is None
    assert row_of(Command('page', ('python', 'tools/new.py'))) is None
    with pytest.raises(SystemExit):
        parse('tools/train.py', ['config.py', '--stale-option'])
    with pytest.raises(AssertionError, match='no such test'):
        assert_test_exists('tests/test_docs_commands.py::test_of_nothing')
    with pytest.raises(AssertionError):
        assert_fits({'backbone': {'type': 'MaxViT'}, 'neck': {'in_channels': [96, 192, 384, 768]}})
    with pytest.raises(TypeError, match='window'):
        assert_fits({'backbone': {'type': 'MaxViT', 'window': 7}})
