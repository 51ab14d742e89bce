"""Figure 5 of the paper: accuracy against distance to batch normalization, on CIFAR-10 or scikit-learn's digits."""
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn

from wsbcn_mmseg.datasets import Digits
from wsbcn_mmseg.runtime.records import write_csv

from .watched_runs import save


class FixedStatisticsNorm(nn.Module):
    r"""Normalizes every channel over the batch to a fixed random mean and deviation (Eq. 33), then applies a trained
    affine map.

    .. math:: y = \gamma_c (\hat\sigma_c (x - \mu_c) / \sigma_c + \hat\mu_c) + \beta_c \qquad (34)

    Args:
        channels: Number of channels.
        sigma_mean: Standard deviation of the means, which are drawn from N(0, sigma_mean).
        sigma_log_scale: Standard deviation of the logarithms of the deviations, drawn from N(0, sigma_log_scale).
        generator: Random number generator for both.
    """

    def __init__(self, channels: int, sigma_mean: float, sigma_log_scale: float, generator: torch.Generator):
        super().__init__()
        self.normalize = nn.BatchNorm2d(channels, affine=False)
        self.register_buffer('mean', torch.randn(channels, generator=generator) * sigma_mean)
        self.register_buffer('scale', (torch.randn(channels, generator=generator) * sigma_log_scale).exp())
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.normalize(x) * self.scale[:, None, None] + self.mean[:, None, None]
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
    """Test accuracy in percent after SGD on batches of 128; chance level if the loss becomes NaN."""
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
    """CIFAR-10 if CIFAR_ROOT has it, else the digits, enlarged to 16 x 16 so that four poolings fit."""
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
    """Accuracy when channels are normalized to other means and deviations than those of batch normalization."""
    name, train, test = _data()
    channels = train[0].shape[1]
    grid = [(mean, scale) for mean in sigmas for scale in sigmas]
    rows = []
    for sigma_mean, sigma_scale in track(grid, f'Figure 5 on {name}'):
        accuracies = [_accuracy(four_layer_network(channels, sigma_mean, sigma_scale, seed), train, test, epochs)
                      for seed in range(seeds)]
        rows.append(dict(sigma_mu=sigma_mean, sigma_sigma=sigma_scale, accuracy=sum(accuracies) / seeds,
                         std_error=torch.tensor(accuracies).std().item() / seeds**.5 if seeds > 1 else 0.))
    return [*save(_draw(rows, name), out / 'figure_5'), write_csv(rows, out / 'figure_5.csv')]


def _draw(rows: list[dict], name: str) -> Figure:
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
    return figure
