"""The report on a GPU: its driver with tiny parts, what it judges, and the comparison with float64."""
import csv
import importlib
import json
import re
import runpy
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import run_tool

from wsbcn import installation
from wsbcn_mmseg.benchmarks.gpu import parts, plan, report, targets
from wsbcn_mmseg.benchmarks.gpu.parts import FAILED, LEFT, NOT_HERE, PASSED, STOPPED, Part, run_parts
from wsbcn_mmseg.diagnostics import agreement
from wsbcn_mmseg.runtime.errors import UsageError
from wsbcn_mmseg.runtime.records import markdown_table

pytestmark = pytest.mark.usefixtures('one_thread')


def part(name: str, code: str = '', seconds: float = 20, **fields) -> Part:
    """A part that notes its name in ``order`` and then runs code."""
    code = f'open("order", "a").write("{name} ")\n{code}'
    return Part(name, name.capitalize(), [[sys.executable, '-S', '-c', code]], seconds, **fields)


def order(folder) -> list[str]:
    return (folder / 'order').read_text().split()


def test_parts_run_in_order_and_a_failure_stops_no_other(tmp_path):
    unlucky = 'print("first")\nprint("no luck here")\nraise SystemExit(3)'
    outcomes = run_parts([part('a'), part('b', unlucky), part('c')], tmp_path, 60)
    assert [outcome.status for outcome in outcomes] == [PASSED, FAILED, PASSED]
    assert order(tmp_path) == ['a', 'b', 'c']
    assert outcomes[1].reason.splitlines() == ['exit status 3', 'first', 'no luck here']
    assert [outcome.name for outcome in parts.unfinished(outcomes)] == ['b']


def test_the_next_command_of_a_part_needs_the_one_before(tmp_path):
    first, second = part('a', 'raise SystemExit(1)'), part('b')
    outcome, = run_parts([first._replace(commands=[*first.commands, *second.commands])], tmp_path, 60)
    assert outcome.status == FAILED
    assert order(tmp_path) == ['a']


def test_a_second_run_skips_what_has_passed(tmp_path):
    failing = part('b', 'import os\nraise SystemExit(not os.path.exists("repaired"))')
    run_parts([part('a'), failing], tmp_path, 60)
    (tmp_path / 'repaired').write_text('')
    outcomes = run_parts([part('a'), failing], tmp_path, 60)
    assert [outcome.status for outcome in outcomes] == [PASSED, PASSED]
    assert order(tmp_path) == ['a', 'b', 'b']


@pytest.mark.parametrize('state', ['{"name": "a", "status": "passed"}', '{"name"', '[]'])
def test_other_commands_and_damaged_states_run_again(tmp_path, state):
    run_parts([part('a')], tmp_path, 60)
    run_parts([part('a', 'pass')], tmp_path, 60)
    (tmp_path / 'parts' / 'a.json').write_text(state)
    run_parts([part('a', 'pass')], tmp_path, 60)
    assert order(tmp_path) == ['a'] * 3


def test_results_of_an_earlier_attempt_are_removed(tmp_path):
    old = tmp_path / 'results' / 'a' / 'old.csv'
    old.parent.mkdir(parents=True)
    old.write_text('')
    run_parts([part('a')], tmp_path, 60)
    assert not old.exists()


def test_the_limit_stops_the_part_that_runs_and_leaves_the_others(tmp_path):
    endless = 'import time\nprint("waiting", flush=True)\ntime.sleep(60)'
    outcomes = run_parts([part('a'), part('b', endless), part('c')], tmp_path, 1.5)
    assert [outcome.status for outcome in outcomes] == [PASSED, STOPPED, LEFT]
    assert run_parts([part('a'), part('b', endless), part('c')], tmp_path, 0)[:2] == outcomes[:2]
    outcomes = run_parts([part('a'), part('b', endless, 0.5), part('c')], tmp_path, 60)
    assert [outcome.status for outcome in outcomes] == [PASSED, FAILED, PASSED]
    assert outcomes[1].reason.splitlines()[0] == 'it took longer than 0 s'
    assert outcomes[1].seconds < 10


def test_what_a_part_started_ends_with_it(tmp_path):
    child = 'import time; time.sleep(2); open("left_over", "w")'
    run_parts([part('a', f'import subprocess, sys\nsubprocess.Popen([sys.executable, "-S", "-c", {child!r}])')],
              tmp_path, 60)
    time.sleep(2.5)
    assert not (tmp_path / 'left_over').exists()


def test_parts_that_cannot_run_here_and_programs_that_do_not_exist(tmp_path):
    missing = Part('b', 'B', [['/no/such/program']], 20)
    outcomes = run_parts([part('a', not_here='needs two GPUs'), missing], tmp_path, 60)
    assert [outcome.status for outcome in outcomes] == [NOT_HERE, FAILED]
    assert outcomes[0].reason == 'needs two GPUs'
    assert '/no/such/program' in outcomes[1].reason
    assert not (tmp_path / 'order').exists()


@pytest.mark.parametrize('make', [plan.parts_on_gpu, plan.parts_rehearsed])
def test_commands_of_the_plan_are_argument_lists_of_files_that_exist(make, tmp_path, root):
    planned = make(tmp_path, root / 'tools')
    assert len({one.name for one in planned}) == len(planned) == (15 if make is plan.parts_on_gpu else 14)
    for one in planned:
        for command in one.commands:
            assert command[0] == sys.executable
            assert all(isinstance(argument, str) for argument in command)
            files = [argument for argument in command if argument.endswith('.py') and '/' in argument]
            assert all((root / file).is_file() for file in files)
    assert [one.name for one in planned][:2] == ['agreement', 'layers_batch_1']


def test_arguments_of_benchmarks_are_those_of_the_tool(tmp_path, root, monkeypatch):
    for make in (plan.parts_on_gpu, plan.parts_rehearsed):
        for one in make(tmp_path, root / 'tools'):
            for command in one.commands:
                monkeypatch.setattr(sys, 'argv', command[1:])
                if command[1].endswith('.py'):
                    runpy.run_path(command[1])['parse_args']()
                elif command[2] != 'pytest':
                    monkeypatch.setattr(sys, 'argv', command[2:])
                    importlib.import_module(command[2]).parse_args()


def write_rows(folder, name: str, rows: list[dict]) -> None:
    path = folder / 'results' / name / f'{name}.csv'
    path.parent.mkdir(parents=True)
    with path.open('w') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def layer_rows(ratio: float, share: float) -> list[dict]:
    row = {'layer': 'BCN micro-batch', 'implementation': 'triton', 'vs_group_norm': ratio,
           'copy_bandwidth_share': share}
    return [row | {'shape': shape, 'pass': name} for shape in (targets.LARGE, '4x256x1x1')
            for name in ('forward', 'backward', 'both')]


def verdicts(folder) -> dict[str, str]:
    return {target.name: target.verdict for target in targets.targets(folder, 'triton')}


def test_without_results_every_target_is_not_measured(tmp_path):
    assert set(verdicts(tmp_path).values()) == {targets.MISSING}


@pytest.mark.parametrize('good', [True, False])
def test_targets_are_judged(tmp_path, good):
    write_rows(tmp_path, 'layers_graphs', layer_rows(0.7 if good else 0.71, 0.8 if good else 0.79))
    write_rows(tmp_path, 'memory', [{'implementation': 'light', 'peak_vs_bn': 0.75 if good else 0.76},
                                    {'implementation': 'strong', 'peak_vs_bn': 0.5 if good else 0.51}])
    write_rows(tmp_path, 'networks', [{'layer': 'BCN+WS micro-batch', 'implementation': 'triton',
                                       'vs_bn': 1 if good else 1.01}])
    write_rows(tmp_path, 'agreement', [{'dtype': 'float16', 'passed': good, 'error': 'nan' if not good else 1e-4}])
    scalars = tmp_path / 'results' / 'training_amp' / 'run' / 'vis_data' / 'scalars.json'
    scalars.parent.mkdir(parents=True)
    scalars.write_text('\n'.join(json.dumps({'loss': loss}) for loss in (3, 2 if good else float('nan'))))
    found = {name: verdict for name, verdict in verdicts(tmp_path).items() if verdict != targets.MISSING}
    assert set(found.values()) == {targets.PASS if good else targets.FAIL}
    assert len(found) == 8


def test_the_report_has_targets_parts_and_reasons(tmp_path):
    planned = [part('a'), part('b', 'print("**Out** of luck")\nraise SystemExit(1)'), part('c', not_here='no GPU')]
    outcomes = run_parts(planned, tmp_path, 60)
    report.write_report(tmp_path, planned, outcomes, {'device': 'cpu', 'gone': None}, 'triton', True)
    text = (tmp_path / 'report.md').read_text()
    assert report.REHEARSAL in text
    assert '1 of 3 parts passed, 1 failed or are left: run the same command again' in text
    assert '**B** failed:\n\n```\nexit status 1\n**Out** of luck\n```' in text
    assert '**C** was not possible here: no GPU.' in text
    assert '| A | passed | ' in text
    linked = re.findall(r'\]\((.*?)\)', text)
    assert linked
    assert all((tmp_path / link).is_file() for link in linked)
    assert (tmp_path / 'targets.csv').is_file()
    assert (tmp_path / 'parts.csv').is_file()


@pytest.mark.parametrize('failing', [True, False])
def test_the_driver_reports_after_every_part(tmp_path, monkeypatch, failing):
    planned = [part('a', 'open("seen", "w").write(str(__import__("os").path.exists("report.md")))'),
               part('b', f'open("seen", "a").write(open("report.md").read())\nraise SystemExit({int(failing)})')]
    monkeypatch.setattr(report, 'parts_rehearsed', lambda folder, tools: planned)
    monkeypatch.setenv('WSBCN_IMPL', 'reference')
    assert report.gpu_report(tmp_path, tmp_path, 60, rehearse=True) is not failing
    seen = (tmp_path / 'seen').read_text()
    assert seen.startswith('False# Report on a GPU: rehearsal')
    assert '| A | passed' in seen


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')
def test_without_a_gpu_one_sentence(tmp_path):
    with pytest.raises(UsageError, match='PyTorch sees no GPU here; --rehearse runs a small version of everything'):
        report.gpu_report(tmp_path / 'new', tmp_path, 60)
    assert not (tmp_path / 'new').exists()


@pytest.fixture
def main(root, monkeypatch):
    """The tool's main function, called with a report that does something else."""
    main = runpy.run_path(str(root / 'tools' / 'gpu_report.py'))['main']
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(sys, 'argv', ['gpu_report.py'])

    def call(report):
        main.__globals__['gpu_report'] = report
        with pytest.raises(SystemExit) as ended:
            main(SimpleNamespace(out=None, limit=1, rehearse=True))
        return ended.value.code

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_folder_that_cannot_be_made_is_one_sentence(main, tmp_path):
    (tmp_path / 'file').touch()
    assert 'file' in main(lambda *_: report.gpu_report(tmp_path / 'file', tmp_path, 1, rehearse=True))


def test_an_interrupt_ends_without_a_traceback(main):
    assert main(lambda *_: signal.raise_signal(signal.SIGINT)) == 128 + signal.SIGINT


def test_the_log_of_a_part_names_kernels_that_are_not_used(tmp_path, monkeypatch):
    code = 'import warnings; warnings.warn("noise"); warnings.warn("BCN uses stock operators, which are slower")'
    one, = [one for one in plan.parts_rehearsed(tmp_path, tmp_path) if one.name == 'training_float32']
    run_parts([one._replace(commands=[[sys.executable, '-S', '-c', code]])], tmp_path, 60)
    log = (tmp_path / 'logs' / f'{one.name}.log').read_text()
    assert 'which are slower' in log
    assert 'noise' not in log


def test_tables_in_markdown():
    rows = [{'name': 'a', 'ratio': '0.123', 'empty': '', 'bytes': 1234}, {'name': 'b', 'ratio': None, 'bytes': '5'}]
    assert markdown_table(rows, {'name': '', 'ratio': '.2f', 'empty': '', 'bytes': ','}).splitlines() == [
        '| name | ratio | bytes |', '| --- | ---: | ---: |', '| a | 0.12 | 1,234 |', '| b |  | 5 |']


# The comparison with float64

@pytest.mark.parametrize('dtype', agreement.TOLERANCES)
@pytest.mark.parametrize('case', [case for case in agreement.MANY_CASES if 'ResNet' not in case.name],
                         ids=lambda case: case.name)
def test_the_stock_operators_agree_in_every_case(case, dtype):
    assert agreement.agreement(case, 'cpu', dtype, 'fused').good


def wrong(change):
    """batch_channel_norm with another output than the reference's, for the fused form."""
    right = agreement.batch_channel_norm

    def call(x, *arguments, impl, **options):
        y = right(x, *arguments, impl=impl, **options)
        return change(y, arguments, options) if impl == 'fused' else y
    return call


def fail(*_):
    raise RuntimeError('out of resource: shared memory')


@pytest.mark.parametrize('change, cause', [
    (lambda y, *_: y + 0.01, 'odd planes: the output differs by'),
    (lambda y, *_: y * float('nan'), 'odd planes: the output differs by nan'),
    (lambda y, arguments, _: (arguments[3].add_(0.01), y)[1], 'odd planes: the running_var differs by'),
    (lambda y, _, options: (options['skipped_updates'].add_(1), y)[1],
     'odd planes: the count of skipped updates differs by'),
    (lambda y, *_: y + torch.rand(()), 'odd planes: the output of a second run differs'),
    (fail, 'odd planes: RuntimeError: out of resource: shared memory')])
def test_wrong_kernels_are_found(change, cause, monkeypatch):
    monkeypatch.setattr(agreement, 'batch_channel_norm', wrong(change))
    failure, _ = agreement.first_failure(agreement.CASES, 'cpu', torch.float32, 'fused')
    assert failure.startswith(cause)
    line = installation._kernels_on('cpu', 'a GPU', torch.float32, 'fused')
    assert line.broken
    assert f'a GPU: the kernels FAIL in the case {cause}' in line.text
    assert ('Traceback' in line.text or 'raise RuntimeError' in line.text) == (change is fail)


def test_kernels_that_agree_are_one_line(monkeypatch):
    line = installation._kernels_on('cpu', 'a GPU', torch.bfloat16, 'fused')
    assert not line.broken
    assert re.match(r'a GPU: the kernels agree with float64, to \de-03 of at most 2e-02, in 8 cases', line.text)
    assert '\n' not in line.text


def test_check_has_a_line_per_gpu_and_dtype(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda index: f'GPU {index}')
    monkeypatch.setattr(installation, '_kernels_on', lambda *arguments: arguments)
    assert [(device, name) for device, name, _ in installation.gpu_kernels()] == [
        ('cuda:0', 'GPU 0')] * 3 + [('cuda:1', 'GPU 1')] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')
def test_check_without_a_gpu_is_one_sentence():
    result = run_tool('check_installation.py', '--gpu', check=False)
    assert result.returncode == 1
    assert not result.stdout
    assert re.fullmatch(r'check_installation.py: --gpu needs a GPU, and PyTorch \S+ sees none here: .*\n',
                        result.stderr)


def test_no_gpu_names_the_cause(monkeypatch):
    monkeypatch.setattr(torch, 'cuda', SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(torch.version, 'cuda', '12.8')
    assert installation.no_gpu().endswith('the driver or the GPU is not found')
