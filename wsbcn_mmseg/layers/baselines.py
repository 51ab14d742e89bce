"""Baselines of the paper that OpenMMLab does not have: WN, CWN (Table 3), and GroupNorm by width (Table 7). Also WS
with the standard deviation of the authors' code.

The paper's LN is GroupNorm with one group, ``dict(type='GN', num_groups=1)``; its IN is
``dict(type='IN', affine=True)``.
"""
import torch
from torch import Tensor, nn

from wsbcn_mmseg.ops.arguments import check_eps, check_integer

from .bcn import default_num_groups
from .conv_ws import WeightStandardized
from .reparametrized_conv import ReparametrizedConv


class WeightNormalized(ReparametrizedConv):
    """Mixin before ``nn.Conv2d``: direction and length of each output channel's kernel as separate parameters.

    ``gain`` of shape (O,) is the length. As in :func:`torch.nn.utils.parametrizations.weight_norm`, its initial value
    is the length of each kernel, so that the initial outputs are those without weight normalization. If ``weight`` is
    initialized again, call :meth:`reset_gain` (in configs ``init_cfg=[..., dict(type='GainOfKernel')]``). A state
    dict of an ordinary convolution can be loaded; ``gain`` is then the length of its kernels.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(self.weight.new_empty(self.out_channels))
        self.reset_gain()

    @torch.no_grad()
    def reset_gain(self) -> None:
        """Set ``gain`` to the length of each kernel (for CWN, of the centered kernel)."""
        self.gain.copy_(self.direction(self.weight.flatten(1)).norm(dim=1))

    def direction(self, weight: Tensor) -> Tensor:
        """The flattened kernels, before they are scaled to length 1; shape (O, fan-in)."""
        return weight

    def effective_weight(self) -> Tensor:
        """The kernel of the convolution, shape of ``weight``: length ``gain``."""
        direction = self.direction(self.weight.flatten(1))
        return (self.gain[:, None] * direction / direction.norm(dim=1, keepdim=True)).view_as(self.weight)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        weight = state_dict.get(f'{prefix}weight')
        if weight is not None and f'{prefix}gain' not in state_dict:
            state_dict[f'{prefix}gain'] = self.direction(weight.flatten(1)).norm(dim=1)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ConvWN(WeightNormalized, nn.Conv2d):
    """2d convolution with Weight Normalization (Salimans and Kingma 2016; Eq. 8): g W / |W|.

    Arguments, input and output shapes of :class:`torch.nn.Conv2d`. ``weight`` is W, ``gain`` of shape (O,) is g.
    """


class ConvCWN(WeightNormalized, nn.Conv2d):
    """2d convolution with Centered Weight Normalization (Huang et al. 2017; Eq. 9): g (W - mean) / |W - mean|.

    Arguments, input and output shapes of :class:`torch.nn.Conv2d`. ``weight`` is W, ``gain`` of shape (O,) is g.
    """

    def direction(self, weight: Tensor) -> Tensor:
        return weight - weight.mean(1, keepdim=True)


class ConvWSStdEps(WeightStandardized, nn.Conv2d):
    """2d convolution with the Weight Standardization of the authors' networks with GN: (W - mean) / (std + eps).

    std is the unbiased standard deviation; unlike in Eq. 7, eps is outside the root (pytorch-classification,
    DeepLabv3.pytorch, maskrcnn-benchmark). Use it to fine-tune the authors' checkpoints exactly as they did, with
    kernels that ``tools/convert_official_checkpoint.py --keep-kernels`` does not change. Arguments, input and output
    shapes of :class:`torch.nn.Conv2d`.

    Args:
        eps (float): Added to the standard deviation; must be above 0. Defaults to 1e-5.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 stride: int | tuple[int, int] = 1, padding: str | int | tuple[int, int] = 0,
                 dilation: int | tuple[int, int] = 1, groups: int = 1, bias: bool = True, padding_mode: str = 'zeros',
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None, eps: float = 1e-5):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
                         device, dtype, eps)

    def effective_weight(self) -> Tensor:
        """The kernel of the convolution, shape of ``weight``: mean 0, variance 1 per output channel."""
        rows = self.weight.flatten(1)
        std, mean = torch.std_mean(rows, dim=1, keepdim=True)
        return ((rows - mean) / (std + self.eps)).view_as(self.weight)

    def forward(self, input: Tensor) -> Tensor:  # named as in torch
        return ReparametrizedConv.forward(self, input)  # WeightStandardized's is fast, for Eq. 7


class GNByWidth(nn.GroupNorm):
    """GroupNorm whose number of groups depends on the number of channels C: min(32, C / 4) on CIFAR (Section 8.2).

    ``dict(type='GN')`` of OpenMMLab needs one number for all layers.

    Args:
        num_features: Number of channels C.
        min_channels_per_group: The number of groups is the largest divisor of C not above
            min(32, C / min_channels_per_group). Defaults to 4.
        eps: Added to the variance, inside the root. Defaults to 1e-5.
    """
    _abbr_ = 'gn'

    def __init__(self, num_features: int, min_channels_per_group: int = 4, eps: float = 1e-5):
        check_integer('num_features', num_features, 1)
        check_integer('min_channels_per_group', min_channels_per_group, 1)
        super().__init__(default_num_groups(num_features, min_channels_per_group), num_features, check_eps(eps))
