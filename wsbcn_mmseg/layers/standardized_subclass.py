"""Weight Standardization for subclasses of convolutions that pad in their own way, such as timm's ``Conv2dSame``.

Their forward pass is their own and stays; only the kernel that it reads is the standardized one.
"""
import functools

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .adaptive_conv_ws import AdaptiveWeightStandardized
from .conv_ws import WeightStandardized
from .tracing import is_symbolic, leaf_call


class OwnForward:
    """Mixin before a reparametrization: runs the forward pass of ``plain_class``, which reads ``self.weight``.

    ``weight`` is the raw kernel to everyone else. Conversion changes the class of existing convolutions to this one;
    it is not meant to be constructed.
    """

    @property
    def weight(self) -> Tensor:
        own = vars(self)
        return own['_kernel'] if '_kernel' in own else self._parameters.get('weight', own.get('weight'))

    @weight.setter
    def weight(self, value: Tensor) -> None:  # parameters do not come here; pruning and old weight_norm set tensors
        vars(self)['weight'] = value

    def forward(self, x: Tensor) -> Tensor:
        if is_symbolic(x):
            return leaf_call(self, x)
        vars(self)['_kernel'] = self.effective_weight()
        try:
            return self.plain_class.forward(self, x)
        finally:
            del vars(self)['_kernel']

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if '_kernel' not in vars(self):
            return super()._conv_forward(x, weight, bias)  # a call from outside, which is refused
        return self.plain_class._conv_forward(self, x, weight, bias)

    def __reduce_ex__(self, protocol):
        return _empty_instance, (self.plain_class, isinstance(self, AdaptiveWeightStandardized)), dict(vars(self))


def _empty_instance(plain_class: type[_ConvNd], adaptive: bool) -> nn.Module:
    standardized = standardized_subclass(plain_class, adaptive)
    return standardized.__new__(standardized)


@functools.cache
def standardized_subclass(plain_class: type[_ConvNd], adaptive: bool = False) -> type[_ConvNd]:
    """``plain_class`` with Weight Standardization, by its own forward pass.

    Args:
        plain_class: A subclass of ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` that convolves its padded input with
            ``self.weight`` and does nothing else.
        adaptive: Whether the kernels keep mean and deviation, as in :class:`AdaptiveConvWS`. Defaults to False.
    """
    mixin = AdaptiveWeightStandardized if adaptive else WeightStandardized
    prefix = 'AdaptiveStandardized' if adaptive else 'Standardized'
    return type(f'{prefix}{plain_class.__name__}', (OwnForward, mixin, plain_class), {})


