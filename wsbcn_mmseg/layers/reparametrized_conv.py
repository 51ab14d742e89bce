"""Convolutions whose kernel is a function of their weight: the base of Weight Standardization, WN and CWN."""
import re
import sys

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from wsbcn_mmseg.ops.weight_standardization import check_fan_in

from .tracing import is_symbolic, leaf_call

_CANNOT_FUSE = ('a norm cannot be fused into this {}: its kernel is computed from the weight at every forward pass, '
                'which would undo the scale; use wsbcn_mmseg.fold(model), which folds both into plain convolutions')
# Names of functions that fuse norms into convolutions, or branches into one convolution
_FUSES = re.compile(r'^_*fuse(_?(model|modules|module|layers?))?$|switch_to_deploy|reparam|'
                    r'(?=.*(fus[ei]|fold|merge|absorb|combine))(?=.*(bn|norm|conv))', re.I)
_CALLERS = 4  # frames in which the fusing function is searched


def _is_rescaled(weight: Tensor | None, old: Tensor | None) -> bool:
    """Whether ``weight`` is ``old`` times one factor per output channel, other than 1 throughout."""
    if old is None or weight is None or weight is old or weight.shape != old.shape or weight.is_meta or old.is_meta:
        return False
    new, old = (w.detach().to('cpu', torch.promote_types(w.dtype, torch.float32)).flatten(1) for w in (weight, old))
    factor = ((new * old).sum(1, keepdim=True) / old.square().sum(1, keepdim=True)).nan_to_num()
    close = torch.allclose(new, factor * old, rtol=1e-4, atol=1e-6 * float(new.abs().max()))
    return close and not torch.equal(new, old)


def _assigned_by_fusion() -> bool:
    """Whether a function that assigns a parameter fuses norms into convolutions, going by its name."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get('__name__') in (__name__, nn.Module.__module__):
        frame = frame.f_back
    for _ in range(_CALLERS):
        if frame is None or frame.f_code.co_name.startswith('test'):
            return False
        if _FUSES.search(frame.f_code.co_name):
            return True
        frame = frame.f_back
    return False


class ReparametrizedConv:
    """Mixin before ``nn.ConvNd``: convolves with :meth:`effective_weight`, a function of ``weight``.

    MMEngine's initialization rules look at the names of a module's *direct* bases; hence a mixin and not a class
    between ``nn.ConvNd`` and ours.
    """
    plain_class: type[_ConvNd]  # class without the reparametrization

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        plain = [base for base in cls.__mro__ if issubclass(base, _ConvNd) and not issubclass(base, ReparametrizedConv)]
        if plain:
            cls.plain_class = plain[0]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_fan_in(type(self).__name__, self.weight)

    def effective_weight(self) -> Tensor:
        """The kernel of the convolution, shape of ``weight``."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:  # named as in torch
        return leaf_call(self, input) if is_symbolic(input) else self._convolve(input, self.effective_weight())

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """What ``nn.ConvNd`` computes, with another kernel."""
        return super()._conv_forward(x, kernel, self.bias)

    def _conv_forward(self, *_):
        # nn.ConvNd's forward calls this, but ours does not; efficient_conv_bn_eval of mmcv and MMEngine does, with the
        # raw kernel times the scale of a norm.
        raise RuntimeError(_CANNOT_FUSE.format(type(self).__name__))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module`` does, but refuse the kernel that a function fusing a norm puts here.

        mmcv's ``fuse_conv_bn`` and PyTorch's ``fuse_conv_bn_eval`` rescale ``weight``: right for a plain convolution,
        but the reparametrization would undo it. A rescaled kernel from anywhere else is accepted.
        """
        if name == 'weight' and _is_rescaled(param, self._parameters.get(name)) and _assigned_by_fusion():
            raise RuntimeError(_CANNOT_FUSE.format(type(self).__name__))
        super().register_parameter(name, param)
