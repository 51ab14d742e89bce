"""Monitor eliminated and under-represented channels of norms, and the parts of gradients that WS removes."""
import json
import math
from pathlib import Path

import torch
from mmengine.dist import all_gather, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from wsbcn_mmseg.diagnostics.singularities import distance_to_batch_norm, eliminated, stat_diff, under_represented
from wsbcn_mmseg.diagnostics.smoothness import gradient_shares
from wsbcn_mmseg.layers import ConvWS, ConvWS1d, ConvWS3d
from wsbcn_mmseg.ops.arguments import check_flag, check_integer, check_number
from wsbcn_mmseg.ops.estimates import recomputing

from .norm_samples import WatchedNorm

FILE = 'norm_statistics.jsonl'


@HOOKS.register_module()
class NormStatisticsHook(Hook):
    """Monitor every norm of a network for eliminated and under-represented channels during training.

    Every ``interval`` iterations, forward hooks read the inputs and outputs of all BatchNorm, InstanceNorm, GroupNorm
    and BCN layers. Means over the network are written to the run's visualization backends as ``norm/...``, and a line
    with these numbers for every layer is appended to ``work_dir/norm_statistics.jsonl``:

    - ``stat_diff``: StatDiff of Eq. 35 from running statistics before the norm, mean over the layer's groups;
    - ``eliminated``: share of channels whose maximum after the norm was below 0 in the last ``window`` samples;
    - ``under_represented``: share of channels that are active less often than ``fraction`` times the layer's median, or
      whose scale after the norm is less than ``fraction`` times its median;
    - ``distance_mean``, ``distance_scale``: the distance to batch normalization of Section 6.1.3, before the norm's
      last affine map (BCN's batch part has one of its own, which counts).

    The samples of all ranks are merged in one collective. Gradients do not change, checkpoints do not contain the
    samples, and recomputation by activation checkpointing is not counted.

    Args:
        interval: Length of an interval in iterations (forward passes); its last iteration is sampled. Defaults to 50.
        first: Sample the first iteration of each interval instead, as Fig. 4 does in each epoch. Defaults to False.
        window: Number of samples over which the maximum is taken. Defaults to 20.
        momentum: Momentum of the running statistics, per sample. Defaults to 0.1.
        fraction: Fraction of the median, see above. Defaults to 0.1.
        gradients: Also measure the parts that Eq. 11 and Eq. 12 remove from the gradients of every ``ConvWS`` (Fig. 4,
            right). This costs one more weight gradient per sample. Defaults to False.
        histograms: Name of a norm. Each sample then has histograms of two channels of one of its groups, before and
            after the norm (Fig. 7). Defaults to None.

    Raises:
        ValueError: If a number is out of range or ``histograms`` names no norm of the network.

    Examples:
        >>> custom_hooks = [dict(type='NormStatisticsHook', interval=50)]
    """
    priority = 'BELOW_NORMAL'

    def __init__(self, interval: int = 50, window: int = 20, momentum: float = .1, fraction: float = .1,
                 gradients: bool = False, histograms: str | None = None, first: bool = False):
        check_integer('interval', interval, 1)
        check_integer('window', window, 1)
        check_flag('gradients', gradients)
        check_flag('first', first)
        if histograms is not None and not isinstance(histograms, str):
            raise ValueError(f'histograms must be the name of a norm, got {histograms!r}')
        check_number('momentum', momentum)
        check_number('fraction', fraction)
        if not 0 < momentum <= 1 or not 0 < fraction <= 1:
            raise ValueError(f'expected momentum and fraction in (0, 1], got {momentum} and {fraction}')
        self.interval, self.window, self.momentum, self.fraction = interval, window, momentum, fraction
        self.gradients, self.histograms, self.first = gradients, histograms, first
        self._handles: list = []

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._layers = {name: WatchedNorm(module) for name, module in model.named_modules()
                        if isinstance(module, (nn.GroupNorm, _BatchNorm, _InstanceNorm))}
        if not self._layers:
            runner.logger.warning('NormStatisticsHook: the network has no BatchNorm, InstanceNorm, GroupNorm or BCN')
        if self.histograms is not None and self.histograms not in self._layers:
            raise ValueError(f'histograms={self.histograms!r} names no norm; there are {", ".join(self._layers)}')
        self._convs = {name: module for name, module in model.named_modules() if self.gradients
                       and isinstance(module, (ConvWS, ConvWS1d, ConvWS3d)) and module.padding_mode == 'zeros'
                       and not isinstance(module.padding, str) and module.center and module.scale}
        self._shares: dict[str, Tensor] = {}
        self._histogram = None
        file = Path(runner.work_dir, FILE)
        if is_main_process() and file.exists():  # keep the lines of the run that this one resumes
            kept = [line for line in file.read_text().splitlines(keepends=True) if _iteration(line) <= runner.iter]
            file.write_text(''.join(kept))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        if (runner.iter + (not self.first)) % self.interval:
            return
        self._handles = [layer.norm.register_forward_hook(self._watch_norm(name, layer), with_kwargs=True)
                         for name, layer in self._layers.items()]
        self._handles += [conv.register_forward_hook(self._watch_gradient(name)) for name, conv in self._convs.items()]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        if not self._handles:
            return
        self._remove_handles()
        report = self._report()
        runner.visualizer.add_scalars({f'norm/{name}': value for name, value in self._summary(report).items()},
                                      step=runner.iter + 1)
        if is_main_process():
            line = dict(iter=runner.iter + 1, epoch=self._epoch(runner), layers=report, histogram=self._histogram)
            with Path(runner.work_dir, FILE).open('a') as file:
                file.write(json.dumps({key: value for key, value in line.items() if value is not None}) + '\n')
        self._histogram = None

    def after_train(self, runner: Runner) -> None:
        self._remove_handles()

    @staticmethod
    def _epoch(runner: Runner) -> float | None:
        """Completed epochs (fractional); None for iteration-based training."""
        loop = runner.train_loop
        return (runner.iter + 1) / len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else None

    def _remove_handles(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watch_norm(self, name: str, layer: WatchedNorm):

        def watch(norm, args, kwargs, output):
            if recomputing() or output.dim() < 2 or output.shape[1] != layer.channels:  # an image without a batch
                return
            x = args[0] if args else next(iter(kwargs.values()))
            with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                layer.see(x, output)
                if name == self.histograms and self._histogram is None:
                    self._histogram = _histograms(x, output, layer)

        return watch

    def _watch_gradient(self, name: str):

        def watch(conv, inputs, output):
            if not output.requires_grad:  # the first pass of a checkpointed segment; the recomputation has a graph
                return
            x, dtype = inputs[0].detach(), output.dtype

            def take(dy):
                with torch.no_grad(), torch.autocast(dy.device.type, enabled=False):
                    weight = conv.standardized_weight()
                    gradient = torch.ops.aten.convolution_backward(
                        dy, x.to(dtype), weight.to(dtype), None, conv.stride, conv.padding, conv.dilation, False,
                        [0] * len(conv.stride), conv.groups, [False, True, False])[1]
                    self._shares[name] = gradient_shares(weight, gradient.to(weight.dtype)).nanmean(0).float()

            output.register_hook(take)

        return watch

    def _report(self) -> dict[str, dict[str, float]]:
        """Numbers of every layer that ran, from the samples of all ranks."""
        device = next((s.device for layer in self._layers.values() for s in layer.samples), torch.device('cpu'))
        missing = torch.full((3, ), math.nan, device=device)
        flats = [layer.take().to(device) for layer in self._layers.values()]
        flats += [self._shares.get(name, missing).to(device) for name in self._convs]
        self._shares = {}
        gathered = torch.stack(all_gather(torch.cat(flats))).cpu()  # the only synchronization
        gathered = gathered.split([len(flat) for flat in flats], dim=1)
        report = {}
        for (name, layer), flat in zip(self._layers.items(), gathered, strict=False):
            sample = layer.update(flat, self.momentum, self.window)
            if sample is not None:
                report[name] = self._numbers(layer, sample)
        for name, shares in zip(self._convs, gathered[len(self._layers):], strict=True):
            report[name] = dict(zip(('gradient_eq12', 'gradient_eq11', 'gradient_left'), _finite(shares.nanmean(0)),
                                    strict=True))
        return report

    def _numbers(self, layer: WatchedNorm, sample: Tensor) -> dict[str, float]:
        rare = under_represented(sample[5], self.fraction)
        small = under_represented(sample[3].sqrt(), self.fraction)
        values = torch.stack([
            stat_diff(*layer.running, layer.num_groups).mean(),
            eliminated(torch.stack(list(layer.maxima)).amax(0)).float().mean(), (rare | small).float().mean(),
            *distance_to_batch_norm(*layer.before_affine(sample))
        ])
        return dict(zip(('stat_diff', 'eliminated', 'under_represented', 'distance_mean', 'distance_scale'),
                        _finite(values), strict=True))

    @staticmethod
    def _summary(report: dict[str, dict[str, float]]) -> dict[str, float]:
        """Means over the layers that have the number."""
        names = dict.fromkeys(name for layer in report.values() for name in layer)
        values = {name: [layer[name] for layer in report.values() if layer.get(name) is not None] for name in names}
        return {name: sum(numbers) / len(numbers) for name, numbers in values.items() if numbers}


def _iteration(line: str) -> float:
    try:
        return json.loads(line)['iter']
    except (ValueError, KeyError, TypeError):  # incomplete because the run was killed
        return math.inf


def _finite(values: Tensor) -> list[float | None]:
    """NaN and infinity become None, which JSON can represent."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _histograms(x: Tensor, y: Tensor, layer: WatchedNorm, bins: int = 40) -> dict:
    """Histograms before and after the norm of the two channels in the first group whose means differ most."""
    group = x.detach().float().transpose(0, 1).flatten(1)[:max(2, layer.channels // layer.num_groups)]
    means = group.mean(1)
    channels = [int(means.argmin()), int(means.argmax())]
    result = dict(channels=channels)
    for place, tensor in (('before', x), ('after', y)):
        values = tensor.detach().float()[:, channels].transpose(0, 1).flatten(1).cpu()
        low, high = values.min().item(), values.max().item()
        counts = [torch.histc(channel, bins, low, high).int().tolist() for channel in values]
        result[place] = dict(low=low, high=high, counts=counts)
    return result
