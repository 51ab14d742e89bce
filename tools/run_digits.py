#!/usr/bin/env python
"""Train with every norm on scikit-learn's digits, with 128 images per update and with one.

Writes a table and a plot. Finished trainings are not run again, so the command may be stopped and started at any time.
"""
import argparse
from pathlib import Path

from wsbcn.arguments import comparison_parser, parse

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ('BN', 'GN', 'GN+WS', 'BCN', 'BCN+WS', 'SN', 'EvoNorm-S0', 'FRN+TLU')


def parse_args() -> argparse.Namespace:
    parser = comparison_parser(__doc__, Path('work_dirs/digits'), 3, DEFAULT)
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.experiments.command import finish, require_packages
from wsbcn_mmseg.experiments.comparison import Comparison, Training
from wsbcn_mmseg.experiments.method import methods, options


def main(args: argparse.Namespace) -> None:
    require_packages(mmpretrain='pip install onedl-mmpretrain==1.3.6', torchvision='pip install torchvision',
                     sklearn='pip install scikit-learn')
    quick = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1') if args.quick else ()
    rows = methods(min_channels_per_group=4)
    trainings = [
        Training(name, batch, seed, ROOT / 'configs' / '_base_' / 'digits.py',
                 (*options(rows[name].settings(batch)), *quick), dict(DIGITS_BATCH=str(batch)))
        for seed in range(args.seeds) for batch in (128, 1) for name in args.methods]
    print(f'{len(trainings)} trainings of ResNet-8 on 1,347 digits, tested on 450; results in {args.out}')
    finish(Comparison(trainings, ROOT / 'tools' / 'train.py', args.out, 'accuracy/top1', 'Test accuracy (%)',
                      args.jobs, args.reuse))


if __name__ == '__main__':
    main(ARGS)
