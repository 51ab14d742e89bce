"""Weight Standardization (Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization", Eq. 5-7): every output channel's kernel gets mean 0 and variance 1 over its fan-in.

The authors' published code divides by other deviations (the unbiased one, with eps inside or outside the root); this
is the equation of the paper.
"""
import math

import torch
from torch import Tensor

from .arguments import check_flag, check_number


def standardize_rows(rows: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize the rows of a matrix (O, I) to mean 0 and variance 1 by one fused operator. Returns the rows, and their
    mean and 1/deviation, shape (O,) each. Differentiable twice.

    This is layer normalization. On the CPU, group normalization with one channel per group is the faster kernel for it.
    """
    if rows.is_cpu and not torch.jit.is_tracing():  # exporters support layer normalization only
        outputs, fan_in = rows.shape
        groups = rows.contiguous()[None]  # one image of O channels; sizes from the tensor itself, for exporters
        groups, mean, rstd = torch.native_group_norm(groups, None, None, 1, outputs, fan_in, outputs, eps)
        return groups[0], mean, rstd
    return torch.native_layer_norm(rows, rows.shape[1:], None, None, eps)


def standardize_rows_backward(gradient: Tensor, rows: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Backward of :func:`standardize_rows`: the gradient with respect to ``rows``, shape (O, I). Not differentiable. On
    the CPU it takes half the time of autograd.

    Args:
        gradient, rows: Gradient of the standardized rows, and the raw rows, shape (O, I).
        mean, rstd: Results of :func:`standardize_rows`.
    """
    return torch.ops.aten.native_layer_norm_backward(gradient, rows, rows.shape[1:], mean.view(-1, 1), rstd.view(-1, 1),
                                                     None, None, [True, False, False])[0]


def check_fan_in(method: str, weight: Tensor) -> None:
    """Raise an error if a kernel has one value per output channel: it cannot be centered or scaled over its fan-in.

    Raises:
        ValueError: If ``weight`` is such a kernel; the message names ``method``.
    """
    if math.prod(weight.shape[1:]) < 2:
        raise ValueError(f'{method} needs a fan-in of at least 2, got a kernel of shape {tuple(weight.shape)}: with '
                         'one value per output channel the result does not depend on it; use a plain convolution')


def standardize_weight(weight: Tensor, eps: float = 1e-5, *, center: bool = True, scale: bool = True) -> Tensor:
    r"""Standardize a convolution kernel over its fan-in (Eq. 5-7).

    .. math:: \hat W_{o,i} = (W_{o,i} - \mu_o) / \sqrt{\sigma_o^2 + \epsilon}

    with the mean and the *biased* variance over the fan-in of each output channel. Twice differentiable. Statistics are
    computed in float32 or higher precision, and one weight-sized tensor is saved for backward: the weight itself.

    Args:
        weight: Kernel of shape (O, I/groups, *kernel_size), floating point.
        eps: Added to the variance, inside the root. Defaults to 1e-5.
        center: Subtract the mean (Eq. 11). False is the ablation "/ div" of Table 4. Defaults to True.
        scale: Divide by the standard deviation (Eq. 12). False is the ablation "- mean" of Table 4. Defaults to True.

    Returns:
        The standardized kernel, same shape and dtype.

    Raises:
        ValueError: If the fan-in is 1 (such as depth-wise 1x1), where the result would be zero for every weight,
            or ``eps`` is not above 0.

    Examples:
        >>> w = standardize_weight(torch.randn(8, 3, 3, 3)).flatten(1)
        >>> assert w.mean(1).abs().max() < 1e-6 and (w.var(1, unbiased=False) - 1).abs().max() < 1e-4
    """
    if not torch.jit.is_tracing():
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() < 2:
            got = f'{weight.dtype} of shape {tuple(weight.shape)}' if isinstance(weight, Tensor) else repr(weight)
            raise ValueError(f'expected a floating-point kernel of shape (O, I, *), got {got}')
        check_fan_in('Weight Standardization', weight)
        check_number('eps', eps, 0)
        check_flag('center', center)
        check_flag('scale', scale)
    if weight.shape[0] == 0:
        return weight.clone()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    flat = weight.to(dtype).flatten(1)
    if center and scale:
        flat, _, _ = standardize_rows(flat, eps)
    elif center:
        flat = flat - flat.mean(1, keepdim=True)
    elif scale:
        flat = flat * (flat.var(1, correction=0, keepdim=True) + eps).rsqrt()
    return flat.view_as(weight).to(weight.dtype)
