"""The operator: Algorithm 1 and Eq. 43 against independent formulations, and what it does at the edges."""
import copy
import os
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import run_ranks
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.ops import batch_channel_norm, cpp
from wsbcn_mmseg.ops.reference import batch_channel_norm_reference

IMPLEMENTATIONS = ('reference', 'fused', *(['cpp'] if cpp.WHY_NOT is None else []))
C, G = 12, 4


def arguments(dtype=torch.float64, channels=C, groups=G, grad=True):
    """gamma^b, beta^b, estimates, gamma^c, beta^c with nothing at its default."""
    gamma_b, beta_b = torch.randn(2, channels, dtype=dtype).unbind()
    gamma_c, beta_c = torch.randn(2, groups, dtype=dtype).unbind()
    mean, var = torch.randn(channels, dtype=dtype), torch.rand(channels, dtype=dtype) + 0.5
    for parameter in (gamma_b, beta_b, gamma_c, beta_c):
        parameter.requires_grad_(grad)
    return gamma_b, beta_b, mean, var, gamma_c, beta_c


def algorithm_1(x, gamma_b, beta_b, mu, var, gamma_c, beta_c, rate, eps=1e-5):
    """Algorithm 1 as the paper prints it, with loops over channels, images and groups."""
    groups = len(gamma_c)
    dot_mu = torch.stack([x[:, c].mean() for c in range(x.shape[1])]).detach()
    dot_var = torch.stack([((x[:, c] - mu[c])**2).mean() for c in range(x.shape[1])]).detach()  # mu before its update
    mu = mu + rate * (dot_mu - mu)
    var = var + rate * (dot_var - var)
    dot_x = torch.stack([gamma_b[c] * (x[:, c] - mu[c]) / torch.sqrt(var[c] + eps) + beta_b[c]
                         for c in range(x.shape[1])], 1)
    y = torch.zeros_like(x)
    size = x.shape[1] // groups
    for b in range(len(x)):
        for g in range(groups):
            part = slice(g * size, (g + 1) * size)
            values = dot_x[b, part]
            deviation = torch.sqrt(values.var(unbiased=False) + eps)
            y[b, part] = gamma_c[g] * (values - values.mean()) / deviation + beta_c[g]
    return y, mu, var


@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
@pytest.mark.parametrize('shape', [(2, C, 5, 7), (1, C, 1, 1), (3, C), (2, C, 9), (2, C, 3, 4, 5)])
def test_micro_batch_is_algorithm_1(impl, shape):
    gamma_b, beta_b, mean, var, gamma_c, beta_c = arguments()
    parameters = [gamma_b, beta_b, gamma_c, beta_c]
    mu, sigma2 = mean.clone(), var.clone()
    for step in range(4):
        x = (torch.randn(shape, dtype=torch.float64) * (step + 1) + step).requires_grad_()
        rate = 0.1 / (step + 1)
        expected, mu, sigma2 = algorithm_1(x, gamma_b, beta_b, mu, sigma2, gamma_c, beta_c, rate)
        y = batch_channel_norm(x, gamma_b, beta_b, mean, var, gamma_c, beta_c, G, training=True, rate=rate, impl=impl)
        weight = torch.randn_like(y)
        wanted = torch.autograd.grad((expected.tanh() * weight).sum(), [x, *parameters])
        got = torch.autograd.grad((y.tanh() * weight).sum(), [x, *parameters])
        for a, b in zip((y, mean, var, *got), (expected, mu, sigma2, *wanted), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
@pytest.mark.parametrize('training', [True, False])
def test_large_batch_is_group_norm_of_batch_norm(impl, training):
    gamma_b, beta_b, mean, var, gamma_c, beta_c = arguments()
    expected_mean, expected_var = mean.clone(), var.clone()
    for _ in range(3):
        x = torch.randn(3, C, 4, 5, dtype=torch.float64, requires_grad=True)
        z = F.batch_norm(x, expected_mean, expected_var, gamma_b, beta_b, training, 0.2, 1e-5)
        z = F.group_norm(z, G, eps=1e-5) * gamma_c.repeat_interleave(C // G).view(-1, 1, 1)
        expected = z + beta_c.repeat_interleave(C // G).view(-1, 1, 1)
        y = batch_channel_norm(x, gamma_b, beta_b, mean, var, gamma_c, beta_c, G, training=training,
                               mode='large_batch', rate=0.2, impl=impl)
        inputs = [x, gamma_b, beta_b, gamma_c, beta_c]
        weight = torch.randn_like(y)
        for a, b in zip((y, mean, var, *torch.autograd.grad((y.tanh() * weight).sum(), inputs)),
                        (expected, expected_mean, expected_var,
                         *torch.autograd.grad((expected.tanh() * weight).sum(), inputs)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
@pytest.mark.parametrize('mode', ['micro_batch', 'large_batch'])
@pytest.mark.parametrize('training', [True, False])
def test_gradients_by_finite_differences(impl, mode, training):
    gamma_b, beta_b, mean, var, gamma_c, beta_c = arguments(channels=4, groups=2)

    def function(x, gamma_b, beta_b, gamma_c, beta_c):
        # rate 0: finite differences must not see the estimates follow x, as no gradient does
        return batch_channel_norm(x, gamma_b, beta_b, mean, var, gamma_c, beta_c, 2, training=training, mode=mode,
                                  rate=0.0, impl=impl)

    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, gamma_b, beta_b, gamma_c, beta_c))
    if impl == 'reference':
        assert torch.autograd.gradgradcheck(function, (x, gamma_b, beta_b, gamma_c, beta_c))


def test_no_gradient_through_the_estimates():
    """With rate 1 the estimates are the batch's own; large-batch mode differentiates them, micro-batch does not."""
    gamma_b, beta_b, _, _, gamma_c, beta_c = arguments()
    x = torch.randn(2, C, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    gradients = []
    for mode in ('micro_batch', 'large_batch'):
        mean, var = x.detach().mean((0, 2, 3)), torch.ones(C, dtype=torch.float64)
        y = batch_channel_norm(x, gamma_b, beta_b, mean, var, gamma_c, beta_c, G, training=True, mode=mode, rate=1.0)
        gradients.append((y, torch.autograd.grad((y * weight).sum(), x)[0]))
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    assert (gradients[0][1] - gradients[1][1]).abs().max() > 1e-3


def test_second_derivative_is_refused_by_the_fused_form():
    x = torch.randn(2, C, 3, 3, requires_grad=True)
    y = batch_channel_norm(x, *arguments(torch.float32), G, training=True, impl='fused')
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


@pytest.mark.parametrize('mode', ['micro_batch', 'large_batch'])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_one_activation_is_kept_for_backward(mode, memory_format):
    x = torch.randn(2, 64, 33, 33).contiguous(memory_format=memory_format).requires_grad_()
    layer, saved = BCN(64, mode=mode, update_rate=0.1), {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x).sum()
    large = [tensor for tensor in saved.values() if tensor.numel() > 8 * 2 * 64]  # less than a tenth of x
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]


@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
@pytest.mark.parametrize('make', [
    lambda x: x, lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.transpose(2, 3),
    lambda x: x[:, :, ::2], lambda x: x[..., 1:], lambda x: x[:1].expand(4, -1, -1, -1)
], ids=['contiguous', 'channels_last', 'transposed', 'strided', 'sliced', 'expanded'])
@pytest.mark.parametrize('mode', ['micro_batch', 'large_batch'])
def test_any_strides_give_one_result(impl, make, mode):
    base = torch.randn(3, C, 6, 7, dtype=torch.float64)
    results = []
    for copy_first in (False, True):
        torch.manual_seed(1)
        args = arguments()
        x = make(base)
        x = (x.contiguous() if copy_first else x.detach()).requires_grad_()
        y = batch_channel_norm(x, *args, G, training=True, mode=mode, rate=0.1, impl=impl)
        dy = torch.randn(y.shape, dtype=y.dtype).transpose(2, 3).contiguous().transpose(2, 3)  # strides of its own
        results.append([y, args[2], args[3], *torch.autograd.grad(y, [x, args[0], args[5]], dy)])
        for memory_format in (torch.contiguous_format, torch.channels_last):
            if x.is_contiguous(memory_format=memory_format):
                assert y.is_contiguous(memory_format=memory_format), "the output keeps the input's format"
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('mode', ['micro_batch', 'large_batch'])
def test_no_cancellation(impl, memory_format, mode):
    """Mean 1000 and deviation 1 in float32 stay within 1e-3 of float64, gradients too."""
    args64 = [a.detach() for a in arguments()]
    args64[2] += 1000
    x = (torch.randn(2, C, 17, 19, dtype=torch.float64) + 1000).float().contiguous(memory_format=memory_format)
    dy = torch.randn(x.shape, dtype=torch.float64)
    results = []
    for dtype in (torch.float32, torch.float64):
        args = [a.to(dtype) for a in args64]
        inputs = [x.to(dtype).requires_grad_(), args[0].requires_grad_(), args[4].requires_grad_()]
        y = batch_channel_norm(inputs[0], *args, G, training=True, mode=mode, rate=0.1,
                               impl=impl if dtype == torch.float32 else 'reference')
        results.append([y, args[2], args[3], *torch.autograd.grad(y, inputs, dy.to(dtype))])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-3 * max(1, b.abs().max())


@pytest.mark.parametrize(('impl', 'dtype'), [
    (impl, dtype) for impl in IMPLEMENTATIONS for dtype in (torch.float16, torch.bfloat16)
    if impl != 'cpp' or dtype in cpp.DTYPES])
def test_half_precision_keeps_float32_statistics(impl, dtype):
    args = [a.detach() for a in arguments(torch.float32)]
    x = (torch.randn(2, C, 16, 16) * 300).to(dtype)  # squares overflow float16
    reference = [a.double() for a in args]
    y = batch_channel_norm(x, *args, G, training=True, rate=0.1, impl=impl)
    expected = batch_channel_norm(x.double(), *reference, G, training=True, rate=0.1, impl='reference')
    assert y.dtype == dtype
    assert args[2].dtype == torch.float32
    torch.testing.assert_close(args[3].double(), reference[3], rtol=1e-5, atol=0)
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_parameters_and_estimates_in_another_dtype_than_the_input(dtype):
    """The arithmetic is the input's, in float32 at least, whatever the parameters are kept in."""
    values, results = [a.detach() for a in arguments(dtype)], []
    x, dy = torch.randn(2, C, 5, 7).requires_grad_(), torch.randn(2, C, 5, 7)
    for impl in ('reference', 'fused', 'auto'):
        args = [a.clone() for a in values]
        parameters = [args[i].requires_grad_() for i in (0, 1, 4, 5)]
        y = batch_channel_norm(x, *args, G, training=True, rate=0.1, impl=impl)
        assert y.dtype == torch.float32
        assert args[2].dtype == dtype
        results.append([y, args[2], args[3], *torch.autograd.grad(y, [x, *parameters], dy)])
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=2 * torch.finfo(a.dtype).eps if a.dtype == torch.float16 else 1e-5,
                                       atol=2e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('mode', ['micro_batch', 'large_batch'])
@pytest.mark.parametrize('pixels', [(1, 1), (5, 7), (65, 65)])
def test_fused_form_on_cuda(mode, memory_format, pixels):
    values, results = [a.detach().cuda() for a in arguments()], []
    x = torch.randn(2, C, *pixels, dtype=torch.float64, device='cuda').contiguous(memory_format=memory_format)
    dy = torch.randn_like(x)
    x.requires_grad_()
    for impl in ('reference', 'fused'):
        args = [a.clone() for a in values]
        parameters = [args[i].requires_grad_() for i in (0, 1, 4, 5)]
        y = batch_channel_norm(x, *args, G, training=True, mode=mode, rate=0.1, impl=impl)
        results.append([y, args[2], args[3], *torch.autograd.grad(y, [x, *parameters], dy)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_degenerate_inputs(impl, memory_format):
    """Constant channels, zero variance, one pixel, one channel per group: finite, and gradients too."""
    for shape, groups in [((2, C, 4, 4), G), ((1, C, 1, 1), G), ((2, C, 3, 3), C), ((1, C, 1, 1), C)]:
        x = torch.randn(shape)
        x[:, ::2] = 3.0
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        for mode in ('micro_batch', 'large_batch'):
            if mode == 'large_batch' and x.numel() == C:
                continue
            args = arguments(torch.float32, groups=groups)
            y = batch_channel_norm(x, *args, groups, training=True, mode=mode, rate=0.1, impl=impl)
            assert y.isfinite().all()
            for gradient in torch.autograd.grad(y.square().sum(), [x, args[0], args[1], args[4], args[5]]):
                assert gradient.isfinite().all()


@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('mode', ['micro_batch', 'large_batch'])
def test_non_finite_inputs_never_enter_the_estimates(impl, value, mode):
    args = [a.detach() for a in arguments()]
    mean, var = args[2].clone(), args[3].clone()
    skipped = torch.zeros(C, dtype=torch.int64)
    x = torch.randn(2, C, 4, 4, dtype=torch.float64)
    x[1, 0, 2, 2] = value
    y = batch_channel_norm(x, *args, G, training=True, mode=mode, rate=0.1, impl=impl, skipped_updates=skipped)
    assert y[1, :C // G].isnan().all(), 'the group it is in'
    if mode == 'micro_batch':
        assert y[0].isfinite().all()
        assert y[1, C // G:].isfinite().all()
    assert args[2][0] == mean[0]
    assert args[3][0] == var[0]
    assert args[2].isfinite().all()
    assert (args[2][1:] != mean[1:]).all()
    assert skipped.tolist() == [1] + [0] * (C - 1)


@pytest.mark.parametrize('change, message', [
    (dict(x=torch.randn(2, 5, 3, 3)), r'expected input of shape \(N, 12, \*\), got \(2, 5, 3, 3\)'),
    (dict(x=torch.randn(12)), r'expected input of shape \(N, 12, \*\)'),
    (dict(x=torch.ones(2, 12, 3, dtype=torch.int64)), 'floating-point input, got torch.int64'),
    (dict(x=torch.randn(2, 12, 0, 3)), r'at least one pixel, got .*\(2, 12, 0, 3\)'),
    (dict(eps=-10.0), r'eps must be a finite number above 0, got -10.0'),
    (dict(rate=2), r'rate must lie in \[0, 1\], got 2'),
    (dict(num_groups=5), 'divides 12 channels'),
    (dict(mode='mini_batch'), "got 'mini_batch'"),
    (dict(impl='cuda'), "got 'cuda'"),
    (dict(x=torch.randn(1, 12, 1, 1), mode='large_batch'), 'more than one value per channel'),
    (dict(skipped_updates=torch.zeros((), dtype=torch.int64)), r'skipped_updates of shape \(12,\), got \(\)'),
])
def test_wrong_arguments_are_named(change, message):
    request = dict(x=torch.randn(2, C, 3, 3), num_groups=G, training=True, **{}) | change
    with pytest.raises(ValueError, match=message):
        batch_channel_norm(request.pop('x'), *arguments(torch.float32), request.pop('num_groups'), **request)


def test_the_environment_chooses_the_implementation(monkeypatch):
    x = torch.randn(2, C, 3, 3, requires_grad=True)
    monkeypatch.setenv('WSBCN_IMPL', 'reference')
    y = batch_channel_norm(x, *arguments(torch.float32), G, training=True)
    assert 'BatchChannelNorm' not in type(y.grad_fn).__name__
    monkeypatch.setenv('WSBCN_IMPL', 'fused')
    y = batch_channel_norm(x, *arguments(torch.float32), G, training=True)
    assert 'BatchChannelNorm' in type(y.grad_fn).__name__
    monkeypatch.setenv('WSBCN_IMPL', 'auto')
    y = batch_channel_norm(x, *arguments(torch.float32), G, training=True)
    assert ('CppFunction' if cpp.WHY_NOT is None else 'BatchChannelNorm') in type(y.grad_fn).__name__
    monkeypatch.setenv('WSBCN_IMPL', 'nonsense')
    with pytest.raises(ValueError, match="got 'nonsense'"):
        batch_channel_norm(x, *arguments(torch.float32), G, training=True)
    y = batch_channel_norm(x, *arguments(torch.float32), G, training=True, impl='fused')
    assert 'BatchChannelNorm' in type(y.grad_fn).__name__


@pytest.mark.parametrize('relu', [False, True])
def test_another_implementation_needs_the_arguments_of_the_reference_only(relu, monkeypatch):
    """docs/add_a_kernel.md says so."""
    module = sys.modules['wsbcn_mmseg.ops.batch_channel_norm']
    monkeypatch.setattr(module, '_implementation', {'mine': lambda *given: batch_channel_norm_reference(*given)}.get)
    x, given = torch.randn(2, C, 3, 3), arguments(torch.float32)
    y = batch_channel_norm(x, *given, G, training=False, impl='mine', relu=relu)
    expected = batch_channel_norm_reference(x, *given, G, False, False, 0.01, 1e-5, False, None)
    assert torch.equal(y, expected.relu() if relu else expected)


class Net(nn.Module):
    """A convolution, BCN and an in-place ReLU, as a residual block has them."""

    def __init__(self, mode):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bcn = BCN(8, mode=mode, update_rate=0.1)

    def forward(self, x):
        return F.relu(self.bcn(self.conv(x)), inplace=True)


@pytest.mark.parametrize('mode', ['micro_batch', 'large_batch'])
@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing_moves_the_estimates_once(mode, impl, reentrant, monkeypatch):
    monkeypatch.setenv('WSBCN_IMPL', impl)
    plain = Net(mode)
    checkpointed = copy.deepcopy(plain)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    for _ in range(3):
        for net, run in ((plain, lambda x: plain(x)),
                         (checkpointed, lambda x: checkpoint(checkpointed, x, use_reentrant=reentrant))):
            net.zero_grad()
            run(x).square().sum().backward()
    for (name, a), b in zip(plain.state_dict().items(), checkpointed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize('impl', IMPLEMENTATIONS[1:])
@pytest.mark.parametrize('mode', ['micro_batch', 'large_batch'])
@pytest.mark.parametrize('training', [True, False])
def test_compiles_into_one_graph(mode, training, impl, monkeypatch):
    monkeypatch.setenv('WSBCN_IMPL', impl)
    eager = Net(mode).train(training)
    compiled = copy.deepcopy(eager)
    graph = torch.compile(compiled, fullgraph=True, backend='aot_eager')
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rate in (0.1, 0.05, 0.01):
            outputs = []
            for net, run in ((eager, eager), (compiled, graph)):
                net.bcn.update_rate = rate
                net.zero_grad()
                y = run(x)
                y.square().sum().backward()
                outputs.append([y, net.conv.weight.grad, net.bcn.weight.grad, net.bcn.bn.weight.grad,
                                net.bcn.bn.running_mean, net.bcn.bn.running_var])
            for a, b in zip(*outputs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_vmap_refuses_clearly():
    layer = BCN(8, update_rate=0.1)
    with pytest.raises(RuntimeError):
        torch.vmap(lambda x: layer(x[None]))(torch.randn(3, 8, 4, 4))


def _synchronised(rank: int, path: str):
    """In each rank: its image, and what one process with both images got."""
    case = torch.load(path, weights_only=True)
    for impl in ('reference', 'fused', 'auto'):
        os.environ['WSBCN_IMPL'] = impl
        layer = BCN(C, G, mode='large_batch', sync=True).double()
        layer.load_state_dict(case['state'])
        x = case['x'][rank:rank + 1].clone().requires_grad_()
        with (mock.patch('torch.distributed.all_gather', wraps=torch.distributed.all_gather) as gather,
              mock.patch('torch.distributed.all_reduce', wraps=torch.distributed.all_reduce) as reduce):
            y = layer(x)
            (y.tanh() * case['weight'][rank:rank + 1]).sum().backward()
        assert gather.call_count == reduce.call_count == 1, 'one collective each way'
        torch.testing.assert_close(y, case['y'][rank:rank + 1], rtol=0, atol=1e-12)
        torch.testing.assert_close(x.grad, case['dx'][rank:rank + 1], rtol=0, atol=1e-12)
        for name, parameter in layer.named_parameters():
            torch.distributed.all_reduce(parameter.grad)
            torch.testing.assert_close(parameter.grad, case['grads'][name], rtol=0, atol=1e-11)
        for name, buffer in layer.state_dict().items():
            torch.testing.assert_close(buffer, case['after'][name], rtol=0, atol=1e-12)
        mean = layer.bn.running_mean.clone()
        layer(torch.full_like(x, float('nan')) if rank else x)
        assert torch.equal(layer.bn.running_mean, mean), 'any rank can spoil it'
        assert (layer.skipped_updates == 1).all()
        assert not layer.bn.running_var.requires_grad, 'the estimates are in no graph'


@pytest.mark.parametrize('shape', [(2, C, 5, 6), (2, C, 1, 1)])
def test_sync_over_two_ranks_is_one_process_with_both_images(tmp_path, shape):
    layer = BCN(C, G, mode='large_batch').double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    case = dict(state=copy.deepcopy(layer.state_dict()), x=torch.randn(shape, dtype=torch.float64) * 3 + 1)
    case['weight'] = torch.randn_like(case['x'])
    x = case['x'].clone().requires_grad_()
    y = layer(x)
    (y.tanh() * case['weight']).sum().backward()
    case |= dict(y=y.detach(), dx=x.grad, grads={n: p.grad for n, p in layer.named_parameters()},
                 after=dict(layer.state_dict()))
    torch.save(case, tmp_path / 'case.pth')
    run_ranks(_synchronised, str(tmp_path / 'case.pth'))
