"""Batch-Channel Normalization as a layer (Section 7)."""
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsbcn_mmseg.ops import batch_channel_norm
from wsbcn_mmseg.ops.arguments import check_choice, check_eps, check_flag, check_input, check_integer, check_number
from wsbcn_mmseg.ops.batch_channel_norm import MODES, values_per_group
from wsbcn_mmseg.ops.estimates import recomputing, update_estimates
from wsbcn_mmseg.ops.execution import transformed

from .fused_relu import mark_rectified
from .tracing import is_symbolic, leaf_call

DEFAULT_UPDATE_RATE = 0.01
MAX_GROUPS = 32  # the paper's number on ImageNet, COCO and VOC
FEW_VALUES = 4  # statistics of a group over so few values say little


def default_num_groups(num_features: int, min_channels_per_group: int = 2) -> int:
    """The largest divisor of ``num_features`` not above min(32, max(1, num_features // min_channels_per_group)).

    32 for 64, 128, 256, ... channels, as in the paper; ``min_channels_per_group=4`` is the paper's rule on CIFAR.
    """
    check_integer('num_features', num_features, 1)
    check_integer('min_channels_per_group', min_channels_per_group, 1)
    limit = min(MAX_GROUPS, max(1, num_features // min_channels_per_group))
    return next(groups for groups in range(limit, 0, -1) if num_features % groups == 0)


class BCN(nn.GroupNorm):
    r"""Batch-Channel Normalization (Eq. 40-43): a batch normalization followed by a group normalization.

    ``mode='micro_batch'`` is Algorithm 1: every training forward pass updates running estimates of each channel's
    mean and variance with those of the batch, at ``update_rate``, and normalizes by the updated estimates. One image
    per process is enough. ``mode='large_batch'`` is GroupNorm(BatchNorm(x)), Eq. 43. In evaluation, both modes use
    the running estimates.

    Parameters and buffers have the layout of the authors' code. The group normalization has ``weight`` and ``bias``
    of shape (num_groups,). The batch normalization has ``weight``, ``bias``, ``running_mean`` and ``running_var`` of
    shape (num_features,); they are in ``bn``, a BatchNorm module used only for storage.

    Settings of ``bn`` work as in BatchNorm modules. ``bn.eval()`` freezes the estimates, as ``norm_eval=True`` does
    in OpenMMLab backbones; so do ``bn.track_running_stats = False`` and a frozen BatchNorm in the place of ``bn``. If
    another ``bn.momentum`` is assigned after construction, as ``torch.optim.swa_utils.update_bn`` and precise-BN
    recipes do (None for the cumulative average), the estimates are updated as BatchNorm updates its running
    statistics. Without running estimates (``bn.running_mean = None``), micro-batch mode raises an error, and
    large-batch mode uses the statistics of the batch.

    In half-precision networks, keep ``bn`` in float32: half precision rounds small updates to zero. With activation
    checkpointing, call a layer only once per segment and backward pass: all its calls would be recomputed with the
    estimates of the last one. :func:`wsbcn_mmseg.save_memory` has no such limit.

    Args:
        num_features: Number of channels C.
        num_groups: Number of channel groups; must divide C. Defaults to None: the largest divisor of C not above
            min(32, max(1, C // min_channels_per_group)).
        eps: Added to both variances, inside the square roots; must be above 0. Defaults to 1e-5.
        mode: ``'micro_batch'`` or ``'large_batch'``. Defaults to ``'micro_batch'``.
        update_rate: Initial update rate of the estimates, r in Algorithm 1. :func:`follow_learning_rate` and
            :class:`BCNUpdateRateHook` set it to the learning rate, as in the paper. Defaults to 0.01.
        momentum: As of BatchNorm, for large-batch mode; None for the cumulative average. Micro-batch mode does not
            use it, unless another value is assigned to ``bn.momentum``. Defaults to 0.1.
        sync: Compute batch statistics over all processes; large-batch mode only. Defaults to False.
        min_channels_per_group: See ``num_groups``. Defaults to 2.
        device, dtype: Device and dtype of parameters and buffers. Default to those of PyTorch.

    Raises:
        ValueError: If ``num_groups`` does not divide C, an argument is out of range, or arguments contradict each
            other; in the forward pass, if the input is not a floating-point tensor of shape (N, C, \*), or a group
            has only one value.

    Warns:
        UserWarning: Once, if groups have no more than four values; and once, if the estimates are updated in
            micro-batch mode at the default rate.

    Examples:
        >>> BCN(64)(torch.randn(1, 64, 8, 8)).shape
        torch.Size([1, 64, 8, 8])
    """
    _abbr_ = 'bcn'
    _warned = _warned_of_few_values = False
    fused_relu = False  # set by fuse_relu

    def __init__(self, num_features: int, num_groups: int | None = None, eps: float = 1e-5, mode: str = 'micro_batch',
                 update_rate: float = DEFAULT_UPDATE_RATE, momentum: float | None = 0.1, sync: bool = False,
                 min_channels_per_group: int = 2, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None):
        check_integer('num_features', num_features, 1)
        if num_groups is None:
            num_groups = default_num_groups(num_features, min_channels_per_group)
        if num_features % check_integer('num_groups', num_groups, 1):
            raise ValueError(f'num_groups must divide num_features, got {num_groups} for {num_features} channels')
        check_choice('mode', mode, MODES)
        if momentum is not None:
            check_number('momentum', momentum, 0, 1)
        if check_flag('sync', sync) and mode == 'micro_batch':
            raise ValueError("sync=True needs mode='large_batch'; micro-batch estimates are each rank's own: "
                             'add SyncNormStatisticsHook to average them')
        super().__init__(num_groups, num_features, check_eps(eps), affine=False)
        factory = dict(device=device, dtype=dtype)
        self.affine = True
        self.weight = nn.Parameter(torch.ones(num_groups, **factory))  # one pair per group, not per channel
        self.bias = nn.Parameter(torch.zeros(num_groups, **factory))
        if mode == 'micro_batch' and momentum in (None, 1):  # the default must differ from values that recipes assign
            momentum = 0.1
        self.bn = nn.BatchNorm2d(num_features, eps, momentum, **factory)
        self.mode, self.sync = mode, sync
        self._own_momentum = momentum
        # A CPU tensor, because it changes at every iteration: a number would recompile a compiled network each time,
        # and a device tensor would cost a launch per layer.
        self._update_rate = torch.zeros((), dtype=torch.float64, device='cpu')
        self.update_rate = update_rate
        self._rate_is_default = update_rate == DEFAULT_UPDATE_RATE
        self.register_buffer('skipped_updates', torch.zeros(num_features, dtype=torch.int64, device=device),
                             persistent=False)

    @property
    def num_features(self) -> int:
        """Number of channels."""
        return self.num_channels

    @property
    def update_rate(self) -> float:
        """r of Algorithm 1, in [0, 1]; not part of the ``state_dict``."""
        # Reading a device tensor would synchronize; on the CPU, compilers would specialize on an additional number
        return self._update_rate.item() if self._update_rate.is_cpu else self._rate_on_device

    @update_rate.setter
    def update_rate(self, rate: float) -> None:
        self._update_rate.fill_(check_number('update_rate', rate, 0, 1))
        if not self._update_rate.is_cpu:
            self._rate_on_device = float(rate)
        self._rate_is_default = False

    def keep_update_rate_on(self, device: torch.device) -> None:
        """See :func:`make_capturable`."""
        self._rate_on_device = self.update_rate
        self._update_rate = self._update_rate.to(device)

    def reset_parameters(self) -> None:
        """Set scales to 1, shifts to 0, estimated means to 0 and estimated variances to 1."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)
            self.bn.reset_parameters()
            self.skipped_updates.zero_()

    def forward(self, input: Tensor) -> Tensor:  # named as in torch
        if is_symbolic(input):
            return leaf_call(self, input)
        x = input
        self._check_values(x)
        bn, large_batch = self.bn, self.mode == 'large_batch'  # only once: looking up a child module is slow
        updates = self._updates_estimates(bn)
        if updates and not large_batch and bn.momentum != self._own_momentum:
            self._update_as_batch_norm(x)
            updates = False  # updated already
        mean, var, batch_statistics = self._statistics(bn, x)
        # Hooks must see this layer's own output; compilers fuse ReLU themselves
        fused = self.fused_relu and not self._forward_hooks and not torch.compiler.is_compiling()
        y = batch_channel_norm(
            x, *_affine(bn, self.num_channels, x), mean, var, *_affine(self, self.num_groups, x), self.num_groups,
            training=updates or batch_statistics, mode=self.mode,
            rate=self._momentum() if large_batch else self._update_rate, eps=self.eps,
            sync=large_batch and (self.sync or isinstance(bn, nn.SyncBatchNorm)), skipped_updates=self.skipped_updates,
            relu=fused)
        if fused:
            mark_rectified(y)
        if updates:
            self._count_batch(bn, x)
        return y

    def __getattr__(self, name: str):
        if name in ('running_mean', 'running_var', 'num_batches_tracked', 'momentum'):
            raise AttributeError(f'BCN keeps {name} in bn; functions that fuse BatchNorm into a convolution or '
                                 'reparametrize branches do not fit it: run them before the conversion, or use '
                                 'wsbcn_mmseg.fold(model)')
        return super().__getattr__(name)

    def _updates_estimates(self, bn: nn.Module) -> bool:
        if not (self.training and isinstance(bn, _BatchNorm) and bn.training and bn.track_running_stats):
            return False
        if transformed():
            raise RuntimeError('BCN updates its running estimates in training, which transforms of torch.func do not '
                               'allow; freeze them before: model.eval(), or layer.bn.eval() for every BCN layer')
        return bn.running_mean is not None

    def _statistics(self, bn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Running mean and variance, and whether batch statistics are used without an update of the running ones."""
        large_batch = self.mode == 'large_batch'
        mean, var = getattr(bn, 'running_mean', bn), getattr(bn, 'running_var', bn)
        if mean is bn:
            raise RuntimeError(f'BCN keeps its running estimates in bn, where it found a {type(bn).__name__}; only '
                               'BatchNorm layers, frozen ones included, can stand there')
        if getattr(bn, 'eps', self.eps) != self.eps:
            raise ValueError(f'BCN has one eps for both variances, but eps={self.eps} and bn.eps={bn.eps}; set both')
        if mean is None or var is None:
            if not large_batch:
                raise RuntimeError('micro-batch BCN normalizes by its running estimates (Algorithm 1), but its '
                                   "bn.running_mean is None; keep the running statistics, or use mode='large_batch'")
            unused = x.new_zeros(self.num_channels, dtype=torch.float32), x.new_ones(self.num_channels,
                                                                                    dtype=torch.float32)
            return *unused, True
        if large_batch and self.training and bn.training and not getattr(bn, 'track_running_stats', True):
            return mean.clone(), var.clone(), True
        return mean, var, False

    @torch.no_grad()
    def _update_as_batch_norm(self, x: Tensor) -> None:
        """Update the estimates as BatchNorm does, with the unbiased variance around the batch mean."""
        bn = self.bn
        if x.shape[0] == 0 or x.shape[1] != self.num_channels:  # batch_channel_norm raises the error
            return
        values = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).flatten(1)
        var, mean = torch.var_mean(values, 1, correction=min(1, values.shape[1] - 1))
        if not recomputing():
            update_estimates(bn.running_mean, bn.running_var, self.skipped_updates, mean, var, self._momentum())
            self._count_batch(bn, x)

    def _count_batch(self, bn: nn.Module, x: Tensor) -> None:
        count = bn.num_batches_tracked
        if count is not None and x.shape[0] and not recomputing():
            count.add_(1)
        if self.mode == 'micro_batch' and self._rate_is_default and not torch.compiler.is_compiling():
            self._rate_is_default = False
            if not BCN._warned:
                BCN._warned = True
                warnings.warn(f"BCN trains with the constant update rate {self.update_rate}; for the paper's r = "
                              'learning rate call wsbcn_mmseg.follow_learning_rate(model, optimizer), or in OpenMMLab '
                              "add dict(type='BCNUpdateRateHook') to custom_hooks", stacklevel=4)

    def _check_values(self, x: Tensor) -> None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        check_input(x, self.num_channels)
        if x.numel() == 0:
            return
        values = values_per_group(x, self.num_groups)
        if values == 1:
            raise ValueError(f'expected more than one value per group, got input of shape {tuple(x.shape)} for '
                             f'{self.num_groups} groups of {self.num_channels} channels: one value normalizes to a '
                             'constant; choose fewer groups')
        if values <= FEW_VALUES and not BCN._warned_of_few_values:
            BCN._warned_of_few_values = True
            warnings.warn(f'BCN normalizes groups of {values} values here ({self.num_features} channels in '
                          f'{self.num_groups} groups, input of shape {tuple(x.shape)}), too few for statistics; choose '
                          'fewer groups by num_groups or min_channels_per_group', stacklevel=4)

    def _momentum(self) -> float | Tensor:
        """The momentum of ``bn``; None means the cumulative average, as in BatchNorm."""
        momentum = getattr(self.bn, 'momentum', 0)
        if momentum is not None:
            check_number('bn.momentum', momentum, 0, 1)
        return 1 / (self.bn.num_batches_tracked + 1) if momentum is None else momentum

    def apply(self, fn: Callable[[nn.Module], None]) -> 'BCN':
        """Apply ``fn`` to ``bn`` and to self, but never leave both scales at zero.

        OpenMMLab's ``zero_init_residual`` sets the last norm of a block *and its children* to 0. With both scales at
        zero, every gradient of the block stays zero; the authors set only the channel scale to 0.
        """
        if self.bn.weight is None:
            return super().apply(fn)
        batch_weight = self.bn.weight.detach().clone()
        super().apply(fn)
        if not batch_weight.is_meta and self.weight is not None and not self.weight.any() and not self.bn.weight.any():
            with torch.no_grad():
                self.bn.weight.copy_(batch_weight)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for key in (f'{prefix}weight', f'{prefix}bias'):
            if key in state_dict and state_dict[key].shape == (1, self.num_groups, 1):  # the authors' shape
                state_dict[key] = state_dict[key].flatten()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        rate = f'update_rate={self.update_rate:g}' if self.mode == 'micro_batch' else f'sync={self.sync}'
        return f'{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, mode={self.mode!r}, {rate}'


def _affine(norm: nn.Module, size: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm; 1 and 0 if it has none."""
    weight, bias = norm.weight, norm.bias
    if weight is None:
        weight = torch.ones(size, device=x.device)
    return weight, torch.zeros_like(weight) if bias is None else bias
