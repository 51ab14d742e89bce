"""Copies of networks that have run."""
import copy

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def copy_network(model: nn.Module) -> nn.Module:
    """A deep copy. Tensors with a graph that modules hold, which hooks and caches leave behind and which refuse to be
    copied, are copied without it."""
    own = ('_parameters', '_buffers', '_modules')
    computed = {id(value): value.detach().clone() for module in model.modules()
                for value in tree_leaves([held for name, held in vars(module).items() if name not in own])
                if isinstance(value, Tensor) and value.grad_fn is not None}
    try:
        return copy.deepcopy(model, computed)
    except TypeError as error:  # such as locks and open files
        raise ValueError(f'{type(model).__name__} holds something that cannot be copied ({error})') from error
