"""Pictures with labels, a small segmentor that trains on them, and the tools, run in this process."""
import contextlib
import io
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

CLASSES = ('ground', 'tree', 'house')
CONFIG = """
custom_imports = dict(imports=['wsbcn_mmseg'])
default_scope = 'mmseg'
norm_cfg = dict(type='BN')
crop_size = (32, 32)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[120.], std=[60.], size=crop_size),
    backbone=dict(type='ResNet', depth=18, base_channels=4, norm_cfg=norm_cfg),
    decode_head=dict(type='FCNHead', in_channels=32, in_index=3, channels=8, num_convs=1, num_classes=3,
                     norm_cfg=norm_cfg),
    auxiliary_head=[dict(type='FCNHead', in_channels=16, in_index=2, channels=8, num_convs=1, num_classes=3,
                         norm_cfg=norm_cfg)],
    train_cfg=dict(), test_cfg=dict(mode='whole'))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
train_pipeline = [*load, dict(type='RandomCrop', crop_size=crop_size), dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root={root!r}, ann_file='train.txt', metainfo=dict(classes=('ground', 'tree', 'house')),
    data_prefix=dict(img_path='images', seg_map_path='labels'), img_suffix='.png', pipeline=train_pipeline)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True), dataset=dataset)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, ann_file='val.txt', pipeline=[*load, dict(type='PackSegInputs')]))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric')
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
"""


def write_data(root: Path, images: int = 6, channels: int = 3, classes: int = 3, suffix: str = '.png') -> None:
    """Noise of 40 x 36 pixels, brighter where the class is higher."""
    random = np.random.default_rng(0)
    for folder in ('images', 'labels'):
        (root / folder).mkdir(parents=True)
    names = [f'picture{index}' for index in range(images)]
    for name in names:
        labels = random.integers(classes, size=(4, 4)).repeat(9, 0).repeat(10, 1).astype(np.uint8)
        image = (labels[..., None] * 60 + random.integers(50, size=(36, 40, channels))).astype(np.uint8)
        Image.fromarray(labels).save(root / 'labels' / f'{name}.png')
        if suffix == '.npy':
            np.save(root / 'images' / f'{name}.npy', image)
        else:
            Image.fromarray(image.squeeze()).save(root / 'images' / f'{name}{suffix}')
    (root / 'train.txt').write_text('\n'.join(names[2:]) + '\n')
    (root / 'val.txt').write_text('\n'.join(names[:2]) + '\n')


def write_config(path: Path, root: Path, more: str = '') -> Path:
    path.write_text(CONFIG.replace('{root!r}', repr(str(root))) + more)
    return path


def write_checkpoint(path: Path, config: Path, change=lambda state: None, meta: bool = True) -> Path:
    """Save a network of a config, its weights drawn at random, as a training does."""
    torch.manual_seed(0)
    cfg = Config.fromfile(config)
    init_default_scope('mmseg')
    state = MODELS.build(cfg.model).state_dict()
    change(state)
    about = dict(cfg=cfg.pretty_text, iter=1, dataset_meta=dict(classes=CLASSES)) if meta else {}
    torch.save(dict(state_dict=state, meta=about), path)
    return path


def run(tool: str, *arguments, **environment) -> tuple[str | int | None, str]:
    """Run a tool in this process: importing OpenMMLab once more would take longer than what it does.

    Returns:
        What it exits with, None on success, and what it printed.
    """
    before, argv = dict(os.environ), sys.argv
    os.environ.update(environment)
    sys.argv = [tool, *map(str, arguments)]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    except SystemExit as stop:
        return stop.code, printed.getvalue()
    finally:
        os.environ.clear()
        os.environ.update(before)
        sys.argv = argv
    return None, printed.getvalue()
