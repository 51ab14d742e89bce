"""Replace layers in place, so that all references to them stay valid, and restore them if the conversion fails."""
import torch
from torch import Tensor, nn

from wsbcn_mmseg.layers import BCN, AdaptiveConvWS, AdaptiveConvWS1d, AdaptiveConvWS3d, ConvWS, ConvWS1d, ConvWS3d
from wsbcn_mmseg.layers.reparametrized_conv import ReparametrizedConv
from wsbcn_mmseg.layers.standardized_subclass import standardized_subclass

from .norm_families import CHILDREN, eps_of, own_parts
from .selection import convolves_plainly

STANDARDIZED = {nn.Conv1d: ConvWS1d, nn.Conv2d: ConvWS, nn.Conv3d: ConvWS3d}
EXACT = dict(device='cpu', dtype=torch.float64)
ADAPTIVE = {nn.Conv1d: AdaptiveConvWS1d, nn.Conv2d: AdaptiveConvWS, nn.Conv3d: AdaptiveConvWS3d}


class Snapshot:
    """Saved states of layers, to restore them."""

    def __init__(self):
        self._layers: list[tuple[nn.Module, type, dict]] = []

    def take(self, layer: nn.Module) -> None:
        """Save a layer before it is changed."""
        state = {name: value.copy() if isinstance(value, dict) else value for name, value in vars(layer).items()}
        self._layers.append((layer, type(layer), state))

    def restore(self) -> None:
        """Restore all layers, the last changed first."""
        for layer, kind, state in reversed(self._layers):
            layer.__class__ = kind
            vars(layer).clear()
            vars(layer).update(state)


def become(layer: nn.Module, new: nn.Module) -> None:
    """Turn ``layer`` into ``new``; its hooks and their handles stay valid."""
    hooks = {name: value for name, value in vars(layer).items() if 'hook' in name}
    training = layer.training
    layer.__class__ = type(new)
    vars(layer).clear()
    vars(layer).update(vars(new) | hooks | {'training': training})


def replace_norm(old: nn.Module, new: nn.Module, preserve: bool) -> None:
    """Turn a norm into ``new``, on its device, with its dtype, training flag and ``requires_grad``.

    Operations of the old norm after normalizing (timm's norms also drop and activate) are kept after the new one.

    Args:
        old: The norm.
        new: A newly built norm with the same number of channels.
        preserve: Whether ``new``, a BCN or GroupNorm, takes over the function of ``old``, see :func:`take_over` and
            :func:`take_over_by_groups`.
    """
    tensors = [*old.parameters(), *[buffer for buffer in old.buffers() if buffer.is_floating_point()]]
    if tensors:
        new.to(tensors[0].device, tensors[0].dtype)
        if isinstance(new, BCN) and tensors[0].dtype.itemsize < 4:
            new.bn.float()  # small updates are lost in half precision
        parameters = list(old.parameters())
        new.requires_grad_(not parameters or any(parameter.requires_grad for parameter in parameters))
        target = new.bn if isinstance(new, BCN) and not isinstance(old, nn.GroupNorm) else new
        for name, parameter in old.named_parameters(recurse=False):
            if getattr(target, name, None) is not None:
                getattr(target, name).requires_grad_(parameter.requires_grad)
    if preserve:
        take_over(new, old) if isinstance(new, BCN) else take_over_by_groups(new, old)
    new.train(old.training)
    following = [getattr(old, name) for name in CHILDREN if isinstance(getattr(old, name, None), nn.Module)]
    become(old, nn.Sequential(new, *following) if following else new)


@torch.no_grad()
def take_over(new: BCN, old: nn.Module) -> None:
    """Make BCN compute on average what ``old`` computes: ẋ = BN(x) has mean β_c and deviation γ_c in channel c, hence
    mean β_g = mean β_c and variance γ_g² = mean γ_c² + variance of β_c in a group, which its affine restores.
    """
    scale, shift = _scale_and_shift(old, new.num_channels)
    groups = scale.view(new.num_groups, -1), shift.view(new.num_groups, -1)
    new.bias.copy_(groups[1].mean(1))
    if isinstance(old, nn.GroupNorm):  # it normalizes groups already, so only its affine map can be copied
        new.weight.copy_(groups[0].mean(1))
        return
    new.weight.copy_((groups[0].square().mean(1) + groups[1].var(1, unbiased=False)).sqrt())
    eps = eps_of(old)
    if eps != new.eps:  # BCN requires eps above 0
        var = old.running_var.to(**EXACT)
        scale = scale * ((var + new.eps) / (var + eps)).sqrt()
    new.bn.weight.copy_(scale)
    new.bn.bias.copy_(shift)
    new.bn.running_mean.copy_(old.running_mean)
    new.bn.running_var.copy_(old.running_var)
    if getattr(old, 'num_batches_tracked', None) is not None:
        new.bn.num_batches_tracked.copy_(old.num_batches_tracked)


@torch.no_grad()
def take_over_by_groups(new: nn.GroupNorm, old: nn.Module) -> None:
    """Make GroupNorm compute on average what BatchNorm computes in evaluation mode: by the running statistics, a group
    has mean μ_g = mean μ_c and variance σ_g² = mean σ_c² + variance of μ_c, which the scale and shift of each channel
    undo. The scale and shift of a GroupNorm with the same groups are copied.
    """
    scale, shift = _scale_and_shift(old, new.num_channels)
    if not isinstance(old, nn.GroupNorm):
        mean, var = old.running_mean.to(**EXACT), old.running_var.to(**EXACT)
        groups = mean.view(new.num_groups, -1), var.view(new.num_groups, -1)
        group_mean, group_var = groups[0].mean(1), groups[1].mean(1) + groups[0].var(1, unbiased=False)
        per_channel = new.num_channels // new.num_groups
        scale = scale / (var + eps_of(old)).sqrt()
        shift = shift + scale * (group_mean.repeat_interleave(per_channel) - mean)
        scale = scale * (group_var + new.eps).sqrt().repeat_interleave(per_channel)
    new.weight.copy_(scale)
    new.bias.copy_(shift)


def _scale_and_shift(norm: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """γ and β of each channel."""
    scale = torch.ones(channels, **EXACT) if norm.weight is None else norm.weight.to(**EXACT)
    return scale, torch.zeros(channels, **EXACT) if norm.bias is None else norm.bias.to(**EXACT)


def reason_not_to_take_over(new: nn.Module, old: nn.Module) -> str | None:
    """Why ``new``, a BCN or GroupNorm, cannot take over the function of ``old``; None if it can."""
    if isinstance(old, BCN):
        return f'it is a BCN already, and a new {type(new).__name__} cannot preserve its function'
    if not isinstance(new, BCN) and (new.weight is None or new.bias is None):
        return 'a GroupNorm without scale and shift cannot preserve its function'
    if isinstance(old, nn.GroupNorm):
        return None if isinstance(new, BCN) or new.num_groups == old.num_groups else \
            'other groups cannot preserve its function'
    return None if old.running_mean is not None else \
        f'it has no running statistics, which a {type(new).__name__} needs to preserve its function'


def standardize(conv: nn.Module, adaptive: bool = False) -> None:
    """Turn a plain convolution into a ConvWS by changing only its class; a subclass that pads keeps its forward pass.

    Args:
        conv: A convolution for which ``convolves_plainly`` or ``only_pads`` holds.
        adaptive: Keep the mean and deviation of the kernel, see :class:`~wsbcn_mmseg.layers.AdaptiveConvWS`.
    """
    if convolves_plainly(conv) and not own_parts(conv):
        kind = next(kind for kind in STANDARDIZED if isinstance(conv, kind))
        conv.__class__ = (ADAPTIVE if adaptive else STANDARDIZED)[kind]
    else:
        conv.__class__ = standardized_subclass(type(conv), adaptive)
    conv.eps = 1e-5
    if adaptive:
        conv._add_buffers()
        conv.adapt()


def release(conv: ReparametrizedConv) -> None:
    """Turn a ConvWS into a plain convolution with its raw kernel."""
    conv.__class__ = conv.plain_class
    for name in ('eps', 'center', 'scale'):
        vars(conv).pop(name, None)
