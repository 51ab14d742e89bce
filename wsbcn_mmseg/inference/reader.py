"""Read images with the channels that a network expects."""
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
        shown: The image for display: RGB, uint8 of shape (H, W, 3).
        pixels: The input of the pipeline after its loading step, of shape (H, W) or (H, W, C); colors are BGR, as in
            OpenMMLab.
    """

    shown: np.ndarray
    pixels: np.ndarray


class ImageReader:
    """Reads images as the test pipeline of a model's config does.

    Color images are read by :func:`~wsbcn_mmseg.inference.read_image`, which supports more file types. If the pipeline
    reads anything else (``color_type='unchanged'`` or ``'grayscale'``, NumPy arrays, TIFF with many bands), its loading
    step reads the file.

    Args:
        model: Result of :func:`~wsbcn_mmseg.load_segmentor`.
        tta: Whether the config's ``tta_pipeline`` is used. Defaults to False.
    """

    def __init__(self, model: nn.Module, tta: bool = False):
        step = loading_step(model.cfg, tta)
        self.channels = input_channels(model)
        self.in_color = step['type'].endswith('LoadImageFromFile') and step.get('color_type', 'color') in _COLOR
        self.load = Compose([step])

    def __call__(self, source: str | Path | np.ndarray) -> Picture:
        """Read a file, or convert an array. The array must be RGB, uint8 of shape (H, W, 3), if the pipeline reads
        color images, and otherwise of shape (H, W, C) with the channels of the network.

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
        except Exception as error:  # decoders may raise any error on damaged files
            raise ValueError(f'cannot be decoded ({first_line(error)})') from error


def _for_people(pixels: np.ndarray) -> np.ndarray:
    """RGB from the first three channels, which are BGR in OpenMMLab, or gray from one or two; scaled if not uint8."""
    image = pixels[..., None] if pixels.ndim == 2 else pixels
    image = image[..., 2::-1] if image.shape[2] > 2 else image[..., :1].repeat(3, 2)
    if image.dtype != np.uint8:
        finite = np.nan_to_num(image.astype(np.float64))
        image = ((finite - finite.min()) * (255 / (np.ptp(finite) or 1))).astype(np.uint8)
    return np.ascontiguousarray(image)
