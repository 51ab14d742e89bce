#!/usr/bin/env python
"""Reproduce Figure 4, 5 or 6 of the paper. By default, the trainings are small enough for a CPU and use scikit-learn's
digits (Figure 5: CIFAR-10 if CIFAR_ROOT has it). With --data cifar10, Figure 6 is as in the paper. Writes PNG, SVG and
the numbers as CSV.
"""
import argparse
import os
from pathlib import Path

from wsbcn.arguments import parse, positive

CONFIGS = Path(__file__).resolve().parent.parent / 'configs' / '_base_'
DATA = {  # config, depth, epochs
    'digits': (CONFIGS / 'digits.py', 20, 30),
    'cifar10': (CONFIGS / 'cifar10_resnet110.py', 110, 164),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('figure', type=int, choices=(4, 5, 6), help='number of the figure in the paper')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/figures'),
                        help='folder for images and numbers (default: %(default)s)')
    parser.add_argument('--data', choices=DATA, default='digits',
                        help='data of Figures 4 and 6; cifar10 needs CIFAR_ROOT (default: %(default)s)')
    parser.add_argument('--depth', type=int, choices=(8, 20, 32, 44, 56, 110),
                        help='layers of the ResNet of Figures 4 and 6 (default: 20; with cifar10: 110)')
    parser.add_argument('--epochs', type=positive,
                        help='epochs of each training (default: 30; Figure 5: 10; cifar10: 164)')
    parser.add_argument('--quick', action='store_true', help='two epochs of small networks, to try the command')
    args = parse(parser)
    if args.figure == 5 and (args.depth or args.data != 'digits'):
        parser.error('--data and --depth are for Figures 4 and 6; Figure 5 has its own network')
    cifar = Path(os.environ.get('CIFAR_ROOT', 'data/cifar'), 'cifar-10-batches-py')
    if args.data == 'cifar10' and not cifar.is_dir():
        parser.error(f'{cifar} does not exist; set CIFAR_ROOT to the folder that holds cifar-10-batches-py')
    return args


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.experiments.figure_5 import figure_5
from wsbcn_mmseg.experiments.figures_4_and_6 import figure_4, figure_6


def main(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    if args.figure == 5:
        settings = dict(sigmas=(0, 3), epochs=2, seeds=1) if args.quick else {}
        paths = figure_5(args.out, **settings | (dict(epochs=args.epochs) if args.epochs else {}))
    else:
        config, depth, epochs = DATA[args.data]
        if args.quick:
            depth, epochs = 8, 2
        figure = figure_4 if args.figure == 4 else figure_6
        paths = figure(config, args.out, epochs=args.epochs or epochs, depth=args.depth or depth)
    print('Wrote ' + ', '.join(map(str, paths)))


if __name__ == '__main__':
    main(ARGS)
