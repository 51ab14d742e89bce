"""The families of norms: which layers conversion understands, and how each new norm is built."""
import copy
import inspect
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from wsbcn_mmseg import layers
from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.layers.bcn import default_num_groups

STOCK_NORMS = {'BN': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm, 'GN': nn.GroupNorm, 'IN': nn.InstanceNorm2d,
               'LN': nn.LayerNorm}
# By the number of dimensions of the input
BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
FROZEN_BATCH_NORM = 'FrozenBatchNorm2d'  # of torchvision, Detectron2, DETR, ...: classes of one name and layout
CHILDREN = ('drop', 'act')  # what timm's norms apply after normalizing, in this order


def find_norm(norm: str | type) -> type[nn.Module]:
    """The class of a norm that is given by its name or class.

    Raises:
        ValueError: If there is none of that name, or it cannot take the place of a norm.
    """
    norm_class = norm if isinstance(norm, type) else STOCK_NORMS.get(norm) or getattr(layers, norm, None)
    if norm_class is None and 'mmengine' in sys.modules:  # without it, nothing is registered
        from mmengine.registry import MODELS
        with MODELS.switch_scope_and_registry(None) as registry:
            norm_class = registry.get(norm)
    if norm_class is None:
        raise ValueError(f'no norm is registered as {norm!r}; BCN, GN, BN and SyncBN are')
    parameters = inspect.signature(norm_class).parameters if isinstance(norm_class, type) else {}
    if 'apply_act' in parameters:
        raise ValueError(f'{norm_class.__name__} contains its activation, and conversion does not remove the one that '
                         'follows the old norm; build the network with it')
    if norm_class is not nn.LayerNorm and not {'num_features', 'num_channels'} & set(parameters):
        raise ValueError(f'{getattr(norm_class, "__name__", norm)} is no norm over channels: its constructor has '
                         'neither num_features nor num_channels')
    return norm_class


def channels_of(norm: nn.Module) -> int:
    """Number of channels of a BatchNorm, InstanceNorm, GroupNorm or frozen BatchNorm."""
    for name in ('num_channels', 'num_features'):
        if hasattr(norm, name):
            return getattr(norm, name)
    return len(norm.running_mean)


def build_norm(norm_class: type[nn.Module], cfg: dict, old: nn.Module, dim: int = 4) -> nn.Module:
    """A norm of ``old``'s channels, eps, momentum and groups, where ``cfg`` says nothing else.

    Args:
        norm_class: From :func:`find_norm`.
        cfg: Its arguments; ``type`` and ``requires_grad`` are ignored.
        old: The norm that it replaces.
        dim: Number of dimensions of the input, which decides between BatchNorm1d, 2d and 3d. Defaults to 4.

    Raises:
        ValueError: If the class cannot be built with these arguments.
    """
    channels = channels_of(old)
    given = {name: value for name, value in cfg.items() if name not in ('type', 'requires_grad')}
    settings = dict(eps=getattr(old, 'eps', 1e-5))
    if norm_class is nn.LayerNorm:  # over channels and positions, as the paper's LN
        norm_class, given = nn.GroupNorm, dict(num_groups=1) | given
    elif norm_class in BATCH_NORMS.values():
        norm_class = BATCH_NORMS[dim]
    elif issubclass(norm_class, _InstanceNorm):
        norm_class = INSTANCE_NORMS.get(dim, norm_class) if norm_class in INSTANCE_NORMS.values() else norm_class
        settings['affine'] = True  # as in the paper; PyTorch's default is False
    if getattr(old, 'momentum', None) is not None and (issubclass(norm_class, _BatchNorm) or norm_class is BCN):
        settings['momentum'] = old.momentum
    if issubclass(norm_class, nn.GroupNorm):
        if isinstance(old, nn.GroupNorm) and old.num_groups <= channels // 2:
            settings['num_groups'] = old.num_groups
        elif norm_class is nn.GroupNorm:
            settings['num_groups'] = default_num_groups(channels)
    return _construct(norm_class, channels, settings, given)


def _construct(norm_class: type[nn.Module], channels: int, settings: dict, given: dict) -> nn.Module:
    """Call a constructor by the names of its parameters; settings that it does not have are left out."""
    parameters = inspect.signature(norm_class).parameters
    first = 'num_features' if 'num_features' in parameters else 'num_channels'
    known = {name: value for name, value in settings.items() if name in parameters and name not in given}
    if norm_class is BCN and 'min_channels_per_group' in given and given.get('num_groups') is None:
        known.pop('num_groups', None)
    try:
        return norm_class(**{first: channels}, **known, **given)
    except TypeError as error:
        raise ValueError(f'{norm_class.__name__} cannot be built for {channels} channels: {error}') from error


# Which norms behave as their family does

def stock_forwards() -> Iterator:
    """Forward passes that normalize, drop and activate as their family does, of the libraries that are imported."""
    yield from (kind.forward for kind in (_BatchNorm, nn.SyncBatchNorm, nn.GroupNorm, _InstanceNorm, BCN))
    for package, names in (('timm.layers.norm', ('GroupNorm', 'GroupNorm1')),
                           ('timm.layers.norm_act', ('BatchNormAct2d', 'SyncBatchNormAct', 'GroupNormAct',
                                                     'GroupNorm1Act'))):
        for name in names:
            kind = getattr(sys.modules.get(package), name, None)
            if kind is not None:
                yield kind.forward


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """Whether it is a frozen BatchNorm: an affine map of buffers."""
    buffers = set(dict(module.named_buffers(recurse=False)))
    return FROZEN_BATCH_NORM in {base.__name__ for base in type(module).__mro__} and {
        'weight', 'bias', 'running_mean', 'running_var'} <= buffers


def behaves_as_family(norm: nn.Module, dim: int = 4) -> bool:
    """Whether a norm computes what its family does, and then what its children 'drop' and 'act' do.

    Layers that inherit their forward pass do, and known ones of timm. Others are tried: in training and in evaluation
    mode they must give the family's results and running statistics on random input.
    """
    if 'forward' in vars(norm):
        return False
    if type(norm).forward in set(stock_forwards()) or is_frozen_batch_norm(norm):
        return True
    stock = next((base for base in type(norm).__mro__ if base.__module__.startswith('torch.nn.')), None)
    if stock is None or nn.utils.parametrize.is_parametrized(norm):
        return False
    shape = (4, channels_of(norm), *[5] * (dim - 2))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        return all(_agrees(norm, stock, 3 * x, training) for training in (False, True))
    except Exception:  # other people's layers raise errors of any kind
        return False


@torch.no_grad()
def _agrees(norm: nn.Module, stock: type[nn.Module], x: Tensor, training: bool) -> bool:
    own, reference = copy.deepcopy(norm).train(training), copy.deepcopy(norm).train(training)
    tensor = next(iter([*own.parameters(), *own.buffers()]), x)
    x = x.to(tensor.device, tensor.dtype if tensor.is_floating_point() else x.dtype)
    for layer in (own, reference):
        for values in (layer._forward_hooks, layer._forward_pre_hooks):
            values.clear()
    expected = stock.forward(reference, x.clone())
    for name in CHILDREN:
        child = getattr(reference, name, None)
        expected = child(expected) if isinstance(child, nn.Module) else expected
    same = torch.allclose(own(x.clone()), expected, rtol=1e-4, atol=1e-5)
    return same and all(torch.allclose(a, b) for a, b in zip(own.buffers(), reference.buffers(), strict=True))
