"""Triton device code of the stage between reduction and map: one program per group, tensors of size (B, C)."""
import triton
import triton.language as tl

from .triton_planes import merge_moments


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
        count, mean, m2 = merge_moments(count, mean, m2, block_count, block_mean, block_m2)
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
    """Statistics of a group after Eq. 40: offset (BLOCK_B, BLOCK_C), the plane means minus the group mean, and rstd
    (BLOCK_B, 1)."""
    plane = tl.where(inside, scale * (plane_mean - mean) + bias, 0)
    offset = tl.where(inside, plane - tl.sum(plane, 1, keep_dims=True) / group_channels, 0)
    squares = tl.where(inside, scale * scale * plane_var + offset * offset, 0)
    return offset, 1 / tl.sqrt(tl.sum(squares, 1, keep_dims=True) / group_channels + eps)


# Long: its parts share a dozen values, and a separate kernel would be one more launch
@triton.jit(do_not_specialize=['images', 'channels', 'pixels', 'splits', 'group_channels'])
def statistics_kernel(partials, planes, running_mean, running_var, skipped_updates, batch_weight, batch_bias,
                       channel_weight, channel_bias, rate, bessel, eps, images, channels, pixels, splits,
                       group_channels, UPDATE: tl.constexpr, BATCH_STATISTICS: tl.constexpr,
                       RATE_ON_DEVICE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_S: tl.constexpr,
                       BLOCK_C: tl.constexpr):
    """Write planes (4, B, C): mean, variance, scale and shift of the map; after them statistics (2, C), mean and
    variance of Eq. 40. Updates the estimates."""
    group = tl.program_id(0)
    member = tl.arange(0, BLOCK_C)[None, :]
    channel = group * group_channels + member
    own = member < group_channels
    old_mean = tl.load(running_mean + channel, own, 0)
    old_var = tl.load(running_var + channel, own, 0)
    mean, var = old_mean.to(tl.float32), old_var.to(tl.float32)

    if UPDATE or BATCH_STATISTICS:
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
            count, batch_mean, batch_m2 = merge_moments(count, batch_mean, batch_m2, block_count, block_mean, block_m2)
        batch_var = batch_m2 / images
    if UPDATE:
        if RATE_ON_DEVICE:
            rate = tl.load(rate).to(tl.float32)
        if BATCH_STATISTICS:
            target = batch_var * bessel
        else:  # Algorithm 1: the deviation is from the estimate before the update
            target = batch_var + (batch_mean - mean) * (batch_mean - mean)
        new_mean = (mean + rate * (batch_mean - mean)).to(old_mean.dtype)
        new_var = (var + rate * (target - var)).to(old_var.dtype)
        moves = (tl.abs(new_mean.to(tl.float32)) < float('inf')) & (tl.abs(new_var.to(tl.float32)) < float('inf'))
        tl.debug_barrier()  # other threads may still read the estimates that are overwritten here
        tl.store(running_mean + channel, new_mean, own & moves)
        tl.store(running_var + channel, new_var, own & moves)
        if skipped_updates is not None:
            # A channel whose estimates were not finite before does not count as skipped
            known = (tl.abs(mean) < float('inf')) & (tl.abs(var) < float('inf'))
            stays = own & (moves == 0) & known
            tl.store(skipped_updates + channel, tl.load(skipped_updates + channel, stays, 0) + 1, stays)
        mean = tl.where(moves, new_mean, old_mean).to(tl.float32)
        var = tl.where(moves, new_var, old_var).to(tl.float32)
    if BATCH_STATISTICS:
        mean, var = batch_mean, batch_var
    stride = images.to(tl.int64) * channels
    statistics = planes + 4 * stride
    tl.store(statistics + channel, mean, own)
    tl.store(statistics + channels + channel, var, own)

    scale = tl.load(batch_weight + channel, own, 0).to(tl.float32) / tl.sqrt(var + eps)
    bias = tl.load(batch_bias + channel, own, 0).to(tl.float32)
    gamma = tl.load(channel_weight + group).to(tl.float32)
    beta = tl.load(channel_bias + group).to(tl.float32)
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


# Long: its parts share a dozen values, and a separate kernel would be one more launch
@triton.jit(do_not_specialize=['images', 'channels', 'pixels', 'splits', 'group_channels'])
def gradients_kernel(coefficients, planes, d_batch_weight, d_batch_bias, d_channel_weight, d_channel_bias,
                      batch_weight, batch_bias, channel_weight, eps, images, channels, pixels, splits, group_channels,
                      BATCH_STATISTICS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_S: tl.constexpr,
                      BLOCK_C: tl.constexpr):
    """Compute parameter gradients, and the coefficients (3, B, C) of dy, x - m and 1 in dx, from the partial sums that
    are stored after the coefficients. The derivation is the one in :mod:`.fused`."""
    group = tl.program_id(0)
    member = tl.arange(0, BLOCK_C)[None, :]
    channel = group * group_channels + member
    own = member < group_channels
    stride = images.to(tl.int64) * channels
    statistics, partials = planes + 4 * stride, coefficients + 3 * stride
    mean = tl.load(statistics + channel, own, 0)
    sigma = tl.sqrt(tl.load(statistics + channels + channel, own, 1) + eps)
    scale = tl.load(batch_weight + channel, own, 0).to(tl.float32) / sigma
    bias = tl.load(batch_bias + channel, own, 0).to(tl.float32)
    gamma = tl.load(channel_weight + group).to(tl.float32)
    values = group_channels.to(tl.float32) * pixels  # in a group of one image

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
        dot_normalized = rstd * (scale * dot_dy + offset * sum_dy)

        # Through Eq. 42
        gain = gamma * rstd
        mean_1 = gamma * tl.sum(sum_dy, 1, keep_dims=True) / values
        mean_2 = gamma * tl.sum(dot_normalized, 1, keep_dims=True) / values
        slope = -rstd * rstd * mean_2
        constant = -rstd * mean_1 + slope * offset
        sum_dz = tl.where(inside, gain * sum_dy + pixels * constant, 0)
        dot_dz = gain * dot_dy + pixels * plane_var * slope * scale

        # Through Eq. 40
        weight_sum += tl.sum(tl.where(inside, (dot_dz + (plane_mean - mean) * sum_dz) / sigma, 0), 0, keep_dims=True)
        bias_sum += tl.sum(sum_dz, 0, keep_dims=True)
        channel_weight_sum += tl.sum(dot_normalized, 0, keep_dims=True)
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
        tl.debug_barrier()  # other threads may read the coefficients that were written above
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
