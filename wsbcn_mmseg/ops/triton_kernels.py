"""Batch-Channel Normalization as Triton kernels: the algebra of :mod:`.fused` in terms of x - m, the deviation from the
plane's mean; three launches each way.

1. Reduce: every plane (channel of an image) is cut into splits, so that a single image fills the device too; each
   program leaves the count, mean and sum of squared deviations of its split (backward: two sums).
2. Combine: one program per group merges the splits of all images and does everything of size (B, C): batch statistics,
   estimates, group statistics (backward: parameter gradients), and the coefficients of the map.
3. Map: ``y = a (x - m) + d`` (backward: ``dx = A dy + B (x - m) + C``), last values first: those the reduction has
   read last are still in cache.

Arithmetic is float32. Nothing is autotuned and there are no atomics: equal inputs give equal bits.
"""
import contextlib
import functools
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .estimates import merge_over_ranks, update_estimates
from .planes import dense_format

try:
    import triton

    from .triton_groups import gradients_kernel, statistics_kernel
    from .triton_planes import ALIGN, affine2_kernel, affine_kernel, dots_kernel, moments_kernel
except ImportError as error:
    raise RuntimeError("impl='triton' needs the package triton (pip install triton); "
                       "impl='fused' works without it") from error

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TILE = 2048  # values of the activation a program holds at a time
PROGRAMS = 2048  # wanted for a reduction: enough to fill the largest device, few enough to merge quickly
MAX_SPLITS = 256
MIN_FLAT = 256  # pixels of a plane from which contiguous tensors are mapped in flat blocks
MAX_GROUP_CHANNELS = 8192
LINE = 128  # bytes: rows of channels-last tiles span a cache line

INTERPRETED = not isinstance(moments_kernel, triton.JITFunction)  # TRITON_INTERPRET=1: any device will do


class _Plan(NamedTuple):
    """How the kernels cut an activation of shape (B, C, *), from its shape alone: the device does not change bits."""
    images: int
    channels: int
    pixels: int  # of a plane
    channels_last: bool
    block_c: int  # a tile is block_c planes by block_p pixels
    block_p: int
    tiles: int  # of a program of a reduction
    splits: int  # programs along a plane

    @property
    def blocks(self) -> int:
        """Of block_c channels, over all images."""
        return self.images * triton.cdiv(self.channels, self.block_c)

    def reduce(self, kernel, *tensors: Tensor, **options) -> None:
        kernel[self.blocks * self.splits, ](*tensors, self.images, self.channels, self.pixels, self.tiles, self.splits,
                                            self.channels_last, self.block_c, self.block_p, **options)

    def map(self, kernel, *tensors: Tensor, relu: bool) -> None:
        flat, block_p = not self.channels_last and self.pixels >= MIN_FLAT, self.block_p
        programs = self.blocks * triton.cdiv(self.pixels, block_p)
        if flat:
            block_p = min(TILE, 1 << self.pixels.bit_length() - 1)
            programs = triton.cdiv(self.images * self.channels * self.pixels, block_p)
        kernel[programs, ](*tensors, self.images, self.channels, self.pixels, flat, self.channels_last, self.block_c,
                           block_p, RELU=relu)

    def combine(self, kernel, num_groups: int, *arguments, **options) -> None:
        group_channels = self.channels // num_groups
        block_c = triton.next_power_of_2(group_channels)
        block_b = min(triton.next_power_of_2(self.images), max(1, TILE // block_c))
        block_s = min(triton.next_power_of_2(self.splits), max(1, TILE // (block_c * block_b)))
        kernel[num_groups, ](*arguments, self.images, self.channels, self.pixels, self.splits, group_channels,
                             **options, BLOCK_B=block_b, BLOCK_S=block_s, BLOCK_C=block_c,
                             num_warps=min(16, max(4, block_b * block_s * block_c // 256)))


@functools.lru_cache(maxsize=4096)
def _plan(images: int, channels: int, pixels: int, channels_last: bool, itemsize: int) -> _Plan:
    span = pixels if channels_last else pixels + ALIGN.value - 1  # an aligned start may lie before the plane
    if channels_last:
        block_c = min(triton.next_power_of_2(channels), LINE // itemsize)
        block_p = min(triton.next_power_of_2(span), TILE // block_c)
    else:
        block_p = min(triton.next_power_of_2(span), TILE)
        block_c = min(triton.next_power_of_2(channels), TILE // block_p)
    all_tiles, blocks = triton.cdiv(span, block_p), images * triton.cdiv(channels, block_c)
    tiles = triton.cdiv(all_tiles, min(all_tiles, MAX_SPLITS, max(1, PROGRAMS // blocks)))
    return _Plan(images, channels, pixels, channels_last, block_c, block_p, tiles, triton.cdiv(all_tiles, tiles))


def _plan_of(x: Tensor) -> _Plan:
    images, channels = x.shape[:2]
    pixels = x.numel() // (images * channels)
    return _plan(images, channels, pixels, pixels == 1 or not x.is_contiguous(), x.element_size())


def _check(x: Tensor, num_groups: int) -> None:
    if not (x.is_cuda or INTERPRETED):
        raise RuntimeError(f"impl='triton' needs a CUDA tensor, got one on {x.device}; impl='fused' serves any device")
    if x.dtype not in DTYPES:
        raise RuntimeError(f"impl='triton' serves {DTYPES}, got {x.dtype}; impl='fused' serves any")
    if x.shape[1] // num_groups > MAX_GROUP_CHANNELS:
        raise RuntimeError(f"impl='triton' serves at most {MAX_GROUP_CHANNELS} channels per group, got "
                           f"{x.shape[1] // num_groups}; impl='fused' serves any")


def _on_device_of(x: Tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _forward(plan: _Plan, x: Tensor, parameters, running_mean, running_var, rate, num_groups: int, update: bool,
             batch_statistics: bool, eps: float, sync: bool, skipped_updates: Tensor | None, relu: bool):
    """The output; planes (4, B, C), statistics (2, C) and count for backward. Moves the estimates."""
    count = x.numel() // plan.channels
    partials = x.new_empty(plan.images, plan.splits, 3, plan.channels, dtype=torch.float32)
    planes = x.new_empty(4, plan.images, plan.channels, dtype=torch.float32)
    statistics = x.new_empty(2, plan.channels, dtype=torch.float32)
    on_device = isinstance(rate, Tensor) and rate.device == x.device
    rate = rate if on_device else float(rate)

    def combine(mean, var, update, batch_statistics):
        plan.combine(statistics_kernel, num_groups, partials, planes, statistics, mean, var, skipped_updates,
                   *parameters, rate, count / max(count - 1, 1), eps, UPDATE=update, BATCH_STATISTICS=batch_statistics,
                   RATE_ON_DEVICE=on_device)

    plan.reduce(moments_kernel, x, partials)
    combine(running_mean, running_var, update and not sync, batch_statistics)
    if sync:  # statistics of all ranks, given: as in evaluation
        mean, var, count = merge_over_ranks(*statistics, count)
        combine(mean, var, False, False)
        if update:
            update_estimates(running_mean, running_var, skipped_updates, mean, var * (count / (count - 1)), rate)
    y = torch.empty_like(x)
    plan.map(affine_kernel, x, planes, y, relu=relu)
    return y, (planes, statistics, count)


def _correct_for_ranks(coefficients, planes, statistics, count, batch_weight, d_batch_weight, d_batch_bias, eps):
    """Eq. 43's share of dx where the statistics are those of all ranks: as the end of the gradients kernel."""
    totals = torch.stack([d_batch_weight, d_batch_bias]).float()
    dist.all_reduce(totals)
    weight_mean, bias_mean = totals / count
    mean, var = statistics
    sigma = torch.sqrt(var + eps)
    scale = batch_weight / sigma
    slope = -scale * weight_mean / sigma
    coefficients[1] += slope
    coefficients[2] += slope * (planes[0] - mean) - scale * bias_mean


class _BatchChannelNorm(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, batch_weight, batch_bias, channel_weight, channel_bias, running_mean, running_var, rate,
                num_groups: int, update: bool, batch_statistics: bool, eps: float, sync: bool, skipped_updates,
                relu: bool):
        _check(x, num_groups)
        ctx.num_groups, ctx.batch_statistics, ctx.eps, ctx.sync = num_groups, batch_statistics, eps, sync
        ctx.relu = relu
        ctx.format = dense_format(x) or torch.contiguous_format
        dense = x.contiguous(memory_format=ctx.format)
        ctx.plan = _plan_of(dense)
        parameters = [p.contiguous() for p in (batch_weight, batch_bias, channel_weight, channel_bias)]
        with _on_device_of(x):
            y, (planes, statistics, ctx.count) = _forward(
                ctx.plan, dense, parameters, running_mean, running_var, rate, num_groups, update, batch_statistics, eps,
                sync, skipped_updates, relu)
        ctx.save_for_backward(x, *parameters[:3], planes, statistics)
        return y

    @staticmethod
    def backward(ctx, dy):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError('the triton batch_channel_norm has no second derivative; '
                               "choose the one that has by impl='reference' or WSBCN_IMPL=reference")
        x, *parameters, planes, statistics = ctx.saved_tensors
        plan, batch_weight, channel_weight = ctx.plan, parameters[0], parameters[2]
        x, dy = (t.contiguous(memory_format=ctx.format) for t in (x, dy))
        partials = planes.new_empty(plan.images, plan.splits, 2, plan.channels)
        coefficients = planes.new_empty(3, plan.images, plan.channels)
        gradients = [torch.empty_like(p) for p in (batch_weight, batch_weight, channel_weight, channel_weight)]
        with _on_device_of(x):
            plan.reduce(dots_kernel, dy, x, planes, partials, RELU=ctx.relu)
            plan.combine(gradients_kernel, ctx.num_groups, partials, planes, statistics, coefficients, *gradients,
                       *parameters, ctx.eps, BATCH_STATISTICS=ctx.batch_statistics and not ctx.sync)
            if ctx.sync:
                _correct_for_ranks(coefficients, planes, statistics, ctx.count, batch_weight, *gradients[:2], ctx.eps)
            dx = torch.empty_like(x)
            plan.map(affine2_kernel, dy, x, planes, coefficients, dx, relu=ctx.relu)
        return dx, *gradients, *[None] * 10


def repeated_triton(relu: bool, saved: list[Tensor]) -> Tensor:
    """The output of a forward pass again, from what it saved."""
    x, *_, planes, _ = saved
    x = x.contiguous(memory_format=dense_format(x) or torch.contiguous_format)
    y = torch.empty_like(x)
    with _on_device_of(x):
        _plan_of(x).map(affine_kernel, x, planes, y, relu=relu)
    return y


def batch_channel_norm_triton(x: Tensor, batch_weight: Tensor, batch_bias: Tensor, running_mean: Tensor,
                              running_var: Tensor, channel_weight: Tensor, channel_bias: Tensor, num_groups: int,
                              update: bool, batch_statistics: bool, rate: float | Tensor, eps: float, sync: bool,
                              skipped_updates: Tensor | None, relu: bool = False) -> Tensor:
    """Same arguments and result as :func:`~.reference.batch_channel_norm_reference`, and ``relu`` may follow; float32,
    float16 and bfloat16 on CUDA (under ``TRITON_INTERPRET=1`` on any device)."""
    buffers = [t if t is None else t.contiguous() for t in (running_mean, running_var, skipped_updates)]
    y = _BatchChannelNorm.apply(x, batch_weight, batch_bias, channel_weight, channel_bias, *buffers[:2], rate,
                                num_groups, update, batch_statistics, eps, sync, buffers[2], relu)
    for buffer, written in zip((running_mean, running_var, skipped_updates), buffers, strict=True):
        if update and written is not buffer:  # had strides, which the kernels do not know
            buffer.copy_(written)
    return y
