"""Folded networks: stock layers only, and the same outputs."""
import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import settle
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmseg.models.backbones import ResNet
from mmseg.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval

from wsbcn_mmseg import fold
from wsbcn_mmseg.layers import BCN, ConvWS, ConvWS1d, ConvWS3d, GNByWidth
from wsbcn_mmseg.runtime import stack

pytestmark = pytest.mark.usefixtures('one_thread')
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def first(output):
    return first(output[-1]) if isinstance(output, (tuple, list)) else output


def check(model: nn.Module, x: torch.Tensor, **kwargs) -> nn.Module:
    """Fold; nothing of ours left, same output, original as before."""
    model.train()
    before = copy.deepcopy(model.state_dict())
    folded = fold(model, **kwargs)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module.training for module in folded.modules())
    assert not [m for m in folded.modules() if type(m).__module__.startswith('wsbcn_mmseg.layers')]
    model.eval()
    with torch.no_grad():
        expected, actual = first(model(x)), first(folded(x))
    assert (actual - expected).abs().max() <= TOLERANCE[x.dtype] * expected.abs().max()
    return folded


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules() if not list(module.children())]


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('conv, plain, size', [
    (ConvWS1d, nn.Conv1d, (19, )), (ConvWS, nn.Conv2d, (9, 7)), (ConvWS3d, nn.Conv3d, (5, 6, 7))])
@pytest.mark.parametrize('groups, settings', [
    (4, {}), (1, dict(bias=False)), (8, dict(groups=2, padding=2, dilation=2, stride=2)),
    (2, dict(padding=1, padding_mode='circular')), (4, dict(padding='same', padding_mode='replicate'))], ids=str)
def test_sequential_becomes_convolution_and_group_norm(conv, plain, size, settings, groups, dtype):
    model = settle(nn.Sequential(conv(4, 8, 3, **settings), BCN(8, groups), nn.ReLU(inplace=True)), dtype)
    folded = check(model, torch.randn(2, 4, *size, dtype=dtype))
    assert kinds(folded) == [plain, nn.GroupNorm, nn.ReLU]
    again = nn.Sequential(plain(4, 8, 3, **settings | dict(bias=True)), nn.GroupNorm(groups, 8)).to(dtype)
    again.load_state_dict(folded.state_dict())
    assert folded[0].weight.dtype == dtype
    assert kinds(fold(again)) == kinds(again)  # nothing left to fold


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.SyncBatchNorm(8)])
def test_batch_norm_after_conv_ws_becomes_identity(norm):
    if norm.affine:
        settle(norm)
    model = nn.Sequential(ConvWS(4, 8, 3, bias=False), norm, nn.ReLU(True)).double()
    norm.running_mean.normal_()
    assert kinds(check(model, torch.randn(2, 4, 9, 7, dtype=torch.float64))) == [nn.Conv2d, nn.Identity, nn.ReLU]


def test_batch_norm_elsewhere_stays():
    model = settle(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), ConvWS(8, 8, 3),
                                 nn.BatchNorm2d(8, track_running_stats=False)).double())
    assert kinds(check(model, torch.randn(2, 4, 9, 7, dtype=torch.float64)))[1::2] == [nn.BatchNorm2d] * 2


@pytest.mark.parametrize('conv', [nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(4, 8, 3, groups=2, bias=False)])
def test_plain_convolution_before_bcn(conv):
    model = settle(nn.Sequential(conv, BCN(8)))
    assert kinds(check(model, torch.randn(2, 4, 9, 7, dtype=torch.float64))) == [type(conv), nn.GroupNorm]


class Doubled(nn.Conv2d):
    """Looks like a convolution, but is none of its kernel."""

    def forward(self, x):
        return super().forward(x)**2


class Knot(nn.Module):
    """Every way in which no convolution feeds a norm alone."""

    def __init__(self):
        super().__init__()
        self.stem = ConvWS(3, 4, 3)
        self.convs = nn.ModuleList([ConvWS(4, 4, 3, padding=1) for _ in range(8)] + [Doubled(4, 4, 1)])
        self.norms = nn.ModuleList([BCN(4) for _ in range(9)])
        self.twice = nn.Sequential(ConvWS(4, 4, 1), BCN(4))
        self.same = self.norms[0]  # again, under another name
        self.unused = nn.Sequential(ConvWS(4, 4, 1), BCN(4))

    def forward(self, x):
        x = self.norms[0](self.stem(x))
        one, two = self.convs[0](x), self.convs[1](x)
        x = x + self.norms[1](one) + self.norms[2](one)  # a convolution before two norms
        x = x + self.norms[3](two) + two  # and before a norm and an addition
        x = x + self.norms[4](self.convs[2](x)) + self.norms[4](self.convs[3](x))  # two convolutions before a norm
        x = x + self.norms[5](self.convs[4](x)[:, [1, 0, 3, 2]])
        x = x + self.norms[6](self.convs[5](x).relu_())
        x = x + self.norms[7](self.convs[6](self.convs[6](x)))  # a convolution before itself and a norm
        x = x + self.norms[8](self.convs[8](x))
        x = x + self.twice(x) + self.twice(x.flip(2))
        return torch.cat([x, self.same(x)])


@pytest.mark.parametrize('dtype', TOLERANCE)
def test_where_no_convolution_feeds_a_norm_alone_the_affine_step_stays(dtype):
    folded = check(settle(Knot(), dtype), torch.randn(2, 3, 9, 7, dtype=dtype))
    assert [type(norm) for norm in folded.norms] == [nn.Sequential] * 9
    assert [type(part) for part in folded.norms[0]] == [nn.BatchNorm2d, nn.GroupNorm]
    assert folded.same is folded.norms[0]
    assert kinds(folded.twice) == [nn.Conv2d, nn.GroupNorm]
    assert kinds(folded.unused) == [nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm]  # nobody knows who calls it, and how


class TwoInputs(nn.Module):
    """Cannot be run without being told how."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = ConvWS(3, 4, 3), BCN(4)
        self.block = ConvModule(4, 4, 3, conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='BCN'))

    def forward(self, x, y):
        return self.block(self.norm(self.conv(x + y)))


def test_example_inputs_say_how_to_run_a_network():
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    model = settle(TwoInputs()).eval()
    unseen, seen = fold(model), fold(model, (x, x))
    for folded in (unseen, seen):
        torch.testing.assert_close(folded(x, x), model(x, x), rtol=1e-10, atol=1e-10)
    assert kinds(seen.block)[:2] == [nn.Conv2d, nn.GroupNorm]
    assert isinstance(seen.norm, nn.GroupNorm)
    assert isinstance(unseen.norm, nn.Sequential)
    with pytest.raises(TypeError):
        fold(model, x)


def test_networks_for_one_image_size_and_vectors():
    model = nn.Sequential(ConvWS(3, 4, 3, padding=1), BCN(4), nn.Flatten(), nn.Linear(4 * 28 * 28, 8), BCN(8))
    folded = check(settle(model), torch.randn(2, 3, 28, 28, dtype=torch.float64))
    assert [type(m) for m in folded[:2]] == [nn.Conv2d, nn.GroupNorm]
    assert isinstance(folded[4][0], nn.BatchNorm1d)
    assert kinds(fold(nn.Sequential(BCN(8)))) == [nn.BatchNorm2d, nn.GroupNorm]  # nothing to fold into


@pytest.mark.parametrize('order', [('conv', 'norm', 'act'), ('norm', 'conv', 'act'), ('conv', 'act', 'norm')])
@pytest.mark.parametrize('norm', ['BN', 'BCN'])
def test_conv_module(order, norm):
    init_default_scope('mmseg')
    model = ConvModule(4, 4, 3, conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type=norm), order=order, padding=1,
                       padding_mode='reflect')
    folded = check(settle(model), torch.randn(2, 4, 9, 7, dtype=torch.float64))
    fed = order[:2] == ('conv', 'norm')
    assert type(folded.norm) is {'BN': nn.Identity if fed else nn.BatchNorm2d,
                                 'BCN': nn.GroupNorm if fed else nn.Sequential}[norm]


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('norm', [dict(type='BCN'), dict(type='BN')], ids=['bcn', 'bn'])
def test_resnet_loads_into_the_plain_architecture(depth, norm):
    init_default_scope('mmseg')
    model = ResNet(depth, base_channels=8, stem_channels=8, conv_cfg=dict(type='ConvWS'), norm_cfg=norm)
    folded = check(settle(model), torch.randn(1, 3, 65, 65, dtype=torch.float64))
    assert {nn.Conv2d, nn.GroupNorm if norm['type'] == 'BCN' else nn.Identity} < set(kinds(folded))
    assert not {BCN, ConvWS, nn.BatchNorm2d} & set(kinds(folded))


def segmentor(norm='BCN') -> BaseModel:
    init_default_scope('mmseg')
    cfg = dict(conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type=norm))
    head = dict(in_channels=64, in_index=3, channels=16, num_classes=5, **cfg)
    return MODELS.build(dict(
        type='EncoderDecoder', backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, **cfg),
        decode_head=dict(type='DeepLabV3Head', dilations=(1, 2), **head),
        auxiliary_head=dict(type='FCNHead', num_convs=1, **head), test_cfg=dict(mode='whole')))


@pytest.mark.parametrize('dtype', TOLERANCE)
def test_segmentor_and_its_auxiliary_head(dtype, monkeypatch):
    model = segmentor()
    folded = check(settle(model, dtype), torch.randn(1, 3, 65, 49, dtype=dtype))
    assert not any(isinstance(module, _BatchNorm) for module in folded.modules())
    features = torch.randn(1, 64, 5, 5, dtype=dtype)
    torch.testing.assert_close(folded.auxiliary_head([features] * 4), model.auxiliary_head([features] * 4),
                               rtol=1e-5, atol=1e-5)


def test_folding_leaves_random_numbers_and_hooks_alone():
    model = settle(nn.Sequential(ConvWS(3, 4, 3), BCN(4)), torch.float32)
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    state = torch.get_rng_state()
    folded = fold(model, torch.zeros(1, 3, 5, 5))
    assert torch.equal(state, torch.get_rng_state())
    seen.clear()
    folded(torch.zeros(1, 3, 5, 5))
    assert seen == [1]


def test_other_standardized_weights_and_formats():
    class Adaptive(ConvWS):  # as subclasses do that change what standardization means
        def __init__(self, *args):
            super().__init__(*args)
            self.register_buffer('gain', torch.tensor(3.))

        def standardized_weight(self):
            return super().standardized_weight() * self.gain

        def forward(self, x):
            return self._convolve(x, self.standardized_weight())

    model = settle(nn.Sequential(Adaptive(4, 8, 3), BCN(8), ConvWS(8, 8, 3)).to(memory_format=torch.channels_last))
    model[2].weight.requires_grad_(False)
    folded = fold(model)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-10, atol=1e-10)
    assert list(folded[0].state_dict()) == ['weight', 'bias']
    assert not folded[2].weight.requires_grad
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_folded_state_dict_loads_where_this_package_is_not(tmp_path):
    model = settle(segmentor(), torch.float32)
    folded, x = fold(model), torch.randn(1, 3, 65, 49)
    torch.save(dict(weights=folded.state_dict(), x=x, y=model.eval()(x)), tmp_path / 'folded.pth')
    code = f'''
import runpy
import sys
stack = runpy.run_path({stack.__file__!r})
stack['declare_torchvision_operators']()  # mmseg imports torchvision where timm is installed
import torch
from mmengine.registry import init_default_scope
from mmseg.models.backbones import ResNet
from torch import nn
init_default_scope('mmseg')
saved = torch.load({str(tmp_path / "folded.pth")!r}, weights_only=True)
backbone = ResNet(18, base_channels=8, stem_channels=8, norm_cfg=dict(type='GN', num_groups=4))
for name, module in backbone.named_modules():
    if isinstance(module, nn.Conv2d):
        module.bias = nn.Parameter(torch.zeros(module.out_channels))
    if isinstance(module, nn.GroupNorm):
        module.num_groups = min(32, module.num_channels // 2)
weights = {{name.removeprefix('backbone.').replace('bcn', 'gn'): value for name, value in saved['weights'].items()
           if name.startswith('backbone.')}}
backbone.load_state_dict(weights)
backbone.eval()
torch.save(backbone(saved['x'])[3], {str(tmp_path / "features.pth")!r})
assert 'wsbcn_mmseg' not in sys.modules
'''
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
    features = torch.load(tmp_path / 'features.pth', weights_only=True)
    torch.testing.assert_close(features, model.backbone(x)[3], rtol=1e-4, atol=1e-5)


# Functions that fuse norms into raw kernels

@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('settled', [False, True])
def test_fuse_conv_bn_refuses_and_changes_nothing(bias, settled):
    block = ConvModule(4, 8, 3, bias=bias, conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='BN'))
    model = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), block).eval()
    x = torch.randn(2, 4, 9, 7)
    model = settle(model, torch.float32) if settled else model
    expected = model(x)
    with pytest.raises(RuntimeError, match=r'wsbcn_mmseg\.fold'):
        fuse_conv_bn(model)
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(RuntimeError, match=r'wsbcn_mmseg\.fold'):
        fuse_conv_bn_eval(block.conv, block.norm)
    torch.testing.assert_close(fuse_conv_bn(fold(model))(x), expected, rtol=1e-4, atol=1e-5)


def test_fuse_conv_bn_leaves_bcn_alone():
    model = settle(segmentor(), torch.float32).eval()
    x = torch.randn(1, 3, 65, 49)
    expected = model(x)
    torch.testing.assert_close(fuse_conv_bn(model)(x), expected)


def test_efficient_conv_bn_eval_refuses():
    block = ConvModule(4, 8, 3, conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True)
    with pytest.raises(RuntimeError, match=r'wsbcn_mmseg\.fold'):
        block.eval()(torch.randn(1, 4, 9, 7))


def test_weights_are_assigned_as_ever():
    conv, other = ConvWS(4, 8, 3), ConvWS(4, 8, 3)
    conv.weight = nn.Parameter(3 * conv.weight.detach())  # no effect, no harm
    conv.weight = other.weight
    conv.bias = other.bias
    conv.weight = nn.Parameter(other.weight.detach().clone())
    conv.bias = None
    conv.load_state_dict(dict(weight=torch.randn(8, 4, 3, 3)), assign=True)
    assert copy.deepcopy(conv).weight.shape == (8, 4, 3, 3)


@pytest.mark.parametrize('settings', [dict(center=False), dict(scale=False)], ids=str)
def test_ablations_of_standardization_fold_too(settings):
    model = settle(nn.Sequential(ConvWS(4, 8, 3, padding=1, padding_mode='reflect', **settings), BCN(8)))
    folded = check(model, torch.randn(2, 4, 9, 7, dtype=torch.float64))
    assert kinds(folded) == [nn.Conv2d, nn.GroupNorm]
    assert not {'center', 'scale', 'eps'} & set(vars(folded[0]))


class Unforeseen(nn.Module):
    """Reads what lies between a convolution and its norm in ways that no operation on that tensor shows."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv2d(3, 3, 3, padding=1), BCN(3), way
        if way == 'hook on the convolution':
            self.conv.register_forward_hook(lambda *a: 2 * a[2])
        if way == 'hook on the norm':
            self.norm.register_forward_hook(lambda *a: a[2] + a[1][0])

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        if self.way == 'tied kernel':
            return nn.functional.conv_transpose2d(z, self.conv.weight)
        if self.way == 'bias':
            return z + self.conv.bias.view(3, 1, 1)
        return SimpleNamespace(y=y, z=z) if self.way == 'object' else z


@pytest.mark.parametrize('way', ['hook on the convolution', 'hook on the norm', 'tied kernel', 'bias', 'object'])
def test_unforeseen_readers(way):
    model = settle(Unforeseen(way)).eval()
    folded, x = fold(model), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    wanted, got = model(x), folded(x)
    if way == 'object':
        torch.testing.assert_close(got.y, wanted.y, rtol=1e-10, atol=1e-10)
        wanted, got = wanted.z, got.z
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_indexed_sequences_and_branches_that_do_not_run():
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(ConvWS(3, 3, 1), BCN(3))

        def forward(self, x, z):
            y = self.body[0](x + z)
            return self.body[1](y) + y

    model = settle(Indexed()).eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for folded in (fold(model), fold(model, (x, x))):
        torch.testing.assert_close(folded(x, x), model(x, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('change', [
    lambda conv: torch.nn.utils.prune.l1_unstructured(conv, 'weight', 0.5), torch.nn.utils.weight_norm,
    torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.weight_norm], ids=['prune', 'weight_norm',
                                                                                       'spectral_norm', 'parametrized'])
def test_kernels_that_hooks_compute(change):
    model = nn.Sequential(ConvWS(3, 8, 3), BCN(8), nn.ReLU(), ConvWS(8, 4, 1), BCN(4))
    change(model[0])
    settle(model, torch.float32)
    x = torch.randn(2, 3, 9, 8)
    model.train()(x).sum().backward()  # hooks leave tensors with a graph, which cannot be copied
    model.eval()
    folded = fold(model)
    assert type(folded[0]) is nn.Conv2d
    assert 'weight' in folded[0]._parameters
    assert not folded[0]._forward_pre_hooks
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)


class ReadsRawKernel(nn.Module):
    """A kernel tied to a second operator, which folding would change."""

    def __init__(self):
        super().__init__()
        self.conv, self.bcn = ConvWS(3, 8, 3, padding=1), BCN(8)

    def forward(self, x):
        return nn.functional.conv_transpose2d(self.bcn(self.conv(x)).relu(), self.conv.weight, padding=1)


def test_a_network_that_folding_would_change_is_refused():
    model = settle(ReadsRawKernel(), torch.float32)
    x = torch.randn(1, 3, 8, 8)
    expected = model.eval()(x)
    with pytest.raises(ValueError, match='does not compute the same as the original.*does other code read a raw'):
        fold(model, x)
    assert torch.equal(model(x), expected)
    model = settle(nn.Sequential(ConvWS(3, 8, 3), BCN(8)), torch.float32)
    model[1].bn.eps = 0.1
    with pytest.raises(ValueError, match='has one eps for both variances'):
        model(x)


class ClippedBCN(BCN):

    def forward(self, input):
        return super().forward(input).clamp(-1, 1)


class ClippedGroupNorm(GNByWidth):

    def forward(self, input):
        return super().forward(input).clamp(-1, 1)


class RenamedGroupNorm(GNByWidth):
    pass


class ForeignNorm(nn.GroupNorm):

    def forward(self, input):
        return super().forward(input).clamp(-1, 1)


@pytest.mark.parametrize('norm', [ClippedBCN(8), ClippedGroupNorm(8)], ids=lambda norm: type(norm).__name__)
def test_norms_derived_from_ours_that_compute_something_else_are_refused(norm):
    with pytest.raises(ValueError, match=rf'no stock layer that computes the same as {type(norm).__name__} \(1\)'):
        fold(nn.Sequential(ConvWS(3, 8, 3), norm))


@pytest.mark.parametrize('norm, kind', [(GNByWidth(8), nn.GroupNorm), (RenamedGroupNorm(8), nn.GroupNorm),
                                        (ForeignNorm(2, 8), ForeignNorm)], ids=lambda x: getattr(x, '__name__', ''))
def test_group_norms_become_the_stock_layer_and_foreign_ones_stay(norm, kind):
    folded = check(nn.Sequential(ConvWS(3, 8, 3), norm), torch.randn(2, 3, 9, 9))
    assert kinds(folded)[-2:] == [nn.Conv2d, kind]


def test_kernels_of_unknown_hooks_are_named():
    conv = ConvWS(3, 8, 3)
    raw = conv.weight
    del conv._parameters['weight']
    conv.register_forward_pre_hook(lambda conv, _: setattr(conv, 'weight', raw * 1))
    conv.raw = raw
    with pytest.raises(ValueError, match='a hook computes the kernel of a convolution in a way that fold does not'):
        fold(nn.Sequential(conv, BCN(8)))
