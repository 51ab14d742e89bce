"""Batch-Channel Normalization as a layer (Section 7)."""
import warnings

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from wsbcn_mmseg.ops import batch_channel_norm
from wsbcn_mmseg.ops.batch_channel_norm import MODES
from wsbcn_mmseg.ops.estimates import recomputing

DEFAULT_UPDATE_RATE = 0.01
MAX_GROUPS = 32  # the paper's number on ImageNet, COCO and VOC


def default_num_groups(num_features: int, min_channels_per_group: int = 2) -> int:
    """The largest divisor of ``num_features`` not above min(32, max(1, num_features // min_channels_per_group)).

    32 for 64 channels and more, as in the paper; ``min_channels_per_group=4`` is the paper's rule on CIFAR.
    """
    limit = min(MAX_GROUPS, max(1, num_features // min_channels_per_group))
    return next(groups for groups in range(limit, 0, -1) if num_features % groups == 0)


@MODELS.register_module()
class BCN(nn.GroupNorm):
    r"""Batch-Channel Normalization: channels normalised by batch information, then groups of channels (Eq. 40-43).

    ``mode='micro_batch'`` is Algorithm 1: estimates of each channel's mean and variance move towards the batch by
    ``update_rate`` at every training forward, and normalise it; one image per process is enough.
    ``mode='large_batch'`` is GroupNorm(BatchNorm(x)), Eq. 43. In evaluation both use the stored statistics.

    Parameters and buffers, in the layout the authors published: ``weight``, ``bias`` of shape (num_groups,), the
    channel normalisation's; and in ``bn``, an ordinary BatchNorm module that holds but never computes, ``weight``,
    ``bias``, ``running_mean``, ``running_var`` of shape (num_features,). ``bn.eval()`` freezes the estimates, as
    ``norm_eval=True`` does in OpenMMLab backbones. In half-precision networks keep ``bn`` in float32: slow estimates
    are lost in fewer bits. Under activation checkpointing let a layer run once per segment and backward: estimates of
    further runs would serve the recomputation of all.

    Args:
        num_features: Number of channels C.
        num_groups: Number of channel groups; must divide C. Defaults to None: the largest divisor of C not above
            min(32, max(1, C // min_channels_per_group)).
        eps: Added to both variances, inside the roots. Defaults to 1e-5.
        mode: ``'micro_batch'`` or ``'large_batch'``. Defaults to ``'micro_batch'``.
        update_rate: r of Algorithm 1 until somebody assigns another, as :class:`BCNUpdateRateHook` does before every
            iteration (the paper's r is the learning rate). Defaults to 0.01.
        momentum: BatchNorm's, for large-batch mode; None for the cumulative average. Defaults to 0.1.
        sync: Take batch statistics over all ranks; large-batch mode only. Defaults to False.
        min_channels_per_group: See ``num_groups``. Defaults to 2.

    Raises:
        ValueError: If ``num_groups`` does not divide C, or arguments contradict each other; in the forward pass, if the
            input is not a floating-point tensor of shape (N, C, \*) with at least one value.

    Examples:
        >>> BCN(64)(torch.randn(1, 64, 8, 8)).shape
        torch.Size([1, 64, 8, 8])
    """
    _abbr_ = 'bcn'
    _warned = False

    def __init__(self, num_features: int, num_groups: int | None = None, eps: float = 1e-5, mode: str = 'micro_batch',
                 update_rate: float = DEFAULT_UPDATE_RATE, momentum: float | None = 0.1, sync: bool = False,
                 min_channels_per_group: int = 2):
        if num_features < 1 or min_channels_per_group < 1:
            raise ValueError('expected num_features and min_channels_per_group of at least 1, got '
                             f'{num_features} and {min_channels_per_group}')
        if num_groups is None:
            num_groups = default_num_groups(num_features, min_channels_per_group)
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(f'num_groups must divide num_features, got {num_groups} for {num_features} channels')
        if mode not in MODES:
            raise ValueError(f'mode must be one of {MODES}, got {mode!r}')
        if sync and mode == 'micro_batch':
            raise ValueError("sync=True needs mode='large_batch'; micro-batch estimates are each rank's own: "
                             'add SyncNormStatisticsHook to average them')
        super().__init__(num_groups, num_features, eps, affine=False)
        self.affine = True
        self.weight = nn.Parameter(torch.ones(num_groups))  # one pair per group, where GroupNorm has one per channel
        self.bias = nn.Parameter(torch.zeros(num_groups))
        self.bn = nn.BatchNorm2d(num_features, eps, momentum)
        self.mode, self.sync = mode, sync
        # A CPU tensor: it changes at every iteration, which as a number would recompile a compiled network each time,
        # and as a device tensor would cost a launch per layer.
        self._update_rate = torch.zeros((), dtype=torch.float64, device='cpu')
        self.update_rate = update_rate
        self._rate_is_default = update_rate == DEFAULT_UPDATE_RATE
        self.register_buffer('skipped_updates', torch.zeros(num_features, dtype=torch.int64), persistent=False)

    @property
    def num_features(self) -> int:
        """Number of channels."""
        return self.num_channels

    @property
    def update_rate(self) -> float:
        """r of Algorithm 1, in [0, 1]; not part of the ``state_dict``."""
        return self._update_rate.item()

    @update_rate.setter
    def update_rate(self, rate: float) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f'update_rate must lie in [0, 1], got {rate}')
        self._update_rate.fill_(rate)
        self._rate_is_default = False

    def reset_parameters(self) -> None:
        """Scales 1, shifts 0, estimates 0 and 1."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)
            self.bn.reset_parameters()
            self.skipped_updates.zero_()

    def forward(self, x: Tensor) -> Tensor:
        bn, large_batch = self.bn, self.mode == 'large_batch'
        training = self.training and bn.training
        y = batch_channel_norm(
            x, bn.weight, bn.bias, bn.running_mean, bn.running_var, self.weight, self.bias, self.num_groups,
            training=training, mode=self.mode, rate=self._momentum() if large_batch else self._update_rate,
            eps=self.eps, sync=large_batch and (self.sync or isinstance(bn, nn.SyncBatchNorm)),
            skipped_updates=self.skipped_updates)
        if training:
            self._count_batch()
        return y

    def _count_batch(self) -> None:
        if self.bn.num_batches_tracked is not None and not recomputing():
            self.bn.num_batches_tracked.add_(1)
        if self.mode == 'micro_batch' and self._rate_is_default and not torch.compiler.is_compiling():
            self._rate_is_default = False
            if not BCN._warned:
                BCN._warned = True
                warnings.warn(f'BCN trains with the constant update rate {self.update_rate}; add '
                              "dict(type='BCNUpdateRateHook') to custom_hooks (or assign `update_rate`) for the "
                              "paper's r = learning rate", stacklevel=3)

    def _momentum(self) -> float | Tensor:
        """BatchNorm's reading of ``momentum=None``: the cumulative average."""
        return 1 / (self.bn.num_batches_tracked + 1) if self.bn.momentum is None else self.bn.momentum

    def apply(self, fn):
        """Apply ``fn`` to ``bn`` and to self, but never leave both scales at zero.

        OpenMMLab's ``zero_init_residual`` sets the last norm of a block *and its children* to 0. With both scales at
        zero every gradient of the block is zero for ever; the authors zero the channel scale alone.
        """
        batch_weight = self.bn.weight.detach().clone()
        super().apply(fn)
        if not batch_weight.is_meta and not self.weight.any() and not self.bn.weight.any():
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
