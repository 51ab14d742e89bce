"""The six configs of Table 11 keep to the paper's protocol."""
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from torch import nn

from wsbcn_mmseg.layers import BCN, ConvWS

ROWS = {  # norm layer, its mode, momentum in backbone and head, Weight Standardization
    'gn': (nn.GroupNorm, None, None, False),
    'gn_ws': (nn.GroupNorm, None, None, True),
    'bn': (nn.BatchNorm2d, None, (0.05, 0.0003), False),
    'bn_ws': (nn.BatchNorm2d, None, (0.05, 0.0003), True),
    'bcn_ws': (BCN, 'large_batch', (0.1, 0.1), True),
    'bcn_ws_micro': (BCN, 'micro_batch', None, True),
}


@pytest.fixture(params=ROWS)
def row(request):
    return request.param


@pytest.fixture
def load(root, monkeypatch):
    def load(row, processes=1):
        monkeypatch.setenv('WORLD_SIZE', str(processes))
        monkeypatch.delenv('VOC_ROOT', raising=False)
        return Config.fromfile(root / 'configs' / f'deeplabv3_r101_{row}_voc.py')

    return load


def test_network(row, load):
    norm, mode, momentum, weight_standardization = ROWS[row]
    init_default_scope('mmseg')
    with torch.device('meta'):
        model = MODELS.build(load(row).model)
    backbone, head = model.backbone, model.decode_head
    blocks = [block for stage in range(1, 5) for block in getattr(backbone, f'layer{stage}')]
    assert len(blocks) == 33
    assert backbone.conv1.kernel_size == (7, 7)
    assert not model.with_auxiliary_head
    assert [block.conv2.dilation[0] for block in backbone.layer4] == [1, 2, 2]
    assert all(block.conv2.dilation[0] == 1 for block in blocks[:-3])
    strides = [block.conv2.stride[0] for block in blocks]
    assert np.prod(strides) * backbone.conv1.stride[0] * backbone.maxpool.stride == 16, 'output stride'

    assert [branch.conv.dilation[0] for branch in head.aspp_modules] == [1, 6, 12, 18]
    assert head.bottleneck.conv.kernel_size == (1, 1)
    assert head.dropout is None
    assert head.align_corners
    assert type(head.conv_seg) is nn.Conv2d
    assert head.conv_seg.bias is not None
    assert head.conv_seg.out_channels == 21

    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m is not head.conv_seg]
    assert {type(m) for m in convolutions} == {ConvWS if weight_standardization else nn.Conv2d}
    norms = [m for m in model.modules() if type(m) is norm and not any(m is b.bn for b in model.modules()
                                                                       if isinstance(b, BCN))]
    assert len(norms) == len(convolutions) == 110
    if norm is not nn.BatchNorm2d:
        assert {m.num_groups for m in norms} == {32}
    if mode:
        assert {(m.mode, m.sync) for m in norms} == {(mode, mode == 'large_batch')}
    if momentum:
        for part, value in zip((backbone, head), momentum, strict=True):
            assert {m.momentum for m in part.modules() if isinstance(m, nn.BatchNorm2d)} == {value}


def test_pooled_branch_is_last(load):
    init_default_scope('mmseg')
    settings = load('gn').model.decode_head | dict(in_channels=8, channels=64)
    head = MODELS.build(settings).eval()
    seen = []
    head.bottleneck.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 8, 5, 5)
    head([x])
    pooled = head.image_pool(x)
    torch.testing.assert_close(seen[0][:, -64:], pooled.expand(-1, -1, 5, 5))


@pytest.mark.parametrize('processes', [1, 4, 16])
def test_schedule(row, load, processes):
    cfg = load(row, processes)
    micro = row == 'bcn_ws_micro'
    forwards = 16 // processes if micro else 1  # per update
    assert cfg.train_dataloader.batch_size * processes * cfg.optim_wrapper.get('accumulative_counts', 1) == 16
    assert not micro or cfg.train_dataloader.batch_size == 1
    assert cfg.train_cfg.max_iters == 30000 * forwards
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 5000 * forwards
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.007, momentum=0.9, weight_decay=1e-4)
    hooks = [hook['type'] for hook in cfg.custom_hooks]
    assert 'SyncNormStatisticsHook' in hooks
    assert ('BCNUpdateRateHook' in hooks) == micro
    assert ('HeldKernelsHook' in hooks) == micro


def test_learning_rate_is_the_formula(row, load):
    from mmengine.registry import PARAM_SCHEDULERS
    cfg = load(row, 16)  # one forward per update in the micro-batch config too
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], cfg.optim_wrapper.optimizer.lr)
    scheduler = PARAM_SCHEDULERS.build(cfg.param_scheduler[0], default_args=dict(optimizer=optimizer))
    rates = {}
    for t in range(30000):
        rates[t] = optimizer.param_groups[0]['lr']
        optimizer.step()
        scheduler.step()
    for t in (0, 1, 15000, 29999):
        assert rates[t] == pytest.approx(0.007 * (1 - t / 30000)**0.9, rel=1e-6)


def test_the_logits_start_as_the_authors(row, load):
    """deeplab.py: PyTorch's default, uniform within 1 / sqrt(256), except for kernels without WS: normal, with variance
    2 / (1 * 1 * 21), as all convolutions. No residual branch starts at zero."""
    init_default_scope('mmseg')
    cfg = load(row).model
    cfg.backbone.update(depth=50, base_channels=8, stem_channels=32)
    cfg.decode_head.update(in_channels=256)
    for part in (cfg.backbone, cfg.decode_head):
        part.norm_cfg = dict(part.norm_cfg) | (dict(num_groups=8) if 'num_groups' in part.norm_cfg else {})
    model = MODELS.build(cfg)
    model.init_weights()
    weight, bias = model.decode_head.conv_seg.weight.detach(), model.decode_head.conv_seg.bias.detach()
    if ROWS[row][3]:
        assert .9 / 16 < weight.abs().max() <= 1 / 16
        assert weight.std() == pytest.approx(1 / 16 / 3**.5, rel=.05)
    else:
        assert weight.std() == pytest.approx((2 / 21)**.5, rel=.05)
    assert 0 < bias.abs().max() <= 1 / 16
    assert bias.unique().numel() == 21
    assert all(block.norm3.weight.eq(1).all() for block in model.backbone.layer1)


def test_loss_counts_labeled_pixels_only(row, load):
    init_default_scope('mmseg')
    loss = MODELS.build(load(row).model.decode_head.loss_decode)
    logits, labels = torch.randn(2, 21, 8, 8), torch.randint(0, 21, (2, 8, 8))
    labels[:, ::2] = 255
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(loss(logits, labels, ignore_index=255), expected)


def test_training_images(load, mini_voc):
    """Log-uniform scales of the image's own size, crop 513, flips, zeros and 255 padded after normalization."""
    cfg = load('bcn_ws')
    assert [step['type'] for step in cfg.train_pipeline] == [
        'LoadImageFromFile', 'LoadAnnotations', 'RandomLogScale', 'RandomCrop', 'RandomFlip', 'PackSegInputs']
    init_default_scope('mmseg')
    scale = TRANSFORMS.build(cfg.train_pipeline[2])
    assert scale.scale_range == (0.5, 2.0)
    cfg.train_dataloader.dataset.data_root = str(mini_voc)
    np.random.seed(0)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 16
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    sizes = set()
    for index in range(12):
        sample = dataset[index]
        height, width = sample['inputs'].shape[1:]
        sizes.add((height, width))
        assert max(height, width) <= 513
        batch = preprocessor(dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]), True)
        image, label = batch['inputs'][0], batch['data_samples'][0].gt_sem_seg.data[0]
        assert image.shape == (3, 513, 513)
        assert label.shape == (513, 513)
        assert image[:, height:].eq(0).all()
        assert image[..., width:].eq(0).all()
        assert label[height:].eq(255).all()
        assert label[:, width:].eq(255).all()
        pixel = sample['inputs'][:, 0, 0].flip(0).double()  # stored BGR
        expected = (pixel - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
        torch.testing.assert_close(image[:, 0, 0].double(), expected, rtol=1e-5, atol=1e-5)
    assert len(sizes) > 6


def test_evaluation_images_keep_their_size(load, mini_voc):
    cfg = load('bcn_ws')
    init_default_scope('mmseg')
    cfg.val_dataloader.dataset.data_root = str(mini_voc)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert cfg.val_dataloader.batch_size == 1
    assert cfg.model.test_cfg == dict(mode='whole')
    assert cfg.val_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'])
    sample = dataset[0]
    size = tuple(sample['inputs'].shape[1:])
    assert size == sample['data_samples'].ori_shape
    assert 500 in size
    batch = MODELS.build(cfg.model.data_preprocessor)(
        dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]), False)
    assert batch['inputs'].shape == (1, 3, 513, 513)
    assert batch['inputs'][..., size[0]:, :].eq(0).all()
    assert batch['inputs'][..., size[1]:].eq(0).all()


def test_prediction_is_cropped_back(load):
    init_default_scope('mmseg')
    cfg = load('gn').model
    cfg.backbone.update(depth=18, base_channels=32)
    cfg.decode_head.update(in_channels=256, channels=64)
    model = MODELS.build(cfg).eval()
    sample = SegDataSample(metainfo=dict(ori_shape=(40, 30), img_shape=(40, 30)))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 40, 30, dtype=torch.long))
    image = torch.randint(0, 255, (3, 40, 30), dtype=torch.uint8)
    prediction = model.test_step(dict(inputs=[image], data_samples=[sample]))[0]
    normalized = model.data_preprocessor(dict(inputs=[image], data_samples=[copy.deepcopy(sample)]), False)['inputs']
    logits = F.interpolate(model.decode_head(model.backbone(normalized)), (513, 513), mode='bilinear',
                           align_corners=True)
    assert torch.equal(prediction.pred_sem_seg.data[0], logits[0].argmax(0)[:40, :30])


def test_environment_points_at_data_and_weights(root, monkeypatch, tmp_path):
    monkeypatch.setenv('VOC_ROOT', '/data/voc')
    monkeypatch.setenv('PRETRAINED', '/weights/r101.pth')
    cfg = Config.fromfile(root / 'configs' / 'deeplabv3_r101_bcn_ws_voc.py')
    assert cfg.train_dataloader.dataset.data_root == '/data/voc'
    assert cfg.model.backbone.init_cfg == dict(type='PretrainedBackbone', checkpoint='/weights/r101.pth')


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.'])
def test_pretrained_backbone(prefix, tmp_path):
    init_default_scope('mmseg')
    settings = dict(type='ResNet', depth=18, base_channels=8, norm_cfg=dict(type='BCN'), conv_cfg=dict(type='ConvWS'))
    source = MODELS.build(settings)
    source.init_weights()
    weights = {prefix + name: value for name, value in source.state_dict().items()} | {
        'head.fc.weight': torch.zeros(1), 'fc.weight': torch.zeros(1)}
    torch.save(dict(state_dict=weights), tmp_path / 'r18.pth')
    init_cfg = dict(type='PretrainedBackbone', checkpoint=str(tmp_path / 'r18.pth'))
    model = MODELS.build(settings | dict(init_cfg=init_cfg))
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    other = MODELS.build(settings | dict(norm_cfg=dict(type='GN', num_groups=4), init_cfg=init_cfg))
    with pytest.raises(ValueError, match='another network or normalization'):
        other.init_weights()


def test_the_stem_of_the_authors_beta_network(root):
    """deeplab.py with --beta: three convolutions in a row, then a norm, ReLU and pooling."""
    init_default_scope('mmseg')
    cfg = Config.fromfile(root / 'configs' / 'deeplabv3_r101_beta_gn_ws_cityscapes.py').model.backbone
    network = MODELS.build(cfg | dict(depth=18, base_channels=32)).double()
    network.init_weights()
    assert [conv.weight.shape for conv in network.conv1] == [(64, 3, 3, 3), (64, 64, 3, 3), (64, 64, 3, 3)]
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    y = x
    for conv, stride in zip(network.conv1, (2, 1, 1), strict=True):
        assert type(conv) is ConvWS
        assert conv.bias is None
        y = F.conv2d(y, conv.standardized_weight(), stride=stride, padding=1)
    wanted = F.max_pool2d(F.group_norm(y, 32).relu(), 3, 2, 1)
    seen = []
    network.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(x)
    torch.testing.assert_close(seen[0], wanted)
