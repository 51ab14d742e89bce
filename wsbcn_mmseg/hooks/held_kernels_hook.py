"""Standardize kernels once per optimizer step under gradient accumulation."""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from wsbcn_mmseg.layers import HeldKernels


@HOOKS.register_module()
class HeldKernelsHook(Hook):
    """Standardize the kernels of every ``ConvWS`` once per optimizer step, not once per forward pass.

    Requires ``optim_wrapper.accumulative_counts`` above 1; works with mixed precision and several processes. Gradients
    are the same except for rounding, see :class:`~wsbcn_mmseg.layers.HeldKernels`. Without accumulation, with several
    optimizers, or with a compiled network, the hook does nothing.

    Examples:
        >>> custom_hooks = [dict(type='HeldKernelsHook')]
    """
    priority = 'VERY_HIGH'  # other hooks that run after an iteration get the network without held kernels

    def before_train(self, runner: Runner) -> None:
        self._kernels, wrapper = None, runner.optim_wrapper
        if getattr(wrapper, '_accumulative_counts', 1) == 1:
            return
        try:
            self._kernels = HeldKernels(runner.model)
        except ValueError as error:
            runner.logger.warning(f'HeldKernelsHook does nothing: {error}')
            return
        vars(wrapper).pop('step', None)  # left by an interrupted training
        step, kernels = wrapper.step, self._kernels

        def complete_and_step(**kwargs) -> None:
            kernels.end()
            kernels.finish()  # before gradients are unscaled and clipped
            step(**kwargs)

        wrapper.step = complete_and_step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        if self._kernels is not None:
            self._kernels.begin(last=runner.optim_wrapper.should_sync())

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        if self._kernels is not None:
            self._kernels.end()

    def after_train(self, runner: Runner) -> None:
        if self._kernels is not None:
            self._kernels.discard()
            vars(runner.optim_wrapper).pop('step', None)
