"""Hooks for training."""
from .fine_tuning_hooks import CalibrateHook, NormEvalHook
from .held_kernels_hook import HeldKernelsHook
from .norm_statistics_hook import NormStatisticsHook
from .sync_statistics_hook import SyncNormStatisticsHook
from .update_rate_hook import BCNUpdateRateHook

__all__ = ['BCNUpdateRateHook', 'CalibrateHook', 'HeldKernelsHook', 'NormEvalHook', 'NormStatisticsHook',
           'SyncNormStatisticsHook']
