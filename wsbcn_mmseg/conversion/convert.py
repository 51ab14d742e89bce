"""Conversion of any PyTorch network to other norms and to Weight Standardization, in place."""
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.layers.bcn import default_num_groups
from wsbcn_mmseg.layers.conv_ws import WeightStandardized
from wsbcn_mmseg.ops.arguments import check_flag, check_integer

from .copying import copy_network
from .dataflow import Dataflow
from .norm_families import build_norm, channels_of, check_preserving, find_norm, has_groups, regroupable_class
from .proof import check_result, relative_change
from .replacement import Snapshot, reason_not_to_take_over, release, replace_norm, standardize
from .report import ConversionError, ConversionReport, count, quoted
from .selection import ASKED_FOR, THEIR_NORM_IS_KEPT, Selection, is_lazy
from .trial_run import TrialRun

MIN_VALUES = 16  # values per group and image, for meaningful statistics
PAPER_VALUES = 8  # the minimum in the paper's networks: 256 channels in 32 groups after global pooling (DeepLabV3)
PRESERVING_WIDTH = 16  # minimum of channels per group with which pretrained networks keep more of their function


def convert_model(model: nn.Module, example_inputs: Tensor | tuple | dict | None = None,
                  norm: str | dict | None = 'BCN', ws: bool = True, *,
                  include: str | Iterable[str] = (), exclude: str | Iterable[str] = (), preserve: bool = False,
                  instance_norm: bool = False, skip_shared: bool = False, skip_frozen: bool = False,
                  read_elsewhere: bool = False) -> nn.Module:
    """Replace the norms of a network by BCN, and the convolutions that feed them by ConvWS, in place.

    The network is run once to find which convolution feeds which norm. A convolution becomes a ConvWS if its output
    goes unchanged to norms and nowhere else. Layers are changed in place, so references to them stay valid.
    Convolutions keep parameters, buffers and hooks, and ``weight`` remains the raw kernel. Norms keep device, dtype,
    hooks, training flag and ``requires_grad``. Create optimizers, and wrap models for several GPUs, after the
    conversion.

    Only layers whose behavior is known are replaced; the report gives the reason for each other layer. Then the
    network is run again: every new layer must run where the old one did, and the output must be finite. If not, the
    model is restored and an error is raised.

    On the example, each group of channels must have at least 16 values. If it has fewer with the default number of
    groups (after linear layers, on 1x1 maps), the norm gets fewer groups, or is not replaced.

    Without ``preserve``, the new norms have their initial values, and a network that was trained without Weight
    Standardization has to be trained again.

    Args:
        model: Any network, for example of torchvision, timm or OpenMMLab.
        example_inputs: Input of the network: a tensor, a tuple of positional arguments or a dict of keyword
            arguments. Defaults to None: random images of shape (1, C, 64, 64) or larger, where C is the number of
            input channels of the first convolution. Models of OpenMMLab also compute their losses, with made-up
            labels.
        norm: Name, config or class of the new norm, such as ``dict(type='BCN', mode='large_batch')``. Names are those
            of OpenMMLab, but ``'LN'`` normalizes over channels and positions. The number of groups of a GroupNorm is
            kept. None keeps the norms. Defaults to ``'BCN'``.
        ws: Whether to replace convolutions that feed a norm by ConvWS. Defaults to True.
        include: If given, only layers whose names match one of these patterns are converted. A pattern is a name, the
            beginning of a name up to a dot, or a pattern with ``*`` as in file names.
        exclude: Layers whose names match one of these patterns are not converted.
        preserve: Change the outputs of the network as little as possible. Convolutions keep the mean and standard
            deviation of their kernels in fixed buffers (:class:`~wsbcn_mmseg.layers.AdaptiveConvWS`). The batch
            normalization of BCN gets the scale, shift and running statistics of BatchNorm (also of a frozen one).
            Norms without running statistics are kept. Groups have at least 16 channels by default, and the scale and
            shift of each group undo the channel normalization on average. With ``norm='GN'`` or ``'LN'``, the scale and
            shift of each channel undo the normalization on average. The report has the change of the output. Defaults
            to False.
        instance_norm: Whether to also replace InstanceNorm. Defaults to False.
        skip_shared: Whether to skip layers that are registered under several names or run several times in one pass.
            Defaults to False.
        skip_frozen: Whether to skip layers whose parameters all have ``requires_grad=False``. Defaults to False.
        read_elsewhere: Whether to also replace convolutions whose output or kernel is read by other code than the
            replaced norms. The scale of what the other code reads changes. Defaults to False.

    Returns:
        ``model`` itself. Its ``conversion_report`` is a :class:`ConversionReport`, which lists what was converted,
        and what was not, with the reason.

    Raises:
        ConversionError: A ``ValueError``, if the network does not run on made-up images, is compiled or wrapped
            already, a pattern matches nothing, ``norm`` cannot preserve the outputs, there is nothing to convert, or
            the converted network does not run as the old one did. The model is then unchanged.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> print(convert_model(model).conversion_report)
        Converted 1 norm and 1 convolution.
          BatchNorm2d -> BCN: 1
          Conv2d -> ConvWS: 1
        Groups of BCN have at least 2 channels.
        Left 1 layer unchanged:
          no norm reads its output: '3'
    """
    with torch.inference_mode(False):
        conversion = Conversion(model, norm, ws, include, exclude, preserve, instance_norm, skip_shared, skip_frozen,
                                read_elsewhere)
        model.conversion_report = conversion.run(example_inputs)
    return model


def plan_conversion(model: nn.Module, example_inputs: Tensor | tuple | dict | None = None, *args: Any,
                    **kwargs: Any) -> ConversionReport:
    """Report what :func:`convert_model` would do with these arguments, by converting a copy of ``model``."""
    return convert_model(copy_network(model), example_inputs, *args, **kwargs).conversion_report


def _check(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError('convert_model takes the Python module; convert first, script or trace after')
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or hasattr(model, '_orig_mod'):
        raise ConversionError(f'{type(model).__name__} is a wrapper; convert the module first, wrap or compile it '
                              'after')
    if not isinstance(model, nn.Module):
        raise ConversionError(f'expected an nn.Module, got {type(model).__name__}')
    for name, module in model.named_modules():
        if is_lazy(module):
            raise ConversionError(f'{quoted(name)} is a {type(module).__name__}: its number of channels is not known '
                                  'before it has run; run the network once, then convert it')
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ConversionError(f'{type(model).__name__} was built under torch.inference_mode, so its tensors cannot be '
                              'changed; build it outside')
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ConversionError(f'{type(model).__name__} is on the meta device and cannot run; convert it after it has '
                              'memory (to_empty), or build it elsewhere')


def norm_config(norm: str | dict | type | None) -> dict:
    """The config of a norm that is given by name, class or config; empty for None."""
    if isinstance(norm, dict) and 'type' not in norm:
        raise ValueError(f'the config of a norm needs a type, got {norm}')
    return dict(norm or {}) if isinstance(norm, dict) or norm is None else dict(type=norm)


class Conversion:
    """One conversion; arguments of :func:`convert_model`.

    Args:
        undo: Turn each ConvWS that ran but feeds no norm into a plain convolution.
    """

    def __init__(self, model, norm='BCN', ws=True, include=(), exclude=(), preserve=False, instance_norm=False,
                 skip_shared=False, skip_frozen=False, read_elsewhere=False, undo=False):
        _check(model)
        self.model, self.ws, self.preserve, self.undo = model, ws, preserve, undo
        try:
            for name, flag in dict(ws=ws, preserve=preserve, instance_norm=instance_norm, skip_shared=skip_shared,
                                   skip_frozen=skip_frozen, read_elsewhere=read_elsewhere).items():
                check_flag(name, flag)
            self.cfg = norm_config(norm)
            self.norm_class = find_norm(self.cfg['type']) if self.cfg else None
            if preserve:
                check_preserving(self.norm_class)
            for name in ('num_groups', 'min_channels_per_group'):
                if self.cfg.get(name) is not None:
                    check_integer(name, self.cfg[name], 1)
            self.selection = Selection(model, include, exclude, preserve, instance_norm, skip_shared, skip_frozen,
                                       read_elsewhere)
        except ValueError as error:
            raise ConversionError(str(error)) from error
        if self.norm_class is None and not ws:
            raise ConversionError('norm=None and ws=False leave nothing to convert')
        if preserve and self.norm_class is BCN and 'num_groups' not in self.cfg:
            self.cfg = dict(min_channels_per_group=PRESERVING_WIDTH) | self.cfg
        self.report, self.wanted = ConversionReport(), False
        self.snapshot = Snapshot()

    def run(self, example_inputs) -> ConversionReport:
        """Convert, check, and return the report.

        Raises:
            ConversionError: See :func:`convert_model`.
        """
        trial, flow = self._first_run(example_inputs)
        before = trial.outputs if trial else []
        self.report.kept.update({self.selection.name(layer): reason
                                 for layer, reason in self.selection.other_norms().items()})
        try:
            self._convert(flow)
            if trial is not None:
                check_result(trial, self.selection, before)
        except Exception as error:
            self.snapshot.restore()
            if isinstance(error, ValueError) and not isinstance(error, ConversionError):  # raised by constructors
                raise ConversionError(str(error)) from error
            raise
        if self.preserve and trial is not None:
            self.report.output_change = relative_change(before, trial.outputs)
        return self.report

    def _first_run(self, example_inputs) -> tuple[TrialRun | None, Dataflow]:
        """Run the network to find its dataflow. If there is no convolution to standardize, it need not run."""
        selection = self.selection
        convs = selection.convs if self.ws or self.undo else []
        nothing = Dataflow(targets={conv: set() for conv in convs}, calls=dict.fromkeys(convs, 1))
        if not selection.norms:
            return None, nothing
        trial = TrialRun(self.model, example_inputs)
        try:
            flow = trial.run(convs, selection.norms)
        except ValueError as error:
            if convs or example_inputs is not None:
                raise ConversionError(str(error)) from error
            return None, nothing
        if any(self._values(norm, flow) < MIN_VALUES for norm in selection.norms if norm in flow.positions):
            larger = trial.on_larger_images(selection.norms).positions
            flow.positions = {norm: max(seen, larger.get(norm, 0)) for norm, seen in flow.positions.items()}
        return trial, flow

    # Converting

    def _convert(self, flow: Dataflow) -> None:
        selection = self.selection
        consumed = {norm for norm in selection.norms if self._convert_norm(norm, flow)}
        convs = [conv for conv in selection.convs if self.ws and not isinstance(conv, WeightStandardized)]
        reasons = {conv: selection.reason_to_keep_conv(conv, flow, consumed) for conv in convs}
        for conv, reason in reasons.items():
            name, before = selection.name(conv), type(conv).__name__
            if reason:
                self.report.kept[name] = reason
                continue
            self.snapshot.take(conv)
            standardize(conv, adaptive=self.preserve)
            self.report.convs[name] = f'{before} -> {type(conv).__name__}'
        for conv in selection.convs if self.undo else ():
            if isinstance(conv, WeightStandardized) and conv in flow.calls and not flow.targets[conv]:
                self.snapshot.take(conv)
                release(conv)
        self._check_that_something_is_converted()

    def _convert_norm(self, old: nn.Module, flow: Dataflow) -> bool:
        """Replace a norm, and return whether to standardize the convolutions before it."""
        name, dim = self.selection.name(old), flow.dims.get(old) or self._usual_dim(old)
        reason = self.selection.reason_to_keep_norm(old, flow, dim)
        if reason is None and self.norm_class is None:
            return True
        if reason is None:
            new = build_norm(self.norm_class, self.cfg, old, dim, PRESERVING_WIDTH if self.preserve else 2)
            if self._is_wanted(old, new):
                if self.undo and isinstance(old, BCN) and self._values(old, flow) < PAPER_VALUES:  # built by a config
                    self._replace(old, self._regrouped(old, old, flow) or old, name)
                return True
            built, new = new, self._regrouped(new, old, flow)
            loss = reason_not_to_take_over(new or built, old) if self.preserve else None
            if loss:
                self.report.regrouped.pop(name, None)
                self.report.kept[name] = loss
                return True
            if new is not None:
                if old not in flow.calls:
                    self.report.unseen[name] = 'the number of values in its groups is not known'
                self._replace(old, new, name)
                return True
            least = f'the {MIN_VALUES} that a group needs' if has_groups(built) else 'can be normalized'
            reason = (f'its {channels_of(old)} channels at {count(flow.positions[old], "position")} are fewer values '
                      f'than {least}')
        self.report.kept[name] = reason
        return False

    def _is_wanted(self, old: nn.Module, new: nn.Module) -> bool:
        """Whether a norm already equals its replacement in class and in the settings that the caller gave."""
        said = {{'min_channels_per_group': 'num_groups'}.get(name, name) for name in self.cfg if name != 'type'}
        said = {name for name in said if hasattr(new, name)}
        said |= {'num_groups'} if self.norm_class is nn.LayerNorm else set()
        wanted = type(old) is type(new) and all(getattr(old, name) == getattr(new, name) for name in said)
        self.wanted |= wanted
        return wanted

    def _replace(self, old: nn.Module, new: nn.Module, name: str) -> None:
        if new is old:
            return
        before, after = type(old).__name__, type(new).__name__
        self.snapshot.take(old)
        replace_norm(old, new, self.preserve)
        self.report.norms[name] = f'{before} -> {after}'
        if isinstance(new, BCN) and not self.cfg.get('num_groups'):
            self.report.min_channels_per_group = self.cfg.get('min_channels_per_group', 2)

    def _values(self, norm: nn.Module, flow: Dataflow) -> float:
        """Values per group and image if BCN replaced ``norm``; infinite if ``norm`` did not run."""
        if norm not in flow.positions:
            return math.inf
        channels, width = channels_of(norm), self.cfg.get('min_channels_per_group', 2)
        groups = self.cfg.get('num_groups') or default_num_groups(channels, width)
        return channels // groups * flow.positions[norm]

    def _regrouped(self, new: nn.Module, old: nn.Module, flow: Dataflow) -> nn.Module | None:
        """``new`` with as many groups as have enough values; None if even one group has too few.

        An explicit number of groups is kept, unless groups have a single value, which normalizes to a constant.
        """
        positions, name = flow.positions.get(old, MIN_VALUES), self.selection.name(old)
        if isinstance(new, _InstanceNorm):
            return new if positions > 1 else None
        if not has_groups(new):
            return new
        channels = channels_of(new)
        values, asked_for = channels // new.num_groups * positions, self.cfg.get('num_groups')
        if values >= (2 if asked_for else MIN_VALUES):
            if values < MIN_VALUES:
                self.report.regrouped[name] = (f'{count(values, "value")} in each of the {new.num_groups} groups that '
                                               'were asked for')
            return new
        groups = next((groups for groups in range(new.num_groups, 0, -1) if channels % groups == 0
                       and channels // groups * positions >= MIN_VALUES), None)
        if groups is None or regroupable_class(new) is None:
            return None
        self.report.regrouped[name] = (f'{count(values, "value")} in each of {new.num_groups} groups, '
                                       f'{channels // groups * positions} in each of {groups}')
        settings = {key: value for key, value in self.cfg.items() if key != 'min_channels_per_group'}
        return build_norm(regroupable_class(new), settings | dict(num_groups=groups), old)

    def _usual_dim(self, norm: nn.Module) -> int:
        """Number of dimensions of the input of a norm that did not run."""
        kinds = {nn.BatchNorm1d: 3, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
        by_kind = next((dim for kind, dim in kinds.items() if isinstance(norm, kind)), None)
        return by_kind or next((conv.weight.dim() for conv in self.selection.convs), 4)

    def _check_that_something_is_converted(self) -> None:
        wanted = self.wanted or any(isinstance(module, WeightStandardized) for module in self.model.modules())
        reasons = dict.fromkeys(self.report.kept.values())
        asked_for = set(reasons) & ASKED_FOR and set(reasons) <= {*ASKED_FOR, THEIR_NORM_IS_KEPT}
        if self.report.norms or self.report.convs or wanted or asked_for:
            return
        raise ConversionError(f'{type(self.model).__name__} has nothing to convert: '
                              f'{"; ".join(reasons) or "no norm and no convolution"}')
