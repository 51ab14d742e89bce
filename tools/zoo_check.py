#!/usr/bin/env python
"""Convert every family of MMSegmentation's model zoo to BCN and WS, train for one step, evaluate, and write a table."""
import argparse
import json
import subprocess
import sys
from pathlib import Path

from wsbcn.arguments import parse, positive

ROOT = Path(__file__).resolve().parent.parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('families', nargs='*', metavar='FAMILY', default=[],
                        help='configs in the configs folder of the installed MMSegmentation whose table rows are '
                        'updated; all by default')
    parser.add_argument('--size', type=positive, default=128, help='side of the images')
    parser.add_argument('--timeout', type=float, default=300, help='time limit per family in seconds')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'zoo.md', help='the table')
    parser.add_argument('--one', action='store_true', help='check one family in this process and print JSON')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.experiments.zoo import Result, check, families, read_table, table
from wsbcn_mmseg.runtime.command import exit_with


def check_apart(family: str, size: int, timeout: float) -> Result:
    """Check a family in a separate process, so that its memory is freed and a crash is contained."""
    command = [sys.executable, __file__, family, '--one', '--size', str(size)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Result(family, f'took more than {timeout:g} s')
    lines = process.stdout.strip().splitlines()
    if process.returncode or not lines:
        return Result(family, f'the process ended with {process.returncode}')
    return Result(**json.loads(lines[-1]))


def main(args: argparse.Namespace) -> None:
    unknown = [name for name in args.families if name not in families()]
    if unknown:
        exit_with(f'MMSegmentation ships no config {unknown[0]}')
    if args.one:
        print(json.dumps(vars(check(args.families[0], args.size))))
        return
    results = {result.family: result for result in read_table(args.out) if result.family in families()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    chosen = args.families or families()
    for number, family in enumerate(chosen, 1):
        results[family] = check_apart(family, args.size, args.timeout)
        print(f'{number}/{len(chosen)} {family}: {results[family].outcome}', flush=True)
        args.out.write_text(table([results[name] for name in families() if name in results], args.size))
    print(f'Wrote {args.out}')


if __name__ == '__main__':
    main(ARGS)
