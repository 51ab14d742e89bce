#!/usr/bin/env python
"""Kill a training at random times, resume it each time, and compare the result with an uninterrupted training.

The training is repeated until the kills are done, so make it short: --cfg-options train_cfg.max_iters=10
default_hooks.checkpoint.interval=1. Every tensor of the last checkpoints (weights, estimates, state of the optimizer)
must be equal bit for bit.
"""
import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from wsbcn.arguments import config_file, parse, positive

TOOLS = Path(__file__).resolve().parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=config_file, help='config file')
    parser.add_argument('--kills', type=positive, default=20, help='number of kills (default: 20)')
    parser.add_argument('--processes', type=positive, default=1,
                        help='number of processes of the training (default: 1)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the training and of the times of the kills')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/check_resume'), help='folder for the trainings')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='settings that override the config')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

import torch

from wsbcn_mmseg.runtime.checkpoint import read_checkpoint
from wsbcn_mmseg.runtime.command import exit_with
from wsbcn_mmseg.runtime.resume import newest_whole_checkpoint


def start(args: argparse.Namespace, folder: Path) -> subprocess.Popen:
    """Start or resume a training in a new session."""
    command = [sys.executable, TOOLS / 'train.py', args.config] if args.processes == 1 else \
        ['bash', TOOLS / 'dist_train.sh', args.config, str(args.processes)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'output.txt').open('a') as output:
        return subprocess.Popen([*command, '--work-dir', folder, '--auto-resume', '--cfg-options',
                                 f'randomness.seed={args.seed}', *args.cfg_options], stdout=output,
                                stderr=subprocess.STDOUT, start_new_session=True)


def kill(process: subprocess.Popen) -> None:
    """Kill a training and all its child processes; torchrun starts each of them in a new session."""
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """All descendants of a process."""
    listed = subprocess.run(['pgrep', '-P', str(pid)], capture_output=True, text=True).stdout
    children = list(map(int, listed.split()))
    return [*children, *(inner for child in children for inner in descendants(child))]


def tensors(value, name: str = '') -> dict[str, torch.Tensor]:
    """The tensors inside the dictionaries and lists of a checkpoint."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {key: tensor for part, inner in items for key, tensor in tensors(inner, f'{name}/{part}').items()}


def differences(folder: Path, other: Path) -> list[str]:
    """Names of tensors that differ between the last checkpoints of two trainings."""
    first, second = (tensors(read_checkpoint(newest_whole_checkpoint(each).path)) for each in (folder, other))
    return [name for name in first | second if name not in first or name not in second
            or not torch.equal(first[name], second[name])]


def main(args: argparse.Namespace) -> None:
    whole, chance = args.out / 'whole', random.Random(args.seed)
    kills, finished, interrupted = 0, 0, True
    shutil.rmtree(args.out, ignore_errors=True)
    begin = time.perf_counter()
    if start(args, whole).wait():
        exit_with(f'the training failed; see {whole / "output.txt"}')
    seconds = time.perf_counter() - begin
    while kills < args.kills or interrupted:  # resume the last one to its end too
        folder = args.out / f'killed{finished}'
        process = start(args, folder)
        try:
            status = process.wait(chance.uniform(0, seconds) if kills < args.kills else None)
        except subprocess.TimeoutExpired:
            kill(process)
            kills, interrupted = kills + 1, True
            continue
        if status:
            exit_with(f'the training failed after {kills} kills; see {folder / "output.txt"}')
        if found := differences(whole, folder):
            exit_with(f'after {kills} kills {len(found)} tensors differ, the first is {found[0]}; see {folder}')
        finished, interrupted = finished + 1, False
        print(f'{kills} kills, {finished} trainings finished, all equal to the uninterrupted one', flush=True)


if __name__ == '__main__':
    main(ARGS)
