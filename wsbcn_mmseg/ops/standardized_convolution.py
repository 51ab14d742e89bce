"""A convolution with a standardized kernel that saves only the raw kernel for backward.

In the plain composition, standardization saves W and the convolution saves the standardized kernel, which doubles the
memory of the weights. Here backward recomputes the standardized kernel by one pass over W.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from .execution import needs_plain_operations
from .overriding import overridable
from .weight_standardization import standardize_rows, standardize_rows_backward, standardize_weight

aten = torch.ops.aten
_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def _composed(x, weight, bias, stride, padding, dilation, groups, eps, dtype):
    """The plain composition, which defines the result; the convolution computes in ``dtype``."""
    bias = bias if bias is None else bias.to(dtype)
    return _CONVOLUTIONS[weight.dim()](x, standardize_weight(weight, eps).to(dtype), bias, stride, padding, dilation,
                                       groups)


class _StandardizedConvolution(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, weight, bias, *settings):
        ctx.settings = settings
        ctx.save_for_backward(x, weight, bias)
        return _composed(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias = ctx.saved_tensors
        stride, padding, dilation, groups, eps, dtype = ctx.settings
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # for second derivatives
            # Differentiate by aliases: x itself may depend on weight (a layer that runs twice), and that part of the
            # gradient belongs to another step
            x, weight, bias = (None if tensor is None else tensor.view_as(tensor) for tensor in (x, weight, bias))
            inputs = [tensor for tensor, need in zip((x, weight, bias), needed, strict=True) if need]
            gradients = iter(torch.autograd.grad(_composed(x, weight, bias, *ctx.settings), inputs, dy,
                                                 create_graph=True))
            return *(next(gradients) if need else None for need in needed), *[None] * 6

        flat = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)
        standardized, mean, rstd = standardize_rows(flat, eps)
        dx, dw, d_bias = aten.convolution_backward(
            dy, x, standardized.view_as(weight).to(dtype), None if bias is None else bias.shape, stride, padding,
            dilation, False, [0] * len(stride), groups, needed)
        if needed[1]:
            dw = standardize_rows_backward(dw.to(flat.dtype).flatten(1), flat, mean, rstd).view_as(weight)
        return dx, dw, d_bias, *[None] * 6


@overridable
def standardized_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...],
                             padding: tuple[int, ...], dilation: tuple[int, ...], groups: int,
                             eps: float = 1e-5) -> Tensor:
    """Convolve with the standardized kernel (Eq. 5-7); differentiable any number of times.

    Under autocast the convolution computes in the autocast dtype; the statistics are still computed in float32 or
    higher precision.

    Args:
        x: Input of shape (N, I, *pixels), one to three trailing dimensions.
        weight: Raw kernel W of shape (O, I/groups, *kernel_size).
        bias: Tensor of shape (O,) or None.
        stride, padding, dilation: One number per trailing dimension.
        groups: Number of channel groups of the convolution.
        eps: See :func:`~wsbcn_mmseg.ops.standardize_weight`.

    Returns:
        Output of the convolution, shape (N, O, *).
    """
    settings = tuple(stride), tuple(padding), tuple(dilation), groups, eps
    # Compilers decide themselves what to save
    keeps = torch.is_grad_enabled() and not torch.compiler.is_compiling() and not needs_plain_operations()
    convolution = _StandardizedConvolution.apply if keeps else _composed
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return convolution(x, weight, bias, *settings, weight.dtype)
    dtype = x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(device)  # autocast skips float64
    with torch.autocast(device, enabled=False):
        return convolution(x.to(dtype), weight, bias, *settings, dtype)
