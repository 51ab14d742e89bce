"""Batch-Channel Normalization in two passes over the activation each way, from stock PyTorch operators.

Per-plane (image and channel) mean and variance determine everything: the batch statistics, the moved estimates and,
through the per-channel affine map of Eq. 40, the group statistics of Eq. 42. So the layer is one reduction over x and
one map; backward is one reduction over (dy, x) and one map ``dx = A dy + B x + C``. Only x and tensors of size (B, C)
or smaller are kept for backward.

Within a plane x = mean + std * u, where the normalized values u have mean 0 and mean square 1. Affine maps keep this
form: after Eq. 40 and Eq. 42 a value is z = offset + spread * u, and its mean and mean square over the plane are offset
and offset^2 + spread^2.

On the CPU the arithmetic on (B, C)-sized tensors takes a good part of the time. The reason is not their size: the
passes evict code from the caches, and the first use of an operator takes many times as long as the next. So the
arithmetic uses few kinds of operators: sums, products, differences.

Shapes below: (B, C) per plane, the same as (B, G, C/G) by groups, (B, G, 1) per group of an image, (C,) per channel.
"""
import torch
import torch.distributed as dist
from torch import Tensor

from .estimates import merge_over_ranks, store_estimates, updated_estimates
from .planes import (
    as_dtype,
    dense_format,
    plane_affine,
    plane_affine2,
    plane_affine_of_normalized,
    plane_dots,
    plane_moments,
)


def batch_statistics_of(plane_mean, plane_std, count, running_mean, running_var, rate, update: bool,
                        batch_statistics: bool, sync: bool):
    """Mean and variance of Eq. 40, the number of values they are computed from, and the updated estimates."""
    updated = None, None, None
    if batch_statistics or update:
        images = plane_mean.shape[0]
        batch_mean = plane_mean.sum(0) * (1 / images)
        # Algorithm 1: from the estimate before the update
        deviation = plane_mean - (batch_mean if batch_statistics else running_mean.to(plane_mean.dtype))
        batch_var = (plane_std * plane_std + deviation * deviation).sum(0) * (1 / images)
    if batch_statistics:
        if sync:
            batch_mean, batch_var, count = merge_over_ranks(batch_mean, batch_var, count)
        mean, var = batch_mean, batch_var
        batch_var = batch_var * (count / (count - 1))  # BatchNorm stores the unbiased one
    if update:
        updated = updated_estimates(running_mean, running_var, batch_mean, batch_var, rate)
        running_mean, running_var, _ = updated
    if not batch_statistics:
        mean, var = as_dtype(plane_mean.dtype, running_mean, running_var)
    return mean, var, count, updated


class _BatchChannelNorm(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, batch_weight, batch_bias, channel_weight, channel_bias, running_mean, running_var, rate,
                num_groups: int, update: bool, batch_statistics: bool, eps: float, sync: bool):
        ctx.batch_statistics, ctx.sync, ctx.format = batch_statistics, sync, dense_format(x) or torch.contiguous_format
        ctx.dtype = torch.promote_types(x.dtype, torch.float32)
        dense, gamma_b, beta_b, gamma_c, beta_c = as_dtype(ctx.dtype, x, batch_weight, batch_bias, channel_weight,
                                                           channel_bias)
        dense = dense.contiguous(memory_format=ctx.format)
        moments = plane_moments(dense)
        plane_mean, plane_std = moments.mean, moments.rstd.reciprocal()
        group_channels = x.shape[1] // num_groups
        by_groups = (x.shape[0], num_groups, group_channels)

        mean, var, ctx.count, updated = batch_statistics_of(plane_mean, plane_std, x.numel() // x.shape[1],
                                                            running_mean, running_var, rate, update,
                                                            batch_statistics, sync)

        # z = offset + spread * u, by Eq. 40, then by Eq. 42
        inverse_sigma = torch.rsqrt(var + eps)
        scale = gamma_b * inverse_sigma
        deviation = plane_mean - mean
        offset = (scale * deviation + beta_b).view(by_groups)
        spread = (scale * plane_std).view(by_groups)
        per_channel = 1 / group_channels
        offset = offset - offset.sum(2, keepdim=True) * per_channel
        rstd = torch.rsqrt((offset * offset + spread * spread).sum(2, keepdim=True) * per_channel + eps)
        offset, spread = rstd * offset, rstd * spread
        gamma_c, beta_c = gamma_c[:, None], beta_c[:, None]
        y = plane_affine_of_normalized(moments, dense, (gamma_c * spread).view_as(plane_mean),
                                       (gamma_c * offset + beta_c).view_as(plane_mean))

        ctx.save_for_backward(x, plane_mean, moments.rstd, plane_std, deviation, inverse_sigma, scale, offset, spread,
                              gamma_c * rstd)
        ctx.mark_non_differentiable(*[tensor for tensor in updated if tensor is not None])
        ctx.set_materialize_grads(False)
        return y.to(x.dtype), *updated

    @staticmethod
    def backward(ctx, dy, *_):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError('the fused batch_channel_norm has no second derivative; '
                               "choose the one that has by impl='reference' or WSBCN_IMPL=reference")
        x, plane_mean, plane_rstd, plane_std, deviation, inverse_sigma, scale, offset, spread, gain = ctx.saved_tensors
        input_dtype = x.dtype
        dy = torch.zeros_like(x) if dy is None else dy  # unused output, but other ranks may wait for this one
        x, dy = (t.contiguous(memory_format=ctx.format) for t in as_dtype(ctx.dtype, x, dy))
        planes, by_groups = plane_mean.shape, offset.shape
        per_pixel, per_channel = planes.numel() / x.numel(), 1 / by_groups[2]

        # Per plane, the sums of dy and of dy u; per group, the sums of dy and of dy z
        sum_dy, dot_dy = (sums.view(by_groups) for sums in plane_dots(dy, x, plane_mean, plane_rstd))
        group_sum = sum_dy.sum(2, keepdim=True)
        group_dot = (offset * sum_dy + spread * dot_dy).sum(2, keepdim=True)

        # Through Eq. 42: dz = gain (dy - constant - slope * u); constant, slope and dz summed over the plane's pixels
        constant = (offset * group_dot + group_sum) * per_channel
        slope = spread * group_dot * per_channel
        sum_dz = (gain * (sum_dy - constant)).view(planes)
        dot_dz = (gain * (dot_dy - slope)).view(planes)

        # Through Eq. 40: z = gamma_b (x - mean) / sigma + beta_b
        d_batch_bias = sum_dz.sum(0)
        d_batch_weight = inverse_sigma * (deviation * sum_dz + plane_std * dot_dz).sum(0)
        scale_dy = (gain * scale.view(by_groups[1:])).view(planes)
        factor = scale_dy * -per_pixel
        scale_x = factor * slope.view(planes) * plane_rstd
        shift = factor * constant.view(planes)
        if ctx.batch_statistics:  # Eq. 43: mean and sigma are functions of x too
            totals = torch.cat([d_batch_bias, d_batch_weight])
            if ctx.sync:
                dist.all_reduce(totals)
            bias_mean, weight_mean = (totals / ctx.count).chunk(2)
            through_sigma = scale * inverse_sigma * weight_mean
            scale_x = scale_x - through_sigma
            shift = shift - (scale * bias_mean + through_sigma * deviation)
        dx = plane_affine2(dy, x, scale_dy, scale_x, shift - scale_x * plane_mean)
        return (dx.to(input_dtype), d_batch_weight, d_batch_bias, group_dot.sum((0, 2)), group_sum.sum((0, 2)),
                *[None] * 8)


def repeated_fused(channel_weight: Tensor, channel_bias: Tensor, saved: list[Tensor]) -> Tensor:
    """Recompute the output of a forward pass from the tensors it saved."""
    x, plane_mean, plane_rstd, *_, offset, spread, _ = saved
    dense, gamma_c, beta_c = as_dtype(plane_mean.dtype, x, channel_weight[:, None], channel_bias[:, None])
    dense = dense.contiguous(memory_format=dense_format(x) or torch.contiguous_format)
    scale, shift = (gamma_c * spread).view_as(plane_mean), (gamma_c * offset + beta_c).view_as(plane_mean)
    return plane_affine(dense, plane_mean, scale * plane_rstd, shift).to(x.dtype)


def batch_channel_norm_fused(x: Tensor, batch_weight: Tensor, batch_bias: Tensor, running_mean: Tensor,
                             running_var: Tensor, channel_weight: Tensor, channel_bias: Tensor, num_groups: int,
                             update: bool, batch_statistics: bool, rate: float | Tensor, eps: float, sync: bool,
                             skipped_updates: Tensor | None) -> Tensor:
    """Same arguments and result as :func:`~.reference.batch_channel_norm_reference`; any device."""
    y, *updated = _BatchChannelNorm.apply(x, batch_weight, batch_bias, channel_weight, channel_bias, running_mean,
                                        running_var, rate, num_groups, update, batch_statistics, eps, sync)
    if update:
        store_estimates(running_mean, running_var, skipped_updates, *updated)
    return y
