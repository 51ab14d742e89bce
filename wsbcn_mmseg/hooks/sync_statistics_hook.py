"""Make running statistics and kernels the same on all ranks, so that the saved network is the validated one."""
import itertools

import torch
from mmengine.dist import all_reduce_params, get_world_size
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.nn.modules.batchnorm import _BatchNorm

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.ops import agree_on_kernels
from wsbcn_mmseg.ops.arguments import check_integer


@HOOKS.register_module()
class SyncNormStatisticsHook(Hook):
    """Average the running statistics of every BatchNorm, and the estimates of every BCN, over the ranks.

    Each rank has its own statistics. Validation during training would use those of each rank, but a checkpoint has
    those of rank 0. This hook averages the statistics in one collective before every checkpoint and every validation,
    and optionally every ``interval`` iterations. The averaged model of ``EMAHook`` is included.

    Before training, all ranks also agree on the implementation of BCN: the Triton kernels, if they pass their check on
    every rank.

    Its priority places it before ``EMAHook``, which copies the statistics, and ``CheckpointHook``, which saves them.

    Args:
        interval: Iterations between additional averages; -1 for none. Defaults to -1.

    Examples:
        >>> custom_hooks = [dict(type='SyncNormStatisticsHook')]
    """
    priority = 'ABOVE_NORMAL'

    def __init__(self, interval: int = -1):
        self.interval = -1 if interval == -1 and isinstance(interval, int) else check_integer('interval', interval, 1)
        self._averaged = False

    def before_train(self, runner: Runner) -> None:
        layers = [layer for layer in runner.model.modules() if isinstance(layer, BCN)]
        if layers and get_world_size() > 1:
            amp = isinstance(runner.optim_wrapper, AmpOptimWrapper)
            dtypes = {torch.float32, (runner.optim_wrapper.cast_dtype or torch.float16) if amp else torch.float32}
            agree_on_kernels(layers[0].weight.device, sorted(dtypes, key=str))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._averaged = False

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        if self._due(runner, batch_idx):
            self._average(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        self._average(runner)

    def before_val(self, runner: Runner) -> None:
        self._average(runner)

    def _due(self, runner: Runner, batch_idx: int) -> bool:
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            return True
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            if self.end_of_epoch(runner.train_dataloader, batch_idx):
                return True
        elif runner.val_loop is not None and self.every_n_train_iters(runner, runner.train_loop.val_interval):
            return True
        return any(not hook.by_epoch and self.every_n_train_iters(runner, hook.interval)
                   for hook in runner.hooks if isinstance(hook, CheckpointHook))

    def _average(self, runner: Runner) -> None:
        """Average once per iteration: the average of equal values may differ from them in the last bit."""
        if self._averaged or get_world_size() == 1:
            return
        self._averaged = True
        models = [runner.model, *(hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook))]
        layers = itertools.chain.from_iterable(model.modules() for model in models)
        statistics = [buffer for layer in layers if isinstance(layer, _BatchNorm)
                      for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
        if statistics:
            all_reduce_params(statistics, op='mean')
