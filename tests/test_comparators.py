"""Switchable Normalization, EvoNorm-S0, FRN with TLU: against independent formulations in float64, and in networks."""
import pytest
import torch
from mmcv.cnn import build_norm_layer
from torch import nn

from wsbcn_mmseg import fold, layers
from wsbcn_mmseg.experiments.method import methods
from wsbcn_mmseg.layers import FRN, ConvWS, EvoNormS0, SwitchableNorm
from wsbcn_mmseg.models import CIFARResNet, NormActCIFARResNet, NormActResNet

SHAPE = 3, 8, 5, 4
# Every norm of the table of methods that is this package's own, also as it is set where an update has one image
OWN = [row for row in methods().values() if row.norm_cfg['type'] in layers.__all__ and row.norm_cfg['type'] != 'BCN']
COMPARATORS = [cfg for row in OWN for cfg in (row.norm_cfg, row.norm_cfg | row.single) if cfg]
COMPARATORS = list({str(cfg): cfg for cfg in COMPARATORS}.values())


def built(cfg: dict, channels: int) -> nn.Module:
    return build_norm_layer(cfg, channels, postfix=1)[1]


def randomized(layer: nn.Module) -> nn.Module:
    """In float64, every parameter away from its initial value."""
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.rand_like(parameter) - .3)
    return layer


def inputs() -> torch.Tensor:
    return torch.randn(*SHAPE, dtype=torch.float64) * 2 + torch.arange(8.).view(8, 1, 1)


def switchable_norm(x, layer, batch_mean=None, batch_var=None):
    """As the paper prints it, one statistic after the other."""
    means, variances = [x.mean((2, 3), keepdim=True), x.mean((1, 2, 3), keepdim=True)], []
    variances = [x.var((2, 3), keepdim=True, correction=0), x.var((1, 2, 3), keepdim=True, correction=0)]
    if layer.batch_statistics:
        means.append(x.mean((0, 2, 3), keepdim=True) if batch_mean is None else batch_mean.view(1, -1, 1, 1))
        variances.append(x.var((0, 2, 3), keepdim=True, correction=0) if batch_var is None
                         else batch_var.view(1, -1, 1, 1))
    w, v = layer.mean_weight.exp(), layer.var_weight.exp()
    mean = sum(w[k] / w.sum() * means[k] for k in range(len(means)))
    var = sum(v[k] / v.sum() * variances[k] for k in range(len(means)))
    return layer.weight.view(-1, 1, 1) * (x - mean) / (var + layer.eps).sqrt() + layer.bias.view(-1, 1, 1)


@pytest.mark.parametrize('batch_statistics', [True, False])
def test_switchable_norm_is_its_paper_s(batch_statistics):
    layer, x = randomized(SwitchableNorm(8, batch_statistics=batch_statistics)), inputs()
    torch.testing.assert_close(layer(x), switchable_norm(x, layer))
    layer.eval()
    running = (layer.bn.running_mean, layer.bn.running_var) if batch_statistics else ()
    torch.testing.assert_close(layer(x), switchable_norm(x, layer, *running))
    assert sum(p.numel() for p in layer.parameters()) == 2 * 8 + (6 if batch_statistics else 4)


def test_running_statistics_of_switchable_norm_are_those_of_batch_norm():
    layer, peer = SwitchableNorm(8).double(), nn.BatchNorm2d(8).double()
    for _ in range(3):
        x = inputs()
        layer(x), peer(x)
    for name, buffer in peer.named_buffers():
        torch.testing.assert_close(layer.bn.get_buffer(name), buffer)
    layer.bn.eval()
    before = layer.bn.running_mean.clone()
    frozen = layer(inputs())
    assert layer.bn.running_mean.equal(before)
    assert frozen.shape == SHAPE


def test_evonorm_is_its_paper_s():
    layer, x = randomized(EvoNormS0(8, num_groups=4)), inputs()
    y = torch.empty_like(x)
    for image in range(3):
        for c in range(8):
            group = x[image, c // 2 * 2:c // 2 * 2 + 2]
            deviation = ((group - group.mean()).square().mean() + layer.eps).sqrt()
            z = x[image, c]
            y[image, c] = z / (1 + (-layer.v[c] * z).exp()) / deviation * layer.weight[c] + layer.bias[c]
    torch.testing.assert_close(layer(x), y)
    layer.apply_act = False
    torch.testing.assert_close(layer(x), x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1))


@pytest.mark.parametrize('learn_eps', [True, False])
def test_frn_is_its_paper_s(learn_eps):
    layer, x = randomized(FRN(8, learn_eps=learn_eps)), inputs()
    y = torch.empty_like(x)
    for image in range(3):
        for c in range(8):
            eps = 1e-6 + (layer.learned_eps[c].abs() if learn_eps else 0)
            scaled = x[image, c] / ((x[image, c]**2).sum() / 20 + eps)**.5
            y[image, c] = layer.weight[c] * scaled + layer.bias[c]
    layer.apply_act = False
    torch.testing.assert_close(layer(x), y)
    layer.apply_act = True
    torch.testing.assert_close(layer(x), torch.where(y > layer.tau.view(-1, 1, 1), y, layer.tau.view(-1, 1, 1)))


@pytest.mark.parametrize('cfg', COMPARATORS, ids=str)
def test_gradients_of_comparators(cfg):
    layer = randomized(built(cfg, 4))
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


@pytest.mark.parametrize('shape', [(1, 8, 1, 1), (2, 8, 7), (2, 8, 3, 2, 2)])
@pytest.mark.parametrize('cfg', COMPARATORS, ids=str)
def test_comparators_take_any_number_of_dimensions(cfg, shape):
    norm, x = built(cfg, 8), torch.randn(shape)
    assert norm(x).shape == shape
    assert norm(x).isfinite().all()


@pytest.mark.parametrize('cfg', COMPARATORS, ids=str)
def test_fold_makes_stock_layers_of_comparators_or_refuses(cfg):
    norm = built(cfg, 8)
    network = nn.Sequential(ConvWS(3, 8, 3), norm)
    if isinstance(norm, nn.GroupNorm):
        assert type(fold(network)[1]) is nn.GroupNorm
    else:
        with pytest.raises(ValueError, match=f'no stock layer .* {type(norm).__name__}'):
            fold(network)


@pytest.mark.parametrize('norm', [row.norm_cfg for row in OWN if row.activates], ids=lambda norm: norm['type'])
def test_norms_that_activate_are_not_activated_again(norm):
    """A residual block by hand: one activation inside, by the norm, and ReLU after the addition."""
    network = NormActResNet(18, base_channels=8, stem_channels=8, norm_cfg=norm)
    block, x = network.layer2[0], torch.randn(2, 8, 6, 6)
    nn.init.ones_(block.norm2.weight)
    out = block.conv2(block.norm1(block.conv1(x)))
    wanted = torch.relu(block.norm2(out) + block.downsample(x))
    torch.testing.assert_close(block(x), wanted)
    assert [block.norm1.apply_act, block.norm2.apply_act, block.downsample[1].apply_act] == [True, False, False]
    stem = network.maxpool(network.norm1(network.conv1(torch.ones(1, 3, 32, 32))))
    assert network.layer1[0](stem).equal(torch.relu(stem))  # the residual branch starts at zero
    with pytest.raises(KeyError, match='depth 50'):
        NormActResNet(50, norm_cfg=norm)


def test_norm_act_resnets_have_the_parameters_of_the_others():
    """Convolutions at least; the norms have other parameters."""
    ours, other = NormActCIFARResNet(8, norm_cfg=dict(type='FRN')), CIFARResNet(8)
    assert [n for n, m in ours.named_modules() if isinstance(m, nn.Conv2d)] == [
        n for n, m in other.named_modules() if isinstance(m, nn.Conv2d)]
    assert ours(torch.randn(2, 3, 16, 16))[0].shape == (2, 64, 4, 4)
