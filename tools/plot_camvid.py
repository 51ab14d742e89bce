#!/usr/bin/env python
"""Draw test images of CamVid with their labels and the predictions of a trained network.

CAMVID_ROOT in the environment is the CamVid folder, as for training.
"""
import argparse
from pathlib import Path

from wsbcn.arguments import config_file, parse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', type=config_file, help='of the training')
    parser.add_argument('checkpoint', help='what it saved')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/camvid_predictions.png'), help='picture to write')
    parser.add_argument('--count', type=int, default=4, help='images to show')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from mmengine.config import Config
from mmseg.registry import DATASETS

from wsbcn_mmseg import load_segmentor
from wsbcn_mmseg.experiments.predictions import draw_predictions
from wsbcn_mmseg.runtime.command import exit_with
from wsbcn_mmseg.runtime.errors import UsageError


def main(args: argparse.Namespace) -> None:
    try:
        model = load_segmentor(args.config, args.checkpoint)
        dataset = DATASETS.build(Config.fromfile(args.config).test_dataloader.dataset)
    except (UsageError, FileNotFoundError) as error:
        exit_with(error)
    print(f'Wrote {draw_predictions(model, dataset, args.out, args.count)}')


if __name__ == '__main__':
    main(ARGS)
