"""The handwritten digits in scikit-learn: 1,797 real images of 8 x 8 pixels, for experiments that take minutes."""
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

NUM_TEST = 450


@DATASETS.register_module()
class Digits(BaseDataset):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak 1998), as shipped with scikit-learn.

    Samples have ``img``, a uint8 array of shape (8, 8, 1) with values from 0 to 240, and ``gt_label``. A fixed random
    split has 1,347 training and 450 test images, with equal shares of every digit.

    Args:
        split: ``'train'`` or ``'test'``.
        kwargs: Further arguments of MMEngine's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ValueError: If ``split`` has another value.
        ImportError: If scikit-learn is not installed.
    """
    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self, split: str, **kwargs: Any):
        if split not in ('train', 'test'):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        self.split = split
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise ImportError('the digits come with scikit-learn; run: pip install scikit-learn') from error
        digits = load_digits()
        train, test = train_test_split(np.arange(len(digits.target)), test_size=NUM_TEST, random_state=0,
                                       stratify=digits.target)
        images = (digits.images * 15).astype(np.uint8)[..., None]  # from 0..16
        return [dict(img=images[i], gt_label=int(digits.target[i])) for i in (train if self.split == 'train' else test)]
