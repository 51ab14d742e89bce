#!/usr/bin/env python
"""Make the paper's Figure 4, 5 or 6 again, small enough for a CPU: on scikit-learn's digits (Figure 5: on CIFAR-10
where CIFAR_ROOT has it). Writes PNG, SVG and the numbers as CSV."""
import argparse
from pathlib import Path

from wsbcn_mmseg.experiments.figure_5 import figure_5
from wsbcn_mmseg.experiments.figures_4_and_6 import figure_4, figure_6

CONFIG = Path(__file__).resolve().parent.parent / 'configs' / '_base_' / 'digits.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('figure', type=int, choices=(4, 5, 6), help='number in the paper')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/figures'), help='folder of pictures and numbers')
    parser.add_argument('--quick', action='store_true', help='two epochs of small networks: a look at the command')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.figure == 5:
        paths = figure_5(args.out, **(dict(sigmas=(0, 3), epochs=2, seeds=1) if args.quick else {}))
    else:
        figure = figure_4 if args.figure == 4 else figure_6
        paths = figure(CONFIG, args.out, **(dict(epochs=2, depth=8) if args.quick else {}))
    print('Wrote ' + ', '.join(map(str, paths)))


if __name__ == '__main__':
    main()
