#!/usr/bin/env python
"""Plot the logs of NormStatisticsHook: StatDiff of several runs, and the eliminated channels, gradient shares and
histograms of each run, if it has them. Every plot is written as PNG and SVG."""
import argparse
import sys
from functools import partial
from pathlib import Path

from wsbcn.arguments import parse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='work folders with logs of the hook')
    parser.add_argument('--out', type=Path, help='folder for the plots (default: the first run)')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.experiments.watched_runs import (
    plot_eliminated,
    plot_gradient_shares,
    plot_histograms,
    plot_stat_diff,
    read_norm_statistics,
    save,
)


def main(args: argparse.Namespace) -> None:
    out = args.out or args.runs[0]
    try:
        names = [run.resolve().name for run in args.runs]
        runs = {name if names.count(name) == 1 else '_'.join(run.parts): read_norm_statistics(run)
                for name, run in zip(names, args.runs, strict=True)}
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'plot_norm_statistics.py: {error}')
    if not all(runs.values()):
        sys.exit('plot_norm_statistics.py: no samples yet; the hook writes the first after `interval` iterations')
    paths = save(plot_stat_diff(runs), out / 'stat_diff')
    for name, lines in runs.items():
        prefix = f'{name}_' if len(runs) > 1 else ''
        for plot, file in ((partial(plot_eliminated, title=name), 'eliminated'),
                           (plot_gradient_shares, 'gradient_shares'), (plot_histograms, 'histograms')):
            try:
                paths += save(plot(lines), out / f'{prefix}{file}')
            except ValueError:  # the run has no such data
                continue
    print('Wrote ' + ', '.join(map(str, paths)))


if __name__ == '__main__':
    main(ARGS)
