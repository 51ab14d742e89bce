"""Figures 4 and 6 of the paper: trainings with monitored norms, by default of a small ResNet on digits."""
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.runner import Runner
from rich.progress import track

from wsbcn_mmseg.hooks.norm_statistics_hook import FILE
from wsbcn_mmseg.plotting import COLORS, MARKERS
from wsbcn_mmseg.runtime.records import read_scalars, write_csv

from .method import Method, methods
from .watched_runs import draw_gradient_shares, plot_stat_diff, read_norm_statistics, save

METHODS = methods(min_channels_per_group=4)
FIGURE_6 = [METHODS[name] for name in ('GN', 'GN+WS', 'LN', 'LN+WS', 'BCN', 'BCN+WS')]
BOTH_HALVES = 'GN, Eq. 11 and 12'
_GN, _WS = METHODS['GN+WS'].norm_cfg, METHODS['GN+WS'].conv_cfg
FIGURE_4 = [Method('GN', _GN), Method('GN, Eq. 11', _GN, dict(_WS, scale=False)),
            Method('GN, Eq. 12', _GN, dict(_WS, center=False)), Method(BOTH_HALVES, _GN, _WS)]
BATCH = 128
STATISTICS = ('stat_diff', 'eliminated', 'under_represented', 'distance_mean', 'distance_scale')
SHARES = ('gradient_eq11', 'gradient_eq12', 'gradient_left')


def watched_training(config: Path, method: Method, work_dir: Path, epochs: int, depth: int,
                     gradients: bool = False) -> Path:
    """Train ResNet-``depth`` by ``config``. Norms are sampled in the last iteration of each epoch or, with
    ``gradients``, in the first. Finished runs are reused."""
    finished, settings = work_dir / 'finished', f'{config.stem} {epochs} {depth} {gradients}'
    if finished.exists() and finished.read_text() == settings:
        return work_dir
    (work_dir / FILE).unlink(missing_ok=True)
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({
        'work_dir': str(work_dir), 'log_level': 'ERROR', 'experiment_name': f'{work_dir.parent.name}_{work_dir.name}',
        'model.backbone.depth': depth, 'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.interval': epochs, 'default_hooks.logger.interval': 10, **method.settings(BATCH)})
    if 'T_max' in cfg.param_scheduler[0]:
        cfg.param_scheduler[0].T_max = epochs
    runner = Runner.from_cfg(cfg)
    per_epoch = len(runner.train_loop.dataloader)
    runner.register_hook(dict(type='NormStatisticsHook', interval=per_epoch, gradients=gradients, first=gradients))
    runner.train()
    finished.write_text(settings)
    return work_dir


def _train(chosen: list[Method], config: Path, out: Path, epochs: int, depth: int) -> dict[str, Path]:
    """Work folders by method name."""
    return {method.name: watched_training(config, method, out / method.file_name, epochs, depth,
                                          gradients=method.name == BOTH_HALVES)
            for method in track(chosen, out.name.replace('_', ' ').capitalize())}


def figure_6(config: Path, out: Path, epochs: int = 30, depth: int = 20) -> list[Path]:
    """StatDiff after every epoch, for GN, LN and BCN with and without WS; the paper uses ResNet-110 on CIFAR-10."""
    runs = {name: read_norm_statistics(work_dir)
            for name, work_dir in _train(FIGURE_6, config, out / 'figure_6', epochs, depth).items()}
    rows = [dict(method=name, epoch=line['epoch'], **_means(line, STATISTICS))
            for name, lines in runs.items() for line in lines]
    return [*save(plot_stat_diff(runs), out / 'figure_6'), write_csv(rows, out / 'figure_6.csv')]


def figure_4(config: Path, out: Path, epochs: int = 30, depth: int = 20) -> list[Path]:
    """Training with GN and each half of WS, and the parts of the gradient that both halves remove in the first
    iteration of each epoch; the paper uses ResNet-50 on ImageNet."""
    work_dirs = _train(FIGURE_4, config, out / 'figure_4', epochs, depth)
    curves = {name: _curves(work_dir, epochs) for name, work_dir in work_dirs.items()}
    lines = read_norm_statistics(work_dirs[BOTH_HALVES])
    rows = [dict(method=name, **row) for name, rows in curves.items() for row in rows]
    shares = [dict(epoch=line['epoch'], **_means(line, SHARES)) for line in lines]
    return [*save(_draw_figure_4(curves, lines), out / 'figure_4'), write_csv(rows, out / 'figure_4_training.csv'),
            write_csv(shares, out / 'figure_4_shares.csv')]


def _curves(work_dir: Path, epochs: int) -> list[dict]:
    """Training loss and test error in the last ``epochs`` epochs of a run."""
    scalars = read_scalars(work_dir)
    losses = [(line['epoch'], line['loss']) for line in scalars if 'loss' in line][-epochs:]
    errors = [100 - line['accuracy/top1'] for line in scalars if 'accuracy/top1' in line][-epochs:]
    return [dict(epoch=epoch, loss=loss, error=error) for (epoch, loss), error in zip(losses, errors, strict=True)]


def _draw_figure_4(curves: dict[str, list[dict]], lines: list[dict]) -> Figure:
    figure, (loss_axes, error_axes, share_axes) = plt.subplots(1, 3, figsize=(13, 4), layout='constrained')
    for color, marker, (name, rows) in zip(COLORS, MARKERS, curves.items(), strict=False):
        style = dict(color=color, marker=marker, markevery=max(1, len(rows) // 8), label=name)
        epochs = [row['epoch'] for row in rows]
        loss_axes.plot(epochs, [row['loss'] for row in rows], **style)
        error_axes.plot(epochs, [row['error'] for row in rows], **style)
    draw_gradient_shares(share_axes, lines)
    for axes, label in ((loss_axes, 'Training loss'), (error_axes, 'Test error (%)')):
        axes.set(xlabel='Epoch', ylabel=label, yscale='log')
        axes.grid(alpha=.3, which='both')
    loss_axes.legend()
    return figure


def _means(line: dict, keys: tuple[str, ...]) -> dict[str, float | None]:
    """Mean over the layers that have the number."""
    values = {key: [layer[key] for layer in line['layers'].values() if layer.get(key) is not None] for key in keys}
    return {key: mean(numbers) if numbers else None for key, numbers in values.items()}
