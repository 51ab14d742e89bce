"""Batch-Channel Normalization as Triton kernels: the algebra of :mod:`.fused` in terms of x - m, the deviation from the
plane's mean; three launches each way.

1. Reduce: every plane (channel of an image) is divided into splits, so that even a single image fills the device; each
   program writes the count, mean and sum of squared deviations of its split (backward: two sums).
2. Combine: one program per group merges the splits of all images and computes everything of size (B, C): batch
   statistics, estimates, group statistics (backward: parameter gradients), and the coefficients of the map.
3. Map: ``y = a (x - m) + d`` (backward: ``dx = A dy + B (x - m) + C``), in reverse order, because the values that the
   reduction has read last are still in cache.

Arithmetic is float32. Nothing is autotuned and there are no atomics: equal inputs give equal bits.
"""
import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import self_check, stock_stages
from .estimates import merge_over_ranks, update_estimates
from .planes import dense_format
from .self_check import DTYPES, MAX_GROUP_CHANNELS, MAX_PIXELS

try:
    import triton

    from .triton_groups import gradients_kernel, statistics_kernel
    from .triton_planes import ALIGN, affine2_kernel, affine_kernel, dots_kernel, moments_kernel
except ImportError as error:
    raise RuntimeError("impl='triton' needs the package triton (pip install triton); "
                       "impl='fused' works without it") from error

TILE = 2048  # values of the activation per program
PROGRAMS = 2048  # target for a reduction: enough to fill the largest device, few enough to merge quickly
MAX_SPLITS = 256
MIN_FLAT = 256  # from this number of pixels per plane on, contiguous tensors are mapped in flat blocks
LINE = 128  # bytes: rows of channels-last tiles span a cache line

INTERPRETED = not isinstance(moments_kernel, triton.JITFunction)  # TRITON_INTERPRET=1: works on any device


class Plan(NamedTuple):
    """How the kernels divide an activation of shape (B, C, *). It depends on the shape alone, so that results are equal
    on all devices.

    For each kind of kernel: its grid, and the arguments after its tensors.
    """
    images: int
    channels: int
    values: int  # per channel
    splits: int  # programs along a plane
    reduce_grid: tuple[int]
    reduce: tuple
    combine_grid: tuple[int]
    combine: tuple
    combine_options: dict
    map_grid: tuple[int]
    map: tuple


class Call(NamedTuple):
    """The settings of a call."""
    running_mean: Tensor
    running_var: Tensor
    skipped_updates: Tensor | None
    rate: float | Tensor
    num_groups: int
    update: bool
    batch_statistics: bool
    eps: float
    sync: bool
    relu: bool
    forced: bool  # whether a launch that fails raises


@functools.lru_cache(maxsize=4096)
def plan_of(shape: torch.Size, contiguous: bool, itemsize: int, num_groups: int) -> Plan:
    """The plan for a dense activation, contiguous or channels-last."""
    images, channels, pixels = shape[0], shape[1], shape[2:].numel()
    channels_last = pixels == 1 or not contiguous
    span = pixels if channels_last else pixels + ALIGN.value - 1  # an aligned block may start before the plane
    if channels_last:
        block_c = min(_power_of_2(channels), LINE // itemsize)
        block_p = min(_power_of_2(span), TILE // block_c)
    else:
        block_p = min(_power_of_2(span), TILE)
        block_c = min(_power_of_2(channels), TILE // block_p)
    all_tiles, blocks = -(-span // block_p), images * -(-channels // block_c)
    tiles = -(-all_tiles // min(all_tiles, MAX_SPLITS, max(1, PROGRAMS // blocks)))
    splits = -(-all_tiles // tiles)

    flat, map_p, programs = not channels_last and pixels >= MIN_FLAT, block_p, blocks * -(-pixels // block_p)
    if flat:
        map_p = min(TILE, 1 << pixels.bit_length() - 1)
        programs = -(-images * channels * pixels // map_p)
    aligned = not flat and not channels_last and pixels % ALIGN.value == 0
    return Plan(images, channels, images * pixels, splits, (blocks * splits, ),
                (images, channels, pixels, tiles, splits, channels_last, block_c, block_p), (num_groups, ),
                (images, channels, pixels, splits, channels // num_groups),
                _combine_options(images, channels // num_groups), (programs, ),
                (images, channels, pixels, flat, channels_last, aligned, block_c, map_p))


def _power_of_2(number: int) -> int:
    """The next power of 2; ``triton.next_power_of_2`` takes microseconds."""
    return 1 << (number - 1).bit_length()


def _combine_options(images: int, group_channels: int) -> dict:
    """Choose among few block sizes: each is a kernel to compile, which costs more than unused lanes. The number of
    warps is chosen so that registers suffice on all targets."""
    block_c = next(power for power in (8, 64, 512, MAX_GROUP_CHANNELS) if power >= group_channels)
    block_b = min(1 if images == 1 else 4, max(1, TILE // block_c))
    block_s = max(1, TILE // (block_c * block_b))
    return dict(BLOCK_B=block_b, BLOCK_S=block_s, BLOCK_C=block_c,
                num_warps=8 if images == 1 and block_c < MAX_GROUP_CHANNELS else 16)


def _plan(x: Tensor, num_groups: int) -> Plan:
    return plan_of(x.shape, x.is_contiguous(), x.element_size(), num_groups)


def _check(x: Tensor, num_groups: int) -> None:
    if not (x.is_cuda or INTERPRETED):
        raise RuntimeError(f"impl='triton' needs a CUDA tensor, got one on {x.device}; impl='fused' serves any device")
    if x.dtype not in DTYPES:
        raise RuntimeError(f"impl='triton' serves {DTYPES}, got {x.dtype}; impl='fused' serves any")
    if x.shape[1] // num_groups > MAX_GROUP_CHANNELS:
        raise RuntimeError(f"impl='triton' serves at most {MAX_GROUP_CHANNELS} channels per group, got "
                           f"{x.shape[1] // num_groups}; impl='fused' serves any")
    if x.numel() > MAX_PIXELS * x.shape[0] * x.shape[1]:
        raise RuntimeError(f"impl='triton' serves at most {MAX_PIXELS} pixels, got input of shape {tuple(x.shape)}; "
                           "impl='fused' serves any")


def on_device_of(x: Tensor):
    """Triton launches on the current device, which may differ from the tensor's."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def in_memory(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``x`` without PyTorch's negative bit (``conj().imag``), which kernels ignore."""
    return x.resolve_neg().contiguous(memory_format=memory_format)


# The stages of a call. stock_stages, which takes over if a launch fails, has functions of the same names and arguments.
# ``kept`` is planes (4, B, C) followed by statistics (2, C); ``scratch`` is coefficients (3, B, C) followed by partial
# sums. Each is one allocation, and one pointer for a kernel.


def statistics(x: Tensor, parameters: list[Tensor], call: Call) -> tuple[Tensor, Tensor]:
    """Reduce and combine; returns ``kept``, and the partial moments. Updates the estimates."""
    plan = _plan(x, call.num_groups)
    partials = torch.empty(3 * plan.images * plan.splits * plan.channels, dtype=torch.float32, device=x.device)
    kept = torch.empty((4 * plan.images + 2) * plan.channels, dtype=torch.float32, device=x.device)
    moments_kernel[plan.reduce_grid](x, partials, *plan.reduce)
    given_statistics(x, parameters, call, kept, partials)
    return kept, partials


def given_statistics(x: Tensor, parameters: list[Tensor], call: Call, kept: Tensor, partials: Tensor) -> None:
    """Combine alone, into ``kept``."""
    plan, rate = _plan(x, call.num_groups), call.rate
    if isinstance(rate, Tensor) and rate.device != x.device:
        rate = rate.item()
    statistics_kernel[plan.combine_grid](
        partials, kept, call.running_mean, call.running_var, call.skipped_updates, *parameters, rate,
        plan.values / max(plan.values - 1, 1), call.eps, *plan.combine, UPDATE=call.update,
        BATCH_STATISTICS=call.batch_statistics, RATE_ON_DEVICE=isinstance(rate, Tensor), **plan.combine_options)


def output(x: Tensor, kept: Tensor, call: Call) -> Tensor:
    """The map."""
    plan, y = _plan(x, call.num_groups), torch.empty_like(x)
    affine_kernel[plan.map_grid](x, kept, y, *plan.map, RELU=call.relu)
    return y


def gradients(dy: Tensor, x: Tensor, kept: Tensor, parameters: list[Tensor], call: Call) -> tuple[Tensor, list[Tensor]]:
    """Reduce and combine of backward; returns ``scratch``, and the gradients of the four parameters."""
    plan, (batch_weight, _, channel_weight) = _plan(x, call.num_groups), parameters
    scratch = torch.empty((3 + 2 * plan.splits) * plan.images * plan.channels, dtype=torch.float32, device=x.device)
    of_parameters = [torch.empty_like(p) for p in (batch_weight, batch_weight, channel_weight, channel_weight)]
    dots_kernel[plan.reduce_grid](dy, x, kept, scratch, *plan.reduce, RELU=call.relu)
    gradients_kernel[plan.combine_grid](scratch, kept, *of_parameters, *parameters, call.eps, *plan.combine,
                                        BATCH_STATISTICS=call.batch_statistics and not call.sync,
                                        **plan.combine_options)
    return scratch, of_parameters


def input_gradient(dy: Tensor, x: Tensor, kept: Tensor, scratch: Tensor, call: Call) -> Tensor:
    """The map of backward."""
    plan, dx = _plan(x, call.num_groups), torch.empty_like(x)
    affine2_kernel[plan.map_grid](dy, x, kept, scratch, dx, *plan.map, RELU=call.relu)
    return dx


def _stage(kernels: Callable, stock: Callable, x: Tensor, call: Call, *arguments):
    """Run a stage by kernels; if a launch fails, by stock operators, which are used for all calls from then on."""
    if not call.forced and self_check.distrusted(x):  # failed earlier: do not compile again
        return stock(*arguments)
    try:
        return kernels(*arguments)
    except Exception as error:  # may come from a compiler, a driver, or this package
        if call.forced or self_check.out_of_memory(error) or not self_check.device_works(x.device):
            raise
        result = stock(*arguments)
        self_check.fall_back(x.device, x.dtype, self_check.cause_of(error))
        return result


def forward(x: Tensor, parameters: list[Tensor], call: Call) -> tuple[Tensor, Tensor, float | Tensor]:
    """Output, ``kept``, and the number of values per channel; ``x`` is dense."""
    count = x.numel() // x.shape[1]
    own = call._replace(update=False) if call.sync else call
    kept, partials = _stage(statistics, stock_stages.statistics, x, call, x, parameters, own)
    if call.sync:  # the statistics of all ranks are given, as in evaluation
        mean, var, count = merge_over_ranks(*stock_stages.planes_of(kept, x)[1], count)
        given = own._replace(running_mean=mean, running_var=var, batch_statistics=False)
        _stage(given_statistics, stock_stages.given_statistics, x, call, x, parameters, given, kept, partials)
        if call.update:
            update_estimates(call.running_mean, call.running_var, call.skipped_updates, mean,
                             var * (count / (count - 1)), call.rate)
    return _stage(output, stock_stages.output, x, call, x, kept, call), kept, count


def backward(dy: Tensor, x: Tensor, kept: Tensor, parameters: list[Tensor], call: Call,
             count: float | Tensor) -> tuple[Tensor, list[Tensor]]:
    """The gradients of ``x``, and of the four parameters; ``dy`` and ``x`` are dense in one format.

    Args:
        parameters: The parameters without beta^c, on which the gradients do not depend.
    """
    scratch, of_parameters = _stage(gradients, stock_stages.gradients, x, call, dy, x, kept, parameters, call)
    if call.sync:
        _correct_for_ranks(x, kept, scratch, count, parameters[0], of_parameters, call.eps)
    return _stage(input_gradient, stock_stages.input_gradient, x, call, dy, x, kept, scratch, call), of_parameters


def _correct_for_ranks(x, kept, scratch, count, batch_weight, of_parameters, eps: float) -> None:
    """The part of dx from Eq. 43 when the statistics are those of all ranks; like the end of the gradients kernel."""
    d_batch_weight, d_batch_bias = of_parameters[:2]
    totals = torch.cat([d_batch_bias, d_batch_weight]).float()  # same order as in fused: ranks may differ
    dist.all_reduce(totals)
    bias_mean, weight_mean = (totals / count).chunk(2)
    planes, (mean, var) = stock_stages.planes_of(kept, x)
    coefficients = scratch[:3 * planes[0].numel()].view(3, *planes[0].shape)
    sigma = torch.sqrt(var + eps)
    scale = batch_weight / sigma
    slope = -scale * weight_mean / sigma
    coefficients[1] += slope
    coefficients[2] += slope * (planes[0] - mean) - scale * bias_mean


class _BatchChannelNorm(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, batch_weight, batch_bias, channel_weight, channel_bias, call: Call):
        _check(x, call.num_groups)
        ctx.call, ctx.format = call, dense_format(x) or torch.contiguous_format
        dense = in_memory(x, ctx.format)
        parameters = [p.contiguous() for p in (batch_weight, batch_bias, channel_weight, channel_bias)]
        with on_device_of(x):
            y, kept, ctx.count = forward(dense, parameters, call)
        ctx.save_for_backward(x, *parameters[:3], kept)
        return y

    @staticmethod
    def backward(ctx, dy):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError('the triton batch_channel_norm has no second derivative; '
                               "choose the one that has by impl='reference' or WSBCN_IMPL=reference")
        x, *parameters, kept = ctx.saved_tensors
        x, dy = in_memory(x, ctx.format), in_memory(dy, ctx.format)
        with on_device_of(x):
            dx, of_parameters = backward(dy, x, kept, parameters, ctx.call, ctx.count)
        return dx, *of_parameters, None


def repeated_triton(relu: bool, num_groups: int, forced: bool, saved: list[Tensor]) -> Tensor:
    """Recompute the output of a forward pass from the tensors it saved."""
    x, *_, kept = saved
    x = in_memory(x, dense_format(x) or torch.contiguous_format)
    call = Call(None, None, None, 0, num_groups, False, False, 0, False, relu, forced)
    with on_device_of(x):
        return _stage(output, stock_stages.output, x, call, x, kept, call)


def batch_channel_norm_triton(x: Tensor, batch_weight: Tensor, batch_bias: Tensor, running_mean: Tensor,
                              running_var: Tensor, channel_weight: Tensor, channel_bias: Tensor, num_groups: int,
                              update: bool, batch_statistics: bool, rate: float | Tensor, eps: float, sync: bool,
                              skipped_updates: Tensor | None, relu: bool = False, forced: bool = True) -> Tensor:
    """Same arguments and result as :func:`~.reference.batch_channel_norm_reference`, and ``relu`` may follow; float32,
    float16 and bfloat16 on CUDA (under ``TRITON_INTERPRET=1`` on any device). If a launch fails, it raises an error if
    ``forced``, and otherwise continues with stock operators."""
    buffers = running_mean, running_var, skipped_updates
    own = [t if t is None else t.contiguous() for t in buffers]
    call = Call(*own, rate, num_groups, update, batch_statistics, eps, sync, relu, forced)
    y = _BatchChannelNorm.apply(x, batch_weight, batch_bias, channel_weight, channel_bias, call)
    if update:
        for buffer, written in zip(buffers, own, strict=True):
            if written is not buffer:  # was not contiguous, which the kernels do not support
                buffer.copy_(written)
    return y
