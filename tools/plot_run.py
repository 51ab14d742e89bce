#!/usr/bin/env python
"""Draw curves.png, and predictions.png where predictions are given, of a finished run."""
import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

from wsbcn_mmseg.visualization import plot_curves, plot_predictions  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, help='folder of the run; the pictures go there')
    parser.add_argument('--predictions', type=Path, help='folder that tools/test.py --out wrote')
    parser.add_argument('--voc-root', type=Path, default=Path('data/VOCdevkit/VOC2012'),
                        help='VOC2012 folder of the predicted images (default: %(default)s)')
    args = parser.parse_args()
    try:
        plot_curves(args.work_dir, args.work_dir / 'curves.png')
        if args.predictions:
            plot_predictions(args.voc_root, args.predictions, args.work_dir / 'predictions.png')
    except FileNotFoundError as error:
        sys.exit(f'plot_run.py: {error}')


if __name__ == '__main__':
    main()
