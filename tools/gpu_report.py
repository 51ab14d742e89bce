#!/usr/bin/env python
"""Measure and test everything on this machine's GPU, offline, in at most eight minutes, and write report.md.

Kernels against float64, layers, training steps, memory, tests, short trainings, inference, two processes; the report
says which targets pass. Parts that have passed are skipped in the next run with the same folder: after the time limit
or a fault, run the command again. The exit status is 0 if all parts have passed. See docs/benchmarks/gpu_report.md.
"""
import argparse
import signal
import sys
from pathlib import Path

from wsbcn.arguments import parse

TOOLS = Path(__file__).resolve().parent
LIMIT = 480


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float('inf'):
        raise ValueError
    return number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, nargs='?', help='folder of the report (default: work_dirs/gpu_report, or '
                        'work_dirs/gpu_rehearsal)')
    parser.add_argument('--limit', type=seconds, default=LIMIT, metavar='SECONDS',
                        help='stop after so many seconds (default: %(default)s)')
    parser.add_argument('--rehearse', action='store_true',
                        help='run a small version of everything on the CPU, to try the command')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.benchmarks.gpu.report import gpu_report
from wsbcn_mmseg.runtime.command import exit_with
from wsbcn_mmseg.runtime.errors import UsageError


def main(args: argparse.Namespace) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # so that the part that runs is ended too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    out = args.out or Path('work_dirs', 'gpu_rehearsal' if args.rehearse else 'gpu_report')
    try:
        passed = gpu_report(out, TOOLS, args.limit, args.rehearse)
    except (UsageError, OSError) as error:  # OSError: of the folder
        exit_with(error)
    print(f'Wrote {out / "report.md"}')
    if not passed:
        exit_with('some parts failed or are left; the report has the reasons. The same command goes on with them')


if __name__ == '__main__':
    main(ARGS)
