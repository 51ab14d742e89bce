"""Networks converted in place, and configs rewritten."""
import copy
import inspect
import itertools

import mmcv.cnn
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

import wsbcn_mmseg
from wsbcn_mmseg import convert_model
from wsbcn_mmseg.layers import BCN, AdaptiveConvWS, ConvWS, ConvWS1d, ConvWS3d


class Block(nn.Module):
    """torchvision's basic block, in short."""

    def __init__(self, channels, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class Net(nn.Module):

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU())
        self.layer1 = nn.Sequential(Block(8, norm), Block(8, norm))
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 1, groups=8), norm(8))
        self.logits = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.logits(self.depthwise(self.layer1(self.stem(x))))


def norms_left(model):
    inner = {m.bn for m in model.modules() if isinstance(m, BCN)}
    return [m for m in model.modules() if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm))
            and not isinstance(m, BCN) and m not in inner]


@pytest.mark.parametrize('norm', [nn.BatchNorm2d, nn.SyncBatchNorm, lambda c: nn.GroupNorm(2, c)])
def test_norms_and_the_convolutions_before_them(norm):
    model = Net(norm)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    names = set(dict(model.named_modules()))
    report = convert_model(model).conversion_report
    assert not norms_left(model)
    assert names <= set(dict(model.named_modules()))
    convs = {name for name, m in model.named_modules() if isinstance(m, ConvWS)}
    assert convs == set(report.convs) == {'stem.0', *(f'layer1.{i}.conv{j}' for i in (0, 1) for j in (1, 2))}
    assert all(torch.equal(model.get_parameter(f'{name}.weight'), weights[f'{name}.weight']) for name in convs)
    assert len(report.norms) == 6
    assert set(report.kept) == {'depthwise.0', 'logits'}
    assert 'fan-in of 1' in report.kept['depthwise.0']
    assert 'no norm reads' in report.kept['logits']
    if norm is not nn.BatchNorm2d and norm is not nn.SyncBatchNorm:
        assert {m.num_groups for m in model.modules() if isinstance(m, BCN)} == {2}
    assert 'Converted 6 norms and 5 convolutions' in str(report)
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    again = convert_model(model).conversion_report
    assert not again.norms
    assert not again.convs


def test_everything_else_is_kept():
    model = Net().double()
    model.layer1[0].bn1.eval()
    model.layer1.requires_grad_(False)
    model.layer1[1].bn2.eps = 1e-3
    calls = []
    handles = [model.layer1[0].bn1.register_forward_hook(lambda *_: calls.append('norm')),
               model.layer1[0].conv1.register_forward_pre_hook(lambda *_: calls.append('conv'))]
    flags = {name: m.training for name, m in model.named_modules()}
    x, conv = torch.randn(1, 3, 8, 8, dtype=torch.float64), model.stem[0]
    state = torch.get_rng_state()
    convert_model(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.stem[0] is conv
    calls.clear()
    model(x)
    assert calls == ['conv', 'norm']
    for handle in handles:
        handle.remove()
    model(x)
    assert calls == ['conv', 'norm']
    assert {name: m.training for name, m in model.named_modules() if name in flags} == flags
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert model.layer1[1].bn2.eps == 1e-3
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert all(p.requires_grad for p in model.stem.parameters())


def test_nothing_moves_when_the_network_runs_for_the_report():
    """A network with two passes: its auxiliary head runs in training only."""

    class WithAuxiliaryHead(Net):

        def __init__(self):
            super().__init__()
            self.auxiliary, self.step = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), 0
            self.register_buffer('count', torch.zeros(()))

        def forward(self, x):
            x = self.stem(x)
            if self.training:
                self.count = self.count + 1
                return self.logits(self.depthwise(self.layer1(x))), self.auxiliary(x)
            return self.logits(self.depthwise(self.layer1(x)))

    model = WithAuxiliaryHead()
    bn = model.stem[1]
    report = convert_model(model, exclude=['stem']).conversion_report
    assert report.convs['auxiliary.0'] == 'Conv2d -> ConvWS'
    assert report.kept['stem.1'] == 'excluded'
    assert model.count == 0
    assert torch.equal(bn.running_mean, torch.zeros(8))
    assert bn.training


@pytest.mark.parametrize('dim, conv, norm, converted', [
    (1, nn.Conv1d, nn.BatchNorm1d, ConvWS1d), (3, nn.Conv3d, nn.BatchNorm3d, ConvWS3d)])
def test_signals_and_volumes(dim, conv, norm, converted):
    model = nn.Sequential(conv(2, 4, 3, padding=1), norm(4), nn.ReLU(), conv(4, 2, 1))
    convert_model(model)
    assert type(model[0]) is converted
    assert type(model[1]) is BCN
    assert type(model[3]) is conv
    assert model(torch.randn(1, 2, *[4] * dim)).shape == (1, 2, *[4] * dim)


def test_include_exclude_and_parts():
    model = Net()
    report = convert_model(model, include='layer1', exclude=['layer1.1', '*.conv1']).conversion_report
    assert set(report.norms) == {'layer1.0.bn1', 'layer1.0.bn2'}
    assert set(report.convs) == {'layer1.0.conv2'}
    assert report.kept['layer1.0.conv1'] == 'excluded'
    assert report.kept['stem.0'] == 'not included'
    model = Net()
    assert not convert_model(model, norm=None).conversion_report.norms
    assert isinstance(model.stem[0], ConvWS)
    assert isinstance(model.stem[1], nn.BatchNorm2d)
    model = Net()
    assert not convert_model(model, ws=False).conversion_report.convs
    assert type(model.stem[0]) is nn.Conv2d
    model = Net()
    convert_model(model, norm='GN')
    assert type(model.stem[1]) is nn.GroupNorm
    assert model.stem[1].num_groups == 4
    convert_model(model, norm=dict(type='BCN', mode='large_batch', num_groups=8))
    assert (model.stem[1].mode, model.stem[1].num_groups) == ('large_batch', 8)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.InstanceNorm2d(4))
    with pytest.raises(ValueError, match='nothing to convert: InstanceNorm2d is not replaced; no norm reads'):
        convert_model(model)
    assert len(convert_model(model, instance_norm=True).conversion_report.convs) == 1


def test_shared_and_frozen_as_told():
    def network():
        conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        return nn.Sequential(conv, norm, conv, norm, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4).requires_grad_(False))

    model = network()
    convert_model(model)
    assert model[0] is model[2]
    assert model[1] is model[3]
    assert type(model[1]) is BCN
    assert type(model[0]) is ConvWS
    assert not model[5].weight.requires_grad
    report = convert_model(network(), skip_shared=True, skip_frozen=True).conversion_report
    assert not report.norms
    assert report.kept == {'1': 'shared', '5': 'frozen', '0': 'shared', '4': 'the norm that reads its output is kept'}


def test_norms_with_activation():
    """timm's BatchNormAct2d."""

    class BatchNormAct2d(nn.BatchNorm2d):

        def __init__(self, channels):
            super().__init__(channels)
            self.drop, self.act = nn.Identity(), nn.ReLU()

        def forward(self, x):
            return self.act(self.drop(super().forward(x)))

    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4))
    x = torch.randn(2, 3, 4, 4)
    convert_model(model, preserve=True)
    assert isinstance(model[1][0], BCN)
    assert model(x).min() == 0


class ChannelLayerNorm(nn.LayerNorm):
    """As ConvNeXt's: over the channels of each position."""

    def __init__(self, num_channels, eps=1e-6):
        super().__init__(num_channels, eps)

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def test_what_is_refused():
    with pytest.raises(ValueError, match='does not run on any of the made-up inputs.*pass example_inputs'):
        convert_model(TwoInputs())
    model = TwoInputs()
    assert convert_model(model, (torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4))).conversion_report.convs
    inputs = dict(x=torch.randn(1, 3, 4, 4), y=torch.randn(1, 3, 4, 4))
    assert convert_model(TwoInputs(), inputs).conversion_report.convs
    assert convert_model(TwoInputs(), ws=False).conversion_report.norms
    with pytest.raises(RuntimeError):
        convert_model(Net(), torch.randn(1, 7, 4, 4))
    with pytest.raises(ValueError, match='no norm is registered as'):
        convert_model(Net(), norm='NoNorm')
    with pytest.raises(ValueError, match='convert the module first'):
        convert_model(nn.DataParallel(Net()))
    for norm in ('SyncBN', ChannelLayerNorm, type('OwnBCN', (BCN, ), {})):
        with pytest.raises(ValueError, match="preserve=True needs norm='BCN'"):
            convert_model(Net(), norm=norm, preserve=True)
    for norm, groups in itertools.product(('GN', 'LN', 'BCN'), (0, -3, '4')):
        with pytest.raises(ValueError, match='num_groups must be'):
            convert_model(Net(), norm=dict(type=norm, num_groups=groups))
    whole = nn.BatchNorm2d(32)
    assert convert_model(whole, torch.randn(1, 32, 8, 8)) is whole
    assert type(whole) is BCN


class TwoInputs(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x, y):
        return self.bn(self.conv(x + y))


def trained(model):
    """Statistics and affines as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = None
    for _ in range(10):
        model.train()(torch.randn(8, 3, 16, 16))
    return model.eval()


def test_preserve_keeps_the_function():
    model = trained(Net())
    x = torch.randn(4, 3, 16, 16)
    before = model(x)
    plain, kept = copy.deepcopy(model), copy.deepcopy(model)
    norm = dict(type='BCN', num_groups=2)
    convert_model(plain, norm=norm)
    convert_model(kept, norm=norm, preserve=True)
    error = {name: (m(x) - before).norm() / before.norm() for name, m in dict(plain=plain, kept=kept).items()}
    assert error['kept'] < 0.35
    assert error['kept'] < 0.3 * error['plain']
    conv, bcn, bn = kept.stem[0], kept.stem[1], model.stem[1]
    assert type(conv) is AdaptiveConvWS
    torch.testing.assert_close(conv.standardized_weight(), model.stem[0].weight)
    torch.testing.assert_close(conv(x), model.stem[0](x))
    for name in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'):
        assert torch.equal(getattr(bcn.bn, name), getattr(bn, name))
    scale, shift = bn.weight.view(bcn.num_groups, -1), bn.bias.view(bcn.num_groups, -1)
    torch.testing.assert_close(bcn.bias, shift.mean(1))
    torch.testing.assert_close(bcn.weight, (scale.square().mean(1) + shift.var(1, unbiased=False)).sqrt())


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('norm, groups', [('GN', 3), ('LN', 1), (dict(type='GN', num_groups=4), 4)])
def test_group_norm_preserves_the_function(norm, groups, affine):
    """On an image with the statistics of BatchNorm, GroupNorm computes the same."""
    model = nn.Sequential(nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48, affine=affine)).double().eval()
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        nn.init.normal_(model[0].bias)
        features = model[0](x)
        model[1].running_mean.copy_(features.mean((0, 2, 3)))
        model[1].running_var.copy_(features.var((0, 2, 3), unbiased=False))
        for parameter in model[1].parameters():
            nn.init.normal_(parameter)
    expected = model(x)
    convert_model(model, x, norm, preserve=True)
    assert type(model[1]) is nn.GroupNorm
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)
    assert model[1].num_groups == groups
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize('old, norm, reason', [
    (nn.BatchNorm2d(48, track_running_stats=False), 'GN', 'no running statistics'),
    (nn.InstanceNorm2d(48, affine=True), 'GN', 'no running statistics'),
    (nn.BatchNorm2d(48, track_running_stats=False), 'BCN', 'no running statistics'),
    (nn.GroupNorm(6, 48), dict(type='GN', num_groups=3), 'other groups'),
    (nn.BatchNorm2d(48), dict(type='GN', affine=False), 'without scale and shift'),
    pytest.param(nn.BatchNorm2d(48), dict(type='GN', bias=False), 'without scale and shift', marks=pytest.mark.skipif(
        'bias' not in inspect.signature(nn.GroupNorm).parameters, reason='this torch has no GroupNorm without shift')),
    (BCN(48), 'GN', 'it is a BCN already')])
def test_norms_whose_function_cannot_be_preserved_are_kept(old, norm, reason):
    model = nn.Sequential(nn.Conv2d(3, 48, 3), old)
    report = convert_model(model, torch.randn(1, 3, 8, 8), norm, preserve=True, instance_norm=True).conversion_report
    assert model[1] is old
    assert reason in report.kept['1']
    assert type(model[0]) is AdaptiveConvWS


@pytest.mark.parametrize('norm', ['GN', dict(type='BCN', min_channels_per_group=4)])
def test_a_norm_that_is_kept_is_not_reported_as_regrouped(norm):
    model = nn.Sequential(nn.Conv2d(3, 48, 3), BCN(48))
    report = convert_model(model, torch.randn(1, 3, 3, 3), norm, preserve=True).conversion_report
    assert report.kept
    assert not report.regrouped


def test_adaptive_convolution():
    """The buffers travel in the state dict; gradients are those of the formula."""
    conv = AdaptiveConvWS(3, 4, 3, bias=False).double()
    conv.adapt()
    other = AdaptiveConvWS(3, 4, 3, bias=False).double()
    other.load_state_dict(conv.state_dict())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(other(x), nn.functional.conv2d(x, conv.weight))
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(conv, {'weight': w}, x), (x, conv.weight))
    assert nn.Conv2d in AdaptiveConvWS.__bases__  # which MMEngine's initialization looks at
    assert {'kernel_mean', 'kernel_scale'} <= set(conv.state_dict())
    fresh, plain = AdaptiveConvWS(3, 4, 3).double(), ConvWS(3, 4, 3).double()
    fresh.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(fresh(x), plain(x))


def test_patches_before_the_first_convolution():
    """Its channels are not the image's; and mmcv's wrapper of nn.Conv2d."""
    model = nn.Sequential(nn.PixelUnshuffle(2), mmcv.cnn.Conv2d(12, 4, 1), nn.BatchNorm2d(4))
    assert convert_model(model).conversion_report.convs == {'1': 'Conv2d -> ConvWS'}
    assert type(model[1]) is ConvWS


def test_models_of_mmengine():
    """A model without a project: it takes `mode`."""

    class Model(BaseModel):

        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return dict(loss=self.net(inputs).mean()) if mode == 'loss' else self.net(inputs)

    assert len(convert_model(Model()).conversion_report.convs) == 5


def test_exported():
    assert wsbcn_mmseg.convert_model is convert_model
    assert callable(wsbcn_mmseg.apply_bcn_ws)
