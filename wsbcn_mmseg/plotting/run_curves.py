"""Training curves of one run, and of several runs side by side."""
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt

from wsbcn_mmseg.runtime.records import read_scalars

from .style import COLORS, MARKERS

# Scalars that a run may have logged: key, label, whether to draw 100 minus the value. The first that all runs have is
# drawn
TRAINING = (('accuracy_top-1', 'Training error (%)', True), ('loss', 'Training loss', False))
VALIDATION = (('accuracy/top1', 'Validation error (%)', True), ('mIoU', 'mIoU (%)', False),
              ('coco/bbox_mAP', 'Box AP', False))


def plot_curves(work_dir: str | Path, out: str | Path) -> None:
    """Plot loss, learning rate and mIoU over iterations in one image.

    Args:
        work_dir: Folder of a run.
        out: Image to write; the suffix determines the format.

    Raises:
        FileNotFoundError: See :func:`read_scalars`.
    """
    scalars = read_scalars(work_dir)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout='constrained')
    for axis, key, title in zip(axes, ('loss', 'lr', 'mIoU'), ('Training loss', 'Learning rate', 'mIoU (%)'),
                                strict=True):
        points = [(line.get('step'), line[key]) for line in scalars if key in line]
        axis.plot(*zip(*points, strict=True) if points else ((), ()), marker='o' if key == 'mIoU' else None,
                  color='#0072B2')
        axis.set(title=title, xlabel='Iteration')
        axis.update_datalim([(0, 0)], updatex=False)  # so that the margin at the top is a share of the whole axis
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def plot_runs(work_dirs: Sequence[str | Path], out: str | Path) -> None:
    """Plot training and validation of several runs over epochs or iterations, side by side (as Fig. 8).

    Args:
        work_dirs: Folders of the runs. Their last parts are used as names, unless two are the same.
        out: Image to write; the suffix determines the format.

    Raises:
        FileNotFoundError: See :func:`read_scalars`.
        ValueError: If the runs have no training scalar or no validation scalar in common.
    """
    names = [Path(work_dir).name for work_dir in work_dirs]
    if len(set(names)) < len(names):
        names = list(map(str, work_dirs))
    runs = {name: read_scalars(work_dir) for name, work_dir in zip(names, work_dirs, strict=True)}
    by_epoch = all('epoch' in line for lines in runs.values() for line in lines if 'loss' in line)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout='constrained')
    for axis, choices, name in zip(axes, (TRAINING, VALIDATION), ('training', 'validation'), strict=True):
        key, label, is_error = next((choice for choice in choices if all(any(choice[0] in line for line in lines)
                                                                         for lines in runs.values())), (None, ) * 3)
        if key is None:
            raise ValueError(f'{", ".join(runs)} have logged no number of {name} that all of them have')
        for color, marker, (run, lines) in zip(cycle(COLORS), cycle(MARKERS), runs.items(), strict=False):
            times, values = _means(lines, key)
            axis.plot(times, [100 - value for value in values] if is_error else values, color=color, marker=marker,
                      markevery=max(1, len(times) // 8), label=run)
        axis.set(xlabel='Epoch' if by_epoch else 'Iteration', ylabel=label)
        axis.grid(alpha=.3)
    axes[0].legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _means(lines: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Epochs, or iterations if a run logs no epochs, and the mean of the values logged in each."""
    values: dict[float, list[float]] = {}
    for line in lines:
        if key in line:
            values.setdefault(line.get('epoch', line['step']), []).append(line[key])
    return list(values), [sum(logged) / len(logged) for logged in values.values()]
