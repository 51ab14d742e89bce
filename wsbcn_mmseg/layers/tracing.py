"""What tracers of ``torch.fx`` see of our layers: one node each, as of the layers of ``torch.nn``.

fx records the operators that a forward pass calls; updates of buffers and decisions by shape would be lost. It takes
modules of ``torch.nn`` as they are, by the name of their package; for ours, the layers ask for the same.
"""
from torch import Tensor, fx, nn


def is_symbolic(x: Tensor | fx.Proxy) -> bool:
    """Whether ``torch.fx`` traces the network."""
    return isinstance(x, fx.Proxy)


def leaf_call(layer: nn.Module, x: fx.Proxy, *args, **kwargs) -> fx.Proxy:
    """The node that calls ``layer``, under its name in the traced network."""
    return x.tracer.create_proxy('call_module', x.tracer.path_of_module(layer), (x, *args), kwargs)
