"""Convolutions with Weight Standardization (Eq. 5-7)."""
import mmcv.cnn  # noqa: F401  (registers a ConvWS of its own, which the ones below replace)
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from wsbcn_mmseg.ops import standardize_weight, standardized_convolution

_CANNOT_FUSE = ('a norm cannot be fused into the raw kernel of {}, Weight Standardization takes its scale away again; '
                'wsbcn_mmseg.fold(model) makes plain convolutions with the norms folded in')


def _is_rescaled(weight: Tensor | None, old: Tensor | None) -> bool:
    """Whether ``weight`` is ``old`` times one factor per output channel, other than 1 throughout."""
    if old is None or weight is None or weight is old or weight.shape != old.shape or weight.is_meta or old.is_meta:
        return False
    new, old = (w.detach().to('cpu', torch.promote_types(w.dtype, torch.float32)).flatten(1) for w in (weight, old))
    factor = ((new * old).sum(1, keepdim=True) / old.square().sum(1, keepdim=True)).nan_to_num()
    close = torch.allclose(new, factor * old, rtol=1e-4, atol=1e-6 * float(new.abs().max()))
    return close and not torch.equal(new, old)


class _WeightStandardized:
    """Mixin before ``nn.ConvNd``: convolves with the standardized kernel.

    MMEngine's initialisation rules look at the names of a module's *direct* bases; hence a mixin and not a class
    between ``nn.ConvNd`` and ours.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
                 padding_mode='zeros', device=None, dtype=None, eps: float = 1e-5, center: bool = True,
                 scale: bool = True):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
                         device, dtype)
        if self.weight[0].numel() < 2:
            raise ValueError(f'{type(self).__name__} needs a fan-in of at least 2, got a depth-wise kernel of shape '
                             f'{tuple(self.weight.shape)}, which Weight Standardization turns to zero; '
                             'use a plain convolution there')
        self.eps, self.center, self.scale = eps, center, scale

    def standardized_weight(self) -> Tensor:
        """The kernel that convolves, shape of ``weight``: mean 0, variance 1 per output channel (Eq. 5)."""
        return standardize_weight(self.weight, self.eps, center=self.center, scale=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.center and self.scale):  # the ablations need not be fast
            return self._convolve(x, self.standardized_weight())
        padding = self.padding
        if self.padding_mode != 'zeros' or isinstance(padding, str):  # as nn.Conv2d does
            mode = 'constant' if self.padding_mode == 'zeros' else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode)
            padding = (0, ) * len(self.stride)
        batch = x if x.dim() == self.weight.dim() else x.unsqueeze(0)
        y = standardized_convolution(batch, self.weight, self.bias, self.stride, padding, self.dilation, self.groups,
                                     self.eps)
        return y if batch is x else y.squeeze(0)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module`` does, but refuse a rescaled kernel and then a bias in the place of those that are here.

        So do functions that fuse a norm into a convolution, mmcv's ``fuse_conv_bn`` and PyTorch's
        ``fuse_conv_bn_eval``: right for a plain convolution, but from this kernel the scale is taken away again.
        """
        before = vars(self).pop('_before_rescaling', None)
        if name == 'bias' and before is not None:
            super().register_parameter('weight', before)
            raise RuntimeError(_CANNOT_FUSE.format(type(self).__name__))
        old = self._parameters.get(name)
        super().register_parameter(name, param)
        if name == 'weight' and _is_rescaled(param, old):
            vars(self)['_before_rescaling'] = old  # not as a parameter of the module

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """What ``nn.ConvNd`` computes, by another kernel."""
        return super()._conv_forward(x, kernel, self.bias)

    def _conv_forward(self, *_):
        # What nn.ConvNd's forward calls, ours does not; the efficient_conv_bn_eval of mmcv and MMEngine does, with the
        # raw kernel times the scale of a norm.
        raise RuntimeError(_CANNOT_FUSE.format(type(self).__name__))

    def extra_repr(self) -> str:
        parts = '' if self.center and self.scale else f', center={self.center}, scale={self.scale}'
        return f'{super().extra_repr()}, eps={self.eps}{parts}'


@MODELS.register_module(force=True)  # also in the place of mmcv's ConvWS, which divides by another deviation
class ConvWS(_WeightStandardized, nn.Conv2d):
    """2d convolution with Weight Standardization (Eq. 5-7).

    Arguments, input and output shapes are those of :class:`torch.nn.Conv2d`: grouped, depth-wise, dilated, biased,
    any padding mode. ``weight`` holds the raw kernel W; :meth:`standardized_weight` gives the one that convolves. The
    statistics are taken anew, in float32 at least, at every forward pass.

    Args:
        eps (float): Added to the variance, inside the root. Defaults to 1e-5.
        center (bool): Subtract the mean (Eq. 11); False only for the ablation of Table 4. Defaults to True.
        scale (bool): Divide by the standard deviation (Eq. 12); False only for the ablation. Defaults to True.

    Raises:
        ValueError: If the fan-in is 1 (depth-wise 1x1).

    Examples:
        >>> ConvWS(3, 64, 3, padding=1)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 64, 32, 32])
    """


@MODELS.register_module()
class ConvWS1d(_WeightStandardized, nn.Conv1d):
    """:class:`ConvWS` for signals of shape (N, C, L); arguments of :class:`torch.nn.Conv1d` plus ``eps``."""


@MODELS.register_module()
class ConvWS3d(_WeightStandardized, nn.Conv3d):
    """:class:`ConvWS` for volumes of shape (N, C, D, H, W); arguments of :class:`torch.nn.Conv3d` plus ``eps``."""
