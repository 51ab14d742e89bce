"""Initialization of the gains of weight normalization."""
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from wsbcn_mmseg.layers import ConvCWN, ConvWN


@WEIGHT_INITIALIZERS.register_module()
class GainOfKernel:
    """Set the gains of all ConvWN and ConvCWN in a module to the norms of their kernels. It must come after the rules
    that initialize the kernels.

    Examples:
        >>> init_cfg = [dict(type='Kaiming', layer='Conv2d'), dict(type='GainOfKernel')]
    """

    def __call__(self, module: nn.Module) -> None:
        for child in module.modules():
            if isinstance(child, (ConvWN, ConvCWN)):
                child.reset_gain()
