"""Predictions next to the ground truth."""
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from mmengine.registry import DATASETS, init_default_scope
from mmseg.datasets import BaseSegDataset, PascalVOCDataset
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from wsbcn_mmseg.runtime.building import build
from wsbcn_mmseg.runtime.errors import UsageError
from wsbcn_mmseg.runtime.launch import load_config

TITLES = ('Image', 'Truth (white: void)', 'Prediction')


def plot_predictions(dataset: BaseSegDataset | str | Path, predictions: str | Path, out: str | Path, count: int = 6
                     ) -> None:
    """Draw images, their ground truth and their predictions side by side, with a legend.

    Args:
        dataset: Data set of the images, or a VOC2012 folder, of which all images are meant.
        predictions: Folder with label PNGs from ``tools/test.py --out``.
        out: Image to write.
        count: Number of images to show, evenly spaced over those with predictions. Defaults to 6.

    Raises:
        FileNotFoundError: If the folder contains no predictions of images of the data set, or VOC2012 is incomplete.
        ValueError: If the data set has no ground truth, or a prediction is no label map.
    """
    dataset = dataset if isinstance(dataset, BaseSegDataset) else _voc(Path(dataset))
    samples = _predicted(dataset, Path(predictions))
    samples = [samples[i] for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)]
    figure, axes = plt.subplots(len(samples), 3, figsize=(9, 2.5 * len(samples)), layout='constrained', squeeze=False)
    palette, shown = np.array(dataset.metainfo['palette'], np.uint8), set()
    for row, (sample, file) in zip(axes, samples, strict=True):
        truth = LoadAnnotations()(dict(sample))['gt_seg_map']
        prediction = _label_map(file) - int(dataset.reduce_zero_label)
        shown |= set(np.unique(truth)) | set(np.unique(prediction))
        pictures = Image.open(sample['img_path']), color_labels(truth, palette), color_labels(prediction, palette)
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title)
    patches = [Patch(color=palette[label] / 255, label=name)
               for label, name in enumerate(dataset.metainfo['classes']) if label in shown]
    figure.legend(handles=patches, loc='outside lower center', ncols=6, frameon=False)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def _voc(root: Path) -> BaseSegDataset:
    if not (root / 'JPEGImages').is_dir():
        raise FileNotFoundError(f'{root / "JPEGImages"} does not exist; is {root} a VOC2012 folder?')
    return BaseSegDataset(metainfo=PascalVOCDataset.METAINFO, data_root=str(root), test_mode=True,
                          data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'))


def _predicted(dataset: BaseSegDataset, predictions: Path) -> list[tuple[dict, Path]]:
    """The samples of a data set that have predictions, with the files of these."""
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    files = [predictions / f'{Path(sample["img_path"]).stem}.png' for sample in samples]
    found = [(sample, file) for sample, file in zip(samples, files, strict=True) if file.is_file()]
    if not found:
        raise FileNotFoundError(f'{predictions} holds no predictions of images of the data set; tools/test.py --out '
                                'writes them')
    if 'seg_map_path' not in found[0][0]:
        raise ValueError('the data set has no ground truth to draw next to the predictions')
    return found


def _label_map(file: Path) -> np.ndarray:
    labels = np.asarray(Image.open(file))
    if labels.ndim != 2:
        raise ValueError(f'{file} is an image in color, not a label map; tools/test.py --out writes label maps')
    return labels


def images_of_run(work_dir: Path) -> BaseSegDataset:
    """The data set of the test images in the config that a run wrote to its folder.

    Raises:
        UsageError: If the folder has no config, or the config does not test on one data set for segmentation, or the
            data set cannot be built.
    """
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise UsageError(f'{work_dir} holds no config, which names the test images; training writes it')
    cfg = load_config(str(configs[-1]), None, None, 'none')
    if not cfg.get('test_dataloader'):
        raise UsageError(f'{configs[-1]} has no test_dataloader, which names the test images')
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    dataset = build(DATASETS, cfg.test_dataloader.dataset, 'test_dataloader.dataset')
    if not isinstance(dataset, BaseSegDataset):
        raise UsageError(f'test_dataloader.dataset of {configs[-1]} is a {type(dataset).__name__}, but predictions are '
                         'drawn for one data set for segmentation')
    return dataset


def color_labels(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Class indices (H, W) as an RGB image (H, W, 3); labels that are no class, such as void, are white."""
    white = np.full((1, 3), 255, np.uint8)
    return np.concatenate([palette, white])[np.minimum(labels, len(palette))]
