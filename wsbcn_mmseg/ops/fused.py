"""Batch-Channel Normalization in two passes over the activation each way, from stock PyTorch operators.

Per-plane (image and channel) mean and variance determine everything: the batch statistics, the moved estimates and,
through the per-channel affine map of Eq. 40, the group statistics of Eq. 42. So the layer is one reduction over x and
one map ``y = a (x - m) + d`` with (B, C)-sized a, m, d; backward is one reduction over (dy, x) and one map
``dx = A dy + B x + C``. Only x and tensors of size (B, C) or smaller are kept for backward.

Shapes below: (B, C) per plane, the same as (B, G, C/G) by groups, (B, G, 1) per group of an image, (C,) per channel.
"""
import torch
import torch.distributed as dist
from torch import Tensor, addcmul

from .estimates import merge_over_ranks, move_estimates
from .planes import dense_format, plane_affine2, plane_affine_of, plane_dots, plane_moments


class _BatchChannelNorm(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, batch_weight, batch_bias, channel_weight, channel_bias, running_mean, running_var, rate,
                num_groups: int, move: bool, batch_statistics: bool, eps: float, sync: bool):
        ctx.batch_statistics, ctx.sync = batch_statistics, sync
        ctx.input_dtype, ctx.dtype = x.dtype, torch.promote_types(x.dtype, torch.float32)
        ctx.format = dense_format(x) or torch.contiguous_format
        dense = x.to(ctx.dtype).contiguous(memory_format=ctx.format)
        gamma_b, beta_b, gamma_c, beta_c = (p.to(ctx.dtype)
                                            for p in (batch_weight, batch_bias, channel_weight, channel_bias))
        moments = plane_moments(dense)
        plane_mean, plane_var = moments.mean, moments.var
        by_groups = (len(x), num_groups, -1)

        # The mean and variance of Eq. 40
        finite = None
        ctx.count = x.numel() // x.shape[1]
        if batch_statistics or move:
            batch_mean = plane_mean.mean(0)
            mean = batch_mean if batch_statistics else running_mean.to(ctx.dtype)  # Algorithm 1: before the update
            deviation = plane_mean - mean
            batch_var = addcmul(plane_var, deviation, deviation).mean(0)
        if batch_statistics:
            if sync:
                batch_mean, batch_var, ctx.count = merge_over_ranks(batch_mean, batch_var, ctx.count)
            mean, var = batch_mean, batch_var
            batch_var = batch_var * (ctx.count / (ctx.count - 1))  # BatchNorm stores the unbiased one
        if move:
            running_mean, running_var, finite = move_estimates(running_mean, running_var, batch_mean, batch_var, rate)
        if not batch_statistics:
            mean, var = running_mean.to(ctx.dtype), running_var.to(ctx.dtype)

        # Eq. 40 is an affine map per channel, Eq. 42 one per group of an image: together, one per plane
        inverse_sigma = torch.rsqrt(var + eps)
        scale = gamma_b * inverse_sigma
        deviation = plane_mean - mean
        plane = addcmul(beta_b, scale, deviation).view(by_groups)  # mean of Eq. 40's output over each plane
        offset = plane - plane.mean(2, keepdim=True)
        within = (scale.square() * plane_var).view(by_groups)
        rstd = torch.rsqrt(addcmul(within, offset, offset).mean(2, keepdim=True) + eps)
        gain = gamma_c[:, None] * rstd
        y = plane_affine_of(moments, dense, (gain * scale.view(num_groups, -1)).view_as(plane_mean),
                            addcmul(beta_c[:, None], gain, offset).view_as(plane_mean))

        ctx.save_for_backward(x, plane_mean, plane_var, deviation, inverse_sigma, scale, offset, rstd, gain)
        if not move:
            running_mean, running_var = running_mean.clone(), running_var.clone()  # outputs may not be inputs
        ctx.mark_non_differentiable(*[t for t in (running_mean, running_var, finite) if t is not None])
        return y.to(x.dtype), running_mean, running_var, finite

    @staticmethod
    def backward(ctx, dy, *_):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError('the fused batch_channel_norm has no second derivative; '
                               "choose the one that has by impl='reference' or WSBCN_IMPL=reference")
        x, plane_mean, plane_var, deviation, inverse_sigma, scale, offset, rstd, gain = ctx.saved_tensors
        x, dy = (t.to(ctx.dtype).contiguous(memory_format=ctx.format) for t in (x, dy))
        pixels, planes = x[0, 0].numel(), plane_mean.shape
        grouped_scale = scale.view(offset.shape[1:])

        # Of each plane: sum of dy, and of dy (x - m). Of each group: the same of dy times the normalised value
        sum_dy, dot_dy = (sums.view(offset.shape) for sums in plane_dots(dy, x, plane_mean))
        group_sum = sum_dy.sum(2, keepdim=True)
        group_dot = rstd * addcmul(grouped_scale * dot_dy, offset, sum_dy).sum(2, keepdim=True)

        # Through Eq. 42: dz = gain dy + slope z + constant, where z is Eq. 40's output from its mean over the plane
        factor = gain * (-1 / (pixels * offset.shape[2]))
        slope = factor * rstd * group_dot
        constant = addcmul(factor * group_sum, slope, offset)
        slope = slope * grouped_scale  # per unit of x
        sum_dz = addcmul(pixels * constant, gain, sum_dy).view(planes)
        dot_dz = addcmul(gain * dot_dy, slope, plane_var.view(offset.shape), value=pixels).view(planes)

        # Through Eq. 40: z = gamma_b (x - mean) / sigma + beta_b
        d_batch_bias = sum_dz.sum(0)
        d_batch_weight = inverse_sigma * addcmul(dot_dz, deviation, sum_dz).sum(0)
        scale_dy = (gain * grouped_scale).view(planes)
        scale_x = (slope * grouped_scale).view(planes)
        shift = (constant * grouped_scale).view(planes)
        if ctx.batch_statistics:  # Eq. 43: mean and sigma are functions of x too
            totals = torch.cat([d_batch_bias, d_batch_weight])
            if ctx.sync:
                dist.all_reduce(totals)
            bias_mean, weight_mean = (totals / ctx.count).chunk(2)
            through_sigma = scale * inverse_sigma * weight_mean
            scale_x = scale_x - through_sigma
            shift = shift - addcmul(scale * bias_mean, through_sigma, deviation)
        dx = plane_affine2(dy, x, scale_dy, scale_x, addcmul(shift, scale_x, plane_mean, value=-1))
        return (dx.to(ctx.input_dtype), d_batch_weight, d_batch_bias, group_dot.sum((0, 2)), group_sum.sum((0, 2)),
                *[None] * 8)


def batch_channel_norm_fused(x: Tensor, batch_weight: Tensor, batch_bias: Tensor, running_mean: Tensor,
                             running_var: Tensor, channel_weight: Tensor, channel_bias: Tensor, num_groups: int,
                             move: bool, batch_statistics: bool, rate: float | Tensor, eps: float,
                             sync: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Same arguments and results as :func:`~.reference.batch_channel_norm_reference`; any device."""
    return _BatchChannelNorm.apply(x, batch_weight, batch_bias, channel_weight, channel_bias, running_mean,
                                   running_var, rate, num_groups, move, batch_statistics, eps, sync)
