"""Any PyTorch network with other norms and with Weight Standardization, in place."""
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import mmcv.cnn
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from wsbcn_mmseg.layers import BCN, AdaptiveConvWS, AdaptiveConvWS1d, AdaptiveConvWS3d, ConvWS, ConvWS1d, ConvWS3d
from wsbcn_mmseg.layers.bcn import default_num_groups
from wsbcn_mmseg.layers.conv_ws import _WeightStandardized

from .dataflow import Dataflow
from .trial_run import trial_run

STANDARDIZED = {nn.Conv1d: ConvWS1d, nn.Conv2d: ConvWS, nn.Conv3d: ConvWS3d}
# mmcv's wrappers, of the same names, differ from them for empty batches in old releases of torch only
PLAIN_FORWARDS = {kind.forward for kind in (*STANDARDIZED, mmcv.cnn.Conv2d, mmcv.cnn.Conv3d)}
ADAPTIVE = {nn.Conv1d: AdaptiveConvWS1d, nn.Conv2d: AdaptiveConvWS, nn.Conv3d: AdaptiveConvWS3d}


@dataclass
class ConversionReport:
    """What a conversion did; ``print`` it.

    Attributes:
        norms: Names of the norms that were replaced, and of what by what, such as ``'BatchNorm2d -> BCN'``.
        convs: Names of the convolutions that were, such as ``'Conv2d -> ConvWS'``.
        kept: Names of the other norms and convolutions, and why they are what they were.
    """
    norms: dict[str, str] = field(default_factory=dict)
    convs: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f'Converted {len(self.norms)} norms and {len(self.convs)} convolutions.']
        changes = Counter([*self.norms.values(), *self.convs.values()])
        lines += [f'  {change}: {count}' for change, count in changes.items()]
        reasons = {}
        for name, reason in self.kept.items():
            reasons.setdefault(reason, []).append(name)
        if reasons:
            lines.append(f'Left {len(self.kept)} as they were.')
        for reason, names in reasons.items():
            lines.append(f'  {reason}: {", ".join(names[:3])}{f" and {len(names) - 3} more" if len(names) > 3 else ""}')
        return '\n'.join(lines)


def convert_model(model: nn.Module, example_inputs=None, norm: str | dict | None = 'BCN', ws: bool = True, *,
                  include: str | Iterable[str] = (), exclude: str | Iterable[str] = (), preserve: bool = False,
                  instance_norm: bool = False, skip_shared: bool = False, skip_frozen: bool = False
                  ) -> ConversionReport:
    """Replace the norms of a network by BCN, and the convolutions that feed them by ConvWS, in place.

    Which convolution feeds which norm is found by running the network once; a convolution becomes a ConvWS if a norm
    reads its output unchanged. Convolutions change their class only: parameters, buffers, hooks and every reference to
    them stay, and ``weight`` remains the raw kernel. A norm is replaced under each of its names by a new layer on the
    same device, with the same dtype, hooks, training flag and ``requires_grad``; give optimizers the parameters, and
    wrap models for several GPUs, after the conversion.

    Without ``preserve`` the new norms start anew: a network that was trained without Weight Standardization then has
    to be trained again.

    Args:
        model: Any network: torchvision's, timm's, OpenMMLab's, your own.
        example_inputs: What the network is run on: a tensor, a tuple of positional or a dict of keyword arguments.
            Defaults to None: random images (1, C, 64, 64) or larger, C as the first convolution says; OpenMMLab's
            models also run their losses, on made-up labels.
        norm: Name or config of the new norm in MMEngine's registry, such as ``dict(type='BCN', mode='large_batch')``.
            GroupNorm's number of groups is kept. None keeps the norms. Defaults to ``'BCN'``.
        ws: Whether convolutions that feed a norm are standardized. Defaults to True.
        include: If given, only layers with a name that matches one of these patterns are converted: a name, the
            beginning of one up to a dot, or a pattern with ``*`` as in file names.
        exclude: Layers that match one of these are not converted.
        preserve: Keep the function of the network as far as the layers allow: convolutions keep the mean and deviation
            of their kernels in fixed buffers (:class:`~wsbcn_mmseg.layers.AdaptiveConvWS`); the batch normalisation
            of BCN takes over BatchNorm's affine and running statistics, and each group's channel scale and shift undo
            the channel normalisation on average. Defaults to False.
        instance_norm: Whether InstanceNorm is replaced too. Defaults to False.
        skip_shared: Whether to leave layers that are registered under several names or run several times in one pass.
            Defaults to False.
        skip_frozen: Whether to leave layers whose parameters all have ``requires_grad=False``. Defaults to False.

    Returns:
        What was converted and what was not, and why.

    Raises:
        ValueError: If the network does not run on made-up images, or is compiled or wrapped already.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> print(convert_model(model))
        Converted 1 norms and 1 convolutions.
          BatchNorm2d -> BCN: 1
          Conv2d -> ConvWS: 1
        Left 1 as they were.
          no norm reads its output: 3
    """
    return Conversion(model, norm, ws, include, exclude, preserve, instance_norm, skip_shared, skip_frozen).run(
        example_inputs)


def _check(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError('convert_model takes the Python module; convert first, script or trace after')
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or hasattr(model, '_orig_mod'):
        raise ValueError(f'{type(model).__name__} is a wrapper; convert the module first, wrap or compile it after')


def patterns(given: str | Iterable[str]) -> list[str]:
    """One pattern or several, as a list."""
    return [given] if isinstance(given, str) else list(given)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted name is, lies below, or fits one of ``patterns``."""
    return any(name == pattern or name.startswith(f'{pattern}.') or fnmatchcase(name, pattern) for pattern in patterns)


def norm_config(norm: str | dict | None) -> dict:
    """The config of a norm that is given by its name or config; empty for none."""
    return dict(type=norm) if isinstance(norm, str) else dict(norm or {})


class Conversion:
    """One conversion; arguments of :func:`convert_model`.

    Args:
        undo: Make plain convolutions of those ConvWS that ran and that no norm follows.
    """

    def __init__(self, model, norm='BCN', ws=True, include=(), exclude=(), preserve=False, instance_norm=False,
                 skip_shared=False, skip_frozen=False, undo=False):
        _check(model)
        self.model, self.ws, self.preserve, self.undo = model, ws, preserve, undo
        self.include, self.exclude = patterns(include), patterns(exclude)
        self.kinds = (_BatchNorm, nn.GroupNorm, *[_InstanceNorm] * instance_norm)
        self.skip_shared, self.skip_frozen = skip_shared, skip_frozen
        self.cfg = norm_config(norm)
        self.norm_class = registered_norm(self.cfg['type']) if self.cfg else None
        if preserve and self.norm_class not in (BCN, None):
            raise ValueError(f"preserve=True needs norm='BCN' or None, got {self.norm_class.__name__}")
        self.report = ConversionReport()
        self.names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)

    def run(self, example_inputs) -> ConversionReport:
        norms = list(self._norms())
        convs = [module for module in self.names if isinstance(module, _ConvNd)]
        if norms and (self.ws and convs or self.skip_shared):
            flow = trial_run(self.model, example_inputs, convs, norms)
        else:
            flow = Dataflow(targets={conv: set() for conv in convs}, calls=dict.fromkeys(convs, 1))
        consumed = set()  # the norms whose convolutions are standardized
        for norm in norms:
            reason = self._reason_to_keep_norm(norm, flow)
            if reason is None:
                self._replace_norm(norm)
            elif reason:
                self.report.kept[self.names[norm][0]] = reason
            if not reason:
                consumed.add(norm)
        for conv in convs if self.ws else ():
            self._convert_conv(conv, flow, consumed)
        return self.report

    def _norms(self) -> Iterator[nn.Module]:
        """Norms over channels, and the ones of other kinds for the report."""
        inner = {module.bn for module in self.names if isinstance(module, BCN)}
        for module in self.names:
            if isinstance(module, self.kinds) and module not in inner:
                yield module
            elif isinstance(module, (_InstanceNorm, nn.LayerNorm)):
                self.report.kept[self.names[module][0]] = f'{type(module).__name__} is not replaced'

    def _reason_to_keep(self, layer: nn.Module, flow: Dataflow) -> str | None:
        """What the caller asked for."""
        names = self.names[layer]
        if any(matches(name, self.exclude) for name in names):
            return 'excluded'
        if self.include and not any(matches(name, self.include) for name in names):
            return 'not included'
        shared = len(names) > 1 or len(flow.sources.get(layer, ())) > 1 or flow.calls.get(layer, 0) > 1
        if self.skip_shared and shared:
            return 'shared'
        parameters = list(layer.parameters())
        if self.skip_frozen and parameters and not any(parameter.requires_grad for parameter in parameters):
            return 'frozen'
        return None

    def _reason_to_keep_norm(self, norm: nn.Module, flow: Dataflow) -> str | None:
        """None to replace it; an empty one where it is already what is wanted, or norms are kept."""
        reason = self._reason_to_keep(norm, flow)
        if reason is None and (self.norm_class is None or type(norm) is self.norm_class):
            return ''
        if reason is None and norm is self.model:
            return 'it is the whole model, and nothing holds it in which it could be replaced'
        if reason is None and any(isinstance(parameter, nn.UninitializedParameter) for parameter in norm.parameters()):
            return 'its number of channels is not known before it has run'
        if reason is None and set(dict(norm.named_children())) - {'bn', 'drop', 'act'}:
            return f'{type(norm).__name__} has layers of its own'
        return reason

    def _replace_norm(self, old: nn.Module) -> None:
        new = _build_norm(self.norm_class, self.cfg, old)
        if self.preserve:
            _take_over(new, old)
        _carry_over(new, old)
        self.report.norms[self.names[old][0]] = f'{type(old).__name__} -> {type(new).__name__}'
        layer = new
        following = [getattr(old, name) for name in ('drop', 'act') if isinstance(getattr(old, name, None), nn.Module)]
        if following:  # timm's norms that drop and activate too
            layer = nn.Sequential(new, *following)
            layer.training = old.training
        for name in self.names[old]:
            parent, _, child = name.rpartition('.')
            self.model.get_submodule(parent)._modules[child] = layer

    def _convert_conv(self, conv: nn.Module, flow: Dataflow, consumed: set[nn.Module]) -> None:
        name = self.names[conv][0]
        if isinstance(conv, _WeightStandardized):
            if self.undo and conv in flow.calls and not flow.targets[conv]:
                _release(conv)
            return
        reason = self._reason_to_keep(conv, flow) or _reason_to_keep_conv(conv, flow, consumed)
        if reason:
            self.report.kept[name] = reason
            return
        before = type(conv)
        standardize(conv, adaptive=self.preserve)
        self.report.convs[name] = f'{before.__name__} -> {type(conv).__name__}'


def registered_norm(name: str | type) -> type:
    """The norm of that name in MMEngine's registry.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(name, type):
        return name
    with MODELS.switch_scope_and_registry(None) as registry:
        norm_class = registry.get(name)
    if norm_class is None:
        raise ValueError(f'no norm is registered as {name!r}; BCN, GN, BN and SyncBN are')
    return norm_class


def _reason_to_keep_conv(conv: nn.Module, flow: Dataflow, consumed: set[nn.Module]) -> str | None:
    if conv not in flow.calls:
        return 'it did not run'
    if not flow.targets[conv]:
        return 'no norm reads its output'
    if not flow.targets[conv] & consumed:
        return 'the norm that reads its output is kept'
    if isinstance(conv, _ConvTransposeNd):
        return 'transposed convolutions are not standardized'
    if type(conv).forward not in PLAIN_FORWARDS or 'forward' in vars(conv):
        return f'{type(conv).__name__} convolves in its own way'
    if nn.utils.parametrize.is_parametrized(conv) or 'weight' not in conv._parameters:
        return 'its kernel is parametrized already'
    if conv.weight[0].numel() < 2:
        return 'a fan-in of 1 (depth-wise 1x1), which Weight Standardization would turn to zero'
    return None


def standardize(conv: nn.Module, adaptive: bool = False) -> None:
    """Make a plain convolution a ConvWS by its class alone, so that everything it holds or that holds it stays."""
    kind = next(kind for kind in STANDARDIZED if isinstance(conv, kind))
    conv.__class__ = (ADAPTIVE if adaptive else STANDARDIZED)[kind]
    conv.eps, conv.center, conv.scale = 1e-5, True, True
    if adaptive:
        conv._add_buffers()
        conv.adapt()


def _release(conv: nn.Module) -> None:
    conv.__class__ = next(plain for plain, kind in STANDARDIZED.items() if type(conv) is kind)
    for name in ('eps', 'center', 'scale'):
        delattr(conv, name)


def _build_norm(norm_class: type, cfg: dict, old: nn.Module) -> nn.Module:
    """A new norm of the old one's channels, eps, momentum and groups, where ``cfg`` says nothing else."""
    channels = old.num_channels if isinstance(old, nn.GroupNorm) else old.num_features
    settings = dict(eps=old.eps) | {name: value for name, value in cfg.items() if name not in ('type', 'requires_grad')}
    if getattr(old, 'momentum', None) is not None and (issubclass(norm_class, _BatchNorm) or norm_class is BCN):
        settings.setdefault('momentum', old.momentum)
    if isinstance(old, nn.GroupNorm) and issubclass(norm_class, nn.GroupNorm) and old.num_groups <= channels // 2:
        settings.setdefault('num_groups', old.num_groups)
    if norm_class is nn.GroupNorm:
        return nn.GroupNorm(settings.pop('num_groups', default_num_groups(channels)), channels, **settings)
    return norm_class(channels, **settings)


@torch.no_grad()
def _take_over(new: nn.Module, old: nn.Module) -> None:
    """Make BCN compute on average what ``old`` computes: ẋ = BN(x) has mean β_c and deviation γ_c in channel c, hence
    mean β_g = mean β_c and variance γ_g² = mean γ_c² + variance of β_c in a group, which its affine restores.
    """
    if old.weight is None:
        scale, shift = torch.ones(new.num_channels), torch.zeros(new.num_channels)
    else:
        scale, shift = old.weight.detach().float(), old.bias.detach().float()
    groups = scale.view(new.num_groups, -1), shift.view(new.num_groups, -1)
    new.bias.copy_(groups[1].mean(1))
    if isinstance(old, nn.GroupNorm):  # normalised by group already: only its affine can be followed
        new.weight.copy_(groups[0].mean(1))
        return
    new.weight.copy_((groups[0].square().mean(1) + groups[1].var(1, unbiased=False)).sqrt())
    new.bn.weight.copy_(scale)
    new.bn.bias.copy_(shift)
    if old.running_mean is not None:
        new.bn.running_mean.copy_(old.running_mean)
        new.bn.running_var.copy_(old.running_var)
        new.bn.num_batches_tracked.copy_(old.num_batches_tracked)


def _carry_over(new: nn.Module, old: nn.Module) -> None:
    """Device, dtype, flags and hooks; handles that were given out for the hooks go on removing them."""
    tensors = [*old.parameters(), *[buffer for buffer in old.buffers() if buffer.is_floating_point()]]
    if tensors:
        new.to(tensors[0].device, tensors[0].dtype)
        new.requires_grad_(any(parameter.requires_grad for parameter in old.parameters()) or not list(old.parameters()))
    new.train(old.training)
    vars(new).update({name: value for name, value in vars(old).items() if 'hook' in name})
