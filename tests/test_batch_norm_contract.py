"""What recipes for BatchNorm modules do to BCN through its ``bn``: the right numbers, or one sentence."""
import copy

import pytest
import torch
from torch import nn

from wsbcn_mmseg.layers import BCN, ConvWS

DATA = [torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(i)) * (1 + i) + i for i in range(5)]
MODES = ['micro_batch', 'large_batch']


def pair(mode='micro_batch', **settings):
    """BCN, and the BatchNorm that its estimates should equal."""
    bcn, bn = BCN(6, num_groups=2, mode=mode, **settings), nn.BatchNorm2d(6)
    bcn.update_rate = 0.3
    return bcn, bn


def assert_estimates_equal(bcn, bn):
    torch.testing.assert_close(bcn.bn.running_mean, bn.running_mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(bcn.bn.running_var, bn.running_var, rtol=1e-5, atol=1e-5)
    assert bcn.bn.num_batches_tracked == bn.num_batches_tracked


@pytest.mark.parametrize('mode', MODES)
def test_update_bn_gives_the_average_that_batch_norm_gets(mode):
    bcn, bn = pair(mode)
    for layer in (bcn, bn):
        layer(DATA[0])
        torch.optim.swa_utils.update_bn(DATA, nn.Sequential(layer))
    assert_estimates_equal(bcn, bn)
    assert bcn.bn.momentum == 0.1
    before = bcn.bn.running_mean.clone()  # Algorithm 1 again
    bcn(DATA[1])
    rate = 0.3 if mode == 'micro_batch' else 0.1
    torch.testing.assert_close(bcn.bn.running_mean, before.lerp(DATA[1].mean((0, 2, 3)), rate))


@pytest.mark.parametrize('momentum', [1.0, 0.25, None])
@pytest.mark.parametrize('mode', MODES)
def test_an_assigned_momentum_is_obeyed(momentum, mode):
    """Precise-BN recipes set 1 and read each batch's statistics."""
    bcn, bn = pair(mode)
    bcn.bn.momentum = bn.momentum = momentum
    for x in DATA:
        y = bcn(x)
        bn(x)
    assert_estimates_equal(bcn, bn)
    if mode == 'micro_batch':  # normalized by the updated estimates
        torch.testing.assert_close(y, bcn.eval()(DATA[-1]))


@pytest.mark.parametrize('mode', MODES)
def test_without_tracking_the_estimates_stay(mode):
    bcn, _ = pair(mode)
    bcn(DATA[0])
    before = copy.deepcopy(bcn.state_dict())
    bcn.bn.track_running_stats = False
    y = bcn(DATA[3])
    assert all(torch.equal(value, before[name]) for name, value in bcn.state_dict().items())
    if mode == 'micro_batch':
        torch.testing.assert_close(y, bcn.eval()(DATA[3]))
    else:  # the batch's statistics normalize, as in BatchNorm
        fresh = BCN(6, num_groups=2, mode=mode)
        torch.testing.assert_close(y, fresh(DATA[3]))


@pytest.mark.parametrize('training', [True, False])
def test_without_estimates_micro_batch_refuses_and_large_batch_takes_the_batch(training):
    for remove in (lambda bn: (setattr(bn, 'running_mean', None), setattr(bn, 'running_var', None)),
                   torch.func.replace_all_batch_norm_modules_):
        micro, large = BCN(6).train(training), BCN(6, mode='large_batch').train(training)
        remove(micro.bn), remove(large.bn)
        with pytest.raises(RuntimeError, match='bn.running_mean is None; keep the running statistics, or use mode='):
            micro(DATA[0])
        torch.testing.assert_close(large(DATA[1]), BCN(6, mode='large_batch')(DATA[1]))


class FrozenBatchNorm2d(nn.Module):
    """The layout that torchvision, Detectron2 and DETR share."""

    def __init__(self, bn):
        super().__init__()
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            self.register_buffer(name, getattr(bn, name).detach().clone())


@pytest.mark.parametrize('mode', MODES)
def test_a_frozen_norm_in_its_place_freezes_it(mode):
    bcn, _ = pair(mode)
    for x in DATA:
        bcn(x)
    expected = copy.deepcopy(bcn).eval()(DATA[0])
    bcn.bn = FrozenBatchNorm2d(bcn.bn)
    before = copy.deepcopy(bcn.state_dict())
    torch.testing.assert_close(bcn(DATA[0]), expected)
    assert all(torch.equal(value, before[name]) for name, value in bcn.state_dict().items())
    assert bcn.apply(lambda module: None) is bcn
    bcn.bn = nn.GroupNorm(2, 6)
    with pytest.raises(RuntimeError, match='found a GroupNorm; only BatchNorm layers, frozen ones included'):
        bcn(DATA[0])


def test_freeze_and_unfreeze_of_timm():
    utils = pytest.importorskip('timm.utils', reason='needs timm')
    model = nn.Sequential(ConvWS(6, 8, 3), BCN(8), ConvWS(8, 8, 3), BCN(8))
    for x in DATA:
        model(x)
    expected = copy.deepcopy(model).eval()(DATA[0])
    utils.freeze(model)
    torch.testing.assert_close(model.train()(DATA[0]), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    utils.unfreeze(model)
    before = model[1].bn.running_mean.clone()
    model.train()(DATA[0])
    assert not torch.equal(model[1].bn.running_mean, before)


def test_estimates_that_are_not_finite_are_not_blamed_on_the_input():
    bcn, _ = pair()
    bcn.bn.running_mean[2] = float('nan')
    bcn(DATA[0])
    assert not bcn.skipped_updates.any()
    assert bcn.bn.running_mean[2].isnan()
    assert bcn.bn.running_mean[1] != 0
    x = DATA[1].clone()
    x[0, 4] = float('inf')
    bcn(x)
    assert bcn.skipped_updates.tolist() == [0, 0, 0, 0, 1, 0]


# Values and ranges

@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('impl', ['reference', 'fused'])
def test_batches_without_images(training, mode, impl, monkeypatch):
    monkeypatch.setenv('WSBCN_IMPL', impl)
    layer = BCN(6, mode=mode).train(training)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(0, 6, 4, 4, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad.shape == x.shape
    assert all(parameter.grad.eq(0).all() for parameter in layer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_one_value_per_group_is_refused_and_few_are_warned_of_once(monkeypatch):
    monkeypatch.setattr(BCN, '_warned_of_few_values', False)
    with pytest.raises(ValueError, match=r'more than one value per group, got input of shape \(3, 1, 1, 1\)'):
        BCN(1)(torch.randn(3, 1, 1, 1))
    layer = BCN(64).eval()
    with pytest.warns(UserWarning, match='groups of 2 values here .64 channels in 32 groups'):
        layer(torch.randn(2, 64, 1, 1))
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        layer(torch.randn(2, 64, 1, 1))
        BCN(256).eval()(torch.randn(1, 256, 1, 1))  # DeepLabV3's pooled branch: eight values


@pytest.mark.parametrize('settings', [
    dict(eps=-10), dict(eps=0), dict(eps=float('nan')), dict(eps='1e-5'), dict(eps=None), dict(momentum=2),
    dict(momentum=float('nan')), dict(momentum='0.1'), dict(sync='False'), dict(sync=1, mode='large_batch'),
    dict(num_groups=1.5), dict(num_groups='2'), dict(num_groups=0), dict(num_groups=True), dict(mode=None),
    dict(min_channels_per_group=0), dict(min_channels_per_group=2.0), dict(update_rate='0.1'), dict(update_rate=-1),
    dict(update_rate=None), dict(update_rate=[0.1])])
def test_arguments_out_of_range_are_named(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"^{name} must .*got"):
        BCN(12, **settings)


@pytest.mark.parametrize('num_features', [0, -1, 2.0, '8', None, True])
def test_channel_counts_are_checked(num_features):
    with pytest.raises(ValueError, match='num_features must be a whole number of at least 1, got'):
        BCN(num_features)


@pytest.mark.parametrize('settings', [dict(eps=-1), dict(eps=float('inf')), dict(center='no'), dict(scale=0)])
def test_arguments_of_conv_ws_are_checked(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f'^{name} must'):
        ConvWS(3, 8, 3, **settings)


def test_device_and_dtype_as_in_torch():
    layer = BCN(8, device='meta', dtype=torch.float64)
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    assert layer.weight.dtype == torch.float64
    layer = BCN(8, dtype=torch.float64)
    assert layer(torch.randn(1, 8, 3, 3, dtype=torch.float64)).dtype == torch.float64
