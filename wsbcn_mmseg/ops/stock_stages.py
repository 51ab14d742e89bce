"""The stages of a call of the Triton kernels, from stock operators. They take over if a launch fails during a call.

The results of earlier stages (updated estimates, results of collectives) stay valid, so nothing is done twice.
Activations are dense; ``kept`` and ``scratch`` are laid out as in :mod:`.triton_kernels`.
"""
import torch
from torch import Tensor

from .estimates import store_estimates
from .fused import batch_statistics_of
from .planes import plane_affine, plane_affine2, plane_dots, plane_moments


def planes_of(kept: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``kept`` into mean, variance, scale and shift of every plane, (4, B, C), and mean and variance of Eq. 40,
    (2, C)."""
    images, channels = x.shape[:2]
    return (kept[:4 * images * channels].view(4, images, channels), kept[4 * images * channels:].view(2, channels))


def statistics(x: Tensor, parameters: list[Tensor], call) -> tuple[Tensor, None]:
    """Reduce and combine; returns ``kept``, and no partial moments. Updates the estimates."""
    moments = plane_moments(x.float())
    plane_std = moments.rstd.reciprocal()
    count = max(x.numel() // x.shape[1], 2)  # may be 1 on one of several ranks; their total count is applied later
    mean, var, _, updated = batch_statistics_of(moments.mean, plane_std, count, call.running_mean, call.running_var,
                                                call.rate, call.update, call.batch_statistics, False)
    if call.update:
        store_estimates(call.running_mean, call.running_var, call.skipped_updates, *updated)
    plane_var = plane_std.square()
    scale, shift = _scale_and_shift(moments.mean, plane_var, mean, var, parameters, call.eps)
    return torch.cat([t.flatten() for t in (moments.mean, plane_var, scale, shift, mean, var)]), None


def given_statistics(x: Tensor, parameters: list[Tensor], call, kept: Tensor, _: Tensor | None) -> None:
    """Combine again, with the given statistics instead of the estimates."""
    planes, statistics = planes_of(kept, x)
    statistics.copy_(torch.stack([call.running_mean, call.running_var]))
    planes[2:].copy_(torch.stack(_scale_and_shift(*planes[:2], *statistics, parameters, call.eps)))


def output(x: Tensor, kept: Tensor, call) -> Tensor:
    """The map."""
    (mean, _, scale, shift), _ = planes_of(kept, x)
    y = plane_affine(x.float(), mean, scale, shift)
    return (y.relu_() if call.relu else y).to(x.dtype)


def gradients(dy: Tensor, x: Tensor, kept: Tensor, parameters: list[Tensor], call) -> tuple[Tensor, list[Tensor]]:
    """Reduce and combine of backward; returns ``scratch``, and the gradients of the four parameters.

    Autograd differentiates the small tensors: y = scale (x - mean) + shift, where scale and shift are functions of the
    planes' means and variances.
    """
    planes, statistics = planes_of(kept, x)
    dy = _passed(dy, x, planes, call.relu)
    sums, dots = plane_dots(dy, x.float(), planes[0], torch.ones_like(planes[0]))
    batch_weight, batch_bias, channel_weight = parameters
    with torch.enable_grad():
        leaves = [t.detach().float().requires_grad_() for t in (planes[0], planes[1], batch_weight, batch_bias,
                                                                channel_weight, torch.zeros_like(channel_weight))]
        mean, var = statistics
        if call.batch_statistics and not call.sync:
            mean = leaves[0].mean(0)
            var = (leaves[1] + (leaves[0] - mean).square()).mean(0)
        scale, shift = _scale_and_shift(*leaves[:2], mean, var, leaves[2:], call.eps)
    d_mean, d_var, *of_parameters = torch.autograd.grad([scale, shift], leaves, [dots, sums])
    pixels = x.numel() // planes[0].numel()
    coefficients = torch.stack([scale.detach(), 2 / pixels * d_var, (d_mean - scale.detach() * sums) / pixels])
    types = batch_weight.dtype, batch_weight.dtype, channel_weight.dtype, channel_weight.dtype
    return coefficients.flatten(), [t.to(dtype) for t, dtype in zip(of_parameters, types, strict=True)]


def input_gradient(dy: Tensor, x: Tensor, kept: Tensor, scratch: Tensor, call) -> Tensor:
    """The map of backward."""
    planes, _ = planes_of(kept, x)
    of_dy, of_x, constant = scratch[:3 * planes[0].numel()].view(3, *planes[0].shape)
    dx = plane_affine2(_passed(dy, x, planes, call.relu), x.float(), of_dy, of_x, constant - of_x * planes[0])
    return dx.to(x.dtype)


def _passed(dy: Tensor, x: Tensor, planes: Tensor, relu: bool) -> Tensor:
    """Gradients in float32, 0 where the output of ReLU is 0. NaN passes."""
    dy = dy.float()
    return dy.masked_fill(plane_affine(x.float(), planes[0], planes[2], planes[3]) <= 0, 0) if relu else dy


def _scale_and_shift(plane_mean, plane_var, mean, var, parameters, eps: float) -> tuple[Tensor, Tensor]:
    """Scale and shift of Eq. 40 and 42 together, y = scale (x - plane_mean) + shift, each (B, C). Differentiable."""
    gamma_b, beta_b, gamma_c, beta_c = (p.float() for p in parameters)
    by_groups = (plane_mean.shape[0], gamma_c.shape[0], -1)
    scale = gamma_b * torch.rsqrt(var + eps)
    offset = (scale * (plane_mean - mean) + beta_b).view(by_groups)
    offset = offset - offset.mean(2, keepdim=True)
    squares = offset.square() + (scale.square() * plane_var).view(by_groups)
    gain = gamma_c[:, None] * torch.rsqrt(squares.mean(2, keepdim=True) + eps)
    return (gain * scale.view(by_groups[1:])).view_as(plane_mean), (gain * offset + beta_c[:, None]).view_as(plane_mean)
