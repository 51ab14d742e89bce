"""Plot Figures 4, 6 and 7 of the paper, and a map of eliminated channels, from the log of ``NormStatisticsHook``."""
import itertools
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from wsbcn_mmseg.hooks.norm_statistics_hook import FILE
from wsbcn_mmseg.plotting import COLORS, MARKERS
from wsbcn_mmseg.runtime.records import read_jsonl

LABELS = {'epoch': 'Epoch', 'iter': 'Iteration'}
SHARES = {'gradient_eq11': 'removed by Eq. 11 (- mean)', 'gradient_eq12': 'removed by Eq. 12 (/ deviation)',
          'gradient_left': 'left'}


def read_norm_statistics(work_dir: str | Path) -> list[dict]:
    """The lines of a run, oldest first. If a resumed run repeated an iteration, the last line is used.

    Raises:
        FileNotFoundError: If the run did not use ``NormStatisticsHook``.
    """
    path = Path(work_dir) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; train with custom_hooks=[dict(type='NormStatisticsHook')]")
    return sorted({line['iter']: line for line in read_jsonl(path)}.values(), key=lambda line: line['iter'])


def save(figure: Figure, out: Path) -> list[Path]:
    """Write ``out`` as PNG and as SVG, and close the figure."""
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = [out.parent / f'{out.name}{suffix}' for suffix in ('.png', '.svg')]
    for path in paths:
        figure.savefig(path, dpi=130)
    plt.close(figure)
    return paths


def _series(lines: list[dict], key: str, axis: str) -> tuple[list[float], list[list[float]]]:
    """The times, and the values of the layers at each."""
    kept = [(line, values) for line in lines
            if (values := [layer[key] for layer in line['layers'].values() if layer.get(key) is not None])]
    return [line[axis] for line, _ in kept], [values for _, values in kept]


def _axis(lines: list[dict]) -> str:
    """Key of the horizontal axis: epochs if all lines have them, else iterations."""
    return 'epoch' if all('epoch' in line for line in lines) else 'iter'


def plot_stat_diff(runs: dict[str, list[dict]]) -> Figure:
    """Plot the mean of StatDiff (Eq. 35) over the layers of each run, with its deviation as a band (Fig. 6).

    Args:
        runs: Lines of :func:`read_norm_statistics`, by the name to show.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4), layout='constrained')
    axis = _axis([line for lines in runs.values() for line in lines])
    styles = zip(itertools.cycle(COLORS), itertools.cycle(MARKERS), runs.items(), strict=False)
    for color, marker, (name, lines) in styles:
        times, layers = _series(lines, 'stat_diff', axis)
        means = [statistics.mean(values) for values in layers]
        spread = [statistics.pstdev(values) for values in layers]
        axes.plot(times, means, color=color, marker=marker, markevery=max(1, len(means) // 8), label=name)
        axes.fill_between(times, [max(0, m - s) for m, s in zip(means, spread, strict=True)],
                          [m + s for m, s in zip(means, spread, strict=True)], color=color, alpha=.12, linewidth=0)
    axes.set(xlabel=LABELS[axis], ylabel='StatDiff, mean and deviation over layers', ylim=(0, None))
    axes.grid(alpha=.3)
    axes.legend()
    return figure


def plot_gradient_shares(lines: list[dict]) -> Figure:
    """Plot the shares of the squared gradient norm that Eq. 11 and Eq. 12 remove and leave (Fig. 4, right; log axis).

    Args:
        lines: Lines of a run with ``NormStatisticsHook(gradients=True)``.

    Raises:
        ValueError: If the lines have no gradient shares.
    """
    figure, axes = plt.subplots(figsize=(5.4, 4), layout='constrained')
    draw_gradient_shares(axes, lines)
    return figure


def draw_gradient_shares(axes: plt.Axes, lines: list[dict]) -> None:
    """Draw :func:`plot_gradient_shares` into the given axes."""
    if not any('gradient_left' in layer for line in lines for layer in line['layers'].values()):
        raise ValueError('the run has no gradient shares; train with NormStatisticsHook(gradients=True) and ConvWS')
    for color, marker, (key, label) in zip(COLORS, MARKERS, SHARES.items(), strict=False):
        times, layers = _series(lines, key, _axis(lines))
        axes.plot(times, [statistics.mean(values) for values in layers], color=color, marker=marker,
                  markevery=max(1, len(layers) // 8), label=label)
    axes.set(xlabel=LABELS[_axis(lines)], ylabel='Share of the squared gradient norm', yscale='log', ylim=(None, 1.3))
    axes.grid(alpha=.3, which='both')
    axes.legend()


def plot_eliminated(lines: list[dict], title: str = '') -> Figure:
    """Plot the share of eliminated channels of each layer over iterations.

    Raises:
        ValueError: If no norm ran.
    """
    names = [name for name, layer in lines[-1]['layers'].items() if 'eliminated' in layer]
    if not names:
        raise ValueError('no norm has run in the last sample')
    table = [[100 * (line['layers'].get(name, {}).get('eliminated') or 0) for line in lines] for name in names]
    figure, axes = plt.subplots(figsize=(7, max(2.4, .17 * len(names) + 1.2)), layout='constrained')
    iterations = [line['iter'] for line in lines]
    step = (iterations[-1] - iterations[0]) / max(1, len(iterations) - 1) or 1
    image = axes.imshow(table, aspect='auto', cmap='cividis', vmin=0, vmax=max(1, max(map(max, table))),
                        interpolation='nearest', extent=(iterations[0] - step / 2, iterations[-1] + step / 2,
                                                         len(names) - .5, -.5))
    shown = range(0, len(names), max(1, len(names) // 40))
    axes.set_yticks(list(shown), [names[i] for i in shown], fontsize=7)
    axes.set(xlabel='Iteration', title=title)
    figure.colorbar(image, label='Eliminated channels (%)')
    return figure


def plot_histograms(lines: list[dict]) -> Figure:
    """Plot histograms of two channels of one layer, before and after the norm, from the last sample with them (Fig. 7).

    Raises:
        ValueError: If the run has no histograms.
    """
    line = next((line for line in reversed(lines) if line.get('histogram')), None)
    if line is None:
        raise ValueError("the run kept no histograms; train with NormStatisticsHook(histograms='name of a norm')")
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), layout='constrained')
    histogram = line['histogram']
    for axes, place in zip(panels, ('before', 'after'), strict=True):
        data = histogram[place]
        width = (data['high'] - data['low']) / len(data['counts'][0])
        centers = [data['low'] + (i + .5) * width for i in range(len(data['counts'][0]))]
        for color, channel, counts in zip(COLORS, histogram['channels'], data['counts'], strict=False):
            # Values below 0 are drawn pale, because the ReLU after the norm removes them
            alphas = [.25 if place == 'after' and center < 0 else .8 for center in centers]
            bars = axes.bar(centers, counts, width, color=color, label=f'channel {channel}')
            for bar, alpha in zip(bars, alphas, strict=True):
                bar.set_alpha(alpha)
        axes.set(title=f'{place} the norm, iteration {line["iter"]}', xlabel='Value', ylabel='Pixels')
    panels[1].axvline(0, color='black', linewidth=1)
    panels[0].legend()
    return figure
