"""Pictures of a finished run: training curves, and predictions beside the truth; and tables."""
import csv
import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from mmseg.datasets import PascalVOCDataset
from PIL import Image

CLASSES = PascalVOCDataset.METAINFO['classes']
PALETTE = np.array(PascalVOCDataset.METAINFO['palette'], np.uint8)
VOID = 255
COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442', '#000000')  # Okabe and Ito's
MARKERS = 'os^Dv*XP'


def read_scalars(work_dir: str | Path) -> list[dict]:
    """What a run logged, one dictionary per line, oldest first; resumed runs are joined.

    Raises:
        FileNotFoundError: If the folder holds no log of a run.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(f'{work_dir} holds no */vis_data/scalars.json of a training run')
    return [line for file in files for line in read_jsonl(file)]


def read_jsonl(path: str | Path) -> list[dict]:
    """The objects in a file of one JSON object per line, without lines that a killed run left unfinished."""
    return [line for text in Path(path).read_text().splitlines() if (line := _parsed(text)) is not None]


def _parsed(text: str) -> dict | None:
    try:
        return json.loads(text)
    except ValueError:
        return None


def write_csv(rows: list[dict], out: str | Path) -> Path:
    """Write rows of equal keys, numbers with five digits; returns ``out``."""
    with Path(out).open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows({key: f'{value:.5g}' if isinstance(value, float) else value for key, value in row.items()}
                         for row in rows)
    return Path(out)


def plot_curves(work_dir: str | Path, out: str | Path) -> None:
    """Loss, learning rate and mIoU over iterations, as one picture.

    Args:
        work_dir: Folder of a run.
        out: Picture to write; the suffix says the format.

    Raises:
        FileNotFoundError: As :func:`read_scalars`.
    """
    scalars = read_scalars(work_dir)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout='constrained')
    for axis, key, title in zip(axes, ('loss', 'lr', 'mIoU'), ('Training loss', 'Learning rate', 'mIoU (%)'),
                                strict=True):
        points = [(line.get('step'), line[key]) for line in scalars if key in line]
        axis.plot(*zip(*points, strict=True) if points else ((), ()), marker='o' if key == 'mIoU' else None,
                  color='#0072B2')
        axis.set(title=title, xlabel='Iteration')
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=120)
    plt.close(figure)


# What a run may have logged, the first that all runs have is drawn: key, label, whether 100 minus it is shown
TRAINING = (('accuracy_top-1', 'Training error (%)', True), ('loss', 'Training loss', False))
VALIDATION = (('accuracy/top1', 'Validation error (%)', True), ('mIoU', 'mIoU (%)', False),
              ('coco/bbox_mAP', 'Box AP', False))


def plot_runs(work_dirs: Sequence[str | Path], out: str | Path) -> None:
    """Training and validation of several runs over epochs or iterations, side by side (as Fig. 8).

    Args:
        work_dirs: Folders of the runs; their last parts are the names, unless two are the same.
        out: Picture to write; the suffix says the format.

    Raises:
        FileNotFoundError: As :func:`read_scalars`.
        ValueError: If the runs have no number of training or of validation in common.
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
        for color, marker, (run, lines) in zip(cycle(COLOURS), cycle(MARKERS), runs.items(), strict=False):
            times, values = _means(lines, key)
            axis.plot(times, [100 - value for value in values] if is_error else values, color=color, marker=marker,
                      markevery=max(1, len(times) // 8), label=run)
        axis.set(xlabel='Epoch' if by_epoch else 'Iteration', ylabel=label)
        axis.grid(alpha=.3)
    axes[0].legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _means(lines: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Epochs, or iterations in runs that count these alone, and the mean of what was logged in each."""
    values: dict[float, list[float]] = {}
    for line in lines:
        if key in line:
            values.setdefault(line.get('epoch', line['step']), []).append(line[key])
    return list(values), [sum(logged) / len(logged) for logged in values.values()]


def plot_predictions(voc_root: str | Path, predictions: str | Path, out: str | Path, count: int = 6) -> None:
    """Images of the validation split, their truth and their predictions, side by side with a legend.

    Args:
        voc_root: VOC2012 folder.
        predictions: Folder of label PNGs, as ``tools/test.py --out`` writes them.
        out: Picture to write.
        count: Images to show, evenly spaced over the split. Defaults to 6.

    Raises:
        FileNotFoundError: If the folder holds no predictions.
    """
    voc_root = Path(voc_root)
    files = sorted(Path(predictions).glob('*.png'))
    if not files:
        raise FileNotFoundError(f'{predictions} holds no predictions; tools/test.py --out writes them')
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)]
    figure, axes = plt.subplots(len(files), 3, figsize=(9, 2.6 * len(files)), layout='constrained', squeeze=False)
    shown = set()
    for row, file in zip(axes, files, strict=True):
        image = Image.open(voc_root / 'JPEGImages' / f'{file.stem}.jpg')
        truth = np.asarray(Image.open(voc_root / 'SegmentationClass' / file.name))
        prediction = np.asarray(Image.open(file))
        shown |= set(np.unique(truth)) | set(np.unique(prediction))
        for axis, picture in zip(row, (image, colour(truth), colour(prediction)), strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
    for axis, title in zip(axes[0], ('Image', 'Truth (white: void)', 'Prediction'), strict=True):
        axis.set_title(title)
    patches = [Patch(color=PALETTE[c] / 255, label=CLASSES[c]) for c in sorted(shown - {VOID})]
    figure.legend(handles=patches, loc='outside lower center', ncols=6, frameon=False)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def colour(label: np.ndarray) -> np.ndarray:
    """Class map (H, W) as a picture (H, W, 3) in the VOC palette, void in white."""
    return np.where((label == VOID)[..., None], np.uint8(255), PALETTE[np.minimum(label, len(PALETTE) - 1)])
