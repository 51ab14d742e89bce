"""Select the layers that a conversion replaces, with the reasons for keeping the others."""
import difflib
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.layers.reparametrized_conv import ReparametrizedConv

from .dataflow import Dataflow, storage_of
from .norm_families import CHILDREN, behaves_as_family, is_frozen_batch_norm, own_parts
from .report import quoted

ASKED_FOR = {'excluded', 'not included', 'shared', 'frozen'}  # reasons that the caller asked for
THEIR_NORM_IS_KEPT = 'the norm that reads its output is kept'
PADDING_OPERATORS = ('aten::constant_pad_nd', 'aten::reflection_pad', 'aten::replication_pad')


def patterns(given: str | Iterable[str]) -> list[str]:
    """One pattern or several, as a list.

    Raises:
        ValueError: If they are not strings.
    """
    found = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not all(isinstance(pattern, str) for pattern in found):
        raise ValueError(f'layers are given by names or patterns, got {given!r}')
    return found


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted name equals, is below, or matches one of ``patterns``."""
    return any(name == pattern or name.startswith(f'{pattern}.') or fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise an error unless every pattern matches a layer.

    Raises:
        ValueError: If a pattern matches none; the message names it and layers with similar names.
    """
    names = [name for name in names if name]
    for pattern in patterns:
        if any(matches(name, [pattern]) for name in names):
            continue
        parts = dict.fromkeys('.'.join(name.split('.')[:depth]) for name in names
                              for depth in range(1, name.count('.') + 2))
        close = difflib.get_close_matches(pattern, parts, 3) or list(parts)[:3]
        raise ValueError(f'{pattern!r} matches no norm or convolution of the network; there are '
                         f'{", ".join(map(quoted, close))}, ...')


class Selection:
    """The norms and convolutions of a network, and the reasons to keep them.

    Args:
        model: The network.
        include, exclude: Patterns, see :func:`~wsbcn_mmseg.convert_model`.
        preserve: Whether the network's function is preserved; frozen BatchNorm is converted only then.
        instance_norm, skip_shared, skip_frozen, read_elsewhere: See :func:`~wsbcn_mmseg.convert_model`.
    """

    def __init__(self, model: nn.Module, include: Iterable[str] = (), exclude: Iterable[str] = (),
                 preserve: bool = False, instance_norm: bool = False, skip_shared: bool = False,
                 skip_frozen: bool = False, read_elsewhere: bool = False):
        self.include, self.exclude, self.preserve = patterns(include), patterns(exclude), preserve
        self.kinds = (_BatchNorm, nn.GroupNorm, *[_InstanceNorm] * instance_norm)
        self.skip_shared, self.skip_frozen, self.read_elsewhere = skip_shared, skip_frozen, read_elsewhere
        self.names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)
        self.convs = [module for module in self.names if isinstance(module, _ConvNd)]
        self.norms = list(self._norms())
        layers = *self.convs, *self.norms, *self.other_norms()
        check_patterns([*self.include, *self.exclude], [name for layer in layers for name in self.names[layer]])
        self.sharing: dict[int, list[nn.Module]] = {}  # kernels shared by several convolutions
        for conv in self.convs:
            self.sharing.setdefault(storage_of(conv._parameters.get('weight')), []).append(conv)

    def name(self, layer: nn.Module) -> str:
        """The first name of a layer."""
        return self.names[layer][0]

    def _norms(self) -> Iterator[nn.Module]:
        inner = {module.bn for module in self.names if isinstance(module, BCN)}
        for module in self.names:
            if (isinstance(module, self.kinds) or self.preserve and is_frozen_batch_norm(module)) \
                    and module not in inner:
                yield module

    def other_norms(self) -> dict[nn.Module, str]:
        """Norms of classes that are not replaced, with the reason."""
        others = {module: f'{type(module).__name__} is not replaced' for module in self.names
                  if isinstance(module, (_InstanceNorm, nn.LayerNorm)) and not isinstance(module, self.kinds)}
        others |= {module: 'a scripted module is not converted; convert first, script after' for module in self.names
                   if isinstance(module, torch.jit.ScriptModule)}
        if not self.preserve:
            others |= {module: f'{type(module).__name__} has fixed statistics; preserve=True converts it'
                       for module in self.names if is_frozen_batch_norm(module)}
        return others

    def _reason_to_keep(self, layer: nn.Module, flow: Dataflow) -> str | None:
        """A reason from the caller's arguments."""
        names = self.names[layer]
        if any(matches(name, self.exclude) for name in names):
            return 'excluded'
        if self.include and not any(matches(name, self.include) for name in names):
            return 'not included'
        if self.skip_shared and (len(names) > 1 or flow.calls.get(layer, 0) > 1):
            return 'shared'
        parameters = list(layer.parameters())
        if self.skip_frozen and parameters and not any(parameter.requires_grad for parameter in parameters):
            return 'frozen'
        return None

    def reason_to_keep_norm(self, norm: nn.Module, flow: Dataflow, dim: int) -> str | None:
        """Why a norm is kept, None if it is replaced; ``dim`` is the number of dimensions of its input."""
        reason = self._reason_to_keep(norm, flow)
        if reason is None and nn.utils.parametrize.is_parametrized(norm):
            return 'its parameters are parametrized'
        if reason is None and set(dict(norm.named_children())) - {'bn', *CHILDREN}:
            return f'{type(norm).__name__} has layers of its own'
        own = own_parts(norm) if reason is None else None
        if own:
            return f'{type(norm).__name__} has {own} of its own'
        if reason is None and not behaves_as_family(norm, dim):
            return f'{type(norm).__name__} has a forward pass of its own'
        if reason is None and norm in flow.read_elsewhere:
            return 'other code reads its parameters or running statistics'
        return reason

    def reason_to_keep_conv(self, conv: nn.Module, flow: Dataflow, consumed: set[nn.Module]) -> str | None:
        """Why a convolution is kept, None if it is standardized. Inputs of norms in ``consumed`` are standardized."""
        reason = self._reason_to_keep(conv, flow) or self._reason_by_kernel(conv, flow, consumed)
        if reason is None:
            for other in self.sharing[storage_of(conv._parameters['weight'])]:
                if other is not conv and (self._reason_to_keep(other, flow)
                                          or self._reason_by_kernel(other, flow, consumed)):
                    return f'it shares its kernel with {quoted(self.name(other))}, which is kept'
        return reason

    def _reason_by_kernel(self, conv: nn.Module, flow: Dataflow, consumed: set[nn.Module]) -> str | None:
        if conv not in flow.calls:
            return 'it did not run'
        if not flow.targets[conv]:
            return 'no norm reads its output'
        if not flow.targets[conv] & consumed:
            return THEIR_NORM_IS_KEPT
        if isinstance(conv, _ConvTransposeNd):
            return 'transposed convolutions are not standardized'
        if nn.utils.parametrize.is_parametrized(conv) or 'weight' not in conv._parameters:
            return 'its kernel is parametrized already'
        if not (convolves_plainly(conv) or only_pads(conv)):
            return f'{type(conv).__name__} convolves in its own way'
        if conv.weight[0].numel() < 2:
            return 'a fan-in of 1 (depth-wise 1x1), which Weight Standardization would turn to zero'
        if not self.read_elsewhere and conv in flow.read_elsewhere:
            return 'its output or kernel is read elsewhere too (read_elsewhere=True converts it)'
        if not self.read_elsewhere and not flow.targets[conv] <= consumed:
            return 'a norm that reads its output is kept'
        return None


def is_lazy(layer: nn.Module) -> bool:
    """Whether a layer is lazy: its shapes are set by its first input."""
    tensors = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return any(nn.parameter.is_lazy(tensor) for tensor in tensors)


def convolves_plainly(conv: nn.Module) -> bool:
    """Whether a convolution computes the same as ``nn.ConvNd``; mmcv's wrappers of these names do."""
    wrappers = sys.modules.get('mmcv.cnn.bricks.wrappers')
    forwards = {kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
    forwards |= {getattr(wrappers, name).forward for name in ('Conv2d', 'Conv3d') if wrappers is not None}
    own = type(conv)._conv_forward not in {kind._conv_forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
    own |= 'forward' in vars(conv) or type(conv).__call__ is not nn.Module.__call__
    return type(conv).forward in forwards and not own


class _Operators(TorchDispatchMode):
    """Records the operators that run, with their arguments and results."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, tuple, object]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func.name(), args, result))
        return result


def only_pads(conv: nn.Module) -> bool:
    """Whether a convolution's own forward pass pads its input, convolves it with ``weight`` and ``bias``, and does
    nothing else; tried on a small random input."""
    if isinstance(conv, ReparametrizedConv) or 'forward' in vars(conv) or type(conv).__call__ is not nn.Module.__call__:
        return False
    sides = [dilation * (kernel - 1) + 9 for kernel, dilation in zip(conv.kernel_size, conv.dilation, strict=True)]
    x = torch.zeros(1, conv.in_channels, *sides, dtype=conv.weight.dtype, device=conv.weight.device)
    operators, training = _Operators(), conv.training
    try:
        with torch.no_grad(), operators:
            y = type(conv).forward(conv, x)
    except Exception:  # third-party layers may raise any error
        return False
    finally:
        conv.training = training
    if not isinstance(y, Tensor) or not operators.calls:
        return False
    *before, (name, args, result) = operators.calls
    padded = [x, *(output for _, _, output in before)]
    return (all(operator.startswith(PADDING_OPERATORS) for operator, _, _ in before)
            and name.startswith('aten::convolution') and any(args[0] is tensor for tensor in padded)
            and args[1] is conv.weight and args[2] is conv.bias and y is result)
