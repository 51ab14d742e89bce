"""What the paper compares with: WN, CWN, the two halves of WS, groups by width, ResNets for CIFAR."""
import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer, build_norm_layer, fuse_conv_bn
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from wsbcn_mmseg import fold
from wsbcn_mmseg.layers import ConvCWN, ConvWN, ConvWS, GNByWidth
from wsbcn_mmseg.models import CIFARResNet
from wsbcn_mmseg.ops import standardize_weight


def test_wn_is_torch_s_weight_norm():
    """Eq. 8, values and gradients of direction and length, against torch's own parametrization."""
    conv, peer = (cls(4, 6, 3, padding=1, padding_mode='reflect').double() for cls in (ConvWN, nn.Conv2d))
    peer = weight_norm(peer)
    conv.load_state_dict({'weight': peer.parametrizations.weight.original1, 'bias': peer.bias,
                          'gain': peer.parametrizations.weight.original0.flatten()})
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    for module in (conv, peer):
        module(x).square().sum().backward()
    torch.testing.assert_close(conv(x), peer(x))
    torch.testing.assert_close(conv.weight.grad, peer.parametrizations.weight.original1.grad)
    torch.testing.assert_close(conv.gain.grad, peer.parametrizations.weight.original0.grad.flatten())


def test_cwn_is_centered_and_has_the_length_of_its_gain():
    conv = ConvCWN(4, 6, 3, groups=2).double()
    with torch.no_grad():
        conv.gain.uniform_(.5, 2)
    kernel = conv.effective_weight().flatten(1)
    torch.testing.assert_close(kernel.mean(1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(kernel.norm(dim=1), conv.gain)
    centered = conv.weight.flatten(1) - conv.weight.flatten(1).mean(1, keepdim=True)
    torch.testing.assert_close(F.cosine_similarity(kernel, centered), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize('cls', [ConvWN, ConvCWN])
def test_ordinary_weights_keep_their_kernels(cls):
    ordinary, conv = nn.Conv2d(4, 6, 3), cls(4, 6, 3)
    conv.load_state_dict(ordinary.state_dict())
    wanted = ordinary.weight - (ordinary.weight.mean((1, 2, 3), keepdim=True) if cls is ConvCWN else 0)
    torch.testing.assert_close(conv.effective_weight(), wanted)


@pytest.mark.parametrize('row', ['wn', 'cwn'])
def test_gain_starts_at_the_length_of_each_kernel(row, root):
    """As where PyTorch's weight_norm takes an initialized network; shortcuts' convolutions too."""
    backbone = Config.fromfile(root / 'configs' / 'imagenet' / f'resnet50_gn_{row}_in1k.py').model.backbone
    network = MODELS.build(backbone | dict(type='mmseg.ResNet', depth=50, base_channels=8, stem_channels=8,
                                           norm_cfg=dict(type='GN', num_groups=4)))
    network.init_weights()
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 53
    for conv in convs:
        weight = conv.weight if row == 'wn' else conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(conv.effective_weight(), weight)
        torch.testing.assert_close(weight_norm(copy.deepcopy(conv)).parametrizations.weight.original0.flatten(),
                                   conv.weight.flatten(1).norm(dim=1))
    shortcut = network.layer2[0].downsample[0].weight  # Kaiming's, not the constructor's
    assert shortcut.std().item() == pytest.approx((2 / 64)**.5, rel=.05)


@pytest.mark.parametrize('part', ['center', 'scale'])
@pytest.mark.parametrize('cls', [ConvWN, ConvCWN])
def test_parts_of_ws_are_refused_by_weight_normalization(cls, part):
    with pytest.raises(TypeError, match=part):
        cls(8, 8, 3, **{part: False})


def test_the_two_halves_of_ws():
    """Table 4: Eq. 11 alone subtracts the mean, Eq. 12 alone divides by the deviation; one after the other is WS."""
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64) + .5
    flat = weight.flatten(1)
    centered = standardize_weight(weight, scale=False)
    torch.testing.assert_close(centered.flatten(1), flat - flat.mean(1, keepdim=True))
    scaled = standardize_weight(weight, center=False)
    torch.testing.assert_close(scaled.flatten(1), flat / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt())
    torch.testing.assert_close(standardize_weight(centered, center=False), standardize_weight(weight))


@pytest.mark.parametrize('parts', [dict(scale=False), dict(center=False)])
def test_halves_in_the_layer(parts):
    conv = build_conv_layer(dict(type='ConvWS', **parts), 3, 5, 3, padding=1, padding_mode='circular').double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    wanted = F.conv2d(F.pad(x, (1, 1, 1, 1), 'circular'), standardize_weight(conv.weight, **parts), conv.bias)
    torch.testing.assert_close(conv(x), wanted)
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(conv, {'weight': w}, x), conv.weight)
    assert next(iter(parts)) in repr(conv)
    assert 'center' not in repr(ConvWS(3, 5, 3))


@pytest.mark.parametrize('cls', [ConvWN, ConvCWN])
def test_folds_and_does_not_fuse(cls):
    """As ConvWS: the kernel that convolves becomes a plain one; the raw one takes no norm's scale."""
    network = nn.Sequential(cls(4, 6, 3), nn.BatchNorm2d(6)).double().eval()
    network[1].running_var.uniform_(.5, 2)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    plain = fold(network)
    assert [type(m) for m in plain] == [nn.Conv2d, nn.Identity]
    torch.testing.assert_close(plain(x), network(x))
    with pytest.raises(RuntimeError, match='wsbcn_mmseg.fold'):
        fuse_conv_bn(network)


def test_groups_follow_the_width():
    """Section 8.2: min(32, C / 4)."""
    for channels, groups in ((16, 4), (32, 8), (64, 16), (128, 32), (256, 32), (6, 1)):
        name, norm = build_norm_layer(dict(type='GNByWidth'), channels, postfix=1)
        assert norm.num_groups == groups
        assert name == 'gn1'
        assert isinstance(norm, nn.GroupNorm)
    assert GNByWidth(32, min_channels_per_group=2).num_groups == 16


@pytest.mark.parametrize('depth, parameters', [(20, 272_000), (110, 1_730_000)])
def test_cifar_resnets(depth, parameters):
    """Parameters as in He et al. 2016, Table 6 (0.27M and 1.7M), with two 1x1 shortcuts more."""
    network = CIFARResNet(depth, zero_init_residual=False)
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) == depth - 1
    assert abs(sum(p.numel() for p in network.parameters()) - parameters) < .01 * parameters
    assert network(torch.randn(1, 3, 32, 32))[0].shape == (1, 64, 8, 8)
    with pytest.raises(KeyError, match='depth 21'):
        CIFARResNet(21)
