#!/usr/bin/env python
"""Plot a run as curves.png, and as predictions.png if predictions are given; or plot training and validation of several
runs in one image, as in the paper's Figure 8."""
import argparse
from pathlib import Path

from wsbcn.arguments import parse, positive


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dirs', type=Path, nargs='+', metavar='work_dir',
                        help='folder of a run, where its plots are written; or of several runs to plot together')
    parser.add_argument('--out', type=Path, help="image to write (default: curves.png in the run's folder; for "
                        'several runs, runs.png in the folder above the first)')
    parser.add_argument('--predictions', type=Path, help='folder written by tools/test.py --out, for one run')
    parser.add_argument('--count', type=positive, default=6,
                        help='number of predictions to draw (default: %(default)s)')
    parser.add_argument('--voc-root', type=Path,
                        help="VOC2012 folder of the predicted images (default: the test images of the run's config)")
    args = parse(parser)
    if args.predictions and len(args.work_dirs) > 1:
        parser.error('--predictions needs a single run, but several are given')
    return args


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

import matplotlib

from wsbcn_mmseg.plotting import images_of_run, plot_curves, plot_predictions, plot_runs
from wsbcn_mmseg.runtime.command import exit_with
from wsbcn_mmseg.runtime.errors import UsageError

matplotlib.use('Agg')


def main(args: argparse.Namespace) -> None:
    first = args.work_dirs[0]
    try:
        if len(args.work_dirs) > 1:
            plot_runs(args.work_dirs, args.out or first.parent / 'runs.png')
        else:
            plot_curves(first, args.out or first / 'curves.png')
        if args.predictions:
            dataset = args.voc_root or images_of_run(first)
            plot_predictions(dataset, args.predictions, first / 'predictions.png', args.count)
    except (FileNotFoundError, ValueError, UsageError) as error:
        exit_with(error)


if __name__ == '__main__':
    main(ARGS)
