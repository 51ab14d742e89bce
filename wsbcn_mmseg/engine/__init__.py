"""Hooks for training."""
from .sync_statistics_hook import SyncNormStatisticsHook
from .update_rate_hook import BCNUpdateRateHook

__all__ = ['BCNUpdateRateHook', 'SyncNormStatisticsHook']
