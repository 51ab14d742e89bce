"""Batch-Channel Normalization in two passes over the activation each way, from stock PyTorch operators.

Per-plane (image and channel) mean and variance determine everything: the batch statistics, the moved estimates and,
through the per-channel affine map of Eq. 40, the group statistics of Eq. 42. So the layer is one reduction over x and
one map ``y = a (x - m) + d`` with (B, C)-sized a, m, d; backward is one reduction over (dy, x) and one map
``dx = A dy + B x + C``. Only x and tensors of size (B, C) or smaller are kept for backward.
"""
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .estimates import merge_over_ranks, move_estimates
from .planes import dense_format, plane_affine, plane_affine2, plane_dots, plane_moments


class Statistics(NamedTuple):
    """What normalisation needs to know of an activation of shape (B, C, *), G groups of channels."""
    plane_mean: Tensor  # (B, C), over the pixels of a plane
    plane_var: Tensor  # (B, C), biased
    mean: Tensor  # (C,), the batch statistics or estimates of Eq. 40
    var: Tensor  # (C,)
    count: int | Tensor  # values per channel behind mean and var, over all ranks


def batch_statistics_of(plane_mean: Tensor, plane_var: Tensor, pixels: int, sync: bool):
    """Mean, biased variance (C,) and count of the batch, over all ranks if ``sync``."""
    mean = plane_mean.mean(0)
    var = (plane_var + (plane_mean - mean).square()).mean(0)
    count = pixels * len(plane_mean)
    return merge_over_ranks(mean, var, count) if sync else (mean, var, count)


def _grouped(per_plane: Tensor, num_groups: int) -> Tensor:
    return per_plane.view(len(per_plane), num_groups, -1)


def group_statistics(stats: Statistics, batch_weight, batch_bias, num_groups: int, eps: float):
    """Everything Eq. 40 and 42 need, from the plane moments alone.

    Returns:
        scale (C,): gamma^b / sigma. offset (B, G, C/G): mean of a plane of Eq. 40's output, from its group's mean.
        rstd (B, G, 1): one over the group's deviation.
    """
    scale = batch_weight / torch.sqrt(stats.var + eps)
    plane = _grouped(scale * (stats.plane_mean - stats.mean) + batch_bias, num_groups)
    offset = plane - plane.mean(2, keepdim=True)
    within = _grouped(scale.square() * stats.plane_var, num_groups)
    rstd = torch.rsqrt((within + offset.square()).mean(2, keepdim=True) + eps)
    return scale, offset, rstd


class _BatchChannelNorm(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, batch_weight, batch_bias, channel_weight, channel_bias, running_mean, running_var, rate,
                num_groups: int, move: bool, batch_statistics: bool, eps: float, sync: bool):
        ctx.num_groups, ctx.eps, ctx.sync, ctx.batch_statistics = num_groups, eps, sync, batch_statistics
        ctx.input_dtype, ctx.dtype = x.dtype, torch.promote_types(x.dtype, torch.float32)
        ctx.format = dense_format(x) or torch.contiguous_format
        dense = x.to(ctx.dtype).contiguous(memory_format=ctx.format)
        plane_mean, plane_var, memory = plane_moments(dense)
        pixels, finite = x[0, 0].numel(), None

        if batch_statistics:
            mean, var, count = batch_statistics_of(plane_mean, plane_var, pixels, sync)
            if move:
                running_mean, running_var, finite = move_estimates(running_mean, running_var, mean,
                                                                   var * (count / (count - 1)), rate)
        else:
            count = pixels * len(x)
            if move:
                batch_mean = plane_mean.mean(0)
                batch_var = (plane_var + (plane_mean - running_mean.to(ctx.dtype)).square()).mean(0)
                running_mean, running_var, finite = move_estimates(running_mean, running_var, batch_mean, batch_var,
                                                                   rate)
            mean, var = running_mean.to(ctx.dtype), running_var.to(ctx.dtype)
        if finite is None:
            running_mean, running_var = running_mean.clone(), running_var.clone()  # outputs may not be inputs
            finite = torch.ones_like(running_mean, dtype=torch.bool)

        stats = Statistics(plane_mean, plane_var, mean, var, count)
        gamma_b, beta_b, gamma_c, beta_c = (p.to(ctx.dtype)
                                            for p in (batch_weight, batch_bias, channel_weight, channel_bias))
        scale, offset, rstd = group_statistics(stats, gamma_b, beta_b, num_groups, eps)
        gain = gamma_c[:, None] * rstd  # (B, G, 1)
        plane_scale = gain * _grouped(scale.expand_as(plane_mean), num_groups)
        plane_shift = gain * offset + beta_c[:, None]
        y = plane_affine(dense, plane_mean, plane_scale.view_as(plane_mean), plane_shift.view_as(plane_mean),
                         out=memory)

        ctx.count = count
        ctx.save_for_backward(x, batch_weight, batch_bias, channel_weight, *stats[:4])
        ctx.mark_non_differentiable(running_mean, running_var, finite)
        return y.to(x.dtype), running_mean, running_var, finite

    @staticmethod
    def backward(ctx, dy, *_):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError('the fused batch_channel_norm has no second derivative; '
                               "choose the one that has by impl='reference' or WSBCN_IMPL=reference")
        x, batch_weight, batch_bias, channel_weight, *tensors = ctx.saved_tensors
        stats = Statistics(*tensors, ctx.count)
        groups = ctx.num_groups
        gamma_b, beta_b, gamma_c = (p.to(ctx.dtype) for p in (batch_weight, batch_bias, channel_weight))
        x, dy = (t.to(ctx.dtype).contiguous(memory_format=ctx.format) for t in (x, dy))
        scale, offset, rstd = group_statistics(stats, gamma_b, beta_b, groups, ctx.eps)
        pixels = x[0, 0].numel()

        sum_dy, dot_dy = plane_dots(dy, x, stats.plane_mean)  # over a plane: dy, dy (x - m)
        grouped_scale = _grouped(scale.expand_as(sum_dy), groups)
        # dy times the group-normalised value, summed over each plane
        dot_normalised = rstd * (grouped_scale * _grouped(dot_dy, groups) + offset * _grouped(sum_dy, groups))
        d_channel_weight = dot_normalised.sum((0, 2))
        d_channel_bias = _grouped(sum_dy, groups).sum((0, 2))

        # Through Eq. 42: its input's gradient is rstd * (gamma_c dy - mean_1 - normalised * mean_2)
        gain = gamma_c[:, None] * rstd
        values = pixels * offset.shape[2]  # a group's
        mean_1 = gamma_c[:, None] * _grouped(sum_dy, groups).sum(2, keepdim=True) / values
        mean_2 = gamma_c[:, None] * dot_normalised.sum(2, keepdim=True) / values
        slope = -rstd.square() * mean_2  # per unit of Eq. 40's output
        constant = -rstd * mean_1 + slope * offset
        sum_dz = (gain * _grouped(sum_dy, groups) + pixels * constant).view_as(sum_dy)
        dot_dz = (gain * _grouped(dot_dy, groups)).view_as(sum_dy) + pixels * stats.plane_var * (
            slope * grouped_scale).view_as(sum_dy)

        # Through Eq. 40, z = gamma_b (x - mean) / sigma + beta_b
        sigma = torch.sqrt(stats.var + ctx.eps)
        from_mean = (stats.plane_mean - stats.mean) / sigma
        d_batch_bias = sum_dz.sum(0)
        d_batch_weight = (dot_dz / sigma + from_mean * sum_dz).sum(0)
        scale_dy = (gain * grouped_scale).view_as(sum_dy)
        scale_x = scale * (slope * grouped_scale).view_as(sum_dy)
        shift = scale * constant.view_as(sum_dy)
        if ctx.batch_statistics:  # Eq. 43: mean and sigma are functions of x too
            totals = torch.cat([d_batch_bias, d_batch_weight])
            if ctx.sync:
                dist.all_reduce(totals)
            bias_mean, weight_mean = (totals / stats.count).chunk(2)
            scale_x = scale_x - scale * weight_mean / sigma
            shift = shift - scale * (bias_mean + from_mean * weight_mean)
        dx = plane_affine2(dy, x, scale_dy, scale_x, shift - scale_x * stats.plane_mean)

        return (dx.to(ctx.input_dtype), d_batch_weight.to(batch_weight.dtype),
                d_batch_bias.to(batch_bias.dtype), d_channel_weight.to(channel_weight.dtype),
                d_channel_bias.to(channel_weight.dtype), *[None] * 8)


def batch_channel_norm_fused(x: Tensor, batch_weight: Tensor, batch_bias: Tensor, running_mean: Tensor,
                             running_var: Tensor, channel_weight: Tensor, channel_bias: Tensor, num_groups: int,
                             mode: str, move: bool, batch_statistics: bool, rate: float | Tensor, eps: float,
                             sync: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Same arguments and results as :func:`~.reference.batch_channel_norm_reference`; any device."""
    return _BatchChannelNorm.apply(x, batch_weight, batch_bias, channel_weight, channel_bias, running_mean,
                                   running_var, rate, num_groups, move, batch_statistics, eps, sync)
