"""Hooks for training."""
from .fine_tuning_hooks import CalibrateHook, NormEvalHook
from .fuse_relu_hook import FuseReLUHook
from .held_kernels_hook import HeldKernelsHook
from .norm_statistics_hook import NormStatisticsHook
from .save_memory_hook import SaveMemoryHook
from .sync_statistics_hook import SyncNormStatisticsHook
from .update_rate_hook import BCNUpdateRateHook

__all__ = ['BCNUpdateRateHook', 'CalibrateHook', 'FuseReLUHook', 'HeldKernelsHook', 'NormEvalHook',
           'NormStatisticsHook', 'SaveMemoryHook', 'SyncNormStatisticsHook']
