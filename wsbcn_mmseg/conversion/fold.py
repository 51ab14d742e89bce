"""Fold a trained network into stock layers: at test time, WS and the batch part of BCN are constants."""
import copy
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from wsbcn_mmseg import layers
from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.layers.fused_relu import ReLUUnlessFused
from wsbcn_mmseg.layers.reparametrized_conv import ReparametrizedConv

from .copying import copy_network
from .dataflow import Dataflow
from .fuse_relu import unfuse_relu
from .norm_families import behaves_as_family
from .selection import is_lazy
from .trial_run import TrialRun

_PLAIN_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
TOLERANCE, HALF_TOLERANCE = 2e-3, 5e-2  # relative to the largest output; float32 rounding reached 2e-4
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _plain_convs() -> Iterator[type]:
    """Convolution classes that only convolve with kernel and bias."""
    names = ('Conv1d', 'Conv2d', 'Conv3d', 'ConvTranspose1d', 'ConvTranspose2d', 'ConvTranspose3d')
    mmcv = sys.modules.get('mmcv.cnn.bricks.wrappers')  # differ only for empty batches in old releases of torch
    return (getattr(package, name) for package in (nn, mmcv) for name in names if hasattr(package, name))


@torch.no_grad()
def fold(model: nn.Module, example_inputs: Tensor | tuple | None = None) -> nn.Module:
    """Copy a model for inference, and replace this package's layers by stock PyTorch layers that compute the same.

    - A ``ConvWS`` becomes a plain convolution with the standardized kernel.
    - A ``BCN`` becomes a ``nn.GroupNorm``. Its batch normalization, an affine function per channel, is merged into
      kernel and bias of the convolution that feeds it. If not exactly one convolution feeds the norm, or if the
      output of this convolution is used elsewhere too, the BCN becomes ``nn.Sequential(BatchNorm, GroupNorm)``.
    - A ``GNByWidth`` becomes a ``nn.GroupNorm``.
    - A BatchNorm after a ``ConvWS`` is merged into the convolution in the same way and becomes a ``nn.Identity``. If
      this is not possible, it stays as it is.

    Everything else is as in ``model``, including hooks, shared modules and layers of other packages. The
    ``state_dict`` fits the same architecture built from plain layers (with ``bias=True`` in convolutions into which a
    batch normalization was merged).

    The copy is run once, on one input, to find the convolution that feeds each norm; control flow that depends on the
    input is not supported. The batch normalization of norms that do not run, or that have hooks, stays a BatchNorm.

    Args:
        model: Any module; it is not changed.
        example_inputs: Input of the network: a tensor, a tuple of positional arguments or a dict of keyword
            arguments. Defaults to None: random images, as in :func:`convert_model`. If the network does not run on
            these, the batch normalizations of all BCN layers stay BatchNorms.

    Returns:
        The folded copy, in evaluation mode.

    Raises:
        ValueError: If the network has norms of this package, or derived from them, for which there is no stock layer,
            such as SwitchableNorm; or if the output of the folded network on the example differs, for example because
            other code reads a raw kernel.
        Exception: Any error that ``model`` raises for the given ``example_inputs``.

    Examples:
        >>> from wsbcn_mmseg.layers import BCN, ConvWS
        >>> fold(nn.Sequential(ConvWS(3, 8, 3, bias=False), BCN(8)))
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): GroupNorm(4, 8, eps=1e-05, affine=True, bias=True)
        )
    """
    _check_layers(model)
    folded = copy_network(model)
    unfuse_relu(folded)
    folded.eval()  # eval() returns None for some OpenMMLab networks
    for module in folded.modules():
        if _is_ours(module) and not isinstance(module, (BCN, ReparametrizedConv)):
            module.__class__ = _stock_class(module)
    modules = list(folded.modules())
    standardized, plain = {m for m in modules if isinstance(m, ReparametrizedConv)}, set(_plain_convs())
    for conv in standardized:
        _settle(conv)
    convs = standardized | {m for m in modules if type(m) in plain and 'weight' in m._parameters}
    norms = [m for m in modules if isinstance(m, BCN) or type(m) in _PLAIN_BATCH_NORMS]
    trial = TrialRun(folded, example_inputs, always_train=False)
    sources, dims = _sources(trial, convs, norms)
    expected = trial.outputs
    _fold_layers(standardized, norms, sources, dims)
    trial.attempts = [attempt for attempt in trial.attempts if not attempt.training and attempt.failure is None]
    if trial.attempts:
        trial.again([], [])
        _check_outputs(expected, trial.outputs)
    return folded


def _check_layers(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f'expected an nn.Module, got {type(model).__name__}')
    for name, module in model.named_modules():
        if is_lazy(module):
            raise ValueError(f'{name or "the model"} is lazy: its shapes are not known before it has run; run the '
                             'network once, then fold it')
        if isinstance(module, BCN) and getattr(module.bn, 'running_mean', None) is None:
            raise ValueError(f'{name or "the model"} has no running estimates: its statistics depend on the batch and '
                             'cannot be folded')
        if _is_ours(module) and not _is_known(module):
            raise ValueError('the network cannot be folded: there is no stock layer that computes the same as '
                             f'{type(module).__name__} ({name or "the model"})')


def _fold_layers(standardized: set, norms: list, sources: dict, dims: dict) -> None:
    for conv in standardized:
        _bake(conv)
    for norm in norms:
        conv = sources.get(norm)
        if isinstance(norm, BCN):
            if conv is not None:
                _scale_output(conv, *_affine(norm.bn))
            _become(norm, _group_norm(norm) if conv is not None else
                    nn.Sequential(_batch_norm(norm.bn, dims[norm]), _group_norm(norm)))
        elif conv in standardized and norm.running_mean is not None:
            _scale_output(conv, *_affine(norm))
            _become(norm, nn.Identity())


def _check_outputs(expected: list[Tensor], actual: list[Tensor]) -> None:
    """Raise an error unless the folded network returns the same as the original, up to rounding."""
    for before, after in zip(expected, actual, strict=True):
        largest = float(before.abs().max()) if before.numel() else 0.
        tolerance = (TOLERANCE if before.dtype.itemsize >= 4 else HALF_TOLERANCE) * largest
        if before.isfinite().all() and (before - after).abs().amax() > tolerance > 0:
            raise ValueError('the folded network does not compute the same as the original: the output on the example '
                             f'differs by {float((before - after).abs().max()) / largest:.1e} of its largest value; '
                             'does other code read a raw kernel or a norm?')


# Classes of stock layers

def _is_ours(module: nn.Module) -> bool:
    """Whether a layer's class is from this package or derived from one."""
    return any(base.__module__.startswith(f'{layers.__name__}.') for base in type(module).__mro__)


def _is_known(module: nn.Module) -> bool:
    """Whether :func:`fold` has a stock layer that computes the same as a layer of this package."""
    if isinstance(module, BCN):
        return behaves_as_family(module)
    return isinstance(module, (ReparametrizedConv, ReLUUnlessFused)) or _stock_class(module) is not None


def _stock_class(module: nn.Module) -> type[nn.Module] | None:
    """The PyTorch class from which a layer inherits its whole behavior, or None."""
    stock = next(base for base in type(module).__mro__ if base.__module__.startswith('torch.nn.'))
    same = type(module).forward is stock.forward and type(module).__call__ is stock.__call__
    return stock if same and 'forward' not in vars(module) and stock is not nn.Module else None


# Dataflow from convolutions to norms

def _sources(trial: TrialRun, convs: set, norms: list) -> tuple[dict, dict]:
    """For each norm, the convolution that feeds only it, and the number of dimensions of its input."""
    first = next((module for module in trial.model.modules() if isinstance(module, _ConvNd)), None)
    dims = dict.fromkeys(norms, 4 if first is None else first.weight.dim())

    def note(norm, _, output):
        dims[norm] = output.dim()

    hooks = [norm.register_forward_hook(note) for norm in norms]
    try:
        flow = trial.run(list(convs), norms)
    except ValueError:  # the network does not run on random images
        if trial.example_inputs is not None:
            raise
        flow, trial.attempts = Dataflow(), []
    finally:
        for hook in hooks:
            hook.remove()
    sources = {norm: flow.sole_source(norm) for norm in flow.sources}
    return {norm: conv for norm, conv in sources.items() if conv is not None and not (
        conv._forward_hooks or norm._forward_pre_hooks or norm._forward_hooks)}, dims  # hooks read what is in between


# Changes of modules, in place, so that all references to them stay valid

def _settle(conv: ReparametrizedConv) -> None:
    """Make the raw kernel an ordinary parameter if a parametrization or a hook computes it."""
    if nn.utils.parametrize.is_parametrized(conv):  # PyTorch's function changes the class, which copies share
        values = {name: getattr(conv, name).detach() for name in conv.parametrizations}
        conv.__class__ = type(conv).__bases__[0]
        del conv._modules['parametrizations']
        for name, value in values.items():
            conv.register_parameter(name, nn.Parameter(value))
    for hook in list(conv._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(conv, hook._tensor_name)
        elif isinstance(hook, WeightNorm):
            nn.utils.remove_weight_norm(conv, hook.name)
        elif isinstance(hook, SpectralNorm):
            nn.utils.remove_spectral_norm(conv, hook.name)
    if 'weight' not in conv._parameters:
        raise ValueError('a hook computes the kernel of a convolution in a way that fold does not support; make it a '
                         'parameter first, as torch.nn.utils.prune.remove does')


def _bake(conv: ReparametrizedConv) -> None:
    """Turn a reparametrized convolution into a plain one with its effective kernel."""
    double = copy.deepcopy(conv).to('cpu', torch.float64)
    kernel = double.standardized_weight() if hasattr(double, 'standardized_weight') else double.effective_weight()
    weight, bias = _parameter(kernel, conv.weight), conv.bias
    conv.__class__ = conv.plain_class
    for held in (conv._parameters, conv._buffers):
        held.clear()
    conv.register_parameter('weight', weight)
    conv.register_parameter('bias', bias)
    for name in ('eps', 'center', 'scale'):
        vars(conv).pop(name, None)


def _scale_output(conv: _ConvNd, scale: Tensor, shift: Tensor) -> None:
    """Merge ``scale * y + shift``, where y is the output, into kernel and bias. ``scale`` and ``shift`` are float64 of
    shape (out_channels,)."""
    kernel, pixels = _double(conv.weight), [1] * (conv.weight.dim() - 2)
    if conv.transposed:  # its kernel has shape (in_channels, out_channels / groups, *)
        kernel = (kernel.unflatten(0, (conv.groups, -1)) * scale.view(conv.groups, 1, -1, *pixels)).flatten(0, 1)
    else:
        kernel = kernel * scale.view(-1, 1, *pixels)
    if conv.bias is not None:
        shift = shift + scale * _double(conv.bias)
    conv.weight = _parameter(kernel, conv.weight)
    conv.bias = _parameter(shift, conv.weight.new_empty(len(shift)) if conv.bias is None else conv.bias)


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The scale and shift per channel by which a BatchNorm acts in evaluation mode, in float64."""
    scale = torch.rsqrt(_double(norm.running_var) + norm.eps)
    scale = scale if norm.weight is None else scale * _double(norm.weight)
    shift = -scale * _double(norm.running_mean)
    return scale, shift if norm.bias is None else shift + _double(norm.bias)


def _group_norm(norm: BCN) -> nn.GroupNorm:
    """The channel normalization of BCN as a GroupNorm; the weight of each group is repeated for its channels."""
    plain = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps)
    for name in ('weight', 'bias'):
        value = getattr(norm, name)
        channels = value.detach().repeat_interleave(norm.num_channels // norm.num_groups)
        setattr(plain, name, nn.Parameter(channels, value.requires_grad))
    return plain.eval()


def _batch_norm(norm: _BatchNorm, dim: int) -> _BatchNorm:
    """The same BatchNorm in the class for inputs of ``dim`` dimensions."""
    plain = _BATCH_NORMS[dim](len(norm.running_mean), norm.eps, getattr(norm, 'momentum', None))
    if isinstance(norm, _BatchNorm):
        plain._parameters, plain._buffers = norm._parameters, norm._buffers
    else:  # a frozen BatchNorm, with buffers only
        plain.load_state_dict(norm.state_dict(), strict=False)
        plain.requires_grad_(False)
    return plain.eval()


def _become(module: nn.Module, plain: nn.Module) -> None:
    """Turn ``module`` into ``plain``; hooks on it stay."""
    hooks = {name: value for name, value in vars(module).items() if 'hook' in name}
    module.__class__ = type(plain)
    vars(module).clear()
    vars(module).update(vars(plain) | hooks | {'training': False})


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to('cpu', torch.float64)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    """``value`` as a parameter with the device, dtype and memory format of ``like``."""
    return nn.Parameter(torch.empty_like(like, requires_grad=False).copy_(value), like.requires_grad)
