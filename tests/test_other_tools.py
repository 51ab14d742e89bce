"""Rows of docs/other_tools.md that no other test file has."""
import copy
import io
import warnings

import pytest
import torch
from conftest import run_ranks
from torch import nn
from torch.nn.utils import parametrize

from wsbcn_mmseg import fold
from wsbcn_mmseg.layers import BCN, ConvWS
from wsbcn_mmseg.ops import standardize_weight

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    model = nn.Sequential(ConvWS(3, 16, 3), BCN(16, update_rate=0.3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(16, 4))
    for _ in range(3):
        model(X)
    return model


class LowRank(nn.Module):

    def __init__(self, weight):
        super().__init__()
        self.a = nn.Parameter(torch.randn(weight.shape[0], 2))
        self.b = nn.Parameter(torch.randn(2, weight[0].numel()))

    def forward(self, weight):
        return weight + (self.a @ self.b).view_as(weight)


def test_low_rank_adaptation_of_the_raw_kernel():
    model = network().eval()
    raw = model[0].weight.detach().clone()
    parametrize.register_parametrization(model[0], 'weight', LowRank(raw))
    adapter = model[0].parametrizations.weight[0]
    expected = nn.functional.conv2d(X, standardize_weight(adapter(raw)), model[0].bias)
    torch.testing.assert_close(model[0](X), expected)
    model(X).sum().backward()
    assert adapter.a.grad.any()
    assert adapter.b.grad.any()
    torch.testing.assert_close(fold(model)(X), model(X), rtol=1e-4, atol=1e-5)


def test_dynamic_quantization_leaves_our_layers_and_folded_networks_quantize():
    model = network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
        assert (quantized(X) - model(X)).abs().max() < 0.1 * model(X).abs().max()
        folded = fold(model)
        static = nn.Sequential(torch.ao.quantization.QuantStub(), folded[0], torch.ao.quantization.DeQuantStub())
        static.qconfig = torch.ao.quantization.default_qconfig
        static = torch.ao.quantization.prepare(static.eval())
        static(X)
        static = torch.ao.quantization.convert(static)
        expected = folded[0](X)
        assert (static(X) - expected).abs().max() < 0.1 * expected.abs().max()


def test_averaged_models_average_estimates_too():
    model = network()
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    before = model[1].bn.running_mean.clone()
    model(X * 3 + 1)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module[1].bn.running_mean, (before + model[1].bn.running_mean) / 2)
    torch.optim.swa_utils.update_bn([X], averaged)
    assert averaged.eval()(X).isfinite().all()


def test_copies_and_whole_models_in_files():
    model, file = network().eval(), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(again(X), model(X))


def _shard_and_compare(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    torch.manual_seed(0)
    model = nn.Sequential(ConvWS(3, 8, 3), BCN(8, update_rate=0.3), nn.ReLU(), ConvWS(8, 8, 3), BCN(8, update_rate=0.3))
    plain, mesh = copy.deepcopy(model), init_device_mesh('cpu', (2, ))
    for module in (*model[:2], *model[3:], model):
        fully_shard(module, mesh=mesh)
    for network in (model, plain):
        network(X).square().sum().backward()
    for sharded, parameter in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(sharded.grad.full_tensor(), parameter.grad)
    assert torch.equal(model[1].bn.running_mean, plain[1].bn.running_mean)


def test_sharded_networks_have_the_gradients_of_whole_ones():
    pytest.importorskip('torch.distributed.fsdp', reason='needs FSDP')
    if not hasattr(torch.distributed.fsdp, 'fully_shard'):
        pytest.skip('fully_shard came with torch 2.6')
    run_ranks(_shard_and_compare)
