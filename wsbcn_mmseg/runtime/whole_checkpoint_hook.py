"""A checkpoint hook that deletes old checkpoints after the new one is whole."""
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from .whole_files import remove_unfinished


class _LateRemoval:
    """A file backend that delays the removal of files until :meth:`finish` is called."""

    def __init__(self, backend):
        self._backend, self._pending = backend, []

    def remove(self, path: str) -> None:
        self._pending.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self._pending.append((self._backend.rmtree, path))

    def finish(self, written: set[str]) -> None:
        pending, self._pending = self._pending, []
        for remove, path in pending:
            if path not in written and self._backend.exists(path):
                remove(path)

    def __getattr__(self, name: str):
        return getattr(self._backend, name)


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook with two changes: an old checkpoint (by ``max_keep_ckpts`` or a new best score) is
    removed after the new one is written, not before, and folders may be moved between runs."""

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if is_main_process():
            remove_unfinished(self.out_dir)
        self._check_interval(runner)
        self.file_backend = _LateRemoval(self.file_backend)
        # the best checkpoints of a resumed run are in this folder, even if it was moved
        if getattr(self, 'best_ckpt_path', None):
            self.best_ckpt_path = self._here(self.best_ckpt_path)
        for key, path in (getattr(self, 'best_ckpt_path_dict', None) or {}).items():
            self.best_ckpt_path_dict[key] = self._here(path) if path else path

    def _check_interval(self, runner) -> None:
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if not self.by_epoch and self.interval > 0 and self.interval % accumulated:
            runner.logger.warning(f'Checkpoints every {self.interval} iterations lose gradients that are accumulated '
                                  f'over {accumulated} iterations, and resuming is not exact; set '
                                  'default_hooks.checkpoint.interval to a multiple')

    def _here(self, path: str) -> str:
        return self.file_backend.join_path(self.out_dir, Path(path).name)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_superseded()

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._remove_superseded()

    def _remove_superseded(self) -> None:
        best = [getattr(self, 'best_ckpt_path', None), *(getattr(self, 'best_ckpt_path_dict', None) or {}).values()]
        self.file_backend.finish({path for path in [*best, self.last_ckpt] if path})
