"""BCN and ConvWS as norm and convolution layers of the OpenMMLab stack."""
import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer, build_norm_layer, is_norm
from mmengine.model import ExponentialMovingAverage, constant_init, initialize
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmseg.models.backbones import ResNet
from torch import nn

from wsbcn_mmseg.layers import BCN, ConvWS, ConvWS1d, ConvWS3d
from wsbcn_mmseg.layers.bcn import default_num_groups
from wsbcn_mmseg.ops import standardize_weight, standardized_convolution

MICRO = dict(type='BCN', update_rate=0.1)


def resnet(**changes):
    settings = dict(depth=18, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1, ),
                    norm_cfg=MICRO, conv_cfg=dict(type='ConvWS'))
    return ResNet(**(settings | changes))


# Weight Standardization


@pytest.mark.parametrize('shape', [(8, 3, 3, 3), (8, 1, 3, 3), (6, 5, 3), (4, 2, 3, 3, 3), (3, 2, 1, 1)])
def test_standardized_weight_is_equation_5(shape):
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    rows = []
    for kernel in weight:
        fan_in = kernel.numel()
        mean = kernel.sum() / fan_in
        rows.append((kernel - mean) / torch.sqrt(((kernel - mean)**2).sum() / fan_in + 1e-5))
    expected, got = torch.stack(rows), standardize_weight(weight)
    dw = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad((w * dw).sum(), weight)[0] for w in (got, expected)),
                               rtol=0, atol=1e-12)
    assert torch.autograd.gradgradcheck(standardize_weight, (weight, ))


def test_standardization_keeps_one_weight_for_backward():
    weight, saved = torch.randn(16, 8, 3, 3, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        standardize_weight(weight)
    assert {t.data_ptr() for t in saved if t.numel() > 16} == {weight.data_ptr()}


def test_standardization_does_not_cancel_and_half_precision_uses_float32():
    weight = torch.randn(4, 16, 3, 3) + 1000
    torch.testing.assert_close(standardize_weight(weight).double(), standardize_weight(weight.double()),
                               rtol=0, atol=1e-3)
    half = (torch.randn(4, 16, 3, 3) * 300).half()  # squares overflow float16
    assert standardize_weight(half).dtype == torch.float16
    torch.testing.assert_close(standardize_weight(half).float(), standardize_weight(half.float()), rtol=0, atol=2e-3)


@pytest.mark.parametrize('settings', [
    dict(groups=2), dict(groups=8, in_channels=8, out_channels=16), dict(dilation=2, padding=2), dict(bias=False),
    dict(stride=2, padding='valid'), dict(padding='same', padding_mode='reflect'), dict(padding_mode='circular',
                                                                                        padding=1)
])
@pytest.mark.parametrize('layer, plain, pixels', [(ConvWS, nn.Conv2d, (9, 8)), (ConvWS1d, nn.Conv1d, (11, )),
                                                  (ConvWS3d, nn.Conv3d, (6, 7, 8))])
def test_conv_ws_is_a_plain_convolution_with_the_standardized_kernel(layer, plain, pixels, settings):
    if settings.get('padding_mode') == 'reflect' and plain is nn.Conv3d:
        settings = settings | dict(padding_mode='replicate')
    settings = dict(in_channels=4, out_channels=8, kernel_size=3) | settings
    conv, reference = layer(**settings), plain(**settings)
    reference.load_state_dict(conv.state_dict())
    with torch.no_grad():
        reference.weight.copy_(conv.standardized_weight())
    x = torch.randn(2, settings['in_channels'], *pixels)
    torch.testing.assert_close(conv(x), reference(x))
    torch.testing.assert_close(conv(x[0]), reference(x[0]), msg='one image without a batch dimension')


@pytest.mark.parametrize('settings', [dict(groups=2, bias=True), dict(stride=2, padding=1, bias=False),
                                      dict(dilation=2, bias=True)])
@pytest.mark.parametrize('frozen', ['', 'x', 'weight'])
def test_gradients_of_conv_ws(settings, frozen):
    conv = ConvWS(4, 8, 3, **settings).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=frozen != 'x')
    conv.weight.requires_grad_(frozen != 'weight')
    inputs = [tensor for tensor in (x, *conv.parameters()) if tensor.requires_grad]
    composed = F.conv2d(x, standardize_weight(conv.weight), conv.bias, conv.stride, conv.padding, conv.dilation,
                        conv.groups)
    dy = torch.randn_like(composed)
    for a, b in zip(torch.autograd.grad(conv(x), inputs, dy), torch.autograd.grad(composed, inputs, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    if not frozen:
        assert torch.autograd.gradgradcheck(lambda x, weight: standardized_convolution(
            x, weight, None, (1, 1), (0, 0), (1, 1), 1), (x[:, :2, :3, :3], conv.weight[:2, :2]))


def test_gradients_of_conv_ws_that_runs_twice_are_the_same_when_second_derivatives_are_wanted():
    conv, x = ConvWS(2, 2, (1, 2)).double(), torch.randn(1, 2, 2, 5, dtype=torch.float64, requires_grad=True)
    first, with_graph = (torch.autograd.grad(conv(conv(x)).pow(3).sum(), (x, *conv.parameters()), create_graph=create)
                         for create in (False, True))
    for a, b in zip(with_graph, first, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert torch.autograd.gradgradcheck(lambda x, weight: standardized_convolution(
        standardized_convolution(x, weight, None, (1, 1), (0, 0), (1, 1), 1), weight, None, (1, 1), (0, 0), (1, 1), 1),
        (x, conv.weight))


def test_conv_ws_keeps_input_and_raw_kernel_for_backward():
    conv, saved = ConvWS(8, 16, 3), []
    x = torch.randn(1, 8, 6, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        conv(x)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), conv.weight.data_ptr(), conv.bias.data_ptr()}


def test_conv_ws_refuses_mixed_dtypes_as_convolutions_do():
    with pytest.raises(RuntimeError, match='same|dtype'):
        ConvWS(4, 8, 3)(torch.randn(1, 4, 5, 5).double())


def test_fan_in_of_one_is_refused():
    with pytest.raises(ValueError, match='fan-in of at least 2'):
        ConvWS(8, 8, 1, groups=8)
    with pytest.raises(ValueError, match='fan-in of at least 2'):
        standardize_weight(torch.randn(8, 1, 1, 1))


def test_autocast_keeps_statistics_in_float32():
    conv = ConvWS(8, 8, 3)
    with torch.no_grad():
        conv.weight += 100  # in bfloat16 the kernel would be constant
    with torch.autocast('cpu', torch.bfloat16):
        weight, y = conv.standardized_weight(), conv(torch.randn(1, 8, 5, 5))
    assert weight.dtype == torch.float32
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(weight, conv.standardized_weight(), rtol=0, atol=0)


def test_autocast_through_bcn():
    net = nn.Sequential(ConvWS(8, 8, 3), BCN(8, update_rate=0.1))
    with torch.autocast('cpu', torch.bfloat16):
        y = net(torch.randn(1, 8, 5, 5))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert net[1].bn.running_var.dtype == torch.float32
    assert net[0].weight.grad.isfinite().all()


# Building


def test_registered_in_the_root_registry():
    assert MODELS.get('ConvWS') is ConvWS
    assert MODELS.get('BCN') is BCN
    assert MODELS.get('ConvWS1d') is ConvWS1d
    assert MODELS.get('ConvWS3d') is ConvWS3d


@pytest.mark.parametrize('channels', range(1, 70))
def test_bcn_alone_works_for_every_channel_count(channels):
    name, layer = build_norm_layer(MICRO, channels, postfix=1)
    assert name == 'bcn1'
    assert channels % layer.num_groups == 0
    y = layer(torch.randn(2, channels, 3, 3))
    assert y.isfinite().all()


@pytest.mark.parametrize('channels, minimum, groups', [(64, 2, 32), (32, 2, 16), (256, 2, 32), (1, 2, 1), (3, 2, 1),
                                                       (48, 2, 24), (16, 4, 4), (64, 4, 16), (128, 4, 32), (7, 2, 1),
                                                       (96, 2, 32), (2048, 2, 32)])
def test_default_number_of_groups(channels, minimum, groups):
    assert default_num_groups(channels, minimum) == groups
    assert BCN(channels, min_channels_per_group=minimum).num_groups == groups


@pytest.mark.parametrize('settings, message', [
    (dict(num_groups=5), 'num_groups must divide num_features, got 5 for 12'),
    (dict(mode='mini'), "got 'mini'"),
    (dict(sync=True), 'SyncNormStatisticsHook'),
    (dict(update_rate=1.5), r'update_rate must lie in \[0, 1\], got 1.5'),
    (dict(update_rate=float('nan')), 'got nan'),
])
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        BCN(12, **settings)


def test_builders_and_conv_module():
    conv = build_conv_layer(dict(type='ConvWS'), 3, 8, 3, padding=1, bias=False)
    assert type(conv) is ConvWS
    assert conv.bias is None
    module = ConvModule(3, 8, 3, conv_cfg=dict(type='ConvWS'), norm_cfg=MICRO)
    assert module.norm_name == 'bcn'
    assert module.bcn.bn.weight.eq(1).all()
    module.init_weights()
    module(torch.randn(1, 3, 5, 5)).sum().backward()
    frozen = build_norm_layer(MICRO | dict(requires_grad=False), 8)[1]
    assert not any(p.requires_grad for p in frozen.parameters())


def test_state_dict_has_the_published_layout_and_loads_the_authors_shapes():
    layer = BCN(64)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if name != 'bn.num_batches_tracked'} == {
        'weight': (32, ), 'bias': (32, ), 'bn.weight': (64, ), 'bn.bias': (64, ), 'bn.running_mean': (64, ),
        'bn.running_var': (64, )}
    state = copy.deepcopy(layer.state_dict())
    state['weight'], state['bias'] = torch.randn(1, 32, 1), torch.randn(1, 32, 1)
    layer.load_state_dict(state)
    assert torch.equal(layer.weight, state['weight'].flatten())
    state['weight'] = torch.randn(1, 16, 1)
    with pytest.raises(RuntimeError, match='size mismatch'):
        layer.load_state_dict(state)


# Initialization


def test_init_cfg_rules_reach_the_layers():
    net = nn.Sequential(ConvWS(4, 8, 3), BCN(8), nn.GroupNorm(2, 8))
    initialize(net, [dict(type='Constant', layer='Conv2d', val=3.0),
                     dict(type='Constant', layer='_BatchNorm', val=5.0),
                     dict(type='Constant', layer='GroupNorm', val=7.0)])
    assert net[0].weight.eq(3).all()
    assert net[1].bn.weight.eq(5).all()
    assert net[1].weight.eq(7).all()
    assert net[2].weight.eq(7).all()


def test_zero_init_residual_zeroes_the_channel_scale_and_trains():
    net = resnet(zero_init_residual=True)
    net.init_weights()
    for stage in (net.layer1, net.layer2):
        for block in stage:
            assert block.norm2.weight.eq(0).all()
            assert block.norm2.bn.weight.eq(1).all()
            assert block.norm1.weight.eq(1).all()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = copy.deepcopy(net.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 32, 32))[0].square().mean().backward()
        optimizer.step()
    assert (net.layer1[0].norm2.weight != 0).any()
    assert (net.layer1[0].conv1.weight != before['layer1.0.conv1.weight']).any()


def test_apply_still_reaches_the_batch_part():
    layer = BCN(8)
    seen = []
    layer.apply(lambda module: seen.append(type(module)))
    assert seen == [nn.BatchNorm2d, BCN]
    constant_init(layer, 0)  # mmpretrain's way of zero_init_residual
    assert layer.weight.eq(0).all()
    assert layer.bn.weight.eq(1).all()


# Training, freezing, averaging


def test_norm_eval_freezes_the_estimates():
    net = resnet(norm_eval=True)
    net.train()
    before = copy.deepcopy(net.state_dict())
    net(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_frozen_stages():
    net = resnet(frozen_stages=1)
    net.train()
    before = copy.deepcopy(net.state_dict())
    net(torch.randn(2, 3, 32, 32))[0].sum().backward()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith('layer2') for name in moved)
    assert net.layer1[0].norm1.weight.grad is None
    assert net.layer2[0].norm1.bn.weight.grad is not None


def test_norm_decay_mult_reaches_all_four_parameters():
    net = nn.Sequential(ConvWS(3, 8, 3), BCN(8))
    wrapper = build_optim_wrapper(net, dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=1e-2),
                                            paramwise_cfg=dict(norm_decay_mult=0.0)))
    decay = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    assert [decay[id(p)] for p in net[1].parameters()] == [0, 0, 0, 0]
    assert decay[id(net[0].weight)] == 1e-2
    assert is_norm(net[1])
    assert is_norm(net[1].bn)


@pytest.mark.parametrize('mode', ['micro_batch', 'large_batch'])
def test_conversion_to_sync_bn(mode):
    """Algorithm 1 stays in force; large-batch BCN becomes synchronized (which one process cannot tell)."""
    layer = BCN(8, mode=mode, update_rate=0.2)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(copy.deepcopy(layer)))[0]
    assert type(converted) is BCN
    assert type(converted.bn) is nn.SyncBatchNorm
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(converted(x), layer(x), rtol=0, atol=0)
    for name, value in layer.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value)


@pytest.mark.parametrize('update_buffers', [True, False])
def test_exponential_moving_average(update_buffers):
    net = nn.Sequential(ConvWS(3, 8, 3), BCN(8, update_rate=0.1))
    ema = ExponentialMovingAverage(net, momentum=0.5, update_buffers=update_buffers)
    for _ in range(3):
        net(torch.randn(2, 3, 6, 6)).sum().backward()
        ema.update_parameters(net)
    assert (ema.module[1].bn.running_var != 1).all()
    assert not update_buffers or (ema.module[1].bn.running_var != net[1].bn.running_var).all()
    assert ema.module[1].update_rate == 0.1


def test_deepcopy_pickle_and_state_dict_round_trip():
    layer = BCN(12, update_rate=0.2)
    layer(torch.randn(2, 12, 4, 4))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.update_rate == 0.2
        twin.update_rate = 0.3
        x = torch.randn(1, 12, 4, 4)
        assert layer.update_rate == 0.2
        assert torch.equal(twin.eval()(x), layer.eval()(x))
    fresh = BCN(12)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.eval()(x), layer(x))
    assert fresh.update_rate == 0.01, 'r is no part of the state'


def test_in_place_relu_after_the_layer():
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    layer = BCN(8, update_rate=0.0)
    gradients = [torch.autograd.grad(F.relu(layer(x), inplace=inplace).square().sum(), x)[0]
                 for inplace in (True, False)]
    assert torch.equal(*gradients)


def test_one_image_pooled_to_one_pixel_has_a_gradient():
    """ASPP's pooling branch with one image per process: BN fails there, BCN must not."""
    for channels in (256, 64, 8):
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvWS(16, channels, 1), BCN(channels, update_rate=0.1))
        x = torch.randn(1, 16, 8, 8, requires_grad=True)
        y = net(x)
        (y * torch.randn_like(y)).sum().backward()
        assert x.grad.abs().max() > 1e-4
        assert net[1].weight.grad.abs().max() > 1e-4
    with pytest.raises(ValueError):
        nn.BatchNorm2d(8)(torch.randn(1, 8, 1, 1))


def test_cumulative_average_with_momentum_none():
    ours, theirs = BCN(8, mode='large_batch', momentum=None), nn.BatchNorm2d(8, momentum=None)
    for _ in range(3):
        x = torch.randn(2, 8, 4, 4)
        ours(x), theirs(x)
    torch.testing.assert_close(ours.bn.running_var, theirs.running_var)
    torch.testing.assert_close(ours.bn.running_mean, theirs.running_mean)


def test_a_constant_rate_is_said_once():
    BCN._warned = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for layer in (BCN(8), BCN(8), BCN(8, update_rate=0.3), BCN(8, mode='large_batch')):
            for _ in range(2):
                layer(torch.randn(2, 8, 2, 2))
    messages = [str(w.message) for w in caught if 'update rate' in str(w.message)]
    assert len(messages) == 1
    assert 'BCNUpdateRateHook' in messages[0]
    assert '0.01' in messages[0]


def test_settings_are_shown():
    assert "64, num_groups=32, eps=1e-05, mode='micro_batch', update_rate=0.01" in repr(BCN(64))
    assert 'eps=1e-05' in repr(ConvWS(3, 8, 3))


def test_traces_in_evaluation():
    net = nn.Sequential(ConvWS(4, 8, 3), BCN(8)).eval()
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(torch.jit.trace(net, x)(x), net(x))


def test_runs_on_the_meta_device():
    with torch.device('meta'):
        net = nn.Sequential(ConvWS(4, 8, 3), BCN(8, update_rate=0.1)).eval()
        assert net(torch.empty(2, 4, 6, 6)).shape == (2, 8, 4, 4)


@pytest.mark.parametrize('shape', [(3, 8), (2, 8, 2, 3, 4)])
def test_compiled_inputs_of_any_dimension(shape):
    layer, x = BCN(8, update_rate=0.0), torch.randn(shape)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), layer(x))
