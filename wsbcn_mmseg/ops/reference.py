"""Batch-Channel Normalization written out: Algorithm 1 and Eq. 43 in plain differentiable operations.

This reference implementation is used to test the fast ones, and by tracers, exporters and torch.func. It is
differentiable any number of times and keeps several copies of the activation for backward.
"""
import torch
from torch import Tensor

from .estimates import merge_over_ranks, update_estimates


def batch_channel_norm_reference(x: Tensor, batch_weight: Tensor, batch_bias: Tensor, running_mean: Tensor,
                                 running_var: Tensor, channel_weight: Tensor, channel_bias: Tensor, num_groups: int,
                                 update: bool, batch_statistics: bool, rate: float | Tensor, eps: float,
                                 sync: bool, skipped_updates: Tensor | None) -> Tensor:
    """See :func:`~wsbcn_mmseg.ops.batch_channel_norm`. ``update`` says whether to update the estimates,
    ``batch_statistics`` whether to normalize by the batch (Eq. 43) instead of the estimates.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    inputs, x = x, x.to(dtype)
    pixels = [0, *range(2, x.dim())]  # the mean over these dimensions is the batch mean of a channel
    per_channel = (-1, *[1] * (x.dim() - 2))

    if batch_statistics:  # Eq. 43: BatchNorm's statistics, with gradient
        mean = x.mean(pixels)
        var = (x - mean.view(per_channel)).square().mean(pixels)
        count = x.numel() // x.shape[1]
        if sync:
            mean, var, count = merge_over_ranks(mean, var, count)
        if update:
            unbiased = var.detach() * (count / (count - 1))
            update_estimates(running_mean, running_var, skipped_updates, mean.detach(), unbiased, rate)
    else:
        if update:  # Algorithm 1, steps 1-4; the deviation is from the estimate before the update
            with torch.no_grad():
                batch_mean = x.mean(pixels)
                batch_var = (x - running_mean.to(dtype).view(per_channel)).square().mean(pixels)
                update_estimates(running_mean, running_var, skipped_updates, batch_mean, batch_var, rate)
        mean, var = running_mean.to(dtype), running_var.to(dtype)

    # Step 5 and Eq. 40
    scale = batch_weight.to(dtype) / torch.sqrt(var + eps)
    x = (x - mean.view(per_channel)) * scale.view(per_channel) + batch_bias.to(dtype).view(per_channel)

    # Steps 6-8 and Eq. 42: one pair of scale and shift per group
    groups = x.reshape(x.shape[0], num_groups, -1)
    centered = groups - groups.mean(2, keepdim=True)
    normalized = centered / torch.sqrt(centered.square().mean(2, keepdim=True) + eps)
    y = normalized * channel_weight.to(dtype)[:, None] + channel_bias.to(dtype)[:, None]
    y = torch.empty_like(inputs).copy_(y.view(x.shape)) if not inputs.is_contiguous() else y.view(x.shape)
    return y.to(inputs.dtype)
