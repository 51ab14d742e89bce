"""Let BCN layers apply the ReLU after them."""
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from wsbcn_mmseg.conversion import fuse_relu


@HOOKS.register_module()
class FuseReLUHook(Hook):
    """Call :func:`wsbcn_mmseg.fuse_relu` before training. On the CPU this saves one pass over the activation in forward
    and one in backward.

    Examples:
        >>> custom_hooks = [dict(type='FuseReLUHook')]
    """

    def before_train(self, runner: Runner) -> None:
        names = fuse_relu(runner.model.module if is_model_wrapper(runner.model) else runner.model)
        runner.logger.info(f'FuseReLUHook: {len(names)} BCN layers apply the ReLU after them')
