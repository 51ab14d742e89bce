"""MMEngine's runner, with checkpoints that are intact after a kill and trainings that resume exactly."""
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop

from .naming_dataset import NamingDataset
from .random_streams import DrawSampler, SeededDataset, SeedIterationHook
from .whole_checkpoint_hook import WholeCheckpointHook

_CHECKPOINT_HOOKS = ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook)


class ResumableRunner(Runner):
    """MMEngine's runner with exact resuming: ten iterations give the same bits as five and five resumed ones, with
    random augmentation too.

    Checkpoints are written by :class:`~wsbcn_mmseg.runtime.whole_checkpoint_hook.WholeCheckpointHook`; the random
    numbers of samples and iterations come from :mod:`~wsbcn_mmseg.runtime.random_streams`. Weights are not initialized
    before a run is resumed, since the checkpoint holds them all.
    """

    def register_hook(self, hook: Hook | dict, priority=None) -> None:
        """Register a hook; :class:`WholeCheckpointHook` replaces MMEngine's CheckpointHook."""
        if isinstance(hook, dict) and hook.get('type') in _CHECKPOINT_HOOKS:
            hook = dict(hook, type=WholeCheckpointHook)
        super().register_hook(hook, priority)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop with random streams that depend only on seed, rank and position."""
        loader = self._train_dataloader
        if isinstance(loader, dict) and isinstance(loader.get('sampler'), dict):
            self._train_dataloader = {  # update() would merge nested dicts of a ConfigDict
                **loader, 'dataset': dict(type=SeededDataset, dataset=loader['dataset'], seed=self.seed),
                'sampler': dict(type=DrawSampler, sampler=loader['sampler'])
            }
        self.register_hook(SeedIterationHook(self.seed))
        return super().build_train_loop(loop)

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the validation loop; errors of its data set name the files of the sample."""
        self._val_dataloader = _naming(self._val_dataloader)
        return super().build_val_loop(loop)

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the test loop; errors of its data set name the files of the sample."""
        self._test_dataloader = _naming(self._test_dataloader)
        return super().build_test_loop(loop)

    def _init_model_weights(self) -> None:
        if not self._resume:
            super()._init_model_weights()


def _naming(loader):
    """The config of a data loader, with :class:`NamingDataset` around its data set."""
    if not isinstance(loader, dict) or 'dataset' not in loader:
        return loader
    return {**loader, 'dataset': dict(type=NamingDataset, dataset=loader['dataset'])}
