#!/usr/bin/env python
"""Convert networks that were trained with BN, and see what remains; writes docs/results/preserve.md.

Digits: scikit-learn's 8x8 images, a small ResNet. Mini VOC: the synthetic data and the network of tools/demo.sh.
Needs scikit-learn (pip install '.[digits]').
"""
import argparse
import copy
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from wsbcn_mmseg import convert_model
from wsbcn_mmseg.datasets.mini_voc import make_mini_voc
from wsbcn_mmseg.datasets.voc_aug import plan_voc_aug, prepare_voc_aug
from wsbcn_mmseg.layers import BCN

ROOT = Path(__file__).resolve().parent.parent
WIDE = dict(type='BCN', min_channels_per_group=16)
CONVERSIONS = {  # arguments of convert_model
    'none (BN)': None,
    'BCN + WS': dict(),
    'BCN + WS, `preserve=True`': dict(preserve=True),
    'the same, at least 16 channels per group': dict(preserve=True, norm=WIDE),
}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; (N, I, H, W) to (N, O, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def small_resnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), Block(32, 32, 1),
                         Block(32, 64, 2), Block(64, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int, rate: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, epochs * (len(images) // batch), 0.9)
    bcn = [module for module in model.train().modules() if isinstance(module, BCN)]
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch)[:len(images) // batch]:
            for layer in bcn:
                layer.update_rate = optimizer.param_groups[0]['lr']
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model.eval()(images).argmax(1) == labels).float().mean().item() * 100


def digits() -> list[list]:
    """Accuracy in percent on 597 digits, after training on 1,200."""
    from sklearn.datasets import load_digits
    data = load_digits()
    images, labels = torch.tensor(data.images).float()[:, None] / 8 - 1, torch.tensor(data.target)
    order = torch.randperm(len(images))
    trained, tested = order[:1200], order[1200:]
    ordinary = small_resnet()
    train(ordinary, images[trained], labels[trained], epochs=10, batch=32, rate=0.05)
    rows = []
    for name, arguments in CONVERSIONS.items():
        model = copy.deepcopy(ordinary)
        if arguments is not None:
            convert_model(model, images[:1], **arguments)
        before = accuracy(model, images[tested], labels[tested])
        train(model, images[trained], labels[trained], epochs=1, batch=4, rate=0.01)
        rows.append([name, before, accuracy(model, images[tested], labels[tested])])
    return rows


def mini_voc(folder: Path, iterations: int, finetuning: int) -> list[list]:
    """mIoU in percent of the demo's network."""
    make_mini_voc(folder)
    voc_root = folder / 'VOCdevkit' / 'VOC2012'
    prepare_voc_aug(plan_voc_aug(voc_root, folder / 'benchmark_RELEASE', expected=180))
    ordinary = runner(voc_root, folder / 'bn', iterations, 0.05)
    ordinary.train()
    rows = []
    for number, (name, arguments) in enumerate(CONVERSIONS.items()):
        model = copy.deepcopy(ordinary.model)
        if arguments is not None:
            convert_model(model, **arguments)
        finetuned = runner(voc_root, folder / f'converted_{number}', finetuning, 0.01, model)
        before = finetuned.val()['mIoU']
        finetuned.train()
        rows.append([name, before, finetuned.val()['mIoU']])
    return rows


def runner(voc_root: Path, work_dir: Path, iterations: int, rate: float, model: nn.Module | None = None) -> Runner:
    cfg = Config.fromfile(ROOT / 'configs' / 'demo_mini_voc.py')
    norm = dict(_delete_=True, type='BN')
    cfg.merge_from_dict({
        'model.backbone.norm_cfg': norm, 'model.decode_head.norm_cfg': norm, 'work_dir': str(work_dir),
        'model.backbone.conv_cfg': None, 'model.decode_head.conv_cfg': None, 'train_cfg.max_iters': iterations,
        'train_cfg.val_interval': iterations + 1, 'optim_wrapper.optimizer.lr': rate, 'log_level': 'WARNING',
        'param_scheduler.0.end': iterations + 1, 'default_hooks.checkpoint.interval': iterations + 1,
        'default_hooks.checkpoint.save_last': False, 'experiment_name': work_dir.name})
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(voc_root)
    built = Runner.from_cfg(cfg)
    built.model = model or built.model  # one that was trained already is not initialised again
    return built


def table(title: str, unit: str, rows: list[list]) -> str:
    lines = [f'| {name} | {before:.1f} | {after:.1f} |' for name, before, after in rows]
    return '\n'.join([f'## {title}', '', f'| conversion | {unit} right after | {unit} after fine-tuning |',
                      '|---|---|---|', *lines, ''])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--iterations', type=int, default=300, help='of training with BN on mini VOC')
    parser.add_argument('--finetuning', type=int, default=60, help='iterations after the conversion')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'results' / 'preserve.md')
    args = parser.parse_args()
    torch.manual_seed(0)
    try:
        first = digits()
    except ImportError:
        sys.exit("preserve_results.py: the digits come with scikit-learn; run: pip install '.[digits]'")
    text = table('Digits', 'accuracy %', first)
    with tempfile.TemporaryDirectory() as folder:
        text += '\n' + table('Mini VOC', 'mIoU %', mini_voc(Path(folder), args.iterations, args.finetuning))
    print(text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(INTRODUCTION.format(**vars(args)) + text)


INTRODUCTION = '''# Conversion of networks that were trained with BN

Written by `python tools/preserve_results.py`, seed 0, on CPU. Digits: scikit-learn's 8×8 images, a small ResNet, 10
epochs with BN on 1,200 of them in batches of 32, then converted and fine-tuned for 1 epoch in batches of 4 at a
learning rate of 0.01; accuracy on the other 597. Mini VOC: the synthetic data and the network of `tools/demo.sh` with
BN, {iterations} iterations of 8 images, then converted and fine-tuned for {finetuning} iterations at a learning rate of
0.01; it says nothing about PASCAL VOC. One run of each.

'''


if __name__ == '__main__':
    main()
