"""Set the update rate r of Algorithm 1 from the learning rate (Section 7.2.2)."""
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from wsbcn_mmseg.layers import UpdateRate
from wsbcn_mmseg.ops.arguments import check_integer


@HOOKS.register_module()
class BCNUpdateRateHook(Hook):
    """Set ``update_rate`` of every micro-batch :class:`~wsbcn_mmseg.layers.BCN` to its learning rate.

    "We set the update rate r to be the learning rate of trainable parameters" (Section 7.2.2). Before every iteration
    the rate of a layer becomes ``factor`` times the learning rate of the parameter group that contains its parameters,
    within [``min_rate``, ``max_rate``]. Layers without a trainable parameter in any optimizer keep their rate. The
    estimates are updated at every forward pass, also under gradient accumulation. Setting the rate does not synchronize
    with the device.

    Every ``report_interval`` iterations it also reports the layers whose estimates skipped an update since the last
    report because their input was not finite, and those whose estimates are not finite themselves.

    Args:
        factor: Update rate divided by learning rate. Defaults to 1.0.
        min_rate, max_rate: Bounds of the update rate. Default to 0.0 and 1.0. With small learning rates (AdamW at 1e-4)
            the estimates would hardly change; set a ``factor`` or a ``min_rate``.
        report_interval: Iterations between reports of inputs and estimates that are not finite, each of which
            synchronizes the device once. Defaults to 50.
        interval: Former name of ``report_interval``.

    Examples:
        >>> custom_hooks = [dict(type='BCNUpdateRateHook')]
    """
    priority = 'NORMAL'

    def __init__(self, factor: float = 1.0, min_rate: float = 0.0, max_rate: float = 1.0,
                 report_interval: int = 50, interval: int | None = None):
        self._settings = dict(factor=factor, min_rate=min_rate, max_rate=max_rate)
        UpdateRate(nn.Identity(), [], **self._settings)  # checks them
        self.report_interval = check_integer('report_interval', report_interval if interval is None else interval, 1)

    def before_train(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        self._rate = UpdateRate(runner.model, [wrapper.optimizer for wrapper in wrappers], **self._settings)
        self._layers, lost = self._rate.layers, self._rate.lost
        if lost:
            runner.logger.warning(f'no optimizer has the parameters of {len(lost)} BCN layers ({lost[0]}, ...): '
                                  'they keep their update rates')
        self._reported = self._skipped()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._rate.update()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        if not self.every_n_train_iters(runner, self.report_interval):
            return
        skipped = self._skipped()
        worst = [(now - before).max() for now, before in zip(skipped, self._reported, strict=True)]  # over the channels
        for name, count in zip(self._layers, torch.stack(worst).tolist() if worst else [], strict=True):
            if count:
                runner.logger.warning(f'{name}: the input was not finite in {count} of the last forward passes; '
                                      'its estimates kept their values there')
        for name, finite in zip(self._layers, self._finite_estimates(), strict=True):
            if not finite:
                runner.logger.warning(f'{name}: its running estimates are not finite and cannot recover; the '
                                      'checkpoint that training started from may be damaged')
        self._reported = skipped

    def _finite_estimates(self) -> list[bool]:
        sums = [(layer.bn.running_mean + layer.bn.running_var).sum() for layer in self._layers.values()]
        return torch.stack(sums).isfinite().tolist() if sums else []

    def _skipped(self) -> list[torch.Tensor]:
        return [layer.skipped_updates.clone() for layer in self._layers.values()]
