"""dev/benchmark and mmext_backbones/benchmark: both sides of every case are equal, and the numbers add up.

On networks and images too small to say anything about speed.
"""

import functools
import json
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from torch import nn

from dev.benchmark import agreement, machine, memory, roofline, session
from dev.benchmark.agreement import Disagreement, check
from dev.benchmark.case import Setting, absence, pair
from dev.benchmark.cases import CASES
from dev.benchmark.command import benchmark, parser
from dev.benchmark.growth import exponent
from dev.benchmark.timing import Pass, interleave, spread
from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.utils.cli import run_cli

CPU = torch.device('cpu')
SWIN = {'embed_dims': 16, 'depths': (1, 1, 2, 1), 'num_heads': (1, 2, 4, 8)}
NANO_VOLO = {
    'embed_dims': (32, 64, 64, 64),
    'depths': (1, 1, 1, 1),
    'num_heads': (1, 2, 2, 2),
    'mlp_ratio': 3,
    'stem_dims': 4,
}
NANO = {
    SwinTransformer: SWIN,
    ELSASwin: {**SWIN, 'group_width': 4},
    MaxViT: {'embed_dims': (32, 32, 64, 64), 'depths': (1, 1, 1, 1), 'stem_dims': 16},
    Sequencer2D: {'embed_dims': (16, 32, 32, 32), 'depths': (1, 2, 1, 1), 'hidden_dims': (4, 8, 8, 8)},
    VOLO: NANO_VOLO,
    ELSAVOLO: {**NANO_VOLO, 'kernel_size': 5, 'group_width': 8},
}
BOTH = 'forward+backward'
PAIRS = [pytest.param(case, peer, id=f'{case.name}-{peer.name}') for case in CASES.values() for peer in case.peers]


DISTRIBUTIONS = functools.cache(packages_distributions)  # seconds, where much is installed


@pytest.fixture(autouse=True)
def nano(monkeypatch):
    monkeypatch.setattr(machine, 'packages_distributions', DISTRIBUTIONS)
    for cls, arch in NANO.items():
        monkeypatch.setitem(cls.ARCHS, 'nano', arch)


@pytest.fixture
def one_layer(monkeypatch):
    """The name of a case of one layer, which is compiled in a tenth of the time of a network."""
    case = replace(CASES['op:elsa'], parts=lambda arch: ('stage 0',), work=None)
    monkeypatch.setattr('dev.benchmark.command.CASES', {case.name: case})
    return case.name


def run(module, inputs):
    module.eval()  # returns None in OpenMMLab's backbones
    return module(*inputs)


def settings(case, size, batch=1):
    arch = case.archs['nano']
    return [Setting(arch, size, batch, part) for part in case.parts(arch)]


def skip_without(peer):
    if absence(peer):
        pytest.skip(f'{peer.name}: {absence(peer)}')


def tool(*options):
    """Exit code of the command line, in this process."""
    return run_cli(lambda argv: benchmark(parser('').parse_args(argv)), [str(option) for option in options])


# ---------------------------------------------------------------------------------------------------------------------
# Both sides compute the same


@pytest.mark.parametrize(('case', 'peer'), PAIRS)
def test_outputs_and_gradients_agree(case, peer):
    skip_without(peer)
    for setting in settings(case, (224, 224)):
        found = check(case, peer, setting, BOTH, torch.float32, CPU)
        if '_vs_' in case.name:
            assert found.outputs is None
            assert 'two different networks' in found.note
        else:
            assert found.note == ''
            assert found.outputs <= 2e-5
            assert found.gradients <= 2e-4


@pytest.mark.parametrize(('case', 'peer'), PAIRS)
def test_at_odd_sizes_they_agree_or_the_row_says_why_not(case, peer):
    skip_without(peer)
    by_design = {'swin-timm', 'swin-torchvision', 'sequencer-timm', 'volo-timm'}
    for setting in settings(case, (230, 301)):
        if peer.refuses(setting):
            assert peer.name == 'timm'
            with pytest.raises((AssertionError, RuntimeError)):
                Pass(peer.build(setting), case.inputs(setting), 'forward', torch.float32)()
            continue
        found = check(case, peer, setting, 'forward', torch.float32, CPU)
        differs = 'not comparable numerically at this size' in found.note
        assert differs == (f'{case.name}-{peer.name}' in by_design)
        if differs:  # and they really do
            ours, theirs = (run(module, case.inputs(setting)) for module in pair(case, peer, setting))
            close = [a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True)]
            assert not all(close)


def test_ours_norms_its_maps_only_beside_a_peer_that_does():
    case = CASES['swin']
    for peer in case.peers:
        model = case.ours(settings(case, (224, 224))[0], peer)
        norms = {type(getattr(model, f'norm{i}')) for i in range(4)}
        assert norms == {nn.LayerNorm if peer.name.startswith('mm') else nn.Identity}


@pytest.mark.parametrize('name', ['swin', 'maxvit', 'sequencer', 'volo'])
def test_both_sides_return_dense_maps(name):
    case = CASES[name]
    for peer in case.peers:
        skip_without(peer)
        setting = settings(case, (224, 224))[0]
        sides = [run(module, case.inputs(setting)) for module in pair(case, peer, setting)]
        assert [out.shape for out in sides[0]] == [out.shape for out in sides[1]]
        assert all(out.is_contiguous() for side in sides for out in side)
        assert len(sides[0]) == 4


class Scaled(nn.Module):
    """A peer whose outputs, or whose gradients alone, are off."""

    def __init__(self, net, outputs, gradients):
        super().__init__()
        self.net, self.outputs, self.gradients = net, outputs, gradients

    def forward(self, *inputs):
        outs = self.net(*inputs)
        return [self.outputs * (out * self.gradients + (out * (1 - self.gradients)).detach()) for out in outs]


@pytest.mark.parametrize(
    ('outputs', 'gradients', 'message'),
    [(1.0001, 1, 'outputs differ by 1.0e-04'), (1, 1.01, 'gradients differ by 9.9e-03'), (1, float('nan'), 'nan')],
)
def test_a_difference_is_noticed(outputs, gradients, message):
    case = CASES['elsa_swin']
    peer = case.peers[0]
    build = lambda setting: Scaled(peer.build(setting), outputs, gradients)  # noqa: E731
    other = replace(peer, build=build)
    with pytest.raises(Disagreement, match=message):
        check(case, other, settings(case, (64, 64))[0], BOTH, torch.float32, CPU)


def test_a_swapped_tensor_is_noticed():
    case = CASES['op:window_attention']
    peer = next(peer for peer in case.peers if peer.name == 'torchvision')
    skip_without(peer)

    def convert(tensors, ours):
        found = peer.convert(tensors, ours)
        return found | {'relative_position_bias_table': found['relative_position_bias_table'].flip(0)}

    other = replace(peer, convert=convert)
    with pytest.raises(Disagreement, match='outputs differ'):
        check(case, other, settings(case, (224, 224))[0], 'forward', torch.float32, CPU)


def test_autocast_is_compared_before_batch_norms_move():
    case = CASES['maxvit']
    skip_without(case.peers[0])
    found = check(case, case.peers[0], settings(case, (224, 224))[0], BOTH, torch.bfloat16, CPU)
    assert found.ours < 0.1


def test_autocast_is_held_against_float32(monkeypatch):
    case = CASES['elsa_swin']
    task = case, case.peers[0], settings(case, (64, 64))[0], 'forward', torch.bfloat16, CPU
    found = check(*task)
    assert 1e-4 < found.ours < 0.05  # bfloat16 has 8 bits
    assert 1e-4 < found.peer < 0.05
    monkeypatch.setattr(agreement, 'AUTOCAST_FACTOR', 1e-3)
    with pytest.raises(Disagreement, match='under autocast ours deviates'):
        check(*task)


# ---------------------------------------------------------------------------------------------------------------------
# Time, memory, roofline


def test_rounds_are_interleaved_and_warm_ups_do_not_count():
    calls = []
    passes = {name: lambda name=name: calls.append(name) for name in 'ab'}
    seconds = interleave(passes, rounds=3, warmup=1, device=CPU, flush=lambda: calls.append('-'))
    assert ''.join(calls) == '-b-a-a-b-b-a-a-b'
    assert {name: len(times) for name, times in seconds.items()} == {'a': 3, 'b': 3}


def test_spread_is_median_and_quartiles():
    assert spread([5, 1, 2, 4, 3]) == (3, 2, 4)
    assert spread([0.9, 1.0, 1.2, 1.3, 1.4]).tie
    assert not spread([0.9, 1.1, 1.2, 1.3, 1.4]).tie


def test_backward_pass_leaves_its_gradients_and_forward_none():
    x = torch.ones(2, 3)
    one = Pass(nn.Linear(3, 4), [x], BOTH, torch.float32, differentiable=True)
    for _ in range(2):  # not accumulated
        one()
        torch.testing.assert_close(one.inputs[0].grad, one.gradients[0] @ one.module.weight)
    assert x.grad is None
    assert not Pass(nn.Linear(3, 4), [x], 'forward', torch.float32)()[0].requires_grad


@pytest.mark.parametrize('name', [name for name in CASES if name.startswith('op:')])
def test_bytes_and_operations_are_those_of_the_layer(name):
    case = CASES[name]
    size = (112, 224)
    for setting in settings(case, size, batch=2):
        layer, inputs = case.ours(setting, case.peers[0]), case.inputs(setting)
        work = case.work(setting, torch.float32)
        out = Pass(layer, inputs, 'forward', torch.float32)()[0]
        count = lambda tensors: 4 * sum(tensor.numel() for tensor in tensors)  # noqa: E731
        read, weights = count(inputs), count(layer.parameters())
        assert work.read_written == read + weights + count([out])
        assert work.backward_bytes == 2 * (read + weights) + count([out])
        pixels = out.numel() // (out.shape[1] if name == 'op:elsa' else out.shape[-1])
        matrices = sum(p.numel() for p in layer.parameters() if p.dim() == 2 and 'table' not in name_of(layer, p))
        if name == 'op:elsa':
            expected = 2 * 2 * 49 * out.numel()
        elif name == 'op:bilstm':
            expected = 2 * pixels * matrices
        elif not any(edge % 7 for edge in inputs[0].shape[1:3]):  # nothing is padded
            expected = 2 * pixels * matrices + 2 * 2 * 49 * out.numel()
        else:
            continue
        assert work.operations == expected


def name_of(module, parameter):
    return next(name for name, other in module.named_parameters() if other is parameter)


def test_floor_is_the_longer_of_moving_and_computing():
    ceilings = roofline.Ceilings(copy=10, products=100, float32_products=20)
    work = roofline.Work(50, 100, 20, 800)
    assert roofline.floor_seconds(work, ceilings, backward=False) == 5
    assert roofline.floor_seconds(work, ceilings, backward=True) == 5 + 8
    assert roofline.floor_seconds(work._replace(scalar=True), ceilings, backward=True) == 5 + 40


@pytest.mark.slow
def test_peak_of_a_process_is_what_the_profiler_counts():
    if memory.why_not(CPU):
        pytest.skip(memory.why_not(CPU))
    case, peer = CASES['op:elsa'], CASES['op:elsa'].peers[0]
    setting = Setting(case.archs['tiny'], (128, 160), 1, 'stage 0')
    one = Pass(peer.build(setting), case.inputs(setting), 'forward', torch.float32)
    one()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        one()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held / 2**20)
    measured = memory.peak(case.name, peer.name, 'tiny', setting, 'peer', 'forward', 'fp32', 'cpu')
    assert 0.9 * peak <= measured <= 1.3 * peak + 5  # libraries keep buffers of their own


def test_exponent_is_the_slope():
    edges = [2, 4, 16]
    assert exponent(edges, [3 * edge**1.7 for edge in edges]) == pytest.approx(1.7)
    with pytest.raises(ValueError, match='at least two that differ'):
        exponent([2, 2], [1, 2])


# ---------------------------------------------------------------------------------------------------------------------
# The command line


@pytest.mark.slow
def test_table_json_and_chart(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, 'why_not', lambda device: None)
    monkeypatch.setattr(memory, 'peak', lambda case, peer, arch, setting, side, *rest: {'ours': 20, 'peer': 50}[side])
    session.flusher(CPU)()
    flushed = []
    monkeypatch.setattr(session, 'flusher', lambda device: lambda: flushed.append(device))
    cases = ['elsa_swin', 'elsa_vs_swin', 'op:elsa']
    options = ['--arch', 'nano', '--size', 56, 70, '--rounds', 3, '--warmup', 1, '--mode', 'forward', BOTH]
    files = ['--json', tmp_path / 'found.json', '--chart', tmp_path / 'found.svg']
    assert tool(*cases, *options, *files, '--markdown') == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / 'found.json').read_text())
    rows = found['rows']
    assert len(rows) == (2 + 3) * 2  # two networks and three stages of the operator
    assert len(flushed) == 3 * 2 * 2 * (3 + 1)  # stages, modes, sides, rounds
    lines = re.findall(r'^(?:unfold|swin) .* \d+\.\d+ \(.*peak 20 and 50 MiB \(2.50\)', printed, re.MULTILINE)
    assert len(lines) == len(rows)
    for row in rows:
        assert [len(times) for times in row['seconds'].values()] == [3, 3]
        ratios = [b / a for a, b in zip(row['seconds']['ours'], row['seconds']['peer'], strict=True)]
        assert row['ratio']['median'] == pytest.approx(sorted(ratios)[1])
        assert row['tie'] == (row['ratio']['low'] <= 1 <= row['ratio']['high'])
        assert (row['floor'] is not None) == (row['case'] == 'op:elsa')
        assert row['memory'] == {'ours': 20, 'peer': 50}
    assert (
        len(
            re.findall(
                r'^\| ELSA-Swin-NANO \| 1 x 56 x 70 \| forward \| (?:our Swin|its unfolded form) \| .* 2.50 \|$',
                printed,
                re.MULTILINE,
            )
        )
        == 2
    )
    assert printed.partition('\n| ')[0].count(' tie ') == sum(row['tie'] for row in rows)
    assert found['machine']['packages']['torch'].split('+')[0] in torch.__version__
    assert found['options']['rounds'] == 3
    assert 'two different networks' in printed
    labels = {label.strip() for label in re.findall('<!--(.*)-->', (tmp_path / 'found.svg').read_text())}
    bar = 'op:elsa stage 1 / unfold, 1x56x70 fp32, forward+backward'
    assert {bar, 'time, peer / ours (quartiles)', 'peak memory, peer / ours', '2.50'} <= labels


def test_compiled_forms(tmp_path, one_layer):
    options = ['--arch', 'nano', '--size', 64, 64, '--rounds', 1, '--warmup', 0, '--mode', 'forward', '--no-memory']
    torch._dynamo.reset()
    calls = []
    torch._dynamo.register_backend(lambda graph, inputs: calls.append(graph) or graph, 'counting')
    assert tool(one_layer, *options, '--compile', 'counting', '--json', tmp_path / 'found.json') == 0
    rows = json.loads((tmp_path / 'found.json').read_text())['rows']
    assert [row['form'] for row in rows] == ['eager', 'both compiled', 'peer compiled']
    assert len(calls) >= 2


@pytest.mark.parametrize(
    ('name', 'kind'), [('reduce-overhead', 'mode'), ('max-autotune', 'mode'), ('eager', 'backend')]
)
def test_compiled_by_a_backend_or_in_a_mode(name, kind, one_layer, monkeypatch):
    compiled, asked = torch.compile, []

    def compile_by(module, **options):
        asked.append(options)
        compiled(nn.Identity(), **options)  # refuses what it does not know
        return module

    monkeypatch.setattr(torch, 'compile', compile_by)
    options = ['--arch', 'nano', '--size', 32, 32, '--rounds', 1, '--warmup', 0, '--mode', 'forward', '--no-memory']
    assert tool(one_layer, *options, '--compile', name) == 0
    assert asked
    assert all(each == {kind: name, 'dynamic': False} for each in asked)


def test_growth(tmp_path, capsys):
    options = ['--arch', 'nano', '--edges', 32, 64, 96, '--batches', 1, 3, '--rounds', 2, '--warmup', 0]
    files = ['--json', tmp_path / 'found.json', '--chart', tmp_path / 'found.png']
    assert tool('swin', '--growth', '--mode', 'forward', *options, *files) == 0
    (growth,) = json.loads((tmp_path / 'found.json').read_text())['growth']
    assert set(growth['by_edge']['seconds']) == {'32', '64', '96'}
    assert set(growth['by_batch']['seconds']) == {'1', '3'}
    times = growth['by_edge']['seconds']
    slopes = [exponent([32**2, 64**2, 96**2], [times[edge][i] for edge in ('32', '64', '96')]) for i in range(2)]
    assert growth['by_edge']['exponent']['median'] == pytest.approx(sum(slopes) / 2)
    assert re.search(r'time ~ pixels\^a, a = ', capsys.readouterr().out)
    assert (tmp_path / 'found.png').read_bytes().startswith(b'\x89PNG')


def test_a_missing_peer_is_left_out_with_its_reason(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    options = ['--arch', 'nano', '--size', 56, 56, '--rounds', 1, '--mode', 'forward', '--no-memory']
    tool('swin', *options, '--json', tmp_path / 'found.json')
    reason = 'ModuleNotFoundError: import of torchvision halted; None in sys.modules'
    assert f'  swin against torchvision: {reason}' in capsys.readouterr().out
    left = json.loads((tmp_path / 'found.json').read_text())['left_out']
    assert {'what': 'swin against torchvision', 'reason': reason, 'failed': False} in left
    assert tool('swin', *options, '--peer', 'torchvision') == 2  # asked for by name
    assert f'--peer torchvision: it cannot be imported here ({reason})' in capsys.readouterr().err


def test_a_case_without_the_peers_named_is_left_out(capsys):
    options = ['--arch', 'nano', '--size', 32, 32, '--rounds', 1, '--mode', 'forward', '--no-memory']
    assert tool('elsa_swin', 'elsa_vs_swin', *options, '--peer', 'swin') == 0
    assert 'left out: elsa_swin: it has none of the peers named, but unfold' in capsys.readouterr().out


def test_a_disagreement_is_not_timed_and_fails(monkeypatch, capsys):
    monkeypatch.setitem(agreement.TOLERANCES, 'outputs', 0)
    assert tool('elsa_swin', '--arch', 'nano', '--size', 64, 64, '--rounds', 1, '--no-memory') == 1
    assert 'the two disagree: outputs differ by' in capsys.readouterr().out


@pytest.mark.slow
def test_a_compiled_network_is_held_against_itself(capsys, one_layer):
    def halved(graph, inputs):
        return lambda *args: [out / 2 for out in graph(*args)]

    torch._dynamo.register_backend(halved, 'halved')
    options = ['--arch', 'nano', '--size', 32, 32, '--rounds', 1, '--mode', 'forward', '--no-memory']
    assert tool(one_layer, *options, '--compile', 'halved') == 1
    assert re.search(r'both compiled: ours deviates by \S+ from itself when compiled', capsys.readouterr().out)


@pytest.mark.parametrize(('side', 'code'), [('peer', 0), ('ours', 1)])
def test_a_side_that_does_not_run_is_named(side, code, monkeypatch, capsys):
    case = CASES['elsa_vs_swin']

    class Broken(nn.Identity):
        def forward(self, x):
            raise RuntimeError('no such kernel')

    peer = replace(case.peers[0], build=lambda setting: Broken() if side == 'peer' else nn.Identity())
    other = replace(case, peers=(peer,), ours=lambda setting, peer: Broken() if side == 'ours' else nn.Identity())
    monkeypatch.setattr('dev.benchmark.command.CASES', {'elsa_swin': CASES['elsa_swin'], 'other': other})
    options = ['--arch', 'nano', '--size', 64, 64, '--rounds', 1, '--mode', 'forward', '--no-memory']
    assert tool('other', 'elsa_swin', *options) == code
    printed = capsys.readouterr().out
    assert f'eager: {side} does not run: RuntimeError: no such kernel' in printed
    assert re.search(r'^unfold +forward', printed, re.MULTILINE)  # the others go on


@pytest.mark.slow
def test_what_cannot_be_compiled_is_named(capsys, one_layer):
    def broken(graph, inputs):
        raise RuntimeError('no kernels today')

    torch._dynamo.reset()
    torch._dynamo.register_backend(broken, 'broken')
    options = ['--arch', 'nano', '--size', 64, 64, '--rounds', 1, '--mode', 'forward', '--no-memory']
    assert tool(one_layer, *options, '--compile', 'broken') == 1
    printed = capsys.readouterr().out
    assert re.search(r'both compiled: ours does not run: .*no kernels today', printed)
    assert re.search(r'peer compiled: peer does not run: .*no kernels today', printed)
    assert re.search(r'^unfold +forward +eager', printed, re.MULTILINE)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['swim'], "no case 'swim'. Did you mean 'swin'?"),
        (['swin', '--peer', 'tim'], "no peer 'tim'. Did you mean 'timm'?"),
        (['maxvit', '--arch', 'medium'], '--arch medium: maxvit has tiny, small, base, large, xlarge'),
        (['swin', '--size', 0, 32], '--size 0 32: expected positive numbers'),
        (['swin', '--rounds', 0], '--rounds 0: expected at least 1'),
        (['swin', '--chart', 'a.txt'], '--chart a.txt: expected a name that ends in'),
        (['swin', '--json', 'nowhere/a.json'], '--json nowhere/a.json: there is no folder nowhere'),
        (['op:elsa', '--growth'], "expected swin, elsa_swin, maxvit, sequencer, volo, elsa_volo, not 'op:elsa'"),
        (['swin', '--compile', 'reduce-overhed'], "backend or mode. Did you mean 'reduce-overhead'?\nBackends: "),
        (['swin', '--compile', 'indoctor'], "Did you mean 'inductor'?"),
        (['swin', '--growth', '--edges', 64, '--batches', 2], 'at least two --edges or two --batches'),
    ],
)
def test_mistakes_end_in_one_message(options, message, capsys):
    assert tool(*options) == 2
    assert message in capsys.readouterr().err


def test_cuda_without_a_device_is_refused(capsys):
    if torch.cuda.is_available():
        pytest.skip('there is a CUDA device')
    assert tool('swin', '--device', 'cuda') == 2
    assert 'torch sees no CUDA device' in capsys.readouterr().err


WITHOUT = """
    import importlib.abc, runpy, sys

    class Absent(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.startswith({names}):
                raise ModuleNotFoundError(f'No module named {{name!r}}')

    sys.meta_path.insert(0, Absent())
    sys.argv[1:] = {options}
    runpy.run_module('dev.benchmark', run_name='__main__')
"""
OPTIONS = ['--rounds', '1', '--mode', 'forward', '--no-memory', '--size', '64', '64', '--peer']


def without(names, options):
    code = textwrap.dedent(WITHOUT).format(names=names, options=options)
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
def test_runs_without_openmmlab():
    """Where only torch, timm, torchvision and mmengine are installed."""
    pytest.importorskip('torchvision')
    names = ('mmcv', 'mmdet', 'mmpretrain', 'mmseg')
    result = without(names, ['swin', *OPTIONS[:-1]])
    assert result.returncode == 0, result.stderr
    assert re.search(r'^torchvision +forward', result.stdout, re.MULTILINE)
    assert re.search(r'against mmdet: ModuleNotFoundError: No module named .mmdet', result.stdout)


@pytest.mark.slow
def test_swin_of_mmdet_needs_no_compiled_operators():
    pytest.importorskip('mmdet')
    result = without(('mmcv.ops', 'mmcv._ext'), ['swin', *OPTIONS, 'mmdet'])
    assert result.returncode == 0, result.stderr
    assert re.search(r'^mmdet +forward .*outputs within', result.stdout, re.MULTILINE)
