#!/usr/bin/env python
"""Train a small DeepLabV3 on synthetic mini VOC with several norms, with 8 images per update and with one.

Writes a table and a plot. Finished trainings are not run again, so the command may be stopped and started at any time.
"""
import argparse
import os
from pathlib import Path

from wsbcn.arguments import comparison_parser, parse, positive

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ('BN', 'GN', 'GN+WS', 'BCN+WS', 'BCN+WS, Algorithm 1')


def parse_args() -> argparse.Namespace:
    parser = comparison_parser(__doc__, Path('work_dirs/mini_voc'), 3, DEFAULT)
    parser.add_argument('voc_root', type=Path, help='VOC2012 folder of a prepared mini VOC (tools/make_mini_voc.py)')
    parser.add_argument('--updates', type=positive, default=700, help='updates with 8 images; 8 times as many with one')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.experiments.command import finish
from wsbcn_mmseg.experiments.comparison import Comparison, Training
from wsbcn_mmseg.experiments.method import methods, options


def training(name: str, batch: int, seed: int, updates: int) -> Training:
    """The total number of images is the same; the learning rate is proportional to the batch size."""
    iterations = updates * 8 // batch
    settings = methods(min_channels_per_group=16)[name].segmentor_settings(batch)
    settings |= {
        'train_dataloader.batch_size': batch, 'optim_wrapper.optimizer.lr': .05 * batch / 8,
        'train_cfg.max_iters': iterations, 'train_cfg.val_interval': iterations,
        'param_scheduler.0.end': iterations + 1, 'default_hooks.logger.interval': max(1, iterations // 10),
        'default_hooks.checkpoint.interval': iterations}
    return Training(name, batch, seed, ROOT / 'configs' / '_base_' / 'mini_voc.py', options(settings))


def main(args: argparse.Namespace) -> None:
    os.environ['VOC_ROOT'] = str(args.voc_root.resolve())
    trainings = [training(name, batch, seed, 3 if args.quick else args.updates)
                 for seed in range(args.seeds) for batch in (8, 1) for name in args.methods
                 if (name, batch) != ('BCN+WS, Algorithm 1', 1)]  # with one image, BCN+WS is that
    print(f'{len(trainings)} trainings of a small DeepLabV3 on drawn images; results in {args.out}')
    finish(Comparison(trainings, ROOT / 'tools' / 'train.py', args.out, 'mIoU', 'mIoU on synthetic images (%)',
                      args.jobs, args.reuse))


if __name__ == '__main__':
    main(ARGS)
