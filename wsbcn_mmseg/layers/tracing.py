"""Make each of our layers one node in ``torch.fx`` graphs, like the layers of ``torch.nn``.

fx records the operators of a forward pass; updates of buffers and decisions by shape would be lost. It treats modules
of ``torch.nn`` as leaves, by the name of their package; our layers request the same.
"""
from torch import Tensor, fx, nn


def is_symbolic(x: Tensor | fx.Proxy) -> bool:
    """Whether ``torch.fx`` traces the network."""
    return isinstance(x, fx.Proxy)


def leaf_call(layer: nn.Module, x: fx.Proxy, *args, **kwargs) -> fx.Proxy:
    """The node that calls ``layer``, under its name in the traced network."""
    return x.tracer.create_proxy('call_module', x.tracer.path_of_module(layer), (x, *args), kwargs)
