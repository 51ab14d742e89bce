"""Convolutions with Weight Standardization (Eq. 5-7)."""
import torch.nn.functional as F
from torch import Tensor, nn

from wsbcn_mmseg.ops import standardize_weight, standardized_convolution
from wsbcn_mmseg.ops.arguments import check_flag, check_number

from .reparametrized_conv import ReparametrizedConv
from .tracing import is_symbolic, leaf_call


class WeightStandardized(ReparametrizedConv):
    """Mixin before ``nn.ConvNd``: convolves with the standardized kernel."""
    center = scale = True  # False only for the ablations of Table 4

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
                 padding_mode='zeros', device=None, dtype=None, eps: float = 1e-5, center: bool = True,
                 scale: bool = True):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
                         device, dtype)
        self.eps = check_number('eps', eps, 0)
        self.center, self.scale = check_flag('center', center), check_flag('scale', scale)

    def effective_weight(self) -> Tensor:
        """The kernel of the convolution, shape of ``weight``: mean 0, variance 1 per output channel (Eq. 5)."""
        return standardize_weight(self.weight, self.eps, center=self.center, scale=self.scale)

    def standardized_weight(self) -> Tensor:
        """The same as :meth:`effective_weight`, under the paper's name."""
        return self.effective_weight()

    def forward(self, input: Tensor) -> Tensor:  # named as in torch
        if is_symbolic(input):
            return leaf_call(self, input)
        x = input
        if not (self.center and self.scale):  # the ablations need not be fast
            return self._convolve(x, self.effective_weight())
        padding = self.padding
        if self.padding_mode != 'zeros' or isinstance(padding, str):  # as nn.Conv2d does
            mode = 'constant' if self.padding_mode == 'zeros' else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode)
            padding = (0, ) * len(self.stride)
        batch = x if x.dim() == self.weight.dim() else x.unsqueeze(0)
        y = standardized_convolution(batch, self.weight, self.bias, self.stride, padding, self.dilation, self.groups,
                                     self.eps)
        return y if batch is x else y.squeeze(0)

    def extra_repr(self) -> str:
        parts = '' if self.center and self.scale else f', center={self.center}, scale={self.scale}'
        return f'{super().extra_repr()}, eps={self.eps}{parts}'


class ConvWS(WeightStandardized, nn.Conv2d):
    """2d convolution with Weight Standardization (Eq. 5-7).

    Arguments, input and output shapes are those of :class:`torch.nn.Conv2d`, including groups, dilation, bias and all
    padding modes. ``weight`` holds the raw kernel W; :meth:`standardized_weight` returns the kernel of the
    convolution. Mean and variance of W are computed in every forward pass, in float32 or higher precision.

    Args:
        eps (float): Added to the variance, inside the square root. Defaults to 1e-5.
        center (bool): Subtract the mean (Eq. 11); False only for the ablation of Table 4. Defaults to True.
        scale (bool): Divide by the standard deviation (Eq. 12); False only for the ablation. Defaults to True.

    Raises:
        ValueError: If the fan-in is 1 (for example in a depth-wise 1x1 convolution), or an argument is out of range.

    Examples:
        >>> ConvWS(3, 64, 3, padding=1)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 64, 32, 32])
    """


class ConvWS1d(WeightStandardized, nn.Conv1d):
    """:class:`ConvWS` for signals of shape (N, C, L); arguments of :class:`torch.nn.Conv1d` plus ``eps``."""


class ConvWS3d(WeightStandardized, nn.Conv3d):
    """:class:`ConvWS` for volumes of shape (N, C, D, H, W); arguments of :class:`torch.nn.Conv3d` plus ``eps``."""
