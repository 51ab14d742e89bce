"""Predictions next to the ground truth."""
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from mmseg.datasets import PascalVOCDataset
from PIL import Image

CLASSES = PascalVOCDataset.METAINFO['classes']
PALETTE = np.array(PascalVOCDataset.METAINFO['palette'], np.uint8)
VOID = 255


def plot_predictions(voc_root: str | Path, predictions: str | Path, out: str | Path, count: int = 6) -> None:
    """Draw validation images, their ground truth and their predictions side by side, with a legend.

    Args:
        voc_root: VOC2012 folder.
        predictions: Folder with label PNGs from ``tools/test.py --out``.
        out: Image to write.
        count: Number of images to show, evenly spaced over the split. Defaults to 6.

    Raises:
        FileNotFoundError: If the folder contains no predictions.
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
        for axis, picture in zip(row, (image, color_labels(truth), color_labels(prediction)), strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
    for axis, title in zip(axes[0], ('Image', 'Truth (white: void)', 'Prediction'), strict=True):
        axis.set_title(title)
    patches = [Patch(color=PALETTE[c] / 255, label=CLASSES[c]) for c in sorted(shown - {VOID})]
    figure.legend(handles=patches, loc='outside lower center', ncols=6, frameon=False)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def color_labels(label: np.ndarray) -> np.ndarray:
    """Class map (H, W) as an RGB image (H, W, 3) in the VOC palette, with void in white."""
    return np.where((label == VOID)[..., None], np.uint8(255), PALETTE[np.minimum(label, len(PALETTE) - 1)])
