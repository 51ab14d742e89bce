"""Figures 4, 5 and 6 of the paper as experiments of minutes, on scikit-learn's digits (Figure 5: CIFAR-10 if there)."""
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner import Runner
from rich.progress import track
from torch import Tensor, nn

from wsbcn_mmseg.datasets import Digits
from wsbcn_mmseg.experiments.watched_runs import draw_gradient_shares, plot_stat_diff, read_norm_statistics, save
from wsbcn_mmseg.hooks.norm_statistics_hook import FILE
from wsbcn_mmseg.visualization import COLOURS, MARKERS, read_scalars, write_csv

GN, LN = dict(type='GNByWidth', min_channels_per_group=4), dict(type='GN', num_groups=1)
BCN = dict(type='BCN', mode='large_batch', min_channels_per_group=4)
WS = dict(type='ConvWS')
FIGURE_6 = {'GN': (GN, None), 'GN+WS': (GN, WS), 'LN': (LN, None), 'LN+WS': (LN, WS), 'BCN': (BCN, None),
            'BCN+WS': (BCN, WS)}
FIGURE_4 = {'GN': (GN, None), 'GN, Eq. 11': (GN, dict(WS, scale=False)), 'GN, Eq. 12': (GN, dict(WS, center=False)),
            'GN, Eq. 11 and 12': (GN, WS)}


def watched_training(config: Path, norm_cfg: dict, conv_cfg: dict | None, work_dir: Path, epochs: int,
                     depth: int, first: bool = False) -> Path:
    """Train ResNet-``depth`` by ``config``, watched once an epoch, in its ``first`` iteration or its last; a finished
    run is not made again."""
    finished, settings = work_dir / 'finished', f'{config.stem} {epochs} {depth} {first}'
    if finished.exists() and finished.read_text() == settings:
        return work_dir
    (work_dir / FILE).unlink(missing_ok=True)
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({
        'work_dir': str(work_dir), 'log_level': 'ERROR', 'experiment_name': f'{work_dir.parent.name}_{work_dir.name}',
        'model.backbone.depth': depth, 'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.interval': epochs, 'default_hooks.logger.interval': 10})
    if 'T_max' in cfg.param_scheduler[0]:
        cfg.param_scheduler[0].T_max = epochs
    cfg.model.backbone.norm_cfg, cfg.model.backbone.conv_cfg = norm_cfg, conv_cfg
    runner = Runner.from_cfg(cfg)
    per_epoch = len(runner.train_loop.dataloader)
    runner.register_hook(dict(type='NormStatisticsHook', interval=per_epoch, gradients=conv_cfg == WS, first=first))
    runner.train()
    finished.write_text(settings)
    return work_dir


def figure_6(config: Path, out: Path, epochs: int = 30, depth: int = 20) -> list[Path]:
    """StatDiff after every epoch, GN, LN and BCN with and without WS; the paper has ResNet-110 on CIFAR-10."""
    runs = {}
    for name, (norm, conv) in track(FIGURE_6.items(), 'Figure 6'):
        work_dir = watched_training(config, norm, conv, out / 'figure_6' / _file_name(name), epochs, depth)
        runs[name] = read_norm_statistics(work_dir)
    rows = [dict(method=name, epoch=line['epoch'], **{key: _mean(line, key) for key in (
        'stat_diff', 'eliminated', 'under_represented', 'distance_mean', 'distance_scale')})
        for name, lines in runs.items() for line in lines]
    return [*save(plot_stat_diff(runs), out / 'figure_6'), write_csv(rows, out / 'figure_6.csv')]


def figure_4(config: Path, out: Path, epochs: int = 30, depth: int = 20) -> list[Path]:
    """Training with GN and either half of WS, and what both halves remove of the gradient in the first iteration of
    each epoch; the paper has ResNet-50 on ImageNet."""
    figure, (loss_axes, error_axes, share_axes) = plt.subplots(1, 3, figsize=(13, 4), layout='constrained')
    rows = []
    for colour, marker, (name, (norm, conv)) in zip(COLOURS, MARKERS, track(FIGURE_4.items(), 'Figure 4'),
                                                    strict=False):
        work_dir = watched_training(config, norm, conv, out / 'figure_4' / _file_name(name), epochs, depth,
                                    first=True)
        scalars = read_scalars(work_dir)
        losses = [(line['epoch'], line['loss']) for line in scalars if 'loss' in line][-epochs:]
        errors = [(line['step'], 100 - line['accuracy/top1']) for line in scalars if 'accuracy/top1' in line][-epochs:]
        style = dict(color=colour, marker=marker, markevery=max(1, epochs // 8), label=name)
        loss_axes.plot(*zip(*losses, strict=True), **style)
        error_axes.plot(*zip(*errors, strict=True), **style)
        rows += [dict(method=name, epoch=epoch, loss=loss, error=error)
                 for (epoch, loss), (_, error) in zip(losses, errors, strict=True)]
        if conv == WS:
            lines = read_norm_statistics(work_dir)
            draw_gradient_shares(share_axes, lines)
            shares = [dict(epoch=line['epoch'], **{key: _mean(line, key) for key in (
                'gradient_eq11', 'gradient_eq12', 'gradient_left')}) for line in lines]
    for axes, label in ((loss_axes, 'Training loss'), (error_axes, 'Test error (%)')):
        axes.set(xlabel='Epoch', ylabel=label, yscale='log')
        axes.grid(alpha=.3, which='both')
    loss_axes.legend()
    return [*save(figure, out / 'figure_4'), write_csv(rows, out / 'figure_4_training.csv'),
            write_csv(shares, out / 'figure_4_shares.csv')]


class FixedStatisticsNorm(nn.Module):
    """Normalises every channel by its batch to a mean and a deviation drawn once (Eq. 33), then a trained affine map.

    .. math:: y = \\gamma_c (\\hat\\sigma_c (x - \\mu_c) / \\sigma_c + \\hat\\mu_c) + \\beta_c \\qquad (34)

    Args:
        channels: Number of channels.
        sigma_mean: Deviation of the means that are drawn from N(0, sigma_mean).
        sigma_log_scale: Deviation of the logarithms of the deviations, drawn from N(0, sigma_log_scale).
        generator: Draws them.
    """

    def __init__(self, channels: int, sigma_mean: float, sigma_log_scale: float, generator: torch.Generator):
        super().__init__()
        self.normalise = nn.BatchNorm2d(channels, affine=False)
        self.register_buffer('mean', torch.randn(channels, generator=generator) * sigma_mean)
        self.register_buffer('scale', (torch.randn(channels, generator=generator) * sigma_log_scale).exp())
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.normalise(x) * self.scale[:, None, None] + self.mean[:, None, None]
        return y * self.weight[:, None, None] + self.bias[:, None, None]


def four_layer_network(in_channels: int, sigma_mean: float, sigma_log_scale: float, seed: int) -> nn.Sequential:
    """Section 6.1.3: four convolutions of 32 channels, each followed by average pooling by 2; pooling; linear."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for channels in (in_channels, 32, 32, 32):
        layers += [nn.Conv2d(channels, 32, 3, padding=1, bias=False),
                   FixedStatisticsNorm(32, sigma_mean, sigma_log_scale, generator), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def _accuracy(network: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], epochs: int) -> float:
    """Test accuracy in percent after SGD on batches of 128; NaN losses end as what they are, chance."""
    optimizer = torch.optim.SGD(network.parameters(), lr=.1, momentum=.9, weight_decay=1e-4)
    steps = epochs * (len(train[0]) // 128)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(train[0]))[:len(train[0]) // 128 * 128].split(128):
            optimizer.zero_grad()
            F.cross_entropy(network(train[0][batch]), train[1][batch]).backward()
            optimizer.step()
            scheduler.step()
    network.eval()
    with torch.no_grad():
        return 100 * (network(test[0]).argmax(1) == test[1]).float().mean().item()


def _data() -> tuple[str, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """CIFAR-10 where CIFAR_ROOT has it, else the digits, enlarged to 16 x 16 so that four poolings fit."""
    root = os.environ.get('CIFAR_ROOT')
    if root and Path(root, 'cifar-10-batches-py').is_dir():
        from mmpretrain.datasets import CIFAR10
        splits = [CIFAR10(root, split=split, download=False) for split in ('train', 'test')]
        mean, std = 120., 64.
    else:
        splits = [Digits(split) for split in ('train', 'test')]
        mean, std = 73., 90.
    tensors = []
    for split in splits:
        samples = [split.get_data_info(i) for i in range(len(split))]
        images = torch.from_numpy(np.stack([sample['img'] for sample in samples])).permute(0, 3, 1, 2).float()
        images = (images - mean) / std
        if images.shape[2] < 16:
            images = F.interpolate(images, size=(16, 16), mode='bilinear', align_corners=False)
        tensors.append((images, torch.tensor([int(sample['gt_label']) for sample in samples])))
    return type(splits[0]).__name__, *tensors


def figure_5(out: Path, sigmas: tuple[float, ...] = (0, 1, 2, 3, 4), epochs: int = 10, seeds: int = 3) -> list[Path]:
    """Accuracy where channels are normalised to other means and deviations than batch normalisation's."""
    name, train, test = _data()
    channels = train[0].shape[1]
    grid = [(mean, scale) for mean in sigmas for scale in sigmas]
    rows = []
    for sigma_mean, sigma_scale in track(grid, f'Figure 5 on {name}'):
        accuracies = [_accuracy(four_layer_network(channels, sigma_mean, sigma_scale, seed), train, test, epochs)
                      for seed in range(seeds)]
        rows.append(dict(sigma_mu=sigma_mean, sigma_sigma=sigma_scale, accuracy=sum(accuracies) / seeds,
                         std_error=torch.tensor(accuracies).std().item() / seeds**.5 if seeds > 1 else 0.))
    figure, axes = plt.subplots(figsize=(5.6, 4.6), layout='constrained')
    fine = [row for row in rows if row['accuracy'] >= 70]
    failed = [row for row in rows if row['accuracy'] < 70]
    points = axes.scatter([row['sigma_mu'] for row in fine], [row['sigma_sigma'] for row in fine],
                          s=[8 + 14 * (row['accuracy'] - 70) for row in fine], c=[row['accuracy'] for row in fine],
                          cmap='cividis')
    axes.plot([row['sigma_mu'] for row in failed], [row['sigma_sigma'] for row in failed], 'x', color='#D55E00', ms=9,
              label='below 70 %')
    for row in rows:
        axes.annotate(f'{row["accuracy"]:.0f}', (row['sigma_mu'], row['sigma_sigma']), xytext=(0, -17), ha='center',
                      textcoords='offset points', fontsize=7)
    axes.set(xlabel=r'$\sigma_\mu$: deviation of the means',
             ylabel=r'$\sigma_\sigma$: deviation of the log deviations', title=f'Test accuracy on {name} (%)')
    axes.margins(.14)
    figure.colorbar(points, label='Accuracy (%)')
    if failed:
        axes.legend(loc='upper right')
    return [*save(figure, out / 'figure_5'), write_csv(rows, out / 'figure_5.csv')]


def _file_name(method: str) -> str:
    return ''.join(character if character.isalnum() else '_' for character in method.lower())


def _mean(line: dict, key: str) -> float | None:
    values = [layer[key] for layer in line['layers'].values() if layer.get(key) is not None]
    return sum(values) / len(values) if values else None
