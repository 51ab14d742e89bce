"""A convolution by the standardized kernel that keeps the raw kernel for backward, not both.

Composed plainly, standardization keeps W and the convolution keeps the standardized one: as many bytes again as the
network has weights. One pass over W makes it again in backward.
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
        if torch.is_grad_enabled():  # a second derivative is wanted
            # Of aliases: x itself may depend on weight, as where a layer runs twice, which is not this step's part
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

    Under autocast the convolution computes in its dtype; the statistics are taken in float32 at least all the same.

    Args:
        x: Input of shape (N, I, *pixels), one to three trailing dimensions.
        weight: Raw kernel W of shape (O, I/groups, *kernel_size).
        bias: Shape (O,) or None.
        stride, padding, dilation: One number per trailing dimension.
        groups: Groups of channels of the convolution.
        eps: See :func:`~wsbcn_mmseg.ops.standardize_weight`.

    Returns:
        Output of the convolution, shape (N, O, *).
    """
    settings = tuple(stride), tuple(padding), tuple(dilation), groups, eps
    # Compilers choose themselves what to keep
    keeps = torch.is_grad_enabled() and not torch.compiler.is_compiling() and not needs_plain_operations()
    convolution = _StandardizedConvolution.apply if keeps else _composed
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return convolution(x, weight, bias, *settings, weight.dtype)
    dtype = x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(device)  # which leaves float64 alone
    with torch.autocast(device, enabled=False):
        return convolution(x.to(dtype), weight, bias, *settings, dtype)
