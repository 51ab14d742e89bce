"""ReLU in the same pass as the norm before it: the norm marks its output as rectified, and ReLU skips it.

A lost mark costs one pass and changes nothing, since ReLU does not change a rectified tensor.
"""
from torch import Tensor, nn

from .tracing import is_symbolic, leaf_call

_MARK = '_wsbcn_is_rectified'


def mark_rectified(y: Tensor) -> None:
    """Mark ``y`` as an output of ReLU."""
    setattr(y, _MARK, True)


class ReLUUnlessFused(nn.ReLU):
    """ReLU that returns tensors unchanged if a norm has already rectified them."""

    def forward(self, input: Tensor) -> Tensor:
        if is_symbolic(input):
            return leaf_call(self, input)
        return input if hasattr(input, _MARK) else super().forward(input)
