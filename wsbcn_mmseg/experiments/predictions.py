"""Images, labels and predictions side by side."""
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmseg.datasets import BaseSegDataset
from PIL import Image
from torch import nn

from wsbcn_mmseg.inference import infer

TITLES = ('Image', 'Label (white: void)', 'Prediction')


def draw_predictions(model: nn.Module, dataset: BaseSegDataset, out: Path, count: int = 4) -> Path:
    """Write a picture of ``count`` images of a data set, evenly spaced, with their labels and predictions.

    Args:
        model: From :func:`wsbcn_mmseg.load_segmentor`.
        dataset: Its samples name an image and a label file; labels are class indices.
        out: Picture to write; the suffix determines the format.
        count: Images to show. Defaults to 4.

    Returns:
        ``out``.
    """
    chosen = np.linspace(0, len(dataset) - 1, count).astype(int)
    samples = [dataset.get_data_info(index) for index in chosen]
    predictions = infer(model, [sample['img_path'] for sample in samples], progress=False)
    palette = np.array(dataset.metainfo['palette'], np.uint8)
    figure, panels = plt.subplots(count, 3, figsize=(9, 2.3 * count), layout='constrained', squeeze=False)
    for row, sample, prediction in zip(panels, samples, predictions, strict=True):
        label = np.asarray(Image.open(sample['seg_map_path']))
        pictures = Image.open(sample['img_path']), _color(label, palette), _color(prediction.labels, palette)
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
    for axes, title in zip(panels[0], TITLES, strict=True):
        axes.set_title(title)
    _legend(figure, dataset.metainfo['classes'], palette)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)
    plt.close(figure)
    return out


def _color(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Class indices (H, W) as a picture (H, W, 3); other labels in white."""
    return np.append(palette, [[255, 255, 255]], 0).astype(np.uint8)[np.minimum(label, len(palette))]


def _legend(figure: Figure, classes: tuple[str, ...], palette: np.ndarray) -> None:
    patches = [Patch(color=color / 255, label=name) for name, color in zip(classes, palette, strict=True)]
    figure.legend(handles=patches, loc='outside lower center', ncols=6, frameon=False)
