"""A network, data and a runner of MMEngine that train in milliseconds; shared by the tests of hooks."""
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from wsbcn_mmseg.layers import BCN, ConvWS


class Images(Dataset):
    """Twelve images; ``broken`` of them hold a NaN."""

    def __init__(self, broken=()):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(12, 3, 8, 8, generator=generator) * torch.arange(1, 13).view(-1, 1, 1, 1)
        self.images[list(broken), 0, 0, 0] = float('nan')

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return dict(images=self.images[index])


class Model(BaseModel):

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(ConvWS(3, 8, 3), BCN(8), nn.ReLU())
        self.head = nn.Sequential(ConvWS(8, 8, 3), BCN(8), nn.BatchNorm2d(8))

    def forward(self, images, mode='tensor'):
        y = self.head(self.backbone(torch.stack(list(images))))
        return dict(loss=y.nan_to_num().square().mean()) if mode == 'loss' else [y]


class Statistics(BaseMetric):
    """Any number that depends on the network."""

    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0].sum()))

    def compute_metrics(self, results):
        return dict(score=sum(results))


class Recorder(Hook):
    """Rates and learning rates as the iteration uses them."""

    priority = 'LOW'

    def __init__(self):
        self.rates, self.learning_rates = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append([layer.update_rate for layer in runner.model.modules() if isinstance(layer, BCN)])
        wrapper = runner.optim_wrapper
        wrapper = next(iter(wrapper.values())) if isinstance(wrapper, OptimWrapperDict) else wrapper
        self.learning_rates.append([group['lr'] for group in wrapper.optimizer.param_groups])


def make_runner(work_dir, hook, model=None, iterations=6, optim_wrapper=None, dataset=None, batch_size=1, **settings):
    recorder = Recorder()
    optim_wrapper = optim_wrapper or dict(optimizer=dict(type='SGD', lr=0.1))
    runner = Runner(
        model=model or Model(), work_dir=str(work_dir), optim_wrapper=optim_wrapper,
        param_scheduler=dict(type='PolyLR', power=0.9, end=11, by_epoch=False),
        train_dataloader=dict(dataset=dataset or Images(), batch_size=batch_size, num_workers=0,
                              sampler=dict(type='InfiniteSampler', shuffle=False)),
        train_cfg=dict(by_epoch=False, max_iters=iterations, val_interval=3),
        custom_hooks=[hook, recorder] if hook else [recorder],
        default_hooks=dict(logger=None, checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)),
        experiment_name=f'{work_dir.name}_{torch.randint(1 << 30, ()).item()}', log_level='WARNING',
        **settings)
    return runner, recorder
