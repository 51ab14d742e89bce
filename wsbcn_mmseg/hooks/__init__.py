"""Hooks for training."""
from .fine_tuning_hooks import CalibrateHook, NormEvalHook
from .norm_statistics_hook import NormStatisticsHook
from .save_memory_hook import SaveMemoryHook
from .sync_statistics_hook import SyncNormStatisticsHook
from .update_rate_hook import BCNUpdateRateHook

__all__ = ['BCNUpdateRateHook', 'CalibrateHook', 'NormEvalHook', 'NormStatisticsHook', 'SaveMemoryHook',
           'SyncNormStatisticsHook']
