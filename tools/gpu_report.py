#!/usr/bin/env python
"""Measure and test everything on this machine's GPU, offline, in at most eight minutes, and write report.md.

It covers kernels against float64, layers, training steps, memory, tests, short trainings, inference and two processes;
the report shows which targets are reached. A run skips parts that have already passed in the same folder: after the
time limit or an error, run the command again. The exit status is 0 if all parts have passed. See
docs/benchmarks/gpu_report.md.
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
    parser.add_argument('out', type=Path, nargs='?', help='folder for the report (default: work_dirs/gpu_report, or '
                        'work_dirs/gpu_rehearsal)')
    parser.add_argument('--limit', type=seconds, default=LIMIT, metavar='SECONDS',
                        help='time limit in seconds (default: %(default)s)')
    parser.add_argument('--rehearse', action='store_true',
                        help='run a small version of everything on the CPU, to try the command')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.benchmarks.gpu.report import gpu_report
from wsbcn_mmseg.runtime.command import exit_with
from wsbcn_mmseg.runtime.errors import UsageError


def main(args: argparse.Namespace) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # so that the running part is stopped too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    out = args.out or Path('work_dirs', 'gpu_rehearsal' if args.rehearse else 'gpu_report')
    try:
        passed = gpu_report(out, TOOLS, args.limit, args.rehearse)
    except (UsageError, OSError) as error:  # OSError: the folder cannot be written
        exit_with(error)
    print(f'Wrote {out / "report.md"}')
    if not passed:
        exit_with('some parts failed or did not run; the report has the reasons. Run the same command to continue')


if __name__ == '__main__':
    main(ARGS)
