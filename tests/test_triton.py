"""The Triton kernels against the reference in float64: on the GPU where there is one, else in Triton's interpreter.

The interpreter must be asked for before Triton is imported, so ``test_in_the_interpreter`` runs this file once more, in
a process of its own.
"""
import functools
import os
import random
import re
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip('triton', reason='needs Triton')
import triton.language as tl  # noqa: E402

from wsbcn_mmseg.ops import batch_channel_norm, triton_kernels  # noqa: E402
from wsbcn_mmseg.ops.reference import batch_channel_norm_reference  # noqa: E402
from wsbcn_mmseg.ops.triton_kernels import INTERPRETED, batch_channel_norm_triton  # noqa: E402

NO_TESTS = 5  # pytest's exit status
DEVICE = 'cpu' if INTERPRETED else 'cuda'
needs_gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason='needs a CUDA GPU')
needs_kernels = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(),
                                   reason='needs a CUDA GPU; test_in_the_interpreter runs it without')


@triton.jit
def _count(out, n):
    total = 0
    for i in range(0, n):
        total += i
    tl.store(out, total)


def interpreter_works() -> bool:
    """Triton's interpreters before 3.7 fail with NumPy 2.4, and before 3.1 with NumPy 2."""
    out = torch.zeros(1, dtype=torch.int32)
    try:
        _count[(1, )](out, 4)
    except Exception:
        return False
    return out.item() == 6


if INTERPRETED and not interpreter_works():
    pytest.skip("Triton's interpreter does not work with this NumPy", allow_module_level=True)


@pytest.mark.skipif(INTERPRETED, reason='is in the interpreter')
def test_in_the_interpreter():
    result = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-rs', '-p', 'no:cacheprovider', __file__],
                            capture_output=True, text=True, env={**os.environ, 'TRITON_INTERPRET': '1'})
    if result.returncode == NO_TESTS:
        pytest.skip(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


class Mode(NamedTuple):
    mode: str
    update: bool
    batch_statistics: bool


MODES = {
    'micro_batch': Mode('micro_batch', True, False),
    'large_batch': Mode('large_batch', True, True),
    'large_batch_recomputed': Mode('large_batch', False, True),
    'evaluation': Mode('micro_batch', False, False),
}
by_mode = pytest.mark.parametrize('mode', MODES.values(), ids=MODES)
by_training_mode = pytest.mark.parametrize('mode', list(MODES.values())[:2], ids=list(MODES)[:2])
MEMORY_FORMATS = [torch.contiguous_format, torch.channels_last]
by_memory_format = pytest.mark.parametrize('memory_format', MEMORY_FORMATS, ids=['contiguous', 'channels_last'])
DENSE_FORMATS = {4: MEMORY_FORMATS, 5: [torch.contiguous_format, torch.channels_last_3d]}


class Result(NamedTuple):
    y: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor
    skipped: torch.Tensor
    gradients: tuple[torch.Tensor, ...]  # of x, gamma^b, beta^b, gamma^c, beta^c


def arguments(channels: int, num_groups: int):
    """gamma^b, beta^b, estimates, gamma^c, beta^c with nothing at its default."""
    values = [torch.randn(n, device=DEVICE) for n in (channels, channels, channels, channels, num_groups, num_groups)]
    values[3] = values[3].abs() + 0.5
    return values


def run(function, x, tensors, mode: Mode, dy, rate=0.1, dtype=torch.float32, sync=False, **options) -> Result:
    """Forward and backward; x and dy in their own dtype, or in float64 if ``dtype`` is."""
    if dtype == torch.float64:
        x, dy = x.double(), dy.double()
    x = x.detach().requires_grad_()
    gamma_b, beta_b, mean, var, gamma_c, beta_c = (t.detach().to(dtype) for t in tensors)
    parameters = [p.requires_grad_() for p in (gamma_b, beta_b, gamma_c, beta_c)]
    mean, var, skipped = (torch.empty_strided(mean.shape, mean.stride(), dtype=t.dtype, device=t.device).copy_(t)
                          for t in (mean, var, torch.zeros_like(mean, dtype=torch.int64)))
    y = function(x, gamma_b, beta_b, mean, var, gamma_c, beta_c, len(gamma_c), *mode[1:], rate, 1e-5, sync, skipped,
                 **options)
    return Result(y.detach(), mean, var, skipped, torch.autograd.grad(y, [x, *parameters], dy))


def assert_near(got, expected, tolerance: float) -> None:
    """Within ``tolerance`` of the largest expected magnitude, or of 1; NaN where NaN is expected."""
    scale = max(expected.nan_to_num(0, 0, 0).abs().max().item(), 1)
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=tolerance * scale, equal_nan=True)


def check(x, tensors, mode: Mode, tolerance=2e-5, gradient_tolerance=None, dy=None, rate=0.1) -> Result:
    """Triton's result, which must be the reference's in float64."""
    dy = torch.randn_like(x) if dy is None else dy
    got = run(batch_channel_norm_triton, x, tensors, mode, dy, rate)
    expected = run(batch_channel_norm_reference, x, tensors, mode, dy, rate, torch.float64)
    assert got.y.dtype == got.gradients[0].dtype == x.dtype
    assert_near(got.y, expected.y, tolerance)
    for estimate, wanted in ((got.mean, expected.mean), (got.var, expected.var)):
        assert_near(estimate, wanted, 5e-6)
    assert torch.equal(got.skipped, expected.skipped)
    for gradient, wanted in zip(got.gradients, expected.gradients, strict=True):
        assert_near(gradient, wanted, gradient_tolerance or tolerance)
    return got


@needs_kernels
@by_training_mode
@by_memory_format
@pytest.mark.parametrize('shape', [(2, 6, 5, 7), (1, 6, 17, 17), (3, 6)])
def test_relu_in_the_same_pass(shape, memory_format, mode):
    x = torch.randn(shape, device=DEVICE)
    x = x.contiguous(memory_format=memory_format) if x.dim() == 4 else x
    x[0, 1] = torch.nan
    dy, tensors = torch.randn_like(x), arguments(6, 3)
    tensors[5].zero_()  # so that there are values on both sides of 0

    def relu_after(*arguments):
        return batch_channel_norm_triton(*arguments).relu()

    one = run(batch_channel_norm_triton, x, tensors, mode, dy, relu=True)
    apart = run(relu_after, x, tensors, mode, dy)
    assert (one.y == 0).any()
    for got, wanted in zip((*one[:4], *one.gradients), (*apart[:4], *apart.gradients), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@needs_kernels
@by_mode
@by_memory_format
def test_the_output_again_from_what_was_saved(memory_format, mode):
    x = torch.randn(2, 6, 5, 7, device=DEVICE).contiguous(memory_format=memory_format).requires_grad_()
    gamma_b, beta_b, mean, var, gamma_c, beta_c = arguments(6, 3)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        y = batch_channel_norm_triton(x, gamma_b, beta_b, mean, var, gamma_c, beta_c, 3, *mode[1:], 0.1, 1e-5, False,
                                      None)
    again = triton_kernels.repeated_triton(False, 3, True, saved)
    assert torch.equal(again, y)
    assert again.stride() == y.stride()


@needs_kernels
@by_mode
@pytest.mark.parametrize('shape, num_groups', [((2, 6, 5, 7), 3), ((2, 4, 3, 5), 4), ((3, 8, 1, 1), 2), ((2, 32, 9), 4),
                                               ((2, 8, 3, 2, 5), 2), ((5, 12), 3), ((2, 6, 17, 17), 1)])
def test_every_gradient(shape, num_groups, mode):
    tensors = arguments(shape[1], num_groups)
    for memory_format in DENSE_FORMATS.get(len(shape), [torch.contiguous_format]):
        x = (torch.randn(shape, device=DEVICE) * 2 + 1).contiguous(memory_format=memory_format)
        y = check(x, tensors, mode).y
        assert y.is_contiguous(memory_format=memory_format)


@needs_kernels
@by_memory_format
def test_odd_planes(memory_format):
    x = torch.randn(1, 64, 33, 33, device=DEVICE).contiguous(memory_format=memory_format)
    check(x, arguments(64, 8), MODES['micro_batch'])


@needs_kernels
@by_training_mode
@by_memory_format
@pytest.mark.parametrize('programs', [1, 1000])
def test_any_cut_gives_one_result(memory_format, mode, programs, monkeypatch):
    """Tiles so small that every loop turns: over tiles, splits and images."""
    x = torch.randn(3, 5, 5, 5, device=DEVICE).contiguous(memory_format=memory_format)
    for constant, value in (('TILE', 16), ('LINE', 16), ('MIN_FLAT', 16), ('PROGRAMS', programs)):
        monkeypatch.setattr(triton_kernels, constant, value)
    triton_kernels.plan_of.cache_clear()
    try:
        check(x, arguments(5, 1), mode)
    finally:
        triton_kernels.plan_of.cache_clear()


@needs_kernels
def test_estimates_over_several_steps():
    got = arguments(6, 3)
    expected = [t.clone() for t in got]
    for step in range(3):
        x = torch.randn(2, 6, 5, 7, device=DEVICE) * (step + 1) + step
        rate = torch.tensor(0.3 / (step + 1), dtype=torch.float64, device=DEVICE if step else 'cpu')
        for function, tensors in ((batch_channel_norm_triton, got), (batch_channel_norm_reference, expected)):
            function(x, *tensors, 3, *MODES['micro_batch'][1:], rate, 1e-5, False, None)
        for estimate, wanted in zip(got[2:4], expected[2:4], strict=True):
            assert_near(estimate, wanted, 1e-6)


@needs_kernels
@by_memory_format
def test_one_constant_channel_per_group(memory_format):
    """The group's deviation is sqrt(eps): y is beta^c, and gradients of x that nearly cancel are amplified by 300."""
    x = torch.randn(3, 8, 1, 1, device=DEVICE).contiguous(memory_format=memory_format)
    check(x, arguments(8, 8), MODES['micro_batch'], gradient_tolerance=2e-4)


@needs_kernels
@by_mode
def test_constant_channel_and_large_mean(mode):
    x = torch.randn(2, 6, 9, 5, device=DEVICE)
    x[:, 0] = 3
    x[:, 3] += 1000
    tensors = arguments(6, 3)
    tensors[2][3] += 1000
    check(x, tensors, mode, tolerance=1e-4)


@needs_kernels
@by_training_mode
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_non_finite_channel_keeps_its_estimates(mode, value):
    x = torch.randn(2, 6, 5, 7, device=DEVICE)
    x[1, 2, 3, 3] = value
    tensors = arguments(6, 3)
    got = run(batch_channel_norm_triton, x, tensors, mode, torch.randn_like(x))
    expected = run(batch_channel_norm_reference, x, tensors, mode, torch.randn_like(x), dtype=torch.float64)
    assert torch.equal(got.y.isnan(), expected.y.isnan())
    assert got.skipped.tolist() == expected.skipped.tolist() == [0, 0, 1, 0, 0, 0]
    assert got.mean[2] == tensors[2][2]
    assert got.var[2] == tensors[3][2]
    assert_near(got.mean, expected.mean, 1e-6)
    assert_near(got.var, expected.var, 1e-6)


@needs_kernels
@by_training_mode
@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_half_precision(mode, dtype, tolerance):
    """Squares of these values overflow float16."""
    x = (torch.randn(2, 6, 5, 7, device=DEVICE) * 500).to(dtype)
    got = check(x, arguments(6, 3), mode, tolerance)
    assert all(gradient.dtype == torch.float32 for gradient in got.gradients[1:])


@needs_kernels
def test_half_precision_module():
    """Estimates and parameters in float16, as model.half() leaves them."""
    x = torch.randn(2, 6, 5, 7, device=DEVICE, dtype=torch.float16)
    tensors, dy = arguments(6, 3), torch.randn_like(x)
    tensors = [t.half() for t in tensors]
    got = run(batch_channel_norm_triton, x, tensors, MODES['micro_batch'], dy, dtype=torch.float16)
    expected = run(batch_channel_norm_reference, x, tensors, MODES['micro_batch'], dy, dtype=torch.float64)
    for a, b in zip((*got[:3], *got.gradients), (*expected[:3], *expected.gradients), strict=True):
        assert a.dtype == torch.float16
        assert_near(a, b, 2e-3)


@needs_kernels
def test_any_strides():
    x = torch.randn(2, 7, 6, 5, device=DEVICE).transpose(1, 2)
    check(x, arguments(6, 3), MODES['micro_batch'], dy=torch.randn(2, 6, 1, 1, device=DEVICE).expand(2, 6, 7, 5))
    x = torch.randn(2, 6, 7, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    tensors = [torch.stack([t, t], 1)[:, 0] for t in arguments(6, 3)]
    for mode in (MODES['large_batch'], MODES['evaluation']):
        assert check(x, tensors, mode, dy=torch.randn(2, 6, 7, 5, device=DEVICE)).mean.stride() == (2, )
    x[0, 4, 3, 3] = float('inf')
    assert run(batch_channel_norm_triton, x, tensors, MODES['micro_batch'], torch.ones_like(x)).skipped[4] == 1


@needs_kernels
def test_zero_strides():
    x = torch.randn(2, 6, 1, 5, device=DEVICE).expand(2, 6, 7, 5)
    assert check(x, arguments(6, 3), MODES['micro_batch']).y.is_contiguous()


@needs_kernels
def test_views_marked_as_negated():
    """As ``z.conj().imag``, of which the memory has the values before the sign changes."""
    x, dy = (torch.randn(2, 6, 5, 7, device=DEVICE) for _ in range(2))
    check(torch._neg_view(x), arguments(6, 3), MODES['micro_batch'], dy=torch._neg_view(dy))


@needs_kernels
def test_statistics_over_ranks():
    """The path around the collectives; a world of one must give what no world gives."""
    torch.distributed.init_process_group('gloo' if DEVICE == 'cpu' else 'nccl', rank=0, world_size=1,
                                         store=torch.distributed.HashStore())
    try:
        x, tensors = torch.randn(2, 6, 5, 7, device=DEVICE), arguments(6, 3)
        dy = torch.randn_like(x)
        local, synchronized = (run(batch_channel_norm_triton, x, tensors, MODES['large_batch'], dy, sync=sync)
                               for sync in (False, True))
    finally:
        torch.distributed.destroy_process_group()
    for a, b in zip((*synchronized[:3], *synchronized.gradients), (*local[:3], *local.gradients), strict=True):
        assert_near(a, b, 2e-6)


@needs_kernels
def test_through_the_public_function():
    x = torch.randn(2, 6, 5, 7, device=DEVICE, requires_grad=True)
    gamma_b, beta_b, mean, var, gamma_c, beta_c = arguments(6, 3)
    skipped, before = torch.zeros(6, dtype=torch.int64, device=DEVICE), mean.clone()
    y = batch_channel_norm(x, gamma_b, beta_b, mean, var, gamma_c, beta_c, 3, training=True, impl='triton',
                           skipped_updates=skipped)
    assert not torch.equal(mean, before)
    assert not skipped.any()
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


@needs_kernels
def test_refuses_what_it_cannot_serve():
    tensors = arguments(6, 3)
    with pytest.raises(RuntimeError, match='float64'):
        run(batch_channel_norm_triton, torch.randn(2, 6, 5, device=DEVICE), tensors, MODES['evaluation'],
            torch.randn(2, 6, 5, device=DEVICE), dtype=torch.float64)
    channels = triton_kernels.MAX_GROUP_CHANNELS * 2
    with pytest.raises(RuntimeError, match=f'{channels}'):
        check(torch.randn(1, channels, 1, device=DEVICE), arguments(channels, 1), MODES['evaluation'])


@pytest.mark.skipif(INTERPRETED, reason='is in the interpreter')
def test_refuses_the_cpu():
    x = torch.randn(2, 4, 3)
    with pytest.raises(RuntimeError, match='needs a CUDA tensor'):
        batch_channel_norm(x, *torch.ones(4, 4).unbind(), *torch.ones(2, 2).unbind(), 2, training=False, impl='triton')


KERNELS = {name: getattr(triton_kernels, name) for name in (
    'moments_kernel', 'statistics_kernel', 'affine_kernel', 'dots_kernel', 'gradients_kernel', 'affine2_kernel')}
TYPES = {torch.float32: '*fp32', torch.bfloat16: '*bf16', torch.int64: '*i64'}
compiles = pytest.mark.skipif(INTERPRETED, reason='needs the compiler')


class Recorded:
    """Stands for a kernel, and records the kinds of launches, of which each is compiled."""

    def __init__(self, name: str, launches: dict):
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        return functools.partial(self.launch, grid)

    def launch(self, grid, *args, **options) -> None:
        assert max(grid) < 2**31
        kernel = KERNELS[self.name]
        given = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
        signature, constants, hints = {}, {}, {}
        for index, parameter in enumerate(kernel.params):
            value = given[parameter.name]
            specialized = isinstance(value, int) and not (parameter.is_constexpr or parameter.do_not_specialize)
            if parameter.is_constexpr or value is None or specialized and value == 1:
                signature[parameter.name], constants[index, ] = 'constexpr', value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name], hints[index, ] = TYPES[value.dtype], [['tt.divisibility', 16]]
            else:
                signature[parameter.name] = 'fp32' if isinstance(value, float) else 'i32'
                if specialized and value % 16 == 0:
                    hints[index, ] = [['tt.divisibility', 16]]
        key = self.name, str(signature), str(constants), str(hints), options.get('num_warps')
        self.launches[key] = kernel, signature, constants, hints, options.get('num_warps', 4)


@pytest.fixture
def launches(monkeypatch) -> dict:
    """What would be launched, for tensors without values."""
    launches = {}
    for name in KERNELS:
        monkeypatch.setattr(triton_kernels, name, Recorded(name, launches))
    monkeypatch.setattr(triton_kernels, 'INTERPRETED', True)
    return launches


def pretend(shape, num_groups: int, mode: Mode, dtype=torch.float32, memory_format=torch.contiguous_format,
            backward=True, relu=False) -> None:
    x = torch.empty(shape, dtype=dtype, device='meta').to(memory_format=memory_format).requires_grad_(backward)
    channel, group = torch.empty(shape[1], device='meta'), torch.empty(num_groups, device='meta')
    skipped = torch.empty(shape[1], dtype=torch.int64, device='meta')
    y = batch_channel_norm_triton(x, channel, channel, channel, channel, group, group, num_groups, *mode[1:], 0.1, 1e-5,
                                  False, skipped, relu)
    if backward:
        y.backward(torch.empty_like(y))


def shapes_of_r101(batch: int, height: int, width: int) -> list[tuple[int, ...]]:
    """Of the activations that DeepLabV3-R101 normalizes."""
    sides = [(height, width)]
    for _ in range(4):
        sides.append(tuple((side + 1) // 2 for side in sides[-1]))
    channels = [(64, 1), (64, 2), (256, 2), (128, 2), (128, 3), (512, 3), (256, 3), (256, 4), (1024, 4), (512, 4),
                (2048, 4)]
    return [*((batch, c, *sides[level]) for c, level in channels), (batch, 256, 1, 1)]


@compiles
@by_memory_format
@pytest.mark.parametrize('batch, mode', [(4, 'large_batch'), (1, 'micro_batch')])
def test_few_kernels_are_compiled(batch, mode, memory_format, launches):
    for shape in shapes_of_r101(batch, 513, 513):
        pretend(shape, 32, MODES[mode], memory_format=memory_format)
    assert len(launches) <= 16  # of 12 kinds of activations, in six kernels
    generator = random.Random(0)
    for _ in range(100):  # images of their own sizes
        for shape in shapes_of_r101(1, generator.randint(200, 700), generator.randint(200, 700)):
            pretend(shape, 32, MODES['evaluation'], memory_format=memory_format, backward=False)
    assert len(launches) <= 28


@compiles
@by_memory_format
@pytest.mark.parametrize('shape', [(2, 64, 33, 33), (2, 64, 4, 4)], ids=str)
def test_offsets_have_64_bits_and_every_target_compiles(shape, memory_format, launches):
    """bfloat16 on Turing, which has no such arithmetic, and wavefronts of 64 threads on ROCm, included."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    pretend(shape, 16, MODES['large_batch'], torch.bfloat16, memory_format, relu=True)
    assert len(launches) == len(KERNELS)
    for kernel, signature, constants, hints, num_warps in launches.values():
        for target in (GPUTarget('cuda', 75, 32), GPUTarget('hip', 'gfx90a', 64)):
            compiled = triton.compile(ASTSource(kernel, signature, constants, hints), target=target,
                                      options={'num_warps': num_warps})
        offsets = re.findall(r'tt\.addptr .* : (?:tensor<\w*x)?!tt\.ptr<bf16>>?, (?:tensor<\w*x)?(\w+)',
                             compiled.asm['ttir'])
        assert set(offsets) <= {'i64'}
        assert offsets or 'bf16' not in str(signature)


@compiles
@pytest.mark.parametrize('shape', [(2, 64, 2**15, 2**15), (2**20, 64, 5, 7), (1, 2**12, 2**10, 2**10)], ids=str)
def test_grids_of_large_activations(shape, launches):
    """The recorder checks them."""
    pretend(shape, 16, MODES['micro_batch'])
    pretend(shape, 16, MODES['micro_batch'], memory_format=torch.channels_last)


@compiles
def test_nothing_but_allocations_around_the_launches(launches):
    class Calls(TorchDispatchMode):
        names = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names += (str(func), )
            return func(*args, **(kwargs or {}))

    x = torch.empty(2, 64, 9, 9, device='meta', requires_grad=True)
    channel, group = torch.empty(64, device='meta'), torch.empty(16, device='meta')
    with Calls() as forward:
        y = batch_channel_norm_triton(x, channel, channel, channel, channel, group, group, 16, True, False,
                                      torch.tensor(0.1).double(), 1e-5, False, None)
    assert [name for name in forward.names if 'empty' in name] == 2 * ['aten.empty.memory_format'] + [
        'aten.empty_like.default']
    assert len(forward.names) <= 8
    with Calls() as backward:
        torch.autograd.grad(y, x, torch.empty_like(y))
    assert all('empty' in name or 'detach' in name for name in backward.names), backward.names
    assert len(backward.names) <= 10


@needs_kernels
def test_planes_too_large_for_32_bits():
    x = torch.empty(1, 1, 2**16, 2**15, dtype=torch.float16, device='meta')
    with pytest.raises(RuntimeError, match='pixels'):
        triton_kernels._check(x, 1)


R101_SHAPES = [(2, 64, 257, 257), (2, 256, 129, 129), (2, 128, 65, 65), (2, 512, 65, 65), (2, 2048, 65, 65),
               (1, 1024, 33, 33), (8, 256, 65, 65), (2, 256, 1, 1)]


@needs_gpu
@by_memory_format
@pytest.mark.parametrize('shape', R101_SHAPES, ids=str)
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_r101_shapes(shape, dtype, tolerance, memory_format):
    x = (torch.randn(shape, device=DEVICE) * 2 + 1).to(dtype).contiguous(memory_format=memory_format)
    tensors, dy = arguments(shape[1], 32), torch.randn_like(x)
    for mode in MODES.values():
        first = check(x, tensors, mode, tolerance, dy=dy)
        second = run(batch_channel_norm_triton, x, tensors, mode, dy)
        for a, b in zip((*first[:3], *first.gradients), (*second[:3], *second.gradients), strict=True):
            assert torch.equal(a, b)


@needs_gpu
@by_memory_format
def test_more_values_than_int32_counts(memory_format):
    free, _ = torch.cuda.mem_get_info()
    if free < 30e9:
        pytest.skip('needs 30 GB of GPU memory')
    x = torch.empty(1, 2, 33000, 33000, device=DEVICE, dtype=torch.float16, memory_format=memory_format).normal_()
    y = batch_channel_norm_triton(x, *torch.ones(4, 2, device=DEVICE).unbind(), *torch.ones(2, 1, device=DEVICE)
                                  .unbind(), 1, *MODES['evaluation'][1:], 0.1, 1e-5, False, None)
    for rows in (slice(100), slice(-100, None)):  # mean 0 and deviation 1 in, mean 1 and deviation 1 out
        torch.testing.assert_close(y[..., rows, :], x[..., rows, :] + 1, rtol=0, atol=1e-2)
