"""Tables 9, 10 and 12: the configs train on tiny data where MMDetection and MMAction2 are installed; their settings
are in test_settings.py."""
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, require
from made_up_data import make_coco, make_sthv1
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import MODELS
from torch import nn

from wsbcn_mmseg import apply_bcn_ws
from wsbcn_mmseg.hooks import BCNUpdateRateHook
from wsbcn_mmseg.layers import BCN, ConvWS

COCO, STHV1 = ROOT / 'configs' / 'coco', ROOT / 'configs' / 'sthv1'
DETECTORS = sorted(path.stem for path in COCO.glob('*.py'))
VIDEO = ('gn', 'gn_ws', 'bn', 'bn_ws', 'bcn_ws')


pytestmark = pytest.mark.usefixtures('scope_of_its_own')


class Part(nn.Module):
    """A bit of everything that a detector trains, also a deformable convolution's offsets, by their usual names."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.conv, self.norm = ConvWS(4, 8, 3, bias=False), norm
        self.conv_offset, self.fc = nn.Conv2d(8, 18, 3), nn.Linear(8, 2)
        self.bias_branch = nn.Linear(8, 8)


@pytest.mark.parametrize('norm', [BCN(8), nn.GroupNorm(4, 8), nn.BatchNorm2d(8)], ids=lambda norm: type(norm).__name__)
def test_detectors_train_biases_as_the_authors_do(norm):
    """maskrcnn_benchmark/solver/build.py: twice the rate and no decay for every name that contains "bias"."""
    model = nn.ModuleDict(dict(backbone=Part(norm)))
    wrapper = build_optim_wrapper(model, Config.fromfile(COCO / 'mask_rcnn_r50_bcn_ws_2x.py').optim_wrapper)
    groups = {id(parameter): group for group in wrapper.optimizer.param_groups for parameter in group['params']}
    for name, parameter in model.named_parameters():
        expected = (.02, 0) if 'bias' in name else (.01, 1e-4)
        assert (groups[id(parameter)]['lr'], groups[id(parameter)]['weight_decay']) == expected, name
    assert 'backbone.norm.bias' in dict(model.named_parameters())
    if isinstance(norm, BCN):  # r is the learning rate, not that of the shifts
        hook = BCNUpdateRateHook()
        hook.before_train(SimpleNamespace(model=model, optim_wrapper=wrapper))
        hook.before_train_iter(None, 0)
        assert norm.update_rate == .01


@pytest.mark.parametrize('folder, names', [('coco', DETECTORS), ('sthv1', [f'tsm_r50_{row}' for row in VIDEO])])
def test_tables_name_every_config_and_say_what_was_run(folder, names):
    text = (ROOT / 'configs' / folder / 'README.md').read_text()
    assert set(re.findall(r'^\| `(\w+)` \|', text, re.M)) == set(names)
    assert text.count('not run') >= len(names)


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp('coco'))


def run_one_step(cfg, tmp_path) -> Runner:
    cfg.work_dir, cfg.log_level = str(tmp_path), 'WARNING'
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].update(num_workers=0, persistent_workers=False)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize('name', ['mask_rcnn_r50_bcn_ws_2x', 'faster_rcnn_r50_gn_ws_1x'])
def test_detectors_train_and_evaluate(name, coco, tmp_path, monkeypatch):
    require('mmdet')
    monkeypatch.setenv('COCO_ROOT', str(coco))
    cfg = Config.fromfile(COCO / f'{name}.py')
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.model.train_cfg.rcnn.sampler.num, cfg.model.test_cfg.rpn.max_per_img = 16, 20
    cfg.train_dataloader.dataset.pipeline[2].scale = cfg.val_dataloader.dataset.pipeline[1].scale = (128, 96)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(coco / 'annotations' / 'instances_val2017.json')
    model = run_one_step(cfg, tmp_path).model
    plain = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and not isinstance(m, ConvWS)}
    assert plain == {'rpn_head.rpn_conv', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg'} | (
        {'roi_head.mask_head.conv_logits'} if 'mask' in name else set())
    if 'bcn' in name:
        layers = [m for m in model.modules() if isinstance(m, BCN)]
        assert len(layers) == 53 + 8 + 4 + 4
        assert all(m.bn.running_mean.any() for m in layers)


def test_the_flag_on_a_detector(coco):
    require('mmdet')
    init_default_scope('mmdet')
    cfg = Config.fromfile(COCO / '_base_' / 'mask_rcnn_r50_2x.py')
    apply_bcn_ws(cfg, log=None)
    model = ROOT_MODELS.build(cfg.model)
    assert sum(isinstance(m, BCN) for m in model.modules()) == 53 == sum(isinstance(m, ConvWS) for m in model.modules())


@pytest.fixture(scope='module')
def sthv1(tmp_path_factory):
    return make_sthv1(tmp_path_factory.mktemp('sthv1'))


@pytest.mark.parametrize('row', ['bcn_ws', 'bn'])
def test_tsm_trains_and_evaluates(row, sthv1, tmp_path, monkeypatch):
    require('mmaction')
    if row == 'bcn_ws':
        layers = dict(conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='BCN'))
        classifier = MODELS.build(dict(type='ResNet', depth=50, **layers))
        torch.save(classifier.state_dict(), tmp_path / 'r50.pth')
        monkeypatch.setenv('PRETRAINED', str(tmp_path / 'r50.pth'))
    monkeypatch.setenv('STHV1_ROOT', str(sthv1))
    cfg = Config.fromfile(STHV1 / f'tsm_r50_{row}.py')
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.train_dataloader.batch_size = cfg.val_dataloader.batch_size = 2
    for loader, resize in ((cfg.train_dataloader, 2), (cfg.val_dataloader, 2)):
        loader.dataset.pipeline[resize].scale = (-1, 64)
    cfg.train_dataloader.dataset.pipeline[3].input_size = 64
    cfg.train_dataloader.dataset.pipeline[4].scale = (64, 64)
    cfg.val_dataloader.dataset.pipeline[3].crop_size = 64
    seen = []
    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda m, inputs: seen.append(inputs[0].shape) if isinstance(m, BCN) else None)
    try:
        model = run_one_step(cfg, tmp_path).model
    finally:
        hook.remove()
    layers = [m for m in model.modules() if isinstance(m, BCN)]
    assert len(layers) == (53 if row == 'bcn_ws' else 0) == sum(isinstance(m, ConvWS) for m in model.modules())
    assert row == 'bn' or seen[0] == (2 * 8, 64, 32, 32)  # maps of N*T images
    assert torch.isfinite(model.cls_head.fc_cls.weight).all()
