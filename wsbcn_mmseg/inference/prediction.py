"""Predict labels for images."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import Compose
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from rich.progress import Progress
from torch import nn

from wsbcn_mmseg.runtime.errors import UsageError, first_line

from .images import find_images
from .output import KINDS, unique_names, write_prediction
from .pipeline import preprocess_steps
from .reader import ImageReader

INFERENCE_MODES = ('whole', 'slide')


@dataclass
class Prediction:
    """The prediction for an image, or the reason why there is none.

    Attributes:
        source: The path of the image file, or 'image N' for an array.
        labels: Class of every pixel, uint8 of shape (H, W) after rotation by EXIF; None if there is a problem, or if
            files were written.
        files: Paths of the written files, by kind: 'labels', 'masks', 'overlays'.
        problem: Why there is no prediction, as one sentence; None if there is one.
    """
    source: str
    labels: np.ndarray | None = None
    files: dict[str, Path] = field(default_factory=dict)
    problem: str | None = None


def infer(model: nn.Module, images: Sequence | str | Path | np.ndarray, out: str | Path | None = None, *,
          tta: bool = False, mode: str | None = None, batch: int = 1, opacity: float = 0.5,
          progress: bool = True) -> list[Prediction]:
    """Segment images. A file that cannot be segmented is reported and skipped.

    Args:
        model: Result of :func:`load_segmentor`; a folded model (:func:`wsbcn_mmseg.fold`) works too.
        images: One or a sequence of files, folders, globs, and arrays in RGB, uint8 of shape (H, W, 3). If the config's
            test pipeline reads images with other channels, files and arrays must have these channels.
        out: Folder for ``labels/NAME.png`` (palette of VOC), ``masks/NAME.png`` (colors, with a legend) and
            ``overlays/NAME.png``; None writes nothing and returns the labels. Defaults to None.
        tta: Average over several scales and flips by the config's ``tta_pipeline``. Defaults to False.
        mode: 'whole' for whole images, 'slide' for a sliding window, whose size is in the config's ``test_cfg`` or
            ``crop_size``. Defaults to None: the mode in the config.
        batch: Number of images of equal size per forward pass. Defaults to 1.
        opacity: Opacity of the colors in overlays, 0 to 1. Defaults to 0.5.
        progress: Show a progress bar. Defaults to True.

    Returns:
        One prediction per image, in the order of the images.

    Raises:
        UsageError: If an argument is not valid or not supported by the config.
    """
    if isinstance(images, (str, Path, np.ndarray)):
        images = [images]
    if len(model.dataset_meta['classes']) > 256:
        raise UsageError('label files hold up to 256 classes, the model has more')
    if batch < 1 or not 0 <= opacity <= 1:
        raise UsageError(f'expected batch of at least 1 and opacity from 0 to 1, got {batch} and {opacity}')
    odd = next((image for image in images if not isinstance(image, (str, Path, np.ndarray))), None)
    if odd is not None:
        raise UsageError(f'expected paths and arrays, got a {type(odd).__name__}')
    sources = [source for image in images
               for source in ([image] if isinstance(image, np.ndarray) else find_images([image]))]
    network, pipeline = _network(model, tta), Compose(preprocess_steps(model.cfg, tta))
    names = unique_names(sources)
    predictions = [Prediction(name if isinstance(source, np.ndarray) else str(source))
                   for name, source in zip(names, sources, strict=True)]
    if out is not None:
        for kind in KINDS:
            Path(out, kind).mkdir(parents=True, exist_ok=True)

    with _InferenceMode(model, mode), Progress(disable=not progress) as bar:
        task = bar.add_task('Segmenting', total=len(sources))
        for group in _groups(sources, predictions, ImageReader(model, tta), pipeline, batch):
            for index, image, labels in _predict(network, group, predictions):
                prediction = predictions[index]
                if out is None:
                    prediction.labels = labels
                else:
                    try:
                        prediction.files = write_prediction(Path(out), names[index], image, labels,
                                                            model.dataset_meta, opacity)
                    except OSError as error:
                        prediction.problem = f'the results of {prediction.source} cannot be written ({error})'
            bar.update(task, completed=sum(bool(p.problem or p.files or p.labels is not None) for p in predictions))
        bar.update(task, completed=len(sources))
    return predictions


def _network(model: nn.Module, tta: bool) -> nn.Module:
    if not tta:
        return model
    if 'tta_pipeline' not in model.cfg or 'tta_model' not in model.cfg:
        raise UsageError('the config has no tta_pipeline and tta_model; configs/_base_/voc_aug.py shows them')
    return MODELS.build(dict(**model.cfg.tta_model, module=model)).eval()


class _InferenceMode:
    """Within this context, the model predicts on whole images or with a sliding window."""

    def __init__(self, model: nn.Module, mode: str | None):
        if mode not in (None, *INFERENCE_MODES):
            raise UsageError(f'mode must be one of {", ".join(INFERENCE_MODES)}, got {mode}')
        self.model, self.before = model, model.test_cfg
        self.test_cfg = ConfigDict(self.before or {}, mode=mode or (self.before or {}).get('mode', 'whole'))
        if self.test_cfg.mode == 'slide' and 'crop_size' not in self.test_cfg:
            crop = model.cfg.get('crop_size') or (512, 512)
            crop = (crop, crop) if isinstance(crop, int) else tuple(crop)
            self.test_cfg.update(crop_size=crop, stride=tuple(max(1, side * 2 // 3) for side in crop))

    def __enter__(self):
        self.model.test_cfg = self.test_cfg

    def __exit__(self, *_):
        self.model.test_cfg = self.before


_Item = tuple[int, np.ndarray, dict]  # index of the image, its pixels, the pipeline's result


def _groups(sources: list, predictions: list[Prediction], read: ImageReader, pipeline: Compose, batch: int
            ) -> Iterator[list[_Item]]:
    """Groups of up to ``batch`` images of equal size; at most 4 * ``batch`` images are kept in memory."""
    waiting: dict[tuple, list[_Item]] = {}
    for index, source in enumerate(sources):
        try:
            picture = read(source)
        except ValueError as error:
            predictions[index].problem = f'{predictions[index].source} {error}'
            continue
        try:
            data = pipeline(dict(img=picture.pixels))
        except Exception as error:  # transforms may raise any error on unsupported sizes
            predictions[index].problem = _failure(predictions[index], error)
            continue
        inputs = data['inputs'] if isinstance(data['inputs'], list) else [data['inputs']]
        shapes = picture.shown.shape, *(tuple(part.shape) for part in inputs)
        waiting.setdefault(shapes, []).append((index, picture.shown, data))
        if len(waiting[shapes]) == batch:
            yield waiting.pop(shapes)
        elif sum(map(len, waiting.values())) >= 4 * batch:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _predict(network: nn.Module, group: list[_Item], predictions: list[Prediction]) -> Iterator:
    """Index, pixels and labels of each image in a group. If the group fails, its images are run one by one."""
    try:
        with torch.no_grad():
            samples = network.test_step(_collate([data for _, _, data in group]))
    except Exception as error:
        if len(group) == 1:
            prediction = predictions[group[0][0]]
            prediction.problem = _failure(prediction, error)
            return
        for item in group:
            yield from _predict(network, [item], predictions)
        return
    for (index, image, _), sample in zip(group, samples, strict=True):
        yield index, image, _labels(sample)


def _failure(prediction: Prediction, error: Exception) -> str:
    return f'{prediction.source} cannot be segmented ({first_line(error)})'


def _collate(items: list[dict]) -> dict:
    """Like MMEngine's ``pseudo_collate``: lists over images, or lists of these over augmentations."""
    batch = {key: [item[key] for item in items] for key in ('inputs', 'data_samples')}
    if isinstance(batch['inputs'][0], list):
        batch = {key: [list(part) for part in zip(*values, strict=True)] for key, values in batch.items()}
    return batch


def _labels(sample: SegDataSample) -> np.ndarray:
    labels = sample.pred_sem_seg.data.cpu().numpy()
    return labels.reshape(labels.shape[-2:]).astype(np.uint8)
