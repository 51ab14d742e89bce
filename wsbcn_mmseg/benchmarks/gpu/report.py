"""Run the report on a GPU and write ``report.md``."""
import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from wsbcn_mmseg.benchmarks.measuring import Options, implementations
from wsbcn_mmseg.benchmarks.report import BENCHMARKS, machine
from wsbcn_mmseg.plotting import plot_runs
from wsbcn_mmseg.runtime.errors import UsageError
from wsbcn_mmseg.runtime.records import markdown_table, write_csv

from .parts import FAILED, PASSED, Outcome, Part, run_parts, unfinished
from .plan import parts_on_gpu, parts_rehearsed
from .targets import PASS, Target, read, targets

NOT_FOR_PARTS = ('PRETRAINED', 'WSBCN_IMPL', 'TRITON_INTERPRET', 'NNODES', 'NODE_RANK', 'WORLD_SIZE', 'RANK', 'PORT')
TABLES = {'networks': 'networks', 'networks_amp': 'networks', 'memory': 'memory', 'deployment': 'deployment',
          **dict.fromkeys(('layers_batch_1', 'layers_graphs', 'layers_batch_2_and_4', 'layers_bfloat16'), 'layers')}
REHEARSAL = ('**This is a rehearsal on a CPU.** Sizes are small, kernels ran in Triton\'s interpreter, and times are '
             'those of other implementations. Nothing here says anything about a GPU.')


def gpu_report(folder: Path, tools: Path, limit: float, rehearse: bool = False) -> bool:
    """Run the parts that have not passed yet, and write ``report.md`` after each of them.

    Args:
        folder: Folder for all output.
        tools: The folder ``tools``.
        limit: Time limit of this run, in seconds.
        rehearse: Run smaller parts, on the CPU.

    Returns:
        Whether all parts that are possible here have passed.

    Raises:
        UsageError: If there is no GPU and this is no rehearsal.
    """
    if not rehearse and not torch.cuda.is_available():
        raise UsageError('PyTorch sees no GPU here; --rehearse runs a small version of everything on the CPU')
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in NOT_FOR_PARTS:
        os.environ.pop(name, None)
    parts = (parts_rehearsed if rehearse else parts_on_gpu)(folder, tools)
    facts = machine_facts('cpu' if rehearse else 'cuda')
    implementation = implementations('cpu' if rehearse else 'cuda')[-1]
    console = Console()

    def started(part: Part) -> None:
        console.print(f'{part.title}, at most {part.seconds:.0f} s (logs/{part.name}.log)')

    def ended(outcome: Outcome, outcomes: list[Outcome]) -> None:
        console.print(f'  {outcome.status}, {outcome.seconds:.0f} s')
        write_report(folder, parts, outcomes, facts, implementation, rehearse)

    outcomes = run_parts(parts, folder, limit, started, ended)
    write_report(folder, parts, outcomes, facts, implementation, rehearse)
    return not list(unfinished(outcomes))


def machine_facts(device: str) -> dict:
    """The machine, and the versions of the measured software."""
    facts = machine(Options(device))
    if device == 'cuda':
        properties = torch.cuda.get_device_properties(0)
        facts |= {'capability': '.'.join(map(str, torch.cuda.get_device_capability(0))),
                  'memory': f'{properties.total_memory / 1e9:.1f} GB', 'processors': properties.multi_processor_count,
                  'gpus': torch.cuda.device_count(), 'cuda': torch.version.cuda or torch.version.hip,
                  'cudnn': torch.backends.cudnn.version()}
    return {key: value for key, value in facts.items() if key not in ('memory_format', 'cuda_graphs')} | {
        'python': platform.python_version(), 'system': platform.platform()}


def write_report(folder: Path, parts: Sequence[Part], outcomes: Sequence[Outcome], facts: dict, implementation: str,
                 rehearse: bool) -> None:
    """Write ``report.md``, ``targets.csv`` and ``parts.csv``."""
    judged = targets(folder, implementation)
    titles = {part.name: part.title for part in parts}
    left = list(unfinished(outcomes))
    rows = [{'part': titles[outcome.name], 'outcome': outcome.status, 'seconds': outcome.seconds or None,
             'files': _files(folder, outcome)} for outcome in outcomes]
    write_csv([target._asdict() for target in judged], folder / 'targets.csv')
    write_csv([outcome._asdict() | {'commands': len(outcome.commands)} for outcome in outcomes], folder / 'parts.csv')
    sections = ['# Report on a GPU' + (': rehearsal' if rehearse else ''), *[REHEARSAL] * rehearse,
                ', '.join(f'{key} {value}' for key, value in facts.items() if value is not None) + '.',
                f'{sum(target.verdict == PASS for target in judged)} of {len(judged)} targets pass. '
                f'{sum(outcome.status == PASSED for outcome in outcomes)} of {len(outcomes)} parts passed, {len(left)} '
                f'failed or are left{": run the same command again" if left else ""}. '
                f'Written on {datetime.datetime.now():%Y-%m-%d %H:%M}.',
                '## Targets', _targets(judged), '## Parts',
                markdown_table(rows, {'part': '', 'outcome': '', 'seconds': '.0f', 'files': ''}),
                *_reasons(outcomes, titles), *_results(folder, outcomes, titles, implementation)]
    temporary = folder / 'report.part'
    temporary.write_text('\n\n'.join(sections) + '\n')
    temporary.replace(folder / 'report.md')


def _targets(judged: list[Target]) -> str:
    return markdown_table([{'target': target.name, 'limit': target.limit, 'found': target.found or '-',
                            'verdict': target.verdict} for target in judged],
                          {'target': '', 'limit': '', 'found': '', 'verdict': ''})


def _files(folder: Path, outcome: Outcome) -> str:
    results = sorted((folder / 'results' / outcome.name).glob('*.*'))
    paths = [folder / 'logs' / f'{outcome.name}.log', *(path for path in results if path.suffix in ('.csv', '.json'))]
    return ', '.join(f'[{path.name}]({path.relative_to(folder)})' for path in paths if path.is_file())


def _reasons(outcomes: Sequence[Outcome], titles: dict[str, str]) -> list[str]:
    lines = []
    for outcome in outcomes:
        if outcome.status == FAILED:
            lines += [f'**{titles[outcome.name]}** failed:', f'```\n{outcome.reason}\n```']
        elif outcome.reason:
            lines.append(f'**{titles[outcome.name]}** was {outcome.status}: {outcome.reason}.')
    return lines


def _results(folder: Path, outcomes: Sequence[Outcome], titles: dict[str, str], implementation: str) -> list[str]:
    """Tables and plots. For layers, only one implementation of BCN is shown, with forward and backward together."""
    lines = ['## Results']
    for outcome in outcomes:
        results = folder / 'results' / outcome.name
        if outcome.status == PASSED and outcome.name.startswith('training'):
            _draw_training(results)
        plots = [f'![{titles[outcome.name]}]({path.relative_to(folder)})' for path in sorted(results.glob('*.png'))]
        rows = read(folder, outcome.name) if outcome.name in TABLES else []
        rows = [row for row in rows if TABLES[outcome.name] != 'layers'
                or row['pass'] == 'both' and row['implementation'] == implementation]
        table = [markdown_table(rows, BENCHMARKS[TABLES[outcome.name]].columns)] if rows else []
        if plots or table:
            lines += [f'### {titles[outcome.name]}', *table, *plots]
    return lines


def _draw_training(results: Path) -> None:
    try:
        plot_runs([results], results / 'curves.png')
    except (FileNotFoundError, ValueError):  # the run was too short to log both
        pass
