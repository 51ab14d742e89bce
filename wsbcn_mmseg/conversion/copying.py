"""Copies of networks that have run."""
import copy

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def copy_network(model: nn.Module) -> nn.Module:
    """A deep copy. Hooks and caches may leave tensors with a graph in modules, which cannot be deep-copied; they are
    copied without their graph."""
    own = ('_parameters', '_buffers', '_modules')
    computed = {id(value): value.detach().clone() for module in model.modules()
                for value in tree_leaves([held for name, held in vars(module).items() if name not in own])
                if isinstance(value, Tensor) and value.grad_fn is not None}
    try:
        return copy.deepcopy(model, computed)
    except TypeError as error:  # such as locks and open files
        raise ValueError(f'{type(model).__name__} holds something that cannot be copied ({error})') from error
