"""Check some samples of a data set before a training."""
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from mmcv import imread
from torch import nn
from torch.utils.data import Dataset

from .building import quietly
from .errors import Faults, UsageError, first_line
from .naming_dataset import FILES


@dataclass
class Labels:
    """The values that label maps may hold.

    Attributes:
        classes: Number of classes; None if it is not known.
        ignored: Values that losses ignore.
        seen, empty: Number of checked label maps, and of those with nothing but ignored values.
    """

    classes: int | None = None
    ignored: set[int] = field(default_factory=lambda: {255})
    seen: int = 0
    empty: int = 0

    def check(self, results: dict) -> None:
        """Raise a UsageError if a label map does not fit its image or the classes."""
        labels, path = results['gt_seg_map'], results.get('seg_map_path')
        if labels.ndim != 2:
            raise UsageError(f'{path} has {labels.shape[-1]} channels; a label map has one, of class numbers')
        size = results.get('ori_shape')
        if size is not None and tuple(size[:2]) != labels.shape:
            raise UsageError(f'{path} is {labels.shape[1]}x{labels.shape[0]} pixels, its image '
                             f'{results.get("img_path")} {size[1]}x{size[0]}')
        values = [value for value in np.unique(labels).tolist() if value not in self.ignored]
        if self.classes and values and values[-1] >= self.classes:
            raise UsageError(f'{path} holds the value {values[-1]}, but there are {self.classes} classes, 0 to '
                             f'{self.classes - 1}, and {", ".join(map(str, sorted(self.ignored)))} is ignored')
        self.seen, self.empty = self.seen + 1, self.empty + (not values)


def check_samples(dataset: Dataset, where: str, labels: Labels, network: nn.Module | None, seconds: float, most: int,
                  training: bool) -> Iterator[str]:
    """Faults of the files that a segmentation data set lists, and of its first and some random samples.

    Args:
        dataset: A data set of MMSegmentation.
        where: Its place in the config.
        labels: The values that its label maps may hold.
        network: If given, the network that must accept the samples.
        seconds: Time after which no further sample is loaded.
        most: Maximum number of samples to load.
        training: Whether the network trains on the samples.
    """
    faults, stop = Faults(), time.monotonic() + seconds
    with faults:
        _check_listed_files(dataset, where, time.monotonic() + seconds / 2)
    chosen = [0, *random.Random(0).sample(range(len(dataset)), min(len(dataset), most))]
    for index in dict.fromkeys(chosen) if not faults.sentences else ():
        with faults, quietly():
            _check_sample(dataset, index, where, labels, network, training)
        if len(faults.sentences) > 2 or time.monotonic() > stop:
            break
    if labels.seen and labels.seen == labels.empty:
        faults.add(f'{where}: all label maps looked at ({labels.seen}) hold nothing but the ignored '
                   f'{", ".join(map(str, sorted(labels.ignored)))}; there is nothing to learn from')
    yield from faults.sentences


def _check_listed_files(dataset: Dataset, where: str, stop: float) -> None:
    """Raise a UsageError if files are missing. Files are checked in order until time is up."""
    missing, looked = [], 0
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        paths = [str(info[key]) for key in FILES if info.get(key)]
        if any('://' in path for path in paths) or dataset.backend_args:
            return  # remote files are not checked
        if paths and os.path.basename(paths[0]) == dataset.img_suffix:
            raise UsageError(f'{dataset.ann_file} has a blank line, number {index + 1}; remove it')
        looked += len(paths)
        missing += [path for path in paths if not os.path.isfile(path)]
        if time.monotonic() > stop:
            break
    if missing:
        raise UsageError(f'{len(missing)} of {looked} files of {where} do not exist, the first is {missing[0]}')


def _check_sample(dataset: Dataset, index: int, where: str, labels: Labels, network: nn.Module | None,
                  training: bool) -> None:
    results = dataset.get_data_info(index)
    name, loaded = results.get('img_path', f'sample {index} of {where}'), False
    for transform in dataset.pipeline.transforms:
        results = _apply(transform, results, name)
        if results is None:
            return  # MMEngine loads another sample instead
        if 'gt_seg_map' in results and not loaded:
            loaded = True
            _check_depth(results)
            labels.check(results)
    if network is not None and 'inputs' in results:
        _check_input(network, results, name, training)


def _apply(transform: Callable, results: dict, name: str) -> dict | None:
    label = results.get('seg_map_path') if type(transform).__name__ == 'LoadAnnotations' else None
    try:
        return transform(results)
    except Exception as error:
        raise UsageError(f'{label or name} fails in {type(transform).__name__}: {first_line(error)}') from error


def _check_depth(results: dict) -> None:
    """Raise an error for values above 255: MMSegmentation reads label maps as 8 bits, where 256 becomes 0."""
    path = results.get('seg_map_path')
    is_cut = results['gt_seg_map'].dtype == np.uint8 and str(path).endswith('.png') and '://' not in path
    raw = imread(path, 'unchanged', backend='pillow') if is_cut else None
    if raw is not None and raw.dtype != np.uint8 and raw.max() > 255:
        raise UsageError(f'{path} holds values up to {raw.max()}; label maps are read as 8 bits, 0 to 255')


def _check_input(network: nn.Module, results: dict, name: str, training: bool) -> None:
    """Raise an error unless the network's preprocessor and first layer accept the sample."""
    inputs = results['inputs']
    if not isinstance(inputs, torch.Tensor):
        return  # test-time augmentation gives a list
    try:
        network.data_preprocessor(dict(inputs=[inputs], data_samples=[results['data_samples']]), training)
    except Exception as error:
        raise UsageError(f'model.data_preprocessor does not accept {name}, with {len(inputs)} channels: '
                         f'{first_line(error)}') from error
    wanted = refused_channels(network, len(inputs))
    if wanted:
        raise UsageError(f'{name} is loaded with {len(inputs)} channels, but the network takes {wanted}; set '
                         f'model.backbone.in_channels={len(inputs)}, or color_type of LoadImageFromFile')


def input_channels(network: nn.Module) -> int:
    """Number of input channels of a network, from its first convolution."""
    backbone = getattr(network, 'backbone', network)
    first = next((layer for layer in backbone.modules() if isinstance(layer, nn.modules.conv._ConvNd)), None)
    return 3 if first is None else first.in_channels


@torch.no_grad()
def refused_channels(network: nn.Module, channels: int) -> int | None:
    """The number of channels that a network expects if it rejects images with ``channels``; None if it accepts them."""
    if channels == input_channels(network):
        return None
    was_training = network.training
    try:
        network.eval().extract_feat(torch.zeros(1, channels, 64, 64))
    except RuntimeError as error:
        wanted = re.search(r'to have (\d+) channels, but got \d+ channels', str(error))
        return int(wanted[1]) if wanted else None
    except Exception:  # not a segmentor
        return None
    finally:
        network.train(was_training)
    return None
