"""A training with everything that can make a resumed run differ: random augmentation by three generators, dropout,
momentum, BCN's estimates, an average of weights, a best checkpoint. It can be run in a process that is killed, and as a
script under torchrun: resumable_training.py WORK_DIR, where LOST=process or LOST=node kills rank 1, or its node."""
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from small_training import Images, Model, Statistics
from torch import nn

from wsbcn_mmseg.runtime.checkpoint import safe_loading
from wsbcn_mmseg.runtime.command import exit_with
from wsbcn_mmseg.runtime.errors import UsageError
from wsbcn_mmseg.runtime.launch import process_group
from wsbcn_mmseg.runtime.resume import newest_whole_checkpoint
from wsbcn_mmseg.runtime.runner import ResumableRunner
from wsbcn_mmseg.runtime.whole_files import whole_files


class Augmented(Images):
    """Images with noise from Python's, NumPy's and PyTorch's generators."""

    def __getitem__(self, index):
        image = self.images[index] * random.uniform(.5, 2) + np.random.normal() + torch.randn(3, 8, 8)
        return dict(images=image.float())


class Dropping(Model):
    """A network with dropout, and weights that take a while to write."""

    def __init__(self):
        super().__init__()
        self.backbone.append(nn.Dropout(.5))
        self.ballast = nn.Parameter(torch.zeros(1 << 18), requires_grad=False)


class Lost(Hook):
    """Kills a process in the middle of the training, or all processes of its node."""

    def __init__(self, what: str):
        self.what = what

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 5:
            if self.what == 'node':
                os.kill(os.getppid(), signal.SIGKILL)  # torchrun
            os.kill(os.getpid(), signal.SIGKILL)


def make(work_dir: Path, stop: int = 10, workers: int = 0, seed: int | None = 3, more_hooks: Sequence[Hook] = (),
         **settings) -> ResumableRunner:
    torch.manual_seed(0)
    loader = dict(dataset=Augmented(), batch_size=2, num_workers=workers)
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=2, save_best='score',
                      rule='greater')
    runner = ResumableRunner(
        model=Dropping(), work_dir=str(work_dir), randomness=dict(seed=seed),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=.1, momentum=.9)),
        param_scheduler=dict(type='PolyLR', power=.9, end=11, by_epoch=False),
        train_dataloader=ConfigDict(loader, sampler=dict(type='InfiniteSampler', shuffle=True)),
        val_dataloader=ConfigDict(loader, sampler=dict(type='DefaultSampler', shuffle=False), num_workers=0),
        val_cfg={}, val_evaluator=[Statistics()], train_cfg=dict(by_epoch=False, max_iters=stop, val_interval=3),
        custom_hooks=[dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook'), dict(type='EMAHook'),
                      *more_hooks],
        default_hooks=dict(logger=None, checkpoint=checkpoint),
        experiment_name=f'{work_dir.name}_{random.SystemRandom().getrandbits(60)}', log_level='WARNING', **settings)
    return runner


def train(work_dir: Path, **settings) -> dict[str, torch.Tensor]:
    """Train, or go on from the newest whole checkpoint of the work folder; the final checkpoint's weights."""
    torch.set_num_threads(1)
    with safe_loading(), whole_files():
        point = newest_whole_checkpoint(work_dir) if work_dir.is_dir() else None
        if point and point.path:
            settings |= dict(resume=True, load_from=str(point.path))
        runner = make(work_dir, **settings)
        runner.train()
    state = runner.model.state_dict()
    momentum = runner.optim_wrapper.state_dict()['state']
    average = next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model')).state_dict()
    return {**state, **{f'momentum {key}': value['momentum_buffer'] for key, value in momentum.items()},
            **{f'average {key}': value for key, value in average.items()}}


def main(work_dir: Path, lost: str | None) -> None:
    cfg = Config(dict(launcher='pytorch'))
    hooks = [Lost(lost)] if lost and os.environ['RANK'] == '1' else []
    with process_group(cfg):
        state = train(work_dir, launcher='pytorch', cfg=cfg, more_hooks=hooks)
        if os.environ['RANK'] == '0':
            torch.save(state, work_dir / 'result.pt')


if __name__ == '__main__':
    try:
        main(Path(sys.argv[1]), os.environ.get('LOST'))
    except UsageError as error:
        exit_with(error)
