"""From a config file to a runner: what train.py and test.py share.

Everything a user can get wrong is checked here, before anything is built, and answered by one sentence.
"""
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, init_default_scope

from .checkpoint import read_weights


class UsageError(Exception):
    """Something that the user can put right; the message says how."""


def load_config(path: str, options: dict | None, work_dir: str | None, launcher: str) -> Config:
    """Read a config and merge the command line into it.

    ``WORLD_SIZE`` must be known before the config is read: batch sizes and schedules depend on it.
    """
    if not Path(path).is_file():
        raise UsageError(f'config {path} does not exist')
    if launcher == 'slurm':
        os.environ.setdefault('WORLD_SIZE', os.environ.get('SLURM_NTASKS', '1'))
    cfg = Config.fromfile(path)
    cfg.launcher = launcher
    cfg.merge_from_dict(options or {})
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(path).stem))
    return cfg


def check_processes(cfg: Config, options: dict | None) -> None:
    """The number of processes must divide the total batch size, and every process needs a GPU if there are any."""
    processes = int(os.environ.get('WORLD_SIZE', 1))
    here = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    gpus = torch.cuda.device_count()
    if 0 < gpus < here:
        raise UsageError(f'{here} processes were asked for, but this machine has {gpus} GPUs; ask for at most {gpus}')
    total = cfg.get('total_batch_size')
    if total and total % processes and 'train_dataloader.batch_size' not in (options or {}):
        divisors = [n for n in range(1, total + 1) if total % n == 0]
        nearest = [max((n for n in divisors if n < processes), default=None),
                   min((n for n in divisors if n > processes), default=None)]
        raise UsageError(f'{processes} processes cannot share a total batch of {total} images; take '
                         f'{" or ".join(str(n) for n in nearest if n)} processes, or say how many images each takes: '
                         '--cfg-options train_dataloader.batch_size=N')


def check_data(cfg: Config, phases: tuple[str, ...]) -> None:
    """Data folders and lists must exist, and the head must have as many classes as the data set."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    for phase in phases:
        for dataset in _datasets((cfg.get(f'{phase}_dataloader') or {}).get('dataset', {})):
            root = Path(dataset.get('data_root') or '.')
            if not root.is_dir():
                raise UsageError(f'data folder {root} does not exist; set VOC_ROOT to your VOCdevkit/VOC2012, '
                                 'or make a small synthetic one with tools/make_mini_voc.py')
            ann_file = dataset.get('ann_file')
            if ann_file and not (root / ann_file).is_file():
                raise UsageError(f'{root / ann_file} does not exist; tools/prepare_voc_aug.py makes the augmented '
                                 'training list and labels')
            _check_classes(cfg, dataset)


def _datasets(dataset: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    if 'dataset' in dataset:
        yield from _datasets(dataset['dataset'])
    for inner in dataset.get('datasets', []):
        yield from _datasets(inner)
    if 'data_root' in dataset:
        yield dataset


def _check_classes(cfg: Config, dataset: dict) -> None:
    heads = cfg.model.get('decode_head')
    head = heads[-1] if isinstance(heads, (list, tuple)) else heads
    with DATASETS.switch_scope_and_registry(None) as registry:
        dataset_type = registry.get(dataset['type'])
    classes = (dataset.get('metainfo') or {}).get('classes') or getattr(dataset_type, 'METAINFO', {}).get('classes')
    if head and classes and 'num_classes' in head and head['num_classes'] != len(classes):
        raise UsageError(f"the model has {head['num_classes']} classes, but {dataset['type']} has {len(classes)}; "
                         f'set model.decode_head.num_classes={len(classes)}')


def check_checkpoint(cfg: Config, path: str) -> None:
    """The file must be readable without running code in it, and have as many classes as the model."""
    try:
        weights = read_weights(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error
    head = weights.get('decode_head.conv_seg.weight')
    classes = cfg.model.get('decode_head', {}).get('num_classes') if not isinstance(
        cfg.model.get('decode_head'), (list, tuple)) else None
    if head is not None and classes and len(head) != classes:
        raise UsageError(f'{path} has {len(head)} classes, but the model has {classes}')


def start_processes(cfg: Config) -> None:
    """Without a GPU, let the processes of torchrun talk over gloo; MMEngine's own start needs CUDA."""
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
        return
    torch.distributed.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                   find_unused_parameters=cfg.get('find_unused_parameters', False))
    wrapper.update(cfg.get('model_wrapper_cfg') or {})
    cfg.model_wrapper_cfg = wrapper
    if torch.distributed.get_rank() == 0:
        print_log(f'No GPU here: {torch.distributed.get_world_size()} processes on the CPU, over gloo')
