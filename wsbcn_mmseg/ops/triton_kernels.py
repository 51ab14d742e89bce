"""Batch-Channel Normalization as Triton kernels: the algebra of :mod:`.fused` in terms of x - m, the deviation from the
plane's mean; three launches each way.

1. Reduce: every plane (channel of an image) is cut into splits, so that a single image fills the device too; each
   program leaves the count, mean and sum of squared deviations of its split (backward: two sums).
2. Close: one program per group merges the splits of all images and does everything of size (B, C): batch statistics,
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
    import triton.language as tl
except ImportError as error:
    raise RuntimeError("impl='triton' needs the package triton (pip install triton); "
                       "impl='fused' does without") from error

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TILE = 2048  # values of the activation a program holds at a time
PROGRAMS = 2048  # wanted for a reduction: enough to fill the largest device, few enough to merge quickly
MAX_SPLITS = 256
MIN_FLAT = 256  # pixels of a plane from which contiguous tensors are mapped in flat blocks
MAX_GROUP_CHANNELS = 8192
LINE = 128  # bytes: rows of channels-last tiles span a cache line
ALIGN: tl.constexpr = tl.constexpr(16)  # values; planes of odd size start anywhere, vector loads must not


@triton.jit
def _merge(count, mean, m2, other_count, other_mean, other_m2):
    """Chan's formula: the moments of two sets together. m2 is the sum of squared deviations from the mean."""
    total = count + other_count
    weight = other_count / tl.maximum(total, 1)
    delta = other_mean - mean
    return total, mean + delta * weight, m2 + other_m2 + delta * delta * count * weight


@triton.jit
def _position(program, steps, channels, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr):
    """Image, channels (BLOCK_C, 1) and step along the pixels of a program, numbered as memory runs."""
    blocks = tl.cdiv(channels, BLOCK_C)
    if CHANNELS_LAST:
        block, step = program % blocks, program // blocks % steps
    else:
        block, step = program // steps % blocks, program % steps
    image = program // (blocks * steps)
    return image.to(tl.int64), (block * BLOCK_C + tl.arange(0, BLOCK_C))[:, None], step


@triton.jit
def _tile(image, channel, tile, images, channels, pixels, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr):
    """Offsets (BLOCK_C, BLOCK_P) of a tile of planes, which of them to read, which of these belong to it, and how many.

    Tiles of contiguous planes begin at the aligned offset before the plane, and read up to the one behind it.
    """
    step = tile * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    if CHANNELS_LAST:
        lead, end = 0, pixels
        offsets = (image * pixels + step) * channels + channel
        read = (channel < channels) & (step < pixels)
    else:
        start = (image * channels + channel) * pixels
        aligned = start // ALIGN * ALIGN
        lead = (start - aligned).to(tl.int32)
        end = lead + pixels
        offsets = aligned + step
        read = ((channel < channels) & (step < (end + ALIGN - 1) // ALIGN * ALIGN)
                & (offsets < images.to(tl.int64) * channels * pixels))
    inside = (channel < channels) & (step >= lead) & (step < end)
    # A sum of `inside` would say the same, in a layout that the compiler chooses badly
    count = tl.maximum(tl.minimum(end, tile * BLOCK_P + BLOCK_P) - tl.maximum(lead, tile * BLOCK_P), 0)
    return offsets, read, inside, count.to(tl.float32)


@triton.jit(do_not_specialize=['images', 'tiles', 'splits'])
def _moments_kernel(x, partials, images, channels, pixels, tiles, splits, CHANNELS_LAST: tl.constexpr,
                    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Count, mean and m2 of every split: partials (B, splits, 3, C)."""
    image, channel, split = _position(tl.program_id(0), splits, channels, CHANNELS_LAST, BLOCK_C)
    count = tl.zeros((BLOCK_C, 1), tl.float32)
    mean = tl.zeros((BLOCK_C, 1), tl.float32)
    m2 = tl.zeros((BLOCK_C, 1), tl.float32)
    for tile in range(split * tiles, split * tiles + tiles):
        offsets, read, inside, tile_count = _tile(image, channel, tile, images, channels, pixels, CHANNELS_LAST,
                                                  BLOCK_P)
        values = tl.load(x + offsets, read).to(tl.float32)
        tile_mean = tl.sum(tl.where(inside, values, 0), 1, keep_dims=True) / tl.maximum(tile_count, 1)
        centred = tl.where(inside, values - tile_mean, 0)
        tile_m2 = tl.sum(centred * centred, 1, keep_dims=True)
        count, mean, m2 = _merge(count, mean, m2, tile_count, tile_mean, tile_m2)
    out = partials + (image * splits + split) * 3 * channels + channel
    tl.store(out, count, channel < channels)
    tl.store(out + channels, mean, channel < channels)
    tl.store(out + 2 * channels, m2, channel < channels)


@triton.jit(do_not_specialize=['images', 'tiles', 'splits'])
def _dots_kernel(dy, x, planes, partials, images, channels, pixels, tiles, splits, CHANNELS_LAST: tl.constexpr,
                 BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Sums of dy and of dy (x - m) over every split: partials (B, splits, 2, C)."""
    image, channel, split = _position(tl.program_id(0), splits, channels, CHANNELS_LAST, BLOCK_C)
    mean = tl.load(planes + image * channels + channel, channel < channels)
    sums = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    dots = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for tile in range(split * tiles, split * tiles + tiles):
        offsets, read, inside, _ = _tile(image, channel, tile, images, channels, pixels, CHANNELS_LAST, BLOCK_P)
        gradients = tl.load(dy + offsets, read).to(tl.float32)
        values = tl.load(x + offsets, read).to(tl.float32)
        sums += tl.where(inside, gradients, 0)
        dots += tl.where(inside, gradients * (values - mean), 0)
    out = partials + (image * splits + split) * 2 * channels + channel
    tl.store(out, tl.sum(sums, 1, keep_dims=True), channel < channels)
    tl.store(out + channels, tl.sum(dots, 1, keep_dims=True), channel < channels)


@triton.jit
def _plane_moments(partials, image, channel, inside, channels, pixels, splits, BLOCK_B: tl.constexpr,
                   BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and biased variance of planes, (BLOCK_B, BLOCK_C), from their splits; 0 where not inside."""
    count = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    mean = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    m2 = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)[None, :, None]
        values = partials + (image[:, :, None] * splits + split) * 3 * channels + channel[:, None, :]
        read = inside[:, None, :] & (split < splits)
        counts = tl.load(values, read, 0)
        means = tl.load(values + channels, read, 0)
        block_count = tl.sum(counts, 1)
        block_mean = tl.sum(counts * means, 1) / tl.maximum(block_count, 1)
        deviation = means - block_mean[:, None, :]
        block_m2 = tl.sum(tl.load(values + 2 * channels, read, 0) + counts * deviation * deviation, 1)
        count, mean, m2 = _merge(count, mean, m2, block_count, block_mean, block_m2)
    return mean, m2 / pixels


@triton.jit
def _plane_sums(partials, image, channel, inside, channels, splits, BLOCK_B: tl.constexpr, BLOCK_S: tl.constexpr,
                BLOCK_C: tl.constexpr):
    """Sums over planes, (BLOCK_B, BLOCK_C) each, from their splits; 0 where not inside."""
    sums = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    dots = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)[None, :, None]
        values = partials + (image[:, :, None] * splits + split) * 2 * channels + channel[:, None, :]
        read = inside[:, None, :] & (split < splits)
        sums += tl.sum(tl.load(values, read, 0), 1)
        dots += tl.sum(tl.load(values + channels, read, 0), 1)
    return sums, dots


@triton.jit
def _group_statistics(plane_mean, plane_var, mean, scale, bias, inside, group_channels, eps):
    """Of a group after Eq. 40: its planes' means less its own, offset (BLOCK_B, BLOCK_C), and rstd (BLOCK_B, 1)."""
    plane = tl.where(inside, scale * (plane_mean - mean) + bias, 0)
    offset = tl.where(inside, plane - tl.sum(plane, 1, keep_dims=True) / group_channels, 0)
    squares = tl.where(inside, scale * scale * plane_var + offset * offset, 0)
    return offset, 1 / tl.sqrt(tl.sum(squares, 1, keep_dims=True) / group_channels + eps)


@triton.jit(do_not_specialize=['images', 'channels', 'pixels', 'splits', 'group_channels'])
def _statistics_kernel(partials, planes, statistics, running_mean, running_var, skipped_updates, batch_weight,
                       batch_bias, channel_weight, channel_bias, rate, bessel, eps, images, channels, pixels, splits,
                       group_channels, MOVE: tl.constexpr, BATCH_STATISTICS: tl.constexpr,
                       RATE_ON_DEVICE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_S: tl.constexpr,
                       BLOCK_C: tl.constexpr):
    """Statistics (2, C), and planes (4, B, C): mean, variance, scale and shift of the map. Moves the estimates."""
    group = tl.program_id(0)
    member = tl.arange(0, BLOCK_C)[None, :]
    channel = group * group_channels + member
    own = member < group_channels
    old_mean = tl.load(running_mean + channel, own, 0)
    old_var = tl.load(running_var + channel, own, 0)
    mean, var = old_mean.to(tl.float32), old_var.to(tl.float32)

    if MOVE or BATCH_STATISTICS:
        count = tl.zeros((1, BLOCK_C), tl.float32)
        batch_mean = tl.zeros((1, BLOCK_C), tl.float32)
        batch_m2 = tl.zeros((1, BLOCK_C), tl.float32)
        for first in range(0, images, BLOCK_B):
            image = (first + tl.arange(0, BLOCK_B)[:, None]).to(tl.int64)
            inside = (image < images) & own
            plane_mean, plane_var = _plane_moments(partials, image, channel, inside, channels, pixels, splits, BLOCK_B,
                                                   BLOCK_S, BLOCK_C)
            block_count = tl.minimum(images - first, BLOCK_B).to(tl.float32)
            block_mean = tl.sum(plane_mean, 0, keep_dims=True) / block_count
            deviation = plane_mean - block_mean
            block_m2 = tl.sum(tl.where(inside, plane_var + deviation * deviation, 0), 0, keep_dims=True)
            count, batch_mean, batch_m2 = _merge(count, batch_mean, batch_m2, block_count, block_mean, block_m2)
        batch_var = batch_m2 / images
    if MOVE:
        if RATE_ON_DEVICE:
            rate = tl.load(rate).to(tl.float32)
        if BATCH_STATISTICS:
            target = batch_var * bessel
        else:  # Algorithm 1: the deviation is from the estimate before the update
            target = batch_var + (batch_mean - mean) * (batch_mean - mean)
        new_mean = (mean + rate * (batch_mean - mean)).to(old_mean.dtype)
        new_var = (var + rate * (target - var)).to(old_var.dtype)
        moves = (tl.abs(new_mean.to(tl.float32)) < float('inf')) & (tl.abs(new_var.to(tl.float32)) < float('inf'))
        tl.debug_barrier()  # other threads may still have to read the estimates that are overwritten here
        tl.store(running_mean + channel, new_mean, own & moves)
        tl.store(running_var + channel, new_var, own & moves)
        if skipped_updates is not None:
            stays = own & (moves == 0)
            tl.store(skipped_updates + channel, tl.load(skipped_updates + channel, stays, 0) + 1, stays)
        mean = tl.where(moves, new_mean, old_mean).to(tl.float32)
        var = tl.where(moves, new_var, old_var).to(tl.float32)
    if BATCH_STATISTICS:
        mean, var = batch_mean, batch_var
    tl.store(statistics + channel, mean, own)
    tl.store(statistics + channels + channel, var, own)

    scale = tl.load(batch_weight + channel, own, 0).to(tl.float32) / tl.sqrt(var + eps)
    bias = tl.load(batch_bias + channel, own, 0).to(tl.float32)
    gamma = tl.load(channel_weight + group).to(tl.float32)
    beta = tl.load(channel_bias + group).to(tl.float32)
    stride = images.to(tl.int64) * channels
    for first in range(0, images, BLOCK_B):
        image = (first + tl.arange(0, BLOCK_B)[:, None]).to(tl.int64)
        inside = (image < images) & own
        plane_mean, plane_var = _plane_moments(partials, image, channel, inside, channels, pixels, splits, BLOCK_B,
                                               BLOCK_S, BLOCK_C)
        offset, rstd = _group_statistics(plane_mean, plane_var, mean, scale, bias, inside, group_channels, eps)
        out = planes + image * channels + channel
        tl.store(out, plane_mean, inside)
        tl.store(out + stride, plane_var, inside)
        tl.store(out + 2 * stride, gamma * rstd * scale, inside)
        tl.store(out + 3 * stride, gamma * rstd * offset + beta, inside)


@triton.jit(do_not_specialize=['images', 'channels', 'pixels', 'splits', 'group_channels'])
def _gradients_kernel(partials, planes, statistics, coefficients, d_batch_weight, d_batch_bias, d_channel_weight,
                      d_channel_bias, batch_weight, batch_bias, channel_weight, eps, images, channels, pixels, splits,
                      group_channels, BATCH_STATISTICS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_S: tl.constexpr,
                      BLOCK_C: tl.constexpr):
    """Parameter gradients, and coefficients (3, B, C) of dy, of x - m and of 1 in dx. Derived as in :mod:`.fused`."""
    group = tl.program_id(0)
    member = tl.arange(0, BLOCK_C)[None, :]
    channel = group * group_channels + member
    own = member < group_channels
    mean = tl.load(statistics + channel, own, 0)
    sigma = tl.sqrt(tl.load(statistics + channels + channel, own, 1) + eps)
    scale = tl.load(batch_weight + channel, own, 0).to(tl.float32) / sigma
    bias = tl.load(batch_bias + channel, own, 0).to(tl.float32)
    gamma = tl.load(channel_weight + group).to(tl.float32)
    stride = images.to(tl.int64) * channels
    values = group_channels.to(tl.float32) * pixels  # of a group of one image

    weight_sum = tl.zeros((1, BLOCK_C), tl.float32)
    bias_sum = tl.zeros((1, BLOCK_C), tl.float32)
    channel_weight_sum = tl.zeros((1, BLOCK_C), tl.float32)
    channel_bias_sum = tl.zeros((1, BLOCK_C), tl.float32)
    for first in range(0, images, BLOCK_B):
        image = (first + tl.arange(0, BLOCK_B)[:, None]).to(tl.int64)
        inside = (image < images) & own
        plane = image * channels + channel
        plane_mean = tl.load(planes + plane, inside, 0)
        plane_var = tl.load(planes + stride + plane, inside, 0)
        offset, rstd = _group_statistics(plane_mean, plane_var, mean, scale, bias, inside, group_channels, eps)
        sum_dy, dot_dy = _plane_sums(partials, image, channel, inside, channels, splits, BLOCK_B, BLOCK_S, BLOCK_C)
        dot_normalised = rstd * (scale * dot_dy + offset * sum_dy)

        # Through Eq. 42
        gain = gamma * rstd
        mean_1 = gamma * tl.sum(sum_dy, 1, keep_dims=True) / values
        mean_2 = gamma * tl.sum(dot_normalised, 1, keep_dims=True) / values
        slope = -rstd * rstd * mean_2
        constant = -rstd * mean_1 + slope * offset
        sum_dz = tl.where(inside, gain * sum_dy + pixels * constant, 0)
        dot_dz = gain * dot_dy + pixels * plane_var * slope * scale

        # Through Eq. 40
        weight_sum += tl.sum(tl.where(inside, (dot_dz + (plane_mean - mean) * sum_dz) / sigma, 0), 0, keep_dims=True)
        bias_sum += tl.sum(sum_dz, 0, keep_dims=True)
        channel_weight_sum += tl.sum(dot_normalised, 0, keep_dims=True)
        channel_bias_sum += tl.sum(sum_dy, 0, keep_dims=True)
        out = coefficients + plane
        tl.store(out, gain * scale, inside)
        tl.store(out + stride, slope * scale * scale, inside)
        tl.store(out + 2 * stride, scale * constant, inside)
    tl.store(d_batch_weight + channel, weight_sum, own)
    tl.store(d_batch_bias + channel, bias_sum, own)
    tl.store(d_channel_weight + group, tl.sum(channel_weight_sum))
    tl.store(d_channel_bias + group, tl.sum(channel_bias_sum))

    if BATCH_STATISTICS:  # Eq. 43: mean and sigma are functions of x too
        tl.debug_barrier()  # the coefficients written above are read below, perhaps by other threads
        count = images.to(tl.float32) * pixels
        slope = -scale * weight_sum / count / sigma
        for first in range(0, images, BLOCK_B):
            image = (first + tl.arange(0, BLOCK_B)[:, None]).to(tl.int64)
            inside = (image < images) & own
            plane = image * channels + channel
            deviation = tl.load(planes + plane, inside, 0) - mean
            out = coefficients + stride + plane
            tl.store(out, tl.load(out, inside) + slope, inside)
            out += stride
            tl.store(out, tl.load(out, inside) + slope * deviation - scale * bias_sum / count, inside)


@triton.jit
def _map_tile(images, channels, pixels, FLAT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr,
              BLOCK_P: tl.constexpr):
    """Offsets of a program's values, their mask, and the planes they belong to, for :func:`_of_plane`.

    Flat programs take aligned blocks of a contiguous tensor whose planes have at least BLOCK_P values, so that a block
    meets two at most: the first where ``chosen``, else the second. The others know the planes of their rows, and
    ``chosen`` are those that exist.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    if FLAT:
        planes = images.to(tl.int64) * channels
        start = program.to(tl.int64) * BLOCK_P
        step = tl.arange(0, BLOCK_P)
        offsets = start + step
        mask = offsets < planes * pixels
        first = start // pixels
        second = tl.minimum(first + 1, planes - 1)
        chosen = step < (first + 1) * pixels - start
    else:
        image, channel, tile = _position(program, tl.cdiv(pixels, BLOCK_P), channels, CHANNELS_LAST, BLOCK_C)
        pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
        first = image * channels + channel
        second, chosen = first, channel < channels
        mask = chosen & (pixel < pixels)
        if CHANNELS_LAST:
            offsets = (image * pixels + pixel) * channels + channel
        else:
            offsets = first * pixels + pixel
    return offsets, mask, first, second, chosen


@triton.jit
def _of_plane(values, first, second, chosen, FLAT: tl.constexpr):
    """The number that each value's plane has in ``values`` (B, C)."""
    if FLAT:
        number = tl.where(chosen, tl.load(values + first), tl.load(values + second))
    else:
        number = tl.load(values + first, chosen)
    return number


@triton.jit(do_not_specialize=['images'])
def _affine_kernel(x, planes, y, images, channels, pixels, FLAT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
                   BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """y = a (x - m) + d."""
    offsets, mask, first, second, chosen = _map_tile(images, channels, pixels, FLAT, CHANNELS_LAST, BLOCK_C, BLOCK_P)
    stride = images.to(tl.int64) * channels
    values = tl.load(x + offsets, mask).to(tl.float32)
    mean = _of_plane(planes, first, second, chosen, FLAT)
    scale = _of_plane(planes + 2 * stride, first, second, chosen, FLAT)
    shift = _of_plane(planes + 3 * stride, first, second, chosen, FLAT)
    tl.store(y + offsets, scale * (values - mean) + shift, mask)


@triton.jit(do_not_specialize=['images'])
def _affine2_kernel(dy, x, planes, coefficients, dx, images, channels, pixels, FLAT: tl.constexpr,
                    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """dx = A dy + B (x - m) + C."""
    offsets, mask, first, second, chosen = _map_tile(images, channels, pixels, FLAT, CHANNELS_LAST, BLOCK_C, BLOCK_P)
    stride = images.to(tl.int64) * channels
    gradients = tl.load(dy + offsets, mask).to(tl.float32)
    values = tl.load(x + offsets, mask).to(tl.float32)
    mean = _of_plane(planes, first, second, chosen, FLAT)
    scale_dy = _of_plane(coefficients, first, second, chosen, FLAT)
    scale_x = _of_plane(coefficients + stride, first, second, chosen, FLAT)
    shift = _of_plane(coefficients + 2 * stride, first, second, chosen, FLAT)
    tl.store(dx + offsets, scale_dy * gradients + scale_x * (values - mean) + shift, mask)


INTERPRETED = not isinstance(_moments_kernel, triton.JITFunction)  # TRITON_INTERPRET=1: any device will do


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

    def reduce(self, kernel, *tensors: Tensor) -> None:
        kernel[self.blocks * self.splits, ](*tensors, self.images, self.channels, self.pixels, self.tiles, self.splits,
                                            self.channels_last, self.block_c, self.block_p)

    def map(self, kernel, *tensors: Tensor) -> None:
        flat, block_p = not self.channels_last and self.pixels >= MIN_FLAT, self.block_p
        programs = self.blocks * triton.cdiv(self.pixels, block_p)
        if flat:
            block_p = min(TILE, 1 << self.pixels.bit_length() - 1)
            programs = triton.cdiv(self.images * self.channels * self.pixels, block_p)
        kernel[programs, ](*tensors, self.images, self.channels, self.pixels, flat, self.channels_last, self.block_c,
                           block_p)

    def close(self, kernel, num_groups: int, *arguments, **options) -> None:
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


def _forward(plan: _Plan, x: Tensor, parameters, running_mean, running_var, rate, num_groups: int, move: bool,
             batch_statistics: bool, eps: float, sync: bool, skipped_updates: Tensor | None):
    """The output; planes (4, B, C), statistics (2, C) and count for backward. Moves the estimates."""
    count = x.numel() // plan.channels
    partials = x.new_empty(plan.images, plan.splits, 3, plan.channels, dtype=torch.float32)
    planes = x.new_empty(4, plan.images, plan.channels, dtype=torch.float32)
    statistics = x.new_empty(2, plan.channels, dtype=torch.float32)
    on_device = isinstance(rate, Tensor) and rate.device == x.device
    rate = rate if on_device else float(rate)

    def close(mean, var, move, batch_statistics):
        plan.close(_statistics_kernel, num_groups, partials, planes, statistics, mean, var, skipped_updates,
                   *parameters, rate, count / max(count - 1, 1), eps, MOVE=move, BATCH_STATISTICS=batch_statistics,
                   RATE_ON_DEVICE=on_device)

    plan.reduce(_moments_kernel, x, partials)
    close(running_mean, running_var, move and not sync, batch_statistics)
    if sync:  # statistics of all ranks, given: as in evaluation
        mean, var, count = merge_over_ranks(*statistics, count)
        close(mean, var, False, False)
        if move:
            update_estimates(running_mean, running_var, skipped_updates, mean, var * (count / (count - 1)), rate)
    y = torch.empty_like(x)
    plan.map(_affine_kernel, x, planes, y)
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
                num_groups: int, move: bool, batch_statistics: bool, eps: float, sync: bool, skipped_updates):
        _check(x, num_groups)
        ctx.num_groups, ctx.batch_statistics, ctx.eps, ctx.sync = num_groups, batch_statistics, eps, sync
        ctx.format = dense_format(x) or torch.contiguous_format
        dense = x.contiguous(memory_format=ctx.format)
        ctx.plan = _plan_of(dense)
        parameters = [p.contiguous() for p in (batch_weight, batch_bias, channel_weight, channel_bias)]
        with _on_device_of(x):
            y, (planes, statistics, ctx.count) = _forward(
                ctx.plan, dense, parameters, running_mean, running_var, rate, num_groups, move, batch_statistics, eps,
                sync, skipped_updates)
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
            plan.reduce(_dots_kernel, dy, x, planes, partials)
            plan.close(_gradients_kernel, ctx.num_groups, partials, planes, statistics, coefficients, *gradients,
                       *parameters, ctx.eps, BATCH_STATISTICS=ctx.batch_statistics and not ctx.sync)
            if ctx.sync:
                _correct_for_ranks(coefficients, planes, statistics, ctx.count, batch_weight, *gradients[:2], ctx.eps)
            dx = torch.empty_like(x)
            plan.map(_affine2_kernel, dy, x, planes, coefficients, dx)
        return dx, *gradients, *[None] * 9


def batch_channel_norm_triton(x: Tensor, batch_weight: Tensor, batch_bias: Tensor, running_mean: Tensor,
                              running_var: Tensor, channel_weight: Tensor, channel_bias: Tensor, num_groups: int,
                              move: bool, batch_statistics: bool, rate: float | Tensor, eps: float, sync: bool,
                              skipped_updates: Tensor | None) -> Tensor:
    """Same arguments and result as :func:`~.reference.batch_channel_norm_reference`; float32, float16 and bfloat16 on
    CUDA (under ``TRITON_INTERPRET=1`` on any device)."""
    buffers = [t if t is None else t.contiguous() for t in (running_mean, running_var, skipped_updates)]
    y = _BatchChannelNorm.apply(x, batch_weight, batch_bias, channel_weight, channel_bias, *buffers[:2], rate,
                                num_groups, move, batch_statistics, eps, sync, buffers[2])
    for buffer, written in zip((running_mean, running_var, skipped_updates), buffers, strict=True):
        if move and written is not buffer:  # had strides, which the kernels do not know
            buffer.copy_(written)
    return y
