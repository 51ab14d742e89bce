"""The C++ kernels for the CPU, where tests/test_batch_channel_norm.py does not cover them with the other forms."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.ops import batch_channel_norm, cpp

pytestmark = pytest.mark.skipif(cpp.WHY_NOT is not None, reason=str(cpp.WHY_NOT))
C, G = 24, 6
SHAPES = [(2, C, 9, 11), (4, C, 1, 1), (3, C, 40, 40), (1, C, 70, 65), (4, C), (2, C, 1100), (2, C, 3, 4, 5)]


def arguments(dtype=torch.float64):
    batch, channel = torch.rand(4, C, dtype=dtype) + .5, torch.rand(2, G, dtype=dtype) + .5
    return [batch[0].requires_grad_(), batch[1].requires_grad_(), batch[2], batch[3],
            channel[0].requires_grad_(), channel[1].requires_grad_()]


def results(x, dy, args, impl, **options):
    """Output, estimates and gradients."""
    args = [arg.detach().clone().requires_grad_(arg.requires_grad) for arg in args]
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = batch_channel_norm(x, *args, G, **dict(training=True, rate=.1) | options, impl=impl)
    inputs = [x, *(arg for arg in args if arg.requires_grad)]
    return [y.detach(), args[2], args[3], *torch.autograd.grad(y, inputs, dy)]


def formats(shape):
    return [torch.contiguous_format, *{4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(len(shape), [])]


@pytest.mark.parametrize('options', [
    dict(), dict(mode='large_batch'), dict(training=False), dict(training=False, mode='large_batch')],
    ids=lambda options: '_'.join(map(str, options.values())) or 'micro_batch')
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize(('shape', 'memory_format'), [(shape, f) for shape in SHAPES for f in formats(shape)])
def test_equals_the_reference_in_float64(shape, memory_format, relu, options):
    x, dy = ((torch.randn(shape, dtype=torch.float64) * 2 + 1).contiguous(memory_format=memory_format)
             for _ in range(2))
    args = arguments()
    for got, expected in zip(results(x, dy, args, 'cpp', relu=relu, **options),
                             results(x, dy, args, 'reference', relu=relu, **options), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_the_dtype(dtype, memory_format):
    x, dy = ((torch.randn(2, C, 65, 65) * 3 + center).to(dtype).contiguous(memory_format=memory_format)
             for center in (10, 0))
    args = arguments(torch.float32)
    exact = results(x.double(), dy.double(), [arg.detach().double().requires_grad_(arg.requires_grad) for arg in args],
                    'reference')
    got = results(x, dy, args, 'cpp')
    assert got[0].dtype == got[3].dtype == dtype
    assert got[0].stride() == x.stride()
    for value, expected, stored in zip(got, exact, ['map', *['sum'] * 2, 'map', *['sum'] * 4], strict=True):
        eps = torch.finfo(dtype if stored == 'map' else torch.float32).eps
        assert (value.double() - expected).abs().max() <= 8 * eps * expected.abs().max()


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_relu_in_the_same_pass_gives_the_bits_of_relu_after_it(dtype, memory_format):
    """Backward finds what ReLU cut from the input, so it must come to the same values again."""
    x, dy = (torch.randn(2, C, 33, 35).to(dtype).contiguous(memory_format=memory_format) for _ in range(2))
    args = arguments(torch.float64 if dtype == torch.float64 else torch.float32)
    one = results(x, dy, args, 'cpp', relu=True)
    apart = [arg.detach().clone().requires_grad_(arg.requires_grad) for arg in args]
    x = x.requires_grad_()
    y = F.relu(batch_channel_norm(x, *apart, G, training=True, rate=.1, impl='cpp'))
    two = [y.detach(), apart[2], apart[3],
           *torch.autograd.grad(y, [x, *(arg for arg in apart if arg.requires_grad)], dy)]
    assert (y == 0).float().mean() > .1
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


def test_relu_hands_nan_on():
    x = torch.randn(2, C, 5, 5)
    x[0, 0, 0, 0] = torch.nan
    args = [arg.detach() for arg in arguments(torch.float32)]
    y = batch_channel_norm(x, *args, G, training=False, impl='cpp', relu=True)
    assert y[0, :C // G].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_the_number_of_threads_does_not_change_a_bit(memory_format):
    x, dy = (torch.randn(3, C, 60, 61).contiguous(memory_format=memory_format) for _ in range(2))
    args, threads, found = arguments(torch.float32), torch.get_num_threads(), []
    try:
        for number in (1, 2, 5, 8):  # 8 is more than there are groups
            torch.set_num_threads(number)
            found.append(results(x, dy, args, 'cpp'))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def test_parameters_and_estimates_that_are_not_contiguous():
    x, dy, args = torch.randn(2, C, 5, 5), torch.randn(2, C, 5, 5), arguments(torch.float32)
    apart = [torch.stack([arg.detach(), arg.detach()], 1)[:, 0] for arg in args]
    assert not apart[2].is_contiguous()
    y = batch_channel_norm(x, *apart, G, training=True, rate=.1, impl='cpp')
    expected = results(x, dy, args, 'cpp')
    for got, wanted in zip((y, apart[2], apart[3]), expected, strict=False):
        assert torch.equal(got, wanted)


def test_the_operator_refuses_to_leave_its_tensors():
    x, run = torch.randn(2, C, 5, 5), torch.ops.wsbcn.batch_channel_norm
    args, rate = [arg.detach() for arg in arguments(torch.float32)], torch.tensor(.1)
    for wrong in (0, 1, 2, 3, 4, 5):
        few = [arg[:-1] if index == wrong else arg for index, arg in enumerate(args)]
        with pytest.raises(ValueError, match='expected'):
            run(x, *few, True, False, rate, 1e-5, False, None)
    with pytest.raises(ValueError, match='contiguous or channels-last'):
        torch.ops.wsbcn.batch_channel_norm_forward(x.transpose(2, 3)[:, :, :4], *args, True, False, rate, 1e-5, False,
                                                   None)
    with pytest.raises(ValueError, match='a counter for every channel'):
        run(x, *args, True, False, rate, 1e-5, False, torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize('large_batch', [False, True])
def test_is_an_operator_that_torch_knows(large_batch):
    x, args = torch.randn(2, C, 5, 5, requires_grad=True), arguments(torch.float32)
    skipped = torch.zeros(C, dtype=torch.int64)
    torch.library.opcheck(torch.ops.wsbcn.batch_channel_norm_forward.default,
                          (*(arg.detach() for arg in (x, *args)), True, large_batch, torch.tensor(.1), 1e-5, True,
                           skipped),
                          test_utils=('test_schema', 'test_faketensor'))
    y, kept = torch.ops.wsbcn.batch_channel_norm_forward(
        *(arg.detach() for arg in (x, *args)), True, large_batch, torch.tensor(.1), 1e-5, True, skipped)
    torch.library.opcheck(torch.ops.wsbcn.batch_channel_norm_backward.default,
                          (torch.ones_like(y), x.detach(), kept, args[0].detach(), args[4].detach(), large_batch, True),
                          test_utils=('test_schema', 'test_faketensor'))


def test_a_compiled_training_step_with_changing_sizes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bcn = nn.Conv2d(3, C, 3), BCN(C, update_rate=.1)

        def forward(self, x):
            return F.relu(self.bcn(self.conv(x)))

    torch._dynamo.reset()
    eager, compiled = Net(), Net()
    compiled.load_state_dict(eager.state_dict())
    graph = torch.compile(compiled, fullgraph=True, backend='aot_eager', dynamic=True)
    for side in (8, 11, 14):
        x = torch.randn(2, 3, side, side)
        for run in (eager, graph):
            run(x).square().sum().backward()
    for (name, a), b in zip(eager.state_dict().items(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_no_second_derivative():
    x = torch.randn(2, C, 4, 4, dtype=torch.float64, requires_grad=True)
    y = batch_channel_norm(x, *arguments(), G, training=False, impl='cpp')
    with pytest.raises(RuntimeError, match="no second derivative; choose the one that has by impl='reference'"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


@pytest.mark.parametrize('x', [torch.randn(2, C, 4, 4).half(), torch.empty(2, C, 4, 4, device='meta')])
def test_what_it_cannot_take_is_left_to_stock_operators(x):
    args = [arg.detach().to(x.device) for arg in arguments(torch.float32)]
    with pytest.raises(RuntimeError, match=f'got {x.dtype} on {x.device}, torch.float32 and sync=False'):
        batch_channel_norm(x, *args, G, training=False, impl='cpp')
    assert batch_channel_norm(x, *args, G, training=False).dtype == x.dtype
