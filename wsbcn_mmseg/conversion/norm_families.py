"""Families of norms: which layers can be converted, and how new norms are built."""
import copy
import difflib
import inspect
import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from wsbcn_mmseg import layers
from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.layers.bcn import default_num_groups

STOCK_NORMS = {'BN': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm, 'GN': nn.GroupNorm, 'IN': nn.InstanceNorm2d,
               'LN': nn.LayerNorm}
# Keys are the number of dimensions of the input
BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
# Class names in torchvision, Detectron2, DETR, timm, ...; these classes have buffers only
FROZEN_BATCH_NORMS = {'FrozenBatchNorm2d', 'FrozenBatchNormAct2d'}
DEFAULT_EPS = 1e-5
CHILDREN = ('drop', 'act')  # applied by timm's norms after normalizing, in this order


def find_norm(norm: str | type) -> type[nn.Module]:
    """The class of a norm that is given by name or class.

    Raises:
        ValueError: If there is no norm of that name, or the class cannot replace a norm.
    """
    if not isinstance(norm, (str, type)) or not norm:
        raise ValueError(f'a norm is given by its name, class or config with a type, got {norm!r}')
    norm_class = norm if isinstance(norm, type) else STOCK_NORMS.get(norm) or getattr(layers, norm, None)
    norm_class = norm_class if isinstance(norm_class, type) else None  # a module of the package may have this name
    if norm_class is None and 'mmengine' in sys.modules:  # without OpenMMLab, nothing is registered
        from mmengine.registry import MODELS
        with MODELS.switch_scope_and_registry(None) as registry:
            norm_class = registry.get(norm)
    if norm_class is None:
        close = difflib.get_close_matches(norm.upper(), ['BCN', *STOCK_NORMS], 1)
        raise ValueError(f'no norm is registered as {norm!r}; BCN, GN, BN and SyncBN are'
                         + (f'. Is {close[0]} meant?' if close else ''))
    if getattr(norm_class, '__name__', '') in FROZEN_BATCH_NORMS:
        raise ValueError(f'a new {norm_class.__name__} would be the identity; choose a norm with trainable parameters')
    parameters = inspect.signature(norm_class).parameters if isinstance(norm_class, type) else {}
    if 'apply_act' in parameters:
        raise ValueError(f'{norm_class.__name__} contains its activation, and conversion does not remove the one that '
                         'follows the old norm; build the network with it')
    if norm_class is not nn.LayerNorm and not {'num_features', 'num_channels'} & set(parameters):
        raise ValueError(f'{getattr(norm_class, "__name__", norm)} is no norm over channels: its constructor has '
                         'neither num_features nor num_channels')
    return norm_class


def check_preserving(norm_class: type[nn.Module] | None) -> None:
    """Raise an error unless a norm can take over the function of BatchNorm; None means that norms are kept.

    Raises:
        ValueError: If it cannot.
    """
    if norm_class in (None, BCN, nn.LayerNorm):
        return
    if not issubclass(norm_class, nn.GroupNorm) or issubclass(norm_class, BCN):
        raise ValueError(f"preserve=True needs norm='BCN', 'GN', 'LN' or None, got {norm_class.__name__}")


def channels_of(norm: nn.Module) -> int:
    """Number of channels of a BatchNorm, InstanceNorm, GroupNorm or frozen BatchNorm."""
    for name in ('num_channels', 'num_features'):
        if hasattr(norm, name):
            return getattr(norm, name)
    return len(norm.running_mean)


def has_groups(norm: nn.Module) -> bool:
    """Whether a norm has groups of channels: GroupNorm, BCN, EvoNorm-S0 and others with a number ``num_groups``."""
    return isinstance(getattr(norm, 'num_groups', None), int)


def regroupable_class(norm: nn.Module) -> type[nn.Module] | None:
    """The class that builds a norm like this one with another number of groups; None if there is none."""
    if 'num_groups' in inspect.signature(type(norm)).parameters:
        return type(norm)
    return nn.GroupNorm if isinstance(norm, nn.GroupNorm) else None


def build_norm(norm_class: type[nn.Module], cfg: dict, old: nn.Module, dim: int = 4,
               min_channels_per_group: int = 2) -> nn.Module:
    """A norm with the channels, eps, momentum and groups of ``old``, except where ``cfg`` sets others.

    Args:
        norm_class: Result of :func:`find_norm`.
        cfg: Arguments of the class; ``type`` and ``requires_grad`` are ignored.
        old: The norm that it replaces.
        dim: Number of dimensions of the input, which decides between BatchNorm1d, 2d and 3d. Defaults to 4.
        min_channels_per_group: For classes that need a number of groups, if neither ``cfg`` nor ``old`` has one.
            Defaults to 2.

    Raises:
        ValueError: If the class cannot be built with these arguments.
    """
    channels = channels_of(old)
    given = {name: value for name, value in cfg.items() if name not in ('type', 'requires_grad')}
    settings = dict(eps=eps_of(old) or DEFAULT_EPS)
    if norm_class is nn.LayerNorm:  # over channels and positions, as the paper's LN
        norm_class, given = nn.GroupNorm, dict(num_groups=1) | given
    elif norm_class in BATCH_NORMS.values():
        norm_class = BATCH_NORMS[dim]
    elif issubclass(norm_class, _InstanceNorm):
        norm_class = INSTANCE_NORMS.get(dim, norm_class) if norm_class in INSTANCE_NORMS.values() else norm_class
        settings['affine'] = True  # as in the paper; PyTorch's default is False
    if getattr(old, 'momentum', None) is not None and (issubclass(norm_class, _BatchNorm) or norm_class is BCN):
        settings['momentum'] = old.momentum
    if 'num_groups' in inspect.signature(norm_class).parameters:
        if isinstance(old, nn.GroupNorm) and old.num_groups <= channels // 2:
            settings['num_groups'] = old.num_groups
        elif _needs(norm_class, 'num_groups'):
            settings['num_groups'] = default_num_groups(channels, min_channels_per_group)
    return _construct(norm_class, channels, settings, given)


def _needs(norm_class: type[nn.Module], name: str) -> bool:
    parameter = inspect.signature(norm_class).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _construct(norm_class: type[nn.Module], channels: int, settings: dict, given: dict) -> nn.Module:
    """Call a constructor with the settings that are among its parameters."""
    parameters = inspect.signature(norm_class).parameters
    first = 'num_features' if 'num_features' in parameters else 'num_channels'
    known = {name: value for name, value in settings.items() if name in parameters and name not in given}
    if norm_class is BCN and 'min_channels_per_group' in given and given.get('num_groups') is None:
        known.pop('num_groups', None)
    try:
        return norm_class(**{first: channels}, **known, **given)
    except TypeError as error:
        raise ValueError(f'{norm_class.__name__} cannot be built for {channels} channels: {error}') from error


# Norms that behave like their family

def stock_forwards() -> Iterator:
    """Forward methods of imported libraries that normalize like their family and then drop and activate."""
    yield from (kind.forward for kind in (_BatchNorm, nn.SyncBatchNorm, nn.GroupNorm, _InstanceNorm, BCN))
    for package, names in (('timm.layers.norm', ('GroupNorm', 'GroupNorm1')),
                           ('timm.layers.norm_act', ('BatchNormAct2d', 'SyncBatchNormAct', 'GroupNormAct',
                                                     'GroupNorm1Act'))):
        for name in names:
            kind = getattr(sys.modules.get(package), name, None)
            if kind is not None:
                yield kind.forward


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """Whether the module is a frozen BatchNorm: an affine map with buffers."""
    buffers = set(dict(module.named_buffers(recurse=False)))
    return bool(FROZEN_BATCH_NORMS & {base.__name__ for base in type(module).__mro__}) and {
        'weight', 'bias', 'running_mean', 'running_var'} <= buffers


def eps_of(norm: nn.Module) -> float | None:
    """The eps that a norm adds to its variance. For frozen BatchNorms without this attribute it is found by trying.
    None if unknown."""
    if not is_frozen_batch_norm(norm):
        return norm.eps
    x = 3 * torch.randn(2, len(norm.running_mean), 5, 5, generator=torch.Generator().manual_seed(0))
    x = x.to(norm.weight.device, norm.weight.dtype)
    for eps in (getattr(norm, 'eps', 0), 0, DEFAULT_EPS):
        scale = norm.weight * (norm.running_var + eps).rsqrt()
        expected = _children(norm, (x - norm.running_mean[:, None, None]) * scale[:, None, None]
                             + norm.bias[:, None, None])
        with torch.no_grad():
            if torch.allclose(norm(x), expected, rtol=1e-3, atol=1e-4):
                return eps
    return None


def _children(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply the children of a norm that run after normalizing."""
    for name in CHILDREN:
        child = getattr(norm, name, None)
        x = child(x) if isinstance(child, nn.Module) else x
    return x


STOCK_STATE = {'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked', 'skipped_updates'}


def own_parts(layer: nn.Module, stock_state: Iterable[str] = STOCK_STATE) -> str | None:
    """What a subclass adds to its family and would lose with its class: 'parameters' or 'methods'."""
    if not set(layer._parameters) | set(layer._buffers) <= set(stock_state):
        return 'parameters'
    for base in type(layer).__mro__:
        if base.__module__.startswith(('torch.nn.', 'timm.', 'mmengine.', 'mmcv.', 'wsbcn_mmseg.', 'torchvision.')):
            break
        if any(callable(value) and not name.startswith('_') and name not in ('forward', 'extra_repr')
               for name, value in vars(base).items()):
            return 'methods'
    return None


def behaves_as_family(norm: nn.Module, dim: int = 4) -> bool:
    """Whether a norm computes the same as its family, followed by its children 'drop' and 'act'.

    This holds for layers that inherit their forward pass and for known ones of timm. Others are tested: in training and
    in evaluation mode, they must give the results and running statistics of the family on random input.
    """
    own_call = type(norm).__call__ is not nn.Module.__call__
    if 'forward' in vars(norm) or own_call or nn.utils.parametrize.is_parametrized(norm):
        return False
    if type(norm).forward in set(stock_forwards()):
        return True
    if is_frozen_batch_norm(norm):
        return eps_of(norm) is not None
    if len(inspect.signature(norm.forward).parameters) != 1:
        return False
    stock = next((base for base in type(norm).__mro__ if base.__module__.startswith('torch.nn.')), None)
    if stock is None:
        return False
    generator = torch.Generator().manual_seed(0)
    probes = [3 * torch.randn(4, channels_of(norm), *[side] * (dim - 2), generator=generator) for side in (5, 17)]
    try:
        return all(_agrees(norm, stock, x, training) for x in probes for training in (False, True))
    except Exception:  # third-party layers may raise any error
        return False


def _agrees(norm: nn.Module, stock: type[nn.Module], x: Tensor, training: bool) -> bool:
    own, reference = copy.deepcopy(norm).train(training), copy.deepcopy(norm).train(training)
    tensor = next(iter([*own.parameters(), *own.buffers()]), x)
    x = x.to(tensor.device, tensor.dtype if tensor.is_floating_point() else x.dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for layer in (own, reference):
        for values in (layer._forward_hooks, layer._forward_pre_hooks):
            values.clear()
    with torch.enable_grad():
        # Multiplied, since layers that activate in place cannot change a leaf
        actual, expected = own(inputs[0] * 1), _children(reference, stock.forward(reference, inputs[1] * 1))
        gradients = [torch.autograd.grad(y.square().sum(), inp)[0] for y, inp in ((actual, inputs[0]),
                                                                                 (expected, inputs[1]))]
    same = torch.allclose(actual, expected, rtol=1e-4, atol=1e-5) and torch.allclose(*gradients, rtol=1e-3, atol=1e-3)
    return same and all(torch.allclose(a, b) for a, b in zip(own.buffers(), reference.buffers(), strict=True))
