"""Data augmentation of the paper's VOC experiments that MMSegmentation does not have."""
import math

import numpy as np
from mmcv.transforms.utils import cache_randomness
from mmseg.datasets.transforms import Resize
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomLogScale(Resize):
    """Resize an image and its label maps by one random factor, uniform in the logarithm.

    The factor applies to the image's own size, so halving is as likely as doubling. (mmcv's ``RandomResize`` draws
    linearly and starts from a given base scale.) Images are resampled with an antialiasing filter, label maps in
    ``results['seg_fields']`` take the nearest neighbor. Randomness comes from numpy's global generator, which
    MMEngine seeds.

    Required keys: ``img`` (uint8 with the Pillow backend), label maps named in ``seg_fields`` (optional).
    Modified and added keys: ``img``, the label maps, ``img_shape``, ``scale`` (width, height), ``scale_factor``
    (width, height; after rounding to whole pixels) and ``keep_ratio``.

    Args:
        scale_range: Smallest and largest factor. Defaults to (0.5, 2.0), the paper's.
        interpolation: Filter for the image. Defaults to 'lanczos'.
        backend: 'pillow' or 'cv2'; only Pillow's filters are antialiased when they shrink an image. Defaults to
            'pillow'.

    Raises:
        ValueError: If not 0 < smallest <= largest factor.

    Examples:
        >>> pipeline = [
        ...     dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
        ...     dict(type='RandomLogScale', scale_range=(0.5, 2.0)),
        ...     dict(type='RandomCrop', crop_size=(513, 513))]
    """

    def __init__(self, scale_range: tuple[float, float] = (0.5, 2.0), interpolation: str = 'lanczos',
                 backend: str = 'pillow'):
        try:
            low, high = map(float, scale_range)
        except (TypeError, ValueError):
            low = high = math.nan
        if not 0 < low <= high < math.inf:
            raise ValueError(f'scale_range must be (smallest, largest) with 0 < smallest <= largest, got {scale_range}')
        super().__init__(scale_factor=(low, high), interpolation=interpolation, backend=backend)
        self.scale_range = (low, high)

    @cache_randomness
    def _random_factor(self) -> float:
        low, high = self.scale_range
        return math.exp(np.random.uniform(math.log(low), math.log(high)))

    def transform(self, results: dict) -> dict:
        """Resize ``results['img']``, shape (H, W) or (H, W, C), and its label maps, shape (H, W)."""
        factor = self._random_factor()
        height, width = results['img'].shape[:2]
        results['scale'] = tuple(max(1, int(side * factor + 0.5)) for side in (width, height))
        self._resize_img(results)
        self._resize_seg(results)
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(scale_range={self.scale_range}, interpolation={self.interpolation!r}, '
                f'backend={self.backend!r})')
