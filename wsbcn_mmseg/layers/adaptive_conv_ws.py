"""Adaptive Weight Standardization: a standardized kernel that starts out equal to an ordinary one.

Qiao, Chen and Yuille, "DetectoRS: Detecting Objects with Recursive Feature Pyramid and Switchable Atrous Convolution"
(2020), Section 4.2, train networks with Weight Standardization from weights that were trained without it: each output
channel keeps the mean and the standard deviation of its pretrained kernel, fixed. mmcv's ``ConvAWS`` follows the same
idea with another standard deviation, so the layers here have another name.
"""
import torch
from torch import Tensor, nn

from wsbcn_mmseg.ops import standardize_weight

from .conv_ws import WeightStandardized
from .reparametrized_conv import ReparametrizedConv

CONV_ARGUMENTS = 12  # of nn.ConvNd's constructor, and eps


class AdaptiveWeightStandardized(WeightStandardized):
    """Mixin before ``nn.ConvNd``: convolves with ``kernel_scale * standardized + kernel_mean``.

    Both buffers have shape (O, 1, ...) and are part of the ``state_dict``. Until :meth:`adapt` sets them, they are 1
    and 0, which is plain Weight Standardization.
    """

    def __init__(self, *args, **kwargs):
        if {'center', 'scale'} & set(kwargs) or len(args) > CONV_ARGUMENTS:
            raise TypeError(f'{type(self).__name__} has no center and scale: it keeps the mean and the standard '
                            'deviation of its kernel')
        super().__init__(*args, **kwargs)
        self._add_buffers()

    def _add_buffers(self) -> None:
        shape = self.weight.shape[0], *[1] * (self.weight.dim() - 1)
        self.register_buffer('kernel_mean', self.weight.detach().new_zeros(shape))
        self.register_buffer('kernel_scale', self.weight.detach().new_ones(shape))

    @torch.no_grad()
    def adapt(self) -> None:
        """Store mean and deviation of the current kernel; the layer then convolves with ``weight`` itself."""
        kernel = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)).flatten(1)
        var, mean = torch.var_mean(kernel, 1, unbiased=False)
        self.kernel_mean.copy_(mean.view_as(self.kernel_mean))
        self.kernel_scale.copy_((var + self.eps).sqrt().view_as(self.kernel_scale))

    def effective_weight(self) -> Tensor:
        """The kernel of the convolution, shape of ``weight``: mean ``kernel_mean``, deviation ``kernel_scale``."""
        return self.kernel_scale * standardize_weight(self.weight, self.eps) + self.kernel_mean

    def forward(self, input: Tensor) -> Tensor:  # named as in torch
        return ReparametrizedConv.forward(self, input)


class AdaptiveConvWS(AdaptiveWeightStandardized, nn.Conv2d):
    """:class:`ConvWS` whose kernels keep the mean and standard deviation from the call of :meth:`adapt`.

    Arguments are those of :class:`ConvWS`. ``convert_model(model, preserve=True)`` replaces pretrained convolutions
    by this layer.

    Examples:
        >>> conv = AdaptiveConvWS(3, 8, 3)
        >>> conv.adapt()
        >>> torch.testing.assert_close(conv.standardized_weight(), conv.weight)
    """


class AdaptiveConvWS1d(AdaptiveWeightStandardized, nn.Conv1d):
    """:class:`AdaptiveConvWS` for signals of shape (N, C, L)."""


class AdaptiveConvWS3d(AdaptiveWeightStandardized, nn.Conv3d):
    """:class:`AdaptiveConvWS` for volumes of shape (N, C, D, H, W)."""
