#!/usr/bin/env python
"""Train BN, GN, GN+WS, BCN and BCN+WS on scikit-learn's digits, with 128 images per update and with one.

Writes a table and a plot. What was trained before is not trained again: stop and go on as you like.
"""
import argparse
from pathlib import Path

from wsbcn_mmseg.experiments.comparison import Training, compare

ROOT = Path(__file__).resolve().parent.parent
METHODS = ['BN', 'GN', 'GN+WS', 'BCN', 'BCN+WS']


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/digits'), help='folder of logs, table and plot')
    parser.add_argument('--seeds', type=int, default=3, help='trainings of each kind')
    parser.add_argument('--jobs', type=int, default=2, help='trainings at a time, one thread each')
    parser.add_argument('--quick', action='store_true', help='one seed and one epoch: a look at the command')
    args = parser.parse_args()
    if args.seeds < 1 or args.jobs < 1:
        parser.error('--seeds and --jobs must be at least 1')
    return args


def main() -> None:
    args = parse_args()
    options = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1') if args.quick else ()
    configs = ROOT / 'configs' / 'digits'
    trainings = [
        Training(method, batch, seed, configs / f'resnet8_{method.lower().replace("+", "_")}_digits.py', options,
                 {'DIGITS_BATCH': str(batch)})
        for seed in range(1 if args.quick else args.seeds) for batch in (128, 1) for method in METHODS]
    print(f'{len(trainings)} trainings of ResNet-8 on 1,347 digits, tested on 450; results in {args.out}')
    print(compare(trainings, ROOT / 'tools' / 'train.py', args.out, 'accuracy/top1', 'Test accuracy (%)', args.jobs))


if __name__ == '__main__':
    main()
