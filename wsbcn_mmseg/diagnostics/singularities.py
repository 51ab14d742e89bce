"""Measures of how far a network is from elimination singularities (Sections 3.2 and 6.1).

A channel is eliminated if ReLU sets it to zero for all inputs, and under-represented if it is small compared with the
channels that are normalized together with it. All functions take per-channel statistics of shape (C,), which
:class:`wsbcn_mmseg.hooks.NormStatisticsHook` collects during training.
"""
from collections.abc import Iterable

import torch
from torch import Tensor


def stat_diff(mean: Tensor, var: Tensor, num_groups: int) -> Tensor:
    """Statistical difference between the channels that are normalized together (Eq. 35).

    It is the standard deviation of the channel means divided by the mean of the channel deviations, without unit. It is
    0 if all channels have the same mean, as after batch normalization, and large if few channels dominate the others.

    Args:
        mean, var: Running mean and variance of each channel after a convolution, before the norm; shape (C,).
        num_groups: Groups of channels that are normalized together; a divisor of C.

    Returns:
        StatDiff of each group, shape (num_groups,).
    """
    means, deviations = mean.view(num_groups, -1), var.sqrt().view(num_groups, -1)
    return means.std(1, correction=0) / deviations.mean(1)


def eliminated(maximum: Tensor) -> Tensor:
    """Which channels are always deactivated (Section 3.2): their largest value after the norm is below 0.

    Args:
        maximum: Largest value of each channel after the norm, before ReLU, over a window of iterations; shape (C,).

    Returns:
        bool of shape (C,).
    """
    return maximum < 0


def under_represented(size: Tensor, fraction: float = .1) -> Tensor:
    """Which channels are small compared with the others of their layer (Section 6.1.2).

    Args:
        size: How often each channel is active, in [0, 1], or its scale, the deviation after the norm; shape (C,).
        fraction: A channel counts if it is below this fraction of the layer's median. Defaults to 0.1.

    Returns:
        bool of shape (C,).
    """
    return size < fraction * size.median()


def distance_to_batch_norm(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """How far normalized channels are from mean 0 and variance 1, which batch normalization gives (Section 6.1.3).

    The coordinates are sigma_mu and sigma_sigma of Eq. 33 and Fig. 5, estimated from the layer's channels as root mean
    squares about the values of batch normalization.

    Args:
        mean, var: Mean and variance of each channel after the norm and before its affine map; shape (C,).

    Returns:
        Two 0-dim tensors: the root mean square of the means, and that of the logarithms of the deviations. Both are 0
        for batch normalization.
    """
    return mean.square().mean().sqrt(), (var.log() / 2).square().mean().sqrt()


def weight_elimination(weights: Iterable[Tensor]) -> Tensor:
    """The older measure, on weights (Section 3.2): the mean over layers of min |w_c|_1 / avg |w_c|_1.

    w_c are the weights of input channel c. The result is 0 if every layer ignores one of its input channels. The paper
    finds 0.55 in a trained ResNet-50, and therefore measures activations instead.

    Args:
        weights: Kernels of shape (O, I, *kernel_size) of ungrouped convolutions.

    Returns:
        A 0-dim tensor in [0, 1].

    Raises:
        ValueError: If there are no kernels.
    """
    norms = [weight.abs().transpose(0, 1).flatten(1).sum(1) for weight in weights]
    if not norms:
        raise ValueError('expected at least one kernel, got none')
    return torch.stack([norm.min() / norm.mean() for norm in norms]).mean()
