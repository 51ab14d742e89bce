"""Every config trains, evaluates and resumes on made-up data, with the network as it is and small images.

Not part of the usual tests, as it takes half an hour: tools/run_stack_tests.sh runs it for a named OpenMMLab stack and
writes what holds to docs/stacks.md.
"""
import importlib
import shutil
from pathlib import Path

import made_up_data
import pytest
import torch
from conftest import ROOT, require, settle
from mmengine.config import Config

from wsbcn_mmseg.runtime.checkpoint import safe_loading
from wsbcn_mmseg.runtime.launch import load_config
from wsbcn_mmseg.runtime.resume import resume
from wsbcn_mmseg.runtime.runner import ResumableRunner
from wsbcn_mmseg.runtime.whole_files import whole_files

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures('one_thread', 'scope_of_its_own')]
CONFIGS = sorted(path.relative_to(ROOT / 'configs') for path in (ROOT / 'configs').rglob('*.py')
                 if '_base_' not in path.parts)
PACKAGES = dict(coco='mmdet', sthv1='mmaction', imagenet='mmpretrain', cifar='mmpretrain', digits='mmpretrain')
SIZES = ('scale', 'crop_size', 'input_size', 'size')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Environment variables that name the data."""
    root = tmp_path_factory.mktemp('data')
    roots = {name: str(getattr(made_up_data, f'make_{name}')(root / name))
             for name in ('voc', 'camvid', 'cityscapes', 'imagenet', 'cifar', 'sthv1')}
    if importlib.util.find_spec('mmdet') and importlib.util.find_spec('mmcv._ext'):
        names = importlib.import_module('mmdet.datasets').CocoDataset.METAINFO['classes']
        roots['coco'] = str(made_up_data.make_coco(root / 'coco', names))  # the network may predict any of them
    weights = root / 'efficientnet_lite0.pth'
    if importlib.util.find_spec('timm'):
        network = importlib.import_module('timm').create_model('tf_efficientnet_lite0', features_only=True,
                                                               out_indices=(4, ))
        torch.save({f'timm_model.{name}': value for name, value in settle(network, torch.float32).state_dict().items()},
                   weights)
    return {f'{name.upper()}_ROOT': folder for name, folder in roots.items()} | dict(
        CAMVID_BATCH='2', WEIGHTS=str(weights))


@pytest.fixture
def stages(request):
    """The stages that a test has passed, for the table."""
    passed = []
    yield passed
    request.node.user_properties.append(('stages', passed))


def shrink_images(part, largest: int) -> None:
    """Reduce all sizes of images in pipelines, wherever they are nested."""
    if isinstance(part, dict):
        for name in SIZES:
            if name in part:
                value = part[name]
                part[name] = tuple(min(largest, each) for each in value) if isinstance(value, (list, tuple)) \
                    else min(largest, value)
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple)) else ():
        shrink_images(inner, largest)


def shrink(cfg: Config, largest: int) -> int:
    """Two updates of two small images, no evaluation meanwhile; returns the length of the training."""
    for part in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        part.update(num_workers=0, persistent_workers=False)
        part.batch_size = min(2, part.batch_size)
        part.dataset.indices = 4
        shrink_images(part.dataset.pipeline, largest)
    shrink_images((cfg.get('model') or {}).get('data_preprocessor') or {}, largest)
    if 'accumulative_counts' in cfg.optim_wrapper:
        cfg.optim_wrapper.accumulative_counts = 2
    if 'rpn_head' in cfg.model:
        cfg.model.train_cfg.rcnn.sampler.num, cfg.model.test_cfg.rpn.max_per_img = 16, 20
    if 'frozen' in cfg.filename:  # without ImageNet's weights the frozen BN layers do nothing, and training diverges
        cfg.optim_wrapper.optimizer.lr = 1e-8
    by_epoch = 'max_epochs' in cfg.train_cfg
    half = 1 if by_epoch else 2
    cfg.train_cfg.update({'max_epochs' if by_epoch else 'max_iters': half, 'val_interval': 1000})
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=by_epoch, interval=half, max_keep_ckpts=1)
    cfg.log_level = 'WARNING'
    return half


@pytest.mark.parametrize('config', CONFIGS, ids=str)
def test_it_trains_evaluates_and_resumes(config, data, stages, tmp_path, monkeypatch):
    require(PACKAGES.get(config.parts[0], 'mmseg'))
    for name, value in data.items():
        monkeypatch.setenv(name, value)
    if config.parts[0] == 'cifar':
        made_up_data.accept_checksums(Path(data['CIFAR_ROOT']), monkeypatch)
    cfg = load_config(str(ROOT / 'configs' / config), None, str(tmp_path), 'none')
    cfg.visualizer.name = str(tmp_path)  # one of the same name would be used again
    half = shrink(cfg, 128 if config.parts[0] == 'coco' else 64)
    length = 'max_epochs' if 'max_epochs' in cfg.train_cfg else 'max_iters'
    with safe_loading(), whole_files():
        runner = ResumableRunner.from_cfg(cfg)
        runner.train()
        assert all(value.isfinite().all() for value in runner.model.state_dict().values())
        stages.append('trains')
        metrics = runner.val_loop.run()
        assert metrics or config.parts[0] == 'coco'  # whose evaluation of no boxes at all is empty
        stages.append('evaluates')
        cfg.train_cfg[length] = 2 * half
        resume(cfg, start_if_none=False)
        del runner
        runner = ResumableRunner.from_cfg(cfg)
        runner.train()
        assert runner.iter == 4 if length == 'max_iters' else runner.epoch == 2
        stages.append('resumes')
    shutil.rmtree(tmp_path)
