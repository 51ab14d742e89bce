"""Reduce the activation memory of a network in training."""
from collections.abc import Iterable

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from wsbcn_mmseg.memory.saving import LEVELS, save_memory
from wsbcn_mmseg.ops.arguments import check_choice
from wsbcn_mmseg.runtime.errors import UsageError


@HOOKS.register_module()
class SaveMemoryHook(Hook):
    """Call :func:`wsbcn_mmseg.save_memory` before training.

    Args:
        level: ``'light'`` or ``'strong'``. Defaults to ``'light'``.
        blocks: Names or patterns of modules. Defaults to None: repeated blocks of several convolutions.

    Examples:
        >>> custom_hooks = [dict(type='SaveMemoryHook', level='strong')]
    """

    def __init__(self, level: str = 'light', blocks: str | Iterable[str] | None = None):
        self.level, self.blocks = check_choice('level', level, tuple(LEVELS)), blocks

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        try:
            names = save_memory(model, self.level, self.blocks)
        except ValueError as error:
            raise UsageError(f'SaveMemoryHook: {error}') from error
        runner.logger.info(f'SaveMemoryHook: {len(names)} blocks save memory ({self.level}): '
                           f'{names[0]} ... {names[-1]}')
