#!/usr/bin/env python
"""Convert networks that were trained with BN, and measure their scores; writes docs/results/preserve.md.

Digits: scikit-learn's 8x8 images, ResNet-8. Mini VOC: the synthetic data and the network of tools/demo.sh. Needs
scikit-learn (pip install '.[digits]').
"""
import argparse
import copy
import os
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from wsbcn.arguments import parse, positive

ROOT = Path(__file__).resolve().parent.parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--iterations', type=positive, default=300, help='of training with BN on mini VOC')
    parser.add_argument('--finetuning', type=positive, default=60, help='iterations after the conversion')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'results' / 'preserve.md')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from wsbcn_mmseg import convert_model
from wsbcn_mmseg.conversion.calibrate import calibrate
from wsbcn_mmseg.datasets.mini_voc import make_mini_voc
from wsbcn_mmseg.datasets.voc_aug import plan_voc_aug, prepare_voc_aug
from wsbcn_mmseg.experiments.method import methods

CONVERSIONS = {  # arguments of convert_model, and whether to calibrate
    'none (BN)': (None, False),
    'BCN + WS': (dict(), False),
    'BCN + WS, `preserve=True`': (dict(preserve=True), False),
    'the same, calibrated on ten images': (dict(preserve=True), True),
}


@dataclass(frozen=True)
class Experiment:
    """A network trained with BN, then fine-tuned after each conversion.

    Attributes:
        title: Title of the table.
        unit: Unit of the score.
        metric: Key of the score in the metrics of the validation.
        config: Config file.
        parts: Parts of the model that have norms.
        training: Settings of the training with BN, which override the config.
        finetuning: Settings of the training after a conversion.
        environment: Variables that the config reads when fine-tuning.
    """
    title: str
    unit: str
    metric: str
    config: Path
    parts: tuple[str, ...]
    training: dict
    finetuning: dict
    environment: dict

    def table(self, folder: Path) -> str:
        ordinary = self.runner(folder / 'bn', self.training, {})
        ordinary.train()
        lines = [f'## {self.title}', '', f'| conversion | {self.unit} right after | {self.unit} after fine-tuning |',
                 '|---|---|---|']
        for number, (name, (arguments, calibrated)) in enumerate(CONVERSIONS.items()):
            model = copy.deepcopy(ordinary.model)
            runner = self.runner(folder / f'converted_{number}', self.finetuning, self.environment)
            convert(model, runner, arguments, calibrated)
            runner.model = model
            before = runner.val()[self.metric]
            runner.train()
            lines.append(f'| {name} | {before:.1f} | {runner.val()[self.metric]:.1f} |')
        return '\n'.join([*lines, ''])

    def runner(self, work_dir: Path, settings: dict, environment: dict) -> Runner:
        os.environ.update(environment)
        cfg = Config.fromfile(self.config)
        cfg.merge_from_dict({
            **methods(4)['BN'].settings(8, self.parts), 'work_dir': str(work_dir), 'log_level': 'WARNING',
            'experiment_name': f'{self.config.stem}_{work_dir.name}', 'default_hooks.checkpoint.interval': 10**6,
            'default_hooks.checkpoint.save_last': False, 'custom_hooks.0.type': 'BCNUpdateRateHook', **settings})
        return Runner.from_cfg(cfg)


def convert(model: nn.Module, runner: Runner, arguments: dict | None, calibrated: bool) -> None:
    if arguments is None:
        return
    convert_model(model, **arguments)
    if calibrated:
        dataset, collate = runner.train_dataloader.dataset, runner.train_dataloader.collate_fn
        batches = [model.data_preprocessor(collate([dataset[index]])) for index in range(10)]
        calibrate(model, [dict(inputs=batch['inputs'], mode='tensor') for batch in batches])


def digits() -> Experiment:
    return Experiment(
        'Digits', 'accuracy %', 'accuracy/top1', ROOT / 'configs' / '_base_' / 'digits.py', ('backbone', ), {},
        {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 2, 'param_scheduler.0.T_max': 1}, dict(DIGITS_BATCH='1'))


def mini_voc(folder: Path, updates: int, finetuning: int) -> Experiment:
    make_mini_voc(folder)
    voc_root = folder / 'VOCdevkit' / 'VOC2012'
    prepare_voc_aug(plan_voc_aug(voc_root, folder / 'benchmark_RELEASE', expected=180))
    os.environ['VOC_ROOT'] = str(voc_root)

    def schedule(iterations: int, lr: float) -> dict:
        return {'train_cfg.max_iters': iterations, 'train_cfg.val_interval': iterations + 1,
                'param_scheduler.0.end': iterations + 1, 'optim_wrapper.optimizer.lr': lr}

    return Experiment('Mini VOC', 'mIoU %', 'mIoU', ROOT / 'configs' / '_base_' / 'mini_voc.py',
                      ('backbone', 'decode_head'), schedule(updates, .05), schedule(finetuning, .01), {})


def main(args: argparse.Namespace) -> None:
    if find_spec('sklearn') is None or find_spec('mmpretrain') is None:
        sys.exit('preserve_results.py: the digits need scikit-learn and mmpretrain; run: '
                 "pip install '.[digits,pretrain]'")
    with tempfile.TemporaryDirectory() as folder:
        tables = [digits().table(Path(folder, 'digits')),
                  mini_voc(Path(folder, 'data'), args.iterations, args.finetuning).table(Path(folder, 'mini_voc'))]
    text = '\n'.join(tables)
    print(text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(INTRODUCTION.format(**vars(args)) + text)


INTRODUCTION = '''# Conversion of networks that were trained with BN

Written by `python tools/preserve_results.py`: one run with seed 0 on a CPU for each row.

- **Digits.** A ResNet-8 is trained with BN on 1,347 of scikit-learn's 8×8 images, for 30 epochs in batches of 128. Then
  it is converted, and fine-tuned for one epoch of single images at a learning rate of 0.005. The table shows the
  accuracy on the other 450 images.
- **Mini VOC.** The network of `tools/demo.sh` is trained with BN on its synthetic images, for {iterations} iterations
  of 8 images. Then it is converted, and fine-tuned for {finetuning} iterations of 8 images at a learning rate of 0.01.
  Its mIoU is not comparable with mIoU on PASCAL VOC.

'''


if __name__ == '__main__':
    main(ARGS)
