"""Run the parts of a long measurement one after the other; a second run continues where the first stopped."""
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PASSED, FAILED, STOPPED, LEFT, NOT_HERE = 'passed', 'failed', 'stopped', 'not started', 'not possible here'
LINES = 8  # last lines of a log, given as the reason of a failure
PATIENCE = 5  # seconds between asking a process to exit and killing it


class Part(NamedTuple):
    """Commands that run in turn until one fails."""
    name: str  # name of its log, state and result folder
    title: str
    commands: Sequence[Sequence[str]]  # lists of arguments
    seconds: float  # time limit
    environment: dict[str, str] = {}
    not_here: str = ''  # reason if it cannot run on this machine


class Outcome(NamedTuple):
    """How a part ended."""
    name: str
    status: str
    seconds: float = 0
    reason: str = ''  # set if it failed or cannot run here
    commands: Sequence[Sequence[str]] = ()


def run_parts(parts: Sequence[Part], folder: Path, limit: float,
              started: Callable[[Part], None] = lambda part: None,
              ended: Callable[[Outcome, list[Outcome]], None] = lambda outcome, outcomes: None) -> list[Outcome]:
    """Run the parts that have not passed yet in order, each in separate processes.

    If a part fails or exceeds its time, the others still run. When the limit is reached, the running part is stopped
    and the others are not started. Each outcome is written when its part ends, so that it is not lost if this process
    is killed.

    Args:
        parts: The parts, the most important first.
        folder: Folder for ``logs/NAME.log`` and ``parts/NAME.json``; parts write to ``results/NAME``.
        limit: Time limit for all parts in this run, in seconds.
        started: Called before each part that runs.
        ended: Called after each part that ran, with its outcome and the outcomes so far.

    Returns:
        The outcomes, in the order of the parts.
    """
    for name in ('logs', 'parts'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + limit
    outcomes = {part.name: _earlier(part, folder) or Outcome(part.name, LEFT) for part in parts}
    for part in parts:
        if part.not_here:
            outcomes[part.name] = Outcome(part.name, NOT_HERE, reason=part.not_here)
        elif outcomes[part.name].status != PASSED and time.monotonic() < end:
            started(part)
            outcomes[part.name] = outcome = _run(part, folder, end)
            _write(_state(part, folder), outcome)
            ended(outcome, list(outcomes.values()))
    return list(outcomes.values())


def _state(part: Part, folder: Path) -> Path:
    return folder / 'parts' / f'{part.name}.json'


def _earlier(part: Part, folder: Path) -> Outcome | None:
    """The outcome of the same commands in an earlier run, if there is one."""
    try:
        outcome = Outcome(**json.loads(_state(part, folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return outcome if outcome.commands == [list(command) for command in part.commands] else None


def _write(path: Path, outcome: Outcome) -> None:
    temporary = path.with_suffix('.part')
    temporary.write_text(json.dumps(outcome._asdict()))
    temporary.replace(path)


def _run(part: Part, folder: Path, end: float) -> Outcome:
    start = time.monotonic()
    path = folder / 'logs' / f'{part.name}.log'
    commands = [list(command) for command in part.commands]
    shutil.rmtree(folder / 'results' / part.name, ignore_errors=True)  # left by an earlier attempt
    with path.open('w') as log:
        for command in commands:
            left = min(start + part.seconds, end) - time.monotonic()
            status = _run_command(command, {**os.environ, **part.environment}, folder, log, left)
            if status != 0:
                break
    seconds = round(time.monotonic() - start, 1)
    if status == 0:
        return Outcome(part.name, PASSED, seconds, '', commands)
    if status is not None:
        reason = f'exit status {status}'
    elif time.monotonic() >= end:
        return Outcome(part.name, STOPPED, seconds, 'the time limit of the report was reached', commands)
    else:
        reason = f'it took longer than {part.seconds:.0f} s'
    return Outcome(part.name, FAILED, seconds, '\n'.join([reason, *last_lines(path)]), commands)


def _run_command(command: list[str], environment: dict[str, str], folder: Path, log, seconds: float) -> int | None:
    """The exit status of a command, or None if it was stopped after its time limit. Its children are stopped too."""
    try:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=subprocess.STDOUT, start_new_session=True)
    except OSError as error:
        log.write(f'{error}\n')
        return 127
    try:
        return process.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    """Kill a process and its children, including those that a failed process left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_lines(path: Path) -> list[str]:
    """The last lines of a log, without empty lines."""
    lines = path.read_text(errors='replace').replace('\r', '\n').splitlines()
    return [line.rstrip()[:300] for line in lines if line.strip()][-LINES:]


def unfinished(outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
    """The parts that failed, were stopped or were not started."""
    return (outcome for outcome in outcomes if outcome.status in (FAILED, STOPPED, LEFT))
