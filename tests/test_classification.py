"""Every classification config trains a step, on tiny data in the real formats; what it learnt goes into segmentors."""
import hashlib
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn

from wsbcn_mmseg.engine.launch import load_config
from wsbcn_mmseg.layers import BCN, ConvCWN, ConvWN, ConvWS

pytest.importorskip('mmpretrain', reason='the classification configs need mmpretrain')
CONFIGS = sorted(path for folder in ('imagenet', 'cifar') for path in (ROOT / 'configs' / folder).glob('*.py'))


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """ImageNet's folders with one image per class, and CIFAR's pickles with ten images each."""
    root = tmp_path_factory.mktemp('classification')
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    for split in ('train', 'val'):
        for number in range(1000):
            folder = root / 'imagenet' / split / f'n{number:08d}'
            folder.mkdir(parents=True)
            image.save(folder / f'{number}.JPEG')
    for folder, files, meta, label in (
            ('cifar-10-batches-py', [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch'], 'batches.meta',
             'labels'),
            ('cifar-100-python', ['train', 'test'], 'meta', 'fine_labels')):
        folder = root / 'cifar' / folder
        folder.mkdir(parents=True)
        for file in files:
            images = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
            (folder / file).write_bytes(pickle.dumps({'data': images, label: list(range(10))}))
        (folder / meta).write_bytes(pickle.dumps({'label_names': [], 'fine_label_names': []}))
    return root


@pytest.fixture
def cifar_checksums(data, monkeypatch):
    """mmpretrain checks the files against the checksums of the real ones."""
    from mmpretrain.datasets import CIFAR10, CIFAR100
    for cls in (CIFAR10, CIFAR100):
        def checksum(name, cls=cls):
            return hashlib.md5((data / 'cifar' / cls.base_folder / name).read_bytes()).hexdigest()
        for attribute in ('train_list', 'test_list'):
            monkeypatch.setattr(cls, attribute, [[name, checksum(name)] for name, _ in getattr(cls, attribute)])
        monkeypatch.setattr(cls, 'meta', {**cls.meta, 'md5': checksum(cls.meta['filename'])})


def small_run(config: Path, data: Path, work_dir: Path):
    """A Runner of ``config`` with four images of 64 x 64, two updates of two, and one evaluation."""
    from mmengine.runner import Runner
    os.environ.update(IMAGENET_ROOT=str(data / 'imagenet'), CIFAR_ROOT=str(data / 'cifar'))
    try:
        cfg = load_config(str(config), None, str(work_dir), 'none')
    finally:
        del os.environ['IMAGENET_ROOT'], os.environ['CIFAR_ROOT']
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    images_per_update = cfg.train_dataloader.batch_size * accumulation
    assert images_per_update == cfg.total_batch_size
    cfg.train_dataloader.batch_size = min(2, cfg.train_dataloader.batch_size)
    cfg.optim_wrapper.accumulative_counts = 2 if cfg.train_dataloader.batch_size == 1 else 1
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.indices = 4
        for transform in loader.dataset.pipeline:
            for name in ('scale', 'crop_size'):
                if name in transform:
                    transform[name] = min(64, transform[name])
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=-1)
    cfg.log_level = 'WARNING'
    return Runner.from_cfg(cfg)


EXPECTED = {'bn': nn.BatchNorm2d, 'gn': nn.GroupNorm, 'ln': nn.GroupNorm, 'in': nn.InstanceNorm2d, 'bcn': BCN}


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains(config, data, tmp_path, cifar_checksums):
    runner = small_run(config, data, tmp_path)
    network = runner.model
    first = {name: value.clone() for name, value in network.named_parameters()}
    runner.train()
    assert all(value.isfinite().all() for value in network.state_dict().values())
    moved = [name for name, value in network.named_parameters() if not torch.equal(value, first[name])]
    assert len(moved) > .7 * len(first) and 'backbone.conv1.weight' in moved and 'head.fc.weight' in moved
    name = re.match(r'(resnet\d+|resnext\d+_32x4d)_(.*)_(in1k|c10|c100)', config.stem)[2]
    norms = [m for m in network.modules() if isinstance(m, (nn.GroupNorm, nn.InstanceNorm2d, BCN))
             or type(m) is nn.BatchNorm2d]
    kind = EXPECTED[name.split('_')[0]]
    outer = [m for m in norms if not any(m is n.bn for n in norms if isinstance(n, BCN))]
    assert outer and all(isinstance(m, kind) and m.weight is not None for m in outer)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    conv = next((c for word, c in (('_wn', ConvWN), ('_cwn', ConvCWN), ('_ws', ConvWS)) if word in name), nn.Conv2d)
    assert {type(m) for m in convs} == {conv}
