"""Import paths of version 0.1: hooks live in :mod:`wsbcn_mmseg.hooks`, loading and launching in
:mod:`wsbcn_mmseg.runtime`."""
import sys

from wsbcn_mmseg.hooks import (
    BCNUpdateRateHook,
    NormStatisticsHook,
    SyncNormStatisticsHook,
    norm_statistics_hook,
    sync_statistics_hook,
    update_rate_hook,
)
from wsbcn_mmseg.runtime import checkpoint, launch
from wsbcn_mmseg.runtime.checks import check_batch, check_data, check_gpus, num_classes
from wsbcn_mmseg.runtime.errors import UsageError

__all__ = ['BCNUpdateRateHook', 'NormStatisticsHook', 'SyncNormStatisticsHook']

for _module in (norm_statistics_hook, sync_statistics_hook, update_rate_hook, checkpoint, launch):
    sys.modules[f'{__name__}.{_module.__name__.rpartition(".")[2]}'] = _module
for _moved in (check_batch, check_data, check_gpus, num_classes, UsageError):
    setattr(launch, _moved.__name__, _moved)
launch.processes = launch.process_group
