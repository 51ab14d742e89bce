"""ReLU in the pass of the BCN before it: which layers may, that nothing changes, and that nothing is lost."""
import copy
import pickle

import pytest
import torch
from small_segmentation import run, write_config, write_data
from torch import nn
from torch.nn import functional as F

from wsbcn_mmseg.conversion import fold, fuse_relu, unfuse_relu
from wsbcn_mmseg.layers import BCN, ConvWS
from wsbcn_mmseg.ops import cpp


class Block(nn.Module):
    """A residual block with one ReLU for all places, as OpenMMLab's and torchvision's."""

    def __init__(self, inplace=True):
        super().__init__()
        self.conv1, self.bn1 = ConvWS(16, 16, 3, padding=1), BCN(16, update_rate=.1)
        self.conv2, self.bn2 = ConvWS(16, 16, 3, padding=1), BCN(16, update_rate=.1)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


def network(inplace=True):
    torch.manual_seed(0)
    net = nn.Sequential(ConvWS(3, 16, 3), BCN(16, update_rate=.1), nn.ReLU(inplace), Block(inplace), Block(inplace))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=.5)
    return net


def step(net, seed=0):
    net.zero_grad()
    y = net(torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed)))
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in net.parameters()), *net.state_dict().values()]


@pytest.mark.parametrize('impl', ['reference', 'fused', 'auto'])
@pytest.mark.parametrize('inplace', [True, False])
def test_training_is_the_same_bit_for_bit(inplace, impl, monkeypatch):
    monkeypatch.setenv('WSBCN_IMPL', impl)
    net = network(inplace)
    plain, names = copy.deepcopy(net), list(net.state_dict())
    assert fuse_relu(net) == ['1', '3.bn1', '4.bn1']  # before the addition there is no ReLU
    assert list(net.state_dict()) == names
    for seed in range(3):
        for a, b in zip(step(net, seed), step(plain, seed), strict=True):
            assert torch.equal(a, b)
    net.eval()
    plain.eval()
    x = torch.randn(1, 3, 9, 9)
    assert torch.equal(net(x), plain(x))


@pytest.mark.skipif(cpp.WHY_NOT is not None, reason=str(cpp.WHY_NOT))
def test_the_pass_of_relu_is_left_out():
    def passes(net):
        with torch.profiler.profile() as profile:
            net(torch.randn(1, 3, 9, 9))
        return sum(event.name == 'aten::relu_' for event in profile.events())

    net = network()
    assert passes(net) == 5
    fuse_relu(net)
    assert passes(net) == 2


class Branching(nn.Module):
    """The output of a norm goes to ReLU, and elsewhere too."""

    def __init__(self, use):
        super().__init__()
        self.conv, self.bn, self.relu, self.use = nn.Conv2d(3, 8, 3), BCN(8, update_rate=.1), nn.ReLU(), use

    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.use(self, y)


@pytest.mark.parametrize('use', [
    lambda self, y: self.relu(y) + y,
    lambda self, y: (self.relu(y), y),
    lambda self, y: self.relu(y - 1),
    lambda self, y: self.relu(y.mul_(2)),
    lambda self, y: F.relu(y),
    lambda self, y: self.relu(y) if self.training else y.sigmoid(),
], ids=['added', 'returned', 'shifted', 'changed in place', 'functional', 'in training only'])
def test_what_is_read_elsewhere_is_left(use):
    net = Branching(use)
    assert fuse_relu(net) == []


def test_other_activations_are_left():
    assert fuse_relu(nn.Sequential(nn.Conv2d(3, 8, 3), BCN(8), nn.ReLU6())) == []
    assert fuse_relu(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU())) == []


def test_hooks_see_the_output_of_the_norm():
    net, seen = network(), []
    fuse_relu(net)
    x = torch.randn(1, 3, 9, 9)
    net.eval()
    expected = net(x)
    handle = net[1].register_forward_hook(lambda module, args, y: seen.append(y.clone()))
    assert torch.equal(net(x), expected)
    assert seen[0].min() < 0
    handle.remove()


def test_copies_pickles_and_fold():
    net = network()
    fuse_relu(net)
    step(net)
    net.eval()
    x = torch.randn(1, 3, 9, 9)
    expected = net(x)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(x), expected)
    folded = fold(net)
    assert not any(isinstance(module, BCN) for module in folded.modules())
    assert {type(m) for m in folded.modules() if isinstance(m, nn.ReLU)} == {nn.ReLU}
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-4)
    unfuse_relu(net)
    assert {type(m) for m in net.modules() if isinstance(m, nn.ReLU)} == {nn.ReLU}
    assert torch.equal(net(x), expected)


def test_compiled_traced_and_exported_networks():
    net = network().eval()
    x = torch.randn(2, 3, 9, 9)
    expected = net(x)
    fuse_relu(net)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend='aot_eager')(x), expected)
    torch.testing.assert_close(torch.export.export(net, (x, )).module()(x), expected)
    torch.testing.assert_close(torch.jit.trace(net, x)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), expected)
    torch.testing.assert_close(torch.func.functional_call(net, dict(net.named_parameters()), x), expected)


def test_a_training_of_openmmlab_is_the_same(tmp_path, one_thread):
    write_data(tmp_path / 'data')
    weights = []
    for hook in ('', "custom_hooks = [dict(type='FuseReLUHook')]\n"):
        config = write_config(tmp_path / 'config.py', tmp_path / 'data',
                              f"model['backbone']['norm_cfg'] = dict(type='BCN')\n{hook}")
        code, printed = run('train.py', config, '--work-dir', tmp_path / f'run{len(weights)}')
        assert code is None
        weights.append(torch.load(next((tmp_path / f'run{len(weights)}').glob('iter_*.pth')), weights_only=False))
    assert 'BCN layers apply the ReLU after them' in printed
    assert ' 0 BCN layers' not in printed
    for (name, a), b in zip(weights[0]['state_dict'].items(), weights[1]['state_dict'].values(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpointed_block():
    from torch.utils.checkpoint import checkpoint
    net = network(inplace=False)
    fuse_relu(net)
    plain = copy.deepcopy(net)
    for forward in (lambda x: checkpoint(net, x, use_reentrant=False), plain):
        forward(torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(net.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)
