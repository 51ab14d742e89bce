"""Read images with the channels that a network takes."""
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.dataset import Compose
from torch import nn

from wsbcn_mmseg.runtime.errors import first_line
from wsbcn_mmseg.runtime.samples import input_channels

from .images import read_image
from .pipeline import loading_step

_COLOR = ('color', 'color_ignore_orientation')


class Picture(NamedTuple):
    """An image.

    Attributes:
        shown: For people, RGB, uint8 of shape (H, W, 3).
        pixels: For the pipeline after its loading step, shape (H, W) or (H, W, C); colors in OpenMMLab's order, BGR.
    """

    shown: np.ndarray
    pixels: np.ndarray


class ImageReader:
    """Reads images as the test pipeline of a model's config does.

    Color images are read by :func:`~wsbcn_mmseg.inference.read_image`, which knows more kinds of files. Where the
    pipeline reads anything else (``color_type='unchanged'`` or ``'grayscale'``, arrays of NumPy, TIFF with many bands),
    its own step reads the file.

    Args:
        model: From :func:`~wsbcn_mmseg.load_segmentor`.
        tta: Whether the config's ``tta_pipeline`` is used. Defaults to False.
    """

    def __init__(self, model: nn.Module, tta: bool = False):
        step = loading_step(model.cfg, tta)
        self.channels = input_channels(model)
        self.in_color = step['type'].endswith('LoadImageFromFile') and step.get('color_type', 'color') in _COLOR
        self.load = Compose([step])

    def __call__(self, source: str | Path | np.ndarray) -> Picture:
        """Read a file, or take an array: RGB, uint8 of shape (H, W, 3), where the pipeline reads color images;
        otherwise of shape (H, W, C) as the network takes it.

        Raises:
            ValueError: If the image cannot be used; the message does not contain its name.
        """
        if not self.in_color:
            return self._as_the_pipeline(source)
        if isinstance(source, np.ndarray) and (source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3
                                               or not source.size):
            raise ValueError(f'is not uint8 of shape (H, W, 3) but {source.dtype} of shape {source.shape}')
        image = source if isinstance(source, np.ndarray) else read_image(source)
        if self.channels != 3:
            raise ValueError(f'is read with 3 channels, but the network takes {self.channels}; set color_type of '
                             'LoadImageFromFile in the test pipeline')
        return Picture(image, np.ascontiguousarray(image[..., ::-1]))  # OpenMMLab reads files as BGR

    def _as_the_pipeline(self, source: str | Path | np.ndarray) -> Picture:
        pixels = source if isinstance(source, np.ndarray) else self._loaded(source)
        channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
        if pixels.ndim not in (2, 3) or channels != self.channels or not pixels.size:
            raise ValueError(f'has {channels} channels, but the network takes {self.channels}' if pixels.ndim in (2, 3)
                             and pixels.size else f'is not of shape (H, W, {self.channels}) but {pixels.shape}')
        return Picture(_for_people(pixels), pixels)

    def _loaded(self, path: str | Path) -> np.ndarray:
        if not Path(path).is_file():
            raise ValueError('does not exist')
        try:
            return self.load(dict(img_path=str(path)))['img']
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise ValueError(f'cannot be decoded ({first_line(error)})') from error


def _for_people(pixels: np.ndarray) -> np.ndarray:
    """RGB of the first three channels, which OpenMMLab has as BGR, or gray of one or two; scaled if not uint8."""
    image = pixels[..., None] if pixels.ndim == 2 else pixels
    image = image[..., 2::-1] if image.shape[2] > 2 else image[..., :1].repeat(3, 2)
    if image.dtype != np.uint8:
        finite = np.nan_to_num(image.astype(np.float64))
        image = ((finite - finite.min()) * (255 / (np.ptp(finite) or 1))).astype(np.uint8)
    return np.ascontiguousarray(image)
