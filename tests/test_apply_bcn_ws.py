"""Configs rewritten, and trained and evaluated by the commands."""
import copy
import re
import warnings

import pytest
import torch
from conftest import ROOT, run_tool
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from wsbcn_mmseg import apply_bcn_ws
from wsbcn_mmseg.experiments import zoo
from wsbcn_mmseg.layers import BCN, AdaptiveConvWS, ConvWS
from wsbcn_mmseg.runtime.checkpoint import read_weights

FCN = 'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'
DOZEN = [
    'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', '_base_/models/stdc.py', '_base_/models/erfnet_fcn.py',
    '_base_/models/bisenetv1_r18-d32.py', '_base_/models/bisenetv2.py', '_base_/models/fast_scnn.py',
    '_base_/models/fcn_hr18.py', '_base_/models/segformer_mit-b0.py', '_base_/models/cgnet.py',
    'mobilenet_v2/mobilenet-v2-d8_deeplabv3_4xb2-80k_cityscapes-512x1024.py',
    'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
    'ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py'
]


def shipped(name):
    cfg = Config.fromfile(zoo.CONFIGS / name)
    cfg.model.pop('pretrained', None)
    return cfg


def build(cfg):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build(copy.deepcopy(cfg.model))


@pytest.mark.parametrize('family', DOZEN)
def test_families_of_the_zoo(family):
    result = zoo.check(family, size=64)
    assert result.outcome == 'ok', result
    assert result.bcn, result
    assert result.conv_ws, result


def test_the_table_of_the_zoo_is_of_all_families_and_95_percent_pass():
    text = (ROOT / 'docs' / 'zoo.md').read_text()
    share = re.search(r'families with such norms pass \((\d+)%\)', text)[1]
    assert int(share) >= 95
    assert len(re.findall(r'^\| `.+\.py`', text, re.M)) > 90


def test_dicts(capsys):
    cfg = shipped(FCN)
    assert apply_bcn_ws(cfg) is cfg
    for part in (cfg.model.backbone, cfg.model.decode_head, cfg.model.auxiliary_head):
        assert part.norm_cfg == dict(type='BCN', requires_grad=True)
        assert part.conv_cfg == dict(type='ConvWS')
    assert cfg.norm_cfg.type == 'BCN'
    assert cfg.custom_imports['imports'] == ['wsbcn_mmseg']
    assert cfg.custom_hooks == [dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook')]
    said = capsys.readouterr().out
    assert 'model.backbone.norm_cfg: SyncBN -> BCN' in said
    assert 'model.decode_head.conv_cfg: None -> ConvWS' in said
    assert 'custom_hooks: + BCNUpdateRateHook' in said
    with pytest.raises(ValueError, match='converted already'):
        apply_bcn_ws(cfg)

    model = build(cfg)
    assert type(model).__name__ == 'EncoderDecoder'
    plain = [name for name, m in model.named_modules() if type(m) is nn.Conv2d]
    assert plain == ['decode_head.conv_seg', 'auxiliary_head.conv_seg']
    norms = sum(isinstance(m, BCN) for m in model.modules())
    assert norms == sum(isinstance(m, ConvWS) for m in model.modules()) > 50


def test_dicts_of_a_model_alone_groups_and_3d():
    model = ConfigDict(type='EncoderDecoder', backbone=dict(type='ResNet', norm_cfg=dict(type='GN', num_groups=8)),
                       neck=dict(type='FPN', norm_cfg=None))
    apply_bcn_ws(model, log=None)
    assert model.backbone.norm_cfg == dict(type='BCN', num_groups=8)
    assert 'conv_cfg' not in model.neck
    assert model.type == 'ConvertedModel'
    assert model.conversion.type == 'EncoderDecoder'
    cfg = ConfigDict(model=dict(type='X', backbone=dict(type='Unknown', norm_cfg=dict(type='BN3d'))))
    apply_bcn_ws(cfg, dict(type='BCN', mode='large_batch'), log=None)
    assert cfg.model.backbone == dict(type='Unknown', norm_cfg=dict(type='BCN', mode='large_batch'))
    assert cfg.custom_hooks == [dict(type='SyncNormStatisticsHook')]


def test_other_norms_and_patterns():
    cfg = apply_bcn_ws(shipped(FCN), 'GN', False, log=None)
    assert cfg.model.backbone.norm_cfg == dict(type='GN', requires_grad=True, num_groups=32)
    assert 'conv_cfg' not in cfg.model.backbone
    assert 'custom_hooks' not in cfg
    cfg = apply_bcn_ws(shipped(FCN), exclude=['auxiliary_head', 'backbone.layer1'], log=None)
    assert cfg.model.decode_head.norm_cfg.type == 'BCN'
    assert cfg.model.auxiliary_head.norm_cfg.type == 'SyncBN'
    assert cfg.model.backbone.norm_cfg.type == 'SyncBN'  # which a part of it keeps
    model = build(cfg)
    kept = ('backbone.layer1', 'auxiliary_head')
    for name, module in model.named_modules():
        if name.endswith(('bn1', 'bn', 'downsample.1')):
            assert isinstance(module, nn.SyncBatchNorm) == name.startswith(kept), name
    assert isinstance(model.backbone.layer2[0].bn1, BCN)
    assert isinstance(model.decode_head.convs[0].bcn, BCN)


def test_hooks_that_are_there_and_optimizers_of_small_steps():
    hooks = [dict(type='EMAHook'), dict(type='BCNUpdateRateHook', factor=2)]
    cfg = ConfigDict(model=dict(type='X'), custom_hooks=hooks, custom_imports=dict(imports='mine'),
                     optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-4)))
    apply_bcn_ws(cfg, log=None)
    assert [hook['type'] for hook in cfg.custom_hooks] == ['EMAHook', 'BCNUpdateRateHook', 'SyncNormStatisticsHook']
    assert cfg.custom_hooks[1].factor == 2
    assert cfg.custom_imports['imports'] == ['mine', 'wsbcn_mmseg']
    cfg = ConfigDict(model=dict(type='X'), optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-4)))
    assert apply_bcn_ws(cfg, log=None).custom_hooks[0] == dict(type='BCNUpdateRateHook', min_rate=0.01)
    cfg = ConfigDict(model=dict(type='X'), optim_wrapper=dict(accumulative_counts=4))
    assert apply_bcn_ws(cfg, None, log=None).custom_hooks == [dict(type='HeldKernelsHook')]


@pytest.mark.parametrize('weights', [
    dict(pretrained='open-mmlab://resnet50_v1c'), dict(backbone=dict(init_cfg=dict(checkpoint='news/resnet.pth')))])
def test_weights_that_were_trained_without_ws(weights):
    with pytest.warns(UserWarning, match='was, according to its name, trained without Weight Standardization'):
        apply_bcn_ws(dict(type='X', **weights), log=None)


def test_weights_that_were_trained_with_ws():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        apply_bcn_ws(dict(type='X', pretrained='open-mmlab://jhu/resnet50_gn_ws'), log=None)
        apply_bcn_ws(dict(type='X', pretrained='open-mmlab://resnet50_v1c'), ws=False, log=None)


def test_what_is_refused():
    for cfg, arguments, sentence in [
            ({}, {}, 'has no model'), (dict(type='X'), dict(norm='NoNorm'), 'no norm is registered'),
            (dict(type='X'), dict(norm='SyncBN', preserve=True), 'preserve=True needs')]:
        with pytest.raises(ValueError, match=sentence):
            apply_bcn_ws(cfg, log=None, **arguments)


def test_preserve(tmp_path):
    """A network that was trained with BN, from its checkpoint."""
    cfg = shipped('fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    cfg.model.backbone.base_channels, cfg.model.auxiliary_head = 8, None
    cfg.model.decode_head.update(in_channels=64, channels=16, dropout_ratio=0)
    ordinary, images = build(cfg), torch.randn(4, 3, 64, 64)
    for module in ordinary.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__, module.momentum = nn.BatchNorm2d, None
    with torch.no_grad():
        for _ in range(3):
            ordinary.train()(images)
        expected = ordinary.eval()(images)
    torch.save(dict(state_dict=ordinary.state_dict()), tmp_path / 'bn.pth')
    error = {}
    for preserve in (False, True):
        converted = copy.deepcopy(cfg)
        converted.load_from = str(tmp_path / 'bn.pth')
        apply_bcn_ws(converted, dict(type='BCN', num_groups=2), preserve=preserve, log=None)
        model = build(converted)
        model.init_weights()
        with torch.no_grad():
            error[preserve] = ((model.eval()(images) - expected).norm() / expected.norm()).item()
    assert converted.load_from is None
    assert isinstance(model.backbone.layer1[0].conv1, AdaptiveConvWS)
    assert error[True] < 0.4 < error[False], error
    copy.deepcopy(model).init_weights()


@pytest.fixture(scope='module')
def stdc(tmp_path_factory):
    """A config as users have it: a network without conv_cfg on their own data."""
    path = tmp_path_factory.mktemp('stdc') / 'mine.py'
    model = shipped('_base_/models/stdc.py').model
    for head in (model.decode_head, *model.auxiliary_head[:-1]):
        head.num_classes = 21
    model.data_preprocessor = dict(size=(64, 64), test_cfg=dict(size=(257, 257)), type='SegDataPreProcessor', pad_val=0,
                                   mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], seg_pad_val=255)
    path.write_text(f"_base_ = '{ROOT / 'configs' / 'demo_mini_voc.py'}'\n"
                    f'custom_hooks = []\nmodel = dict(_delete_=True, **{model.to_dict()!r})\n')
    return path


OPTIONS = ['train_dataloader.batch_size=2', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
           'default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1',
           'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
           'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False']


def test_the_flag_in_two_processes_and_the_config_it_writes(stdc, mini_voc, tmp_path):
    result = run_tool('dist_train.sh', stdc, 2, '--work-dir', tmp_path, '--bcn-ws', '--cfg-options', *OPTIONS,
                      'load_from=None', VOC_ROOT=str(mini_voc))
    output = result.stdout + result.stderr
    assert output.count('model.decode_head.norm_cfg: BN -> BCN') == 1
    assert 'The network has 41 BCN and 41 ConvWS' in output
    validated = re.findall(r'mIoU: ([\d.]+)', output)
    result = run_tool('test.py', tmp_path / 'mine.py', tmp_path / 'iter_2.pth', '--work-dir', tmp_path / 'test',
                      VOC_ROOT=str(mini_voc))
    assert re.findall(r'mIoU: ([\d.]+)', result.stdout + result.stderr) == validated
    weights = read_weights(tmp_path / 'iter_2.pth')
    moved = [name for name, value in weights.items() if name.endswith('bn.running_mean') and value.any()]
    assert len(moved) == 41


@pytest.mark.parametrize('arguments, sentence', [
    (['--include', 'backbone'], 'need one of --bcn-ws'),
    (['--norm', 'NoNorm'], 'no norm is registered as'),
])
def test_mistakes_are_one_sentence(arguments, sentence, mini_voc):
    result = run_tool('train.py', ROOT / 'configs' / 'demo_mini_voc.py', *arguments, check=False,
                      VOC_ROOT=str(mini_voc))
    assert result.returncode == 1
    assert sentence in result.stderr.strip().splitlines()[-1]


def test_a_config_that_converts_another(stdc, tmp_path):
    path = tmp_path / 'converted.py'
    path.write_text(f"_base_ = '{stdc}'\nfrom wsbcn_mmseg import apply_bcn_ws\n"
                    'model = dict(_delete_=True, **apply_bcn_ws(_base_.model))\n'
                    "custom_hooks = [dict(type='BCNUpdateRateHook')]\n")
    cfg = Config.fromfile(path)
    assert cfg.model.type == 'ConvertedModel'
    assert sum(isinstance(m, BCN) for m in build(cfg).modules()) == 41


def test_hooks_given_by_class_or_scope_are_not_added_again():
    from wsbcn_mmseg.hooks import BCNUpdateRateHook, SyncNormStatisticsHook
    cfg = shipped(FCN)
    cfg.custom_hooks = [dict(type=BCNUpdateRateHook, factor=0.1), SyncNormStatisticsHook()]
    apply_bcn_ws(cfg, log=None)
    assert len(cfg.custom_hooks) == 2
    assert cfg.custom_hooks[0]['factor'] == 0.1
    cfg = shipped(FCN)
    cfg.custom_hooks = [dict(type='mmengine.BCNUpdateRateHook', factor=0.1)]
    apply_bcn_ws(cfg, log=None)
    assert [hook['type'] for hook in cfg.custom_hooks] == ['mmengine.BCNUpdateRateHook', 'SyncNormStatisticsHook']


def test_backbones_with_deformable_convolutions_keep_their_conv_cfg():
    """They insist on conv_cfg=None; convert_model standardizes their other convolutions."""
    cfg = shipped(FCN)
    cfg.model.backbone.update(dcn=dict(type='DCN', deform_groups=1), stage_with_dcn=(False, ) * 4)
    apply_bcn_ws(cfg, log=None)
    assert not cfg.model.backbone.get('conv_cfg')
    model = build(cfg)
    assert isinstance(model.backbone.layer1[0].conv1, ConvWS)
    assert isinstance(model.backbone.layer4[0].norm3, BCN)


def test_patterns_that_match_nothing_end_in_a_sentence(tmp_path, mini_voc):
    result = run_tool('train.py', ROOT / 'configs' / 'deeplabv3_r101_bn_voc.py', '--bcn-ws', '--include', 'deocde_head',
                      '--work-dir', tmp_path, check=False, VOC_ROOT=str(mini_voc))
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith('train.py: ')
    assert "'deocde_head' matches no norm or convolution" in last
    assert 'Traceback' not in result.stderr
