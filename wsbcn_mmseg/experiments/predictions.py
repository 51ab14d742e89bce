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
    """Draw ``count`` evenly spaced images of a data set with their labels and predictions.

    Args:
        model: Result of :func:`wsbcn_mmseg.load_segmentor`.
        dataset: A data set whose samples name an image file and a label file; labels are class indices.
        out: Image to write; the suffix determines the format.
        count: Number of images to show. Defaults to 4.

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
    """Class indices (H, W) as an RGB image (H, W, 3); other labels are white."""
    return np.append(palette, [[255, 255, 255]], 0).astype(np.uint8)[np.minimum(label, len(palette))]


def _legend(figure: Figure, classes: tuple[str, ...], palette: np.ndarray) -> None:
    patches = [Patch(color=color / 255, label=name) for name, color in zip(classes, palette, strict=True)]
    figure.legend(handles=patches, loc='outside lower center', ncols=6, frameon=False)
