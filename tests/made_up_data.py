"""A few drawn images in the formats of the data sets that the configs train on."""
import hashlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CAMVID_COUNTS = dict(train=9, val=2, test=3)


def _noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_camvid(root: Path) -> Path:
    """CAMVID_ROOT of a few street scenes: classes in horizontal stripes, void at the bottom."""
    generator = np.random.default_rng(0)
    for split, count in CAMVID_COUNTS.items():
        lines = []
        for folder in (root / split, root / f'{split}annot'):
            folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            label = np.minimum(np.arange(360) // 30, 11).astype(np.uint8)[:, None].repeat(480, 1)
            image = label[..., None] * 20 + generator.integers(0, 20, (360, 480, 3), np.uint8)
            Image.fromarray(image).save(root / split / f'{index}.png')
            Image.fromarray(label).save(root / f'{split}annot' / f'{index}.png')
            lines.append(f'/SegNet/CamVid/{split}/{index}.png /SegNet/CamVid/{split}annot/{index}.png')
        (root / f'{split}.txt').write_text('\n'.join(lines) + '\n')
    return root


def make_voc(root: Path) -> Path:
    """VOC_ROOT of four images, labeled in stripes, with the lists of the augmented training set and of val."""
    labels = np.minimum(np.arange(64) // 3, 20).astype(np.uint8)[:, None].repeat(96, 1)
    for folder in ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(4):
        _noise(64, 96).save(root / 'JPEGImages' / f'{index}.jpg')
        for folder in ('SegmentationClass', 'SegmentationClassAug'):
            Image.fromarray(labels).save(root / folder / f'{index}.png')
    for split in ('trainaug', 'train', 'val'):
        (root / 'ImageSets' / 'Segmentation' / f'{split}.txt').write_text('0\n1\n2\n3\n')
    return root


def make_cityscapes(root: Path) -> Path:
    """CITYSCAPES_ROOT of four images of one city, labeled in stripes."""
    labels = np.minimum(np.arange(64) // 3, 18).astype(np.uint8)[:, None].repeat(128, 1)
    for split in ('train', 'val'):
        for kind in ('leftImg8bit', 'gtFine'):
            (root / kind / split / 'city').mkdir(parents=True, exist_ok=True)
        for index in range(4):
            _noise(64, 128).save(root / 'leftImg8bit' / split / 'city' / f'{index}_leftImg8bit.png')
            Image.fromarray(labels).save(root / 'gtFine' / split / 'city' / f'{index}_gtFine_labelTrainIds.png')
    return root


def make_imagenet(root: Path) -> Path:
    """IMAGENET_ROOT with one image in each of 1,000 classes."""
    image = _noise(48, 64)
    for split in ('train', 'val'):
        for number in range(1000):
            folder = root / split / f'n{number:08d}'
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f'{number}.JPEG')
    return root


def make_cifar(root: Path) -> Path:
    """CIFAR_ROOT with the pickles of CIFAR-10 and CIFAR-100, ten images each."""
    rng = np.random.default_rng(0)
    for folder, files, meta, label in (
            ('cifar-10-batches-py', [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch'], 'batches.meta',
             'labels'),
            ('cifar-100-python', ['train', 'test'], 'meta', 'fine_labels')):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            images = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
            (root / folder / file).write_bytes(pickle.dumps({'data': images, label: list(range(10))}))
        (root / folder / meta).write_bytes(pickle.dumps({'label_names': [], 'fine_label_names': []}))
    return root


def accept_checksums(root: Path, monkeypatch) -> None:
    """Let mmpretrain, which compares CIFAR's files with the checksums of the real ones, accept those in ``root``."""
    from mmpretrain.datasets import CIFAR10, CIFAR100
    for cls in (CIFAR10, CIFAR100):
        def checksum(name, cls=cls):
            return hashlib.md5((root / cls.base_folder / name).read_bytes()).hexdigest()
        for attribute in ('train_list', 'test_list'):
            monkeypatch.setattr(cls, attribute, [[name, checksum(name)] for name, _ in getattr(cls, attribute)])
        monkeypatch.setattr(cls, 'meta', {**cls.meta, 'md5': checksum(cls.meta['filename'])})


def make_coco(root: Path, names: Sequence[str] = ('person', 'bicycle')) -> Path:
    """COCO_ROOT of four images with one box and one polygon each, of the classes with these names."""
    (root / 'annotations').mkdir(parents=True, exist_ok=True)
    for split in ('train2017', 'val2017'):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(1, 5):
            _noise(96, 128).save(root / split / f'{number:012}.jpg')
            images.append(dict(id=number, file_name=f'{number:012}.jpg', height=96, width=128))
            annotations.append(dict(id=number, image_id=number, category_id=1, bbox=[16, 16, 64, 48], area=64 * 48,
                                    iscrowd=0, segmentation=[[16, 16, 80, 16, 80, 64, 16, 64]]))
        classes = [dict(id=number, name=name) for number, name in enumerate(names, 1)]
        content = dict(images=images, annotations=annotations, categories=classes)
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    return root


def make_sthv1(root: Path) -> Path:
    """STHV1_ROOT: two folders of frames, and lists of them: folder, frames, label."""
    for clip in range(2):
        folder = root / 'rawframes' / str(clip)
        folder.mkdir(parents=True, exist_ok=True)
        for frame in range(1, 10):
            _noise(60, 80).save(folder / f'{frame:05}.jpg')
    for split in ('train', 'val'):
        (root / f'sthv1_{split}_list_rawframes.txt').write_text('0 9 3\n1 9 5\n')
    return root
