"""ReLU in the same pass as the norm before it: the norm marks an output that is rectified already, and ReLU skips it.

A mark that gets lost costs a pass and changes nothing, since ReLU of a rectified tensor is that tensor.
"""
from torch import Tensor, nn

from .tracing import is_symbolic, leaf_call

_MARK = '_wsbcn_is_rectified'


def mark_rectified(y: Tensor) -> None:
    """Note that ReLU has been applied to ``y``."""
    setattr(y, _MARK, True)


class ReLUUnlessFused(nn.ReLU):
    """ReLU, but what a norm has rectified already is returned as it is."""

    def forward(self, input: Tensor) -> Tensor:
        if is_symbolic(input):
            return leaf_call(self, input)
        return input if hasattr(input, _MARK) else super().forward(input)
