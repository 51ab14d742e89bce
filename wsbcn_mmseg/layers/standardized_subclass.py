"""Weight Standardization for subclasses of convolutions that pad in their own way, such as timm's ``Conv2dSame``.

Their forward pass is their own and stays; only the kernel that it reads is the standardized one.
"""
import functools

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from .adaptive_conv_ws import AdaptiveWeightStandardized
from .conv_ws import WeightStandardized
from .tracing import is_symbolic, leaf_call


class OwnForward:
    """Mixin before a reparametrization: runs the forward pass of ``plain_class``, which reads ``self.weight``.

    Conversion changes the class of existing convolutions to this one; it is not meant to be constructed.
    """

    def forward(self, input: Tensor | fx.Proxy, *args, **kwargs) -> Tensor:
        if is_symbolic(input):
            return leaf_call(self, input, *args, **kwargs)
        return self.plain_class.forward(self._with_effective_weight(), input, *args, **kwargs)

    def _with_effective_weight(self) -> _ConvNd:
        """The plain convolution with the kernel that convolves, sharing everything else with this module."""
        plain = self.plain_class.__new__(self.plain_class)
        vars(plain).update(vars(self))
        vars(plain).pop('weight', None)  # of hooks that compute it
        vars(plain)['_parameters'] = {**self._parameters, 'weight': self.effective_weight()}
        return plain

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
