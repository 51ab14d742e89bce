"""The time that :class:`~wsbcn_mmseg.hooks.NormStatisticsHook` adds to a training step."""
import tempfile
from functools import partial
from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track
from torch import nn

from wsbcn_mmseg.hooks import NormStatisticsHook

from .drawing import draw_bars
from .measuring import Benchmark, Options, Row, Run, interleaved, median_ratio, network_dtype
from .networks import Network, build_network, random_batch, training_step


def _watched(run: Run, model: nn.Module, gradients: bool) -> Run:
    """A training step in which :class:`~wsbcn_mmseg.hooks.NormStatisticsHook` takes a sample."""
    hook = NormStatisticsHook(interval=1, gradients=gradients)
    runner = SimpleNamespace(model=model, iter=0, work_dir=tempfile.gettempdir(), train_loop=None,
                             visualizer=SimpleNamespace(add_scalars=lambda *_, **__: None))
    hook.before_train(runner)

    def watched(mark) -> None:
        with tempfile.TemporaryDirectory() as runner.work_dir:
            mark()
            hook.before_train_iter(runner, 0)
            run(lambda: None)
            hook.after_train_iter(runner, 0)
            mark()

    return watched


def watching(options: Options) -> list[Row]:
    """Measure training steps of DeepLabV3-R50 with BCN and WS, with and without samples of the norms."""
    images, samples = random_batch(options.batches[0], options)
    model = build_network(Network('', '', 'bcn_ws_micro'), 50, options)
    _, run = training_step(model, 'auto', images, samples, options.amp)
    runs = {'plain': run, 'sampled': _watched(run, model, False), 'sampled, gradients': _watched(run, model, True)}
    rounds = options.repeats or (2 if options.quick else 9 if options.device == 'cpu' else 20)
    times = interleaved(list(runs.values()), options.device, rounds, warm_up=1,
                        progress=partial(track, description='DeepLabV3-R50, watched'))
    return [{'network': 'DeepLabV3-R50', 'layer': 'BCN+WS', 'implementation': name,
             'shape': 'x'.join(map(str, images.shape)), 'pass': 'training step', 'ms': float(np.median(measured)),
             'vs_plain': median_ratio(measured, times[0]),
             'percent_at_interval_50': 2 * (median_ratio(measured, times[0]) - 1)}
            for name, measured in zip(runs, times, strict=True)]


WATCHING_COLUMNS = {'network': '', 'shape': '', 'implementation': '', 'ms': '.1f', 'vs_plain': '.2f',
                    'percent_at_interval_50': '.2f'}


def draw_watching(rows: list[Row]) -> Figure:
    """Draw times as bars, relative to the plain step."""
    return draw_bars(rows, {'vs_plain': 'time of a step / plain'})


BENCHMARK = Benchmark(watching, WATCHING_COLUMNS, draw_watching, network_dtype)
