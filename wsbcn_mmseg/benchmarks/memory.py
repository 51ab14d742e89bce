"""Activation memory and time of training steps: BN, GN, BCN and WS, with checkpointing and with ``save_memory``."""
import gc
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from wsbcn_mmseg.memory import save_memory

from .drawing import draw_bars
from .measuring import Benchmark, Options, Row, interleaved, median_ratio, network_dtype
from .networks import Network, build_network, random_batch, training_step

GIGABYTES = (4, 8, 12, 24)
CROPS = range(65, 4097, 8)
STATE = 3  # per parameter: value, gradient and momentum
_END_OF_FORWARD = 'wsbcn_mmseg: end of forward'


class Variant(NamedTuple):
    """A row of the benchmark: one of our configs, and a way to save memory."""
    name: str
    config: str
    saving: str
    fuse_relu: bool = False


PLAIN = Variant('BCN+WS', 'bcn_ws_micro', 'none')
VARIANTS = (Variant('BN', 'bn', 'none'), Variant('GN', 'gn', 'none'), Variant('BN', 'bn', 'with_cp'), PLAIN,
            *[PLAIN._replace(saving=saving) for saving in ('with_cp', 'light', 'strong')],
            *[PLAIN._replace(name='BCN+WS, ReLU fused', saving=saving, fuse_relu=True)
              for saving in ('none', 'light', 'strong')])


def build_variant(variant: Variant, depth: int, options: Options) -> nn.Module:
    """DeepLabV3 from one of our configs, with one of the ways to save memory."""
    network = Network(variant.name, variant.saving, variant.config, fuse_relu=variant.fuse_relu)
    model = build_network(network, depth, options)
    if variant.saving == 'with_cp':
        for module in model.backbone.modules():
            if hasattr(module, 'with_cp'):
                module.with_cp = True
    elif variant.saving != 'none':
        save_memory(model, variant.saving)
    return model


def activation_bytes(loss: Callable[[], Tensor], device: str) -> tuple[int, int]:
    """Additional bytes alive after the forward pass, and at the peak of forward and backward.

    Run the step once before, so that gradients exist and are not counted.
    """
    gc.collect()
    if device == 'cpu':
        return _by_allocator_events(loss)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    value = loss()
    live = torch.cuda.memory_allocated() - before
    value.backward()
    return live, torch.cuda.max_memory_allocated() - before


def _by_allocator_events(loss: Callable[[], Tensor]) -> tuple[int, int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        value = loss()
        with record_function(_END_OF_FORWARD):
            pass
        value.backward()
    events = profiler.profiler.kineto_results.events()
    end = next(event.start_ns() for event in events if event.name() == _END_OF_FORWARD)
    sizes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == '[memory]')
    live = sum(size for time, size in sizes if time < end)
    return live, int(np.cumsum([size for _, size in sizes]).max())


def largest_crops(activations: int, parameters: int, options: Options) -> dict[str, int]:
    """Side of the largest crop that fits into a memory of this many gigabytes, with the measured number of images.

    Activations grow with the area. Other memory of PyTorch, cuDNN and the driver is not counted.
    """
    sides = {}
    for gigabytes in GIGABYTES:
        left = gigabytes * 1e9 - STATE * parameters
        sides[f'crop_{gigabytes}_gb'] = max((crop for crop in CROPS if activations * (crop / options.crop)**2 <= left),
                                            default=0)
    return sides


def _memory_rows(depth: int, batch: int, options: Options) -> list[Row]:
    images, samples = random_batch(batch, options)
    rows, runs = [], []
    for variant in VARIANTS:
        model = build_variant(variant, depth, options)
        loss, run = training_step(model, 'auto', images, samples, options.amp)
        loss().backward()
        live, peak = activation_bytes(loss, options.device)
        parameters = sum(parameter.nbytes for parameter in model.parameters())
        # On the CPU the peak is the temporary memory of one dilated convolution, which other devices do not need
        crops = largest_crops(live if options.device == 'cpu' else peak, parameters, options)
        rows.append({'network': f'DeepLabV3-R{depth}', 'layer': variant.name, 'implementation': variant.saving,
                     'shape': 'x'.join(map(str, images.shape)), 'pass': 'training step', 'parameter_bytes': parameters,
                     'live_bytes': live, 'peak_bytes': peak, **crops})
        runs.append(run)

    rounds = options.repeats or (2 if options.quick else 7 if options.device == 'cpu' else 20)
    times = interleaved(runs, options.device, rounds, warm_up=1,
                        progress=partial(track, description=f'DeepLabV3-R{depth}, batch {batch}'))
    plain = VARIANTS.index(PLAIN)
    for variant, row, measured in zip(VARIANTS, rows, times, strict=True):
        of_ours = variant.config == PLAIN.config
        row |= {'ms': float(np.median(measured)), 'vs_bn': median_ratio(measured, times[0]),
                'vs_plain': median_ratio(measured, times[plain]) if of_ours else None,
                'live_vs_bn': row['live_bytes'] / rows[0]['live_bytes'],
                'live_vs_plain': row['live_bytes'] / rows[plain]['live_bytes'] if of_ours else None,
                'peak_vs_bn': row['peak_bytes'] / rows[0]['peak_bytes']}
    return rows


def memory(options: Options) -> list[Row]:
    """Measure activation memory and time of training steps of DeepLabV3."""
    torch.backends.cudnn.benchmark = True  # as in our configs
    return [row for depth in options.depths for batch in options.batches for row in _memory_rows(depth, batch, options)]


MEMORY_COLUMNS = {
    'network': '', 'shape': '', 'layer': '', 'implementation': '', 'ms': '.1f', 'vs_bn': '.2f', 'vs_plain': '.2f',
    'live_bytes': ',', 'live_vs_bn': '.2f', 'live_vs_plain': '.2f', 'peak_bytes': ',', 'peak_vs_bn': '.2f',
    **{f'crop_{gigabytes}_gb': 'd' for gigabytes in GIGABYTES}}


def draw_memory(rows: list[Row]) -> Figure:
    """Draw time and memory as bars, relative to the network with BN."""
    return draw_bars(rows, {'vs_bn': 'time of a step / BN', 'live_vs_bn': 'bytes alive after the forward pass / BN',
                            'peak_vs_bn': 'bytes at the peak / BN'})


BENCHMARK = Benchmark(memory, MEMORY_COLUMNS, draw_memory, network_dtype)
