#!/usr/bin/env python
"""Train a small DeepLabV3 on synthetic mini VOC: BN, GN, GN+WS, BCN+WS with 8 images per update and with one.

BN cannot train with one image per process: its layer in the pooled branch would see one value per channel. Writes a
table and a plot. What was trained before is not trained again: stop and go on as you like.
"""
import argparse
from pathlib import Path

from wsbcn_mmseg.experiments.comparison import Training, compare

ROOT = Path(__file__).resolve().parent.parent
METHODS = {'BN': dict(type='BN'), 'GN': dict(type='GNByWidth', min_channels_per_group=2),
           'GN+WS': dict(type='GNByWidth', min_channels_per_group=2), 'BCN+WS': dict(type='BCN')}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('voc_root', type=Path, help='VOC2012 folder of a prepared mini VOC (tools/make_mini_voc.py)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/mini_voc'), help='folder of logs, table and plot')
    parser.add_argument('--updates', type=int, default=350, help='updates of 8 images; 8 times as many of one')
    parser.add_argument('--seeds', type=int, default=1, help='trainings of each kind')
    parser.add_argument('--jobs', type=int, default=2, help='trainings at a time, one thread each')
    args = parser.parse_args()
    if args.seeds < 1 or args.jobs < 1:
        parser.error('--seeds and --jobs must be at least 1')
    return args


def options(method: str, batch: int, updates: int) -> tuple[str, ...]:
    """Settings over ``configs/demo_mini_voc.py``: equally many images in all, learning rate by batch size."""
    iterations = updates * 8 // batch
    norm = [f'model.{part}.norm_cfg.{key}={value}' for part in ('backbone', 'decode_head')
            for key, value in METHODS[method].items()]
    if method == 'BCN+WS':
        norm += [f'model.{part}.norm_cfg.mode={"micro_batch" if batch == 1 else "large_batch"}'
                 for part in ('backbone', 'decode_head')]
    conv = 'ConvWS' if method.endswith('WS') else 'Conv2d'
    return (*norm, f'model.backbone.conv_cfg.type={conv}', f'model.decode_head.conv_cfg.type={conv}',
            f'train_dataloader.batch_size={batch}', f'optim_wrapper.optimizer.lr={.05 * batch / 8}',
            f'train_cfg.max_iters={iterations}', f'train_cfg.val_interval={iterations}',
            f'param_scheduler.0.end={iterations + 1}', f'default_hooks.logger.interval={iterations // 10}',
            f'default_hooks.checkpoint.interval={iterations}')


def main() -> None:
    args = parse_args()
    trainings = [
        Training(method, batch, seed, ROOT / 'configs' / 'demo_mini_voc.py', options(method, batch, args.updates),
                 {'VOC_ROOT': str(args.voc_root)})
        for seed in range(args.seeds) for batch in (8, 1) for method in METHODS if (method, batch) != ('BN', 1)]
    print(f'{len(trainings)} trainings of a small DeepLabV3 on drawn images; results in {args.out}')
    print(compare(trainings, ROOT / 'tools' / 'train.py', args.out, 'mIoU', 'mIoU on synthetic images (%)', args.jobs))


if __name__ == '__main__':
    main()
