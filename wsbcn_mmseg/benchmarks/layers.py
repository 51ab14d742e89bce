"""Forward and backward pass of single layers, at the shapes of DeepLabV3-R101."""
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.plotting import COLORS

from .measuring import (
    WARM_UP,
    Benchmark,
    Options,
    Row,
    Run,
    implementation,
    implementations,
    interleaved,
    layer_dtype,
    median_ratio,
    saved_bytes,
)

UPDATE_RATE = 0.007
# Channels and side of the normalized activations of DeepLabV3-R101 at crop 513
LAYER_SHAPES = (
    (64, 257),  # stem
    (64, 129), (256, 129),  # layer 1
    (128, 129), (128, 65), (512, 65),  # layer 2; the first before its stride
    (256, 65), (256, 33), (1024, 33),  # layer 3, likewise; 256 at 33 is the ASPP's too
    (512, 33), (2048, 33),  # layer 4
    (256, 1),  # image pooling
)
TARGET_SHAPES = ((2, 256, 65, 65), (2, 2048, 33, 33), (1, 256, 129, 129))
PASSES = {'forward': 3, 'backward': 5, 'both': 8}  # with the number of reads and writes of an activation without caches
LAYER_BASES = {'vs_group_norm': ('GroupNorm', 'native'), 'vs_batch_norm': ('BatchNorm2d', 'native'),
               'vs_plain': ('BCN micro-batch', 'reference')}
WITH_RELU = ' + ReLU'  # layers with this ending are compared with each other


class Layer(NamedTuple):
    """A normalization layer to measure."""
    name: str
    implementation: str
    build: Callable[[int], nn.Module]
    batch_statistics: bool = False  # does not accept one value per channel


def _layers(options: Options) -> list[Layer]:
    # Only PyTorch's group normalization needs parameters of the input's dtype
    layers = [Layer('GroupNorm', 'native', partial(nn.GroupNorm, 32, dtype=options.dtype)),
              Layer('BatchNorm2d', 'native', nn.BatchNorm2d, batch_statistics=True)]
    names = implementations(options.device)
    layers += [Layer('BCN micro-batch', name, partial(BCN, update_rate=UPDATE_RATE)) for name in names]
    layers += [Layer('BCN large-batch', name, partial(BCN, mode='large_batch'), batch_statistics=True)
               for name in names if name != 'reference']
    layers.append(Layer(f'GroupNorm{WITH_RELU}', 'native', lambda channels: nn.Sequential(
        nn.GroupNorm(32, channels, dtype=options.dtype), nn.ReLU(inplace=True))))
    layers += [Layer(f'BCN micro-batch{WITH_RELU}', name, _with_relu) for name in names if name != 'reference']
    return layers


def _with_relu(channels: int) -> BCN:
    layer = BCN(channels, update_rate=UPDATE_RATE)
    layer.fused_relu = True
    return layer


def _bases(name: str) -> dict[str, tuple[str, str]]:
    suffix = WITH_RELU if name.endswith(WITH_RELU) else ''
    return {key: (base + suffix, implementation) for key, (base, implementation) in LAYER_BASES.items()}


def _layer_run(layer: nn.Module, name: str, x: Tensor, dy: Tensor) -> Run:
    inputs = [x, *layer.parameters()]

    def run(mark):
        with implementation(name):
            mark()
            y = layer(x)
            mark()
            gradients = torch.autograd.grad(y, inputs, dy)
            mark()
        del gradients

    return run


def _graphed_layer_run(layer: nn.Module, name: str, x: Tensor, dy: Tensor) -> Run:
    """The same passes, captured in two CUDA graphs that share their memory."""
    eager = _layer_run(layer, name, x, dy)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a capture requires one run on another stream before
        for _ in range(WARM_UP):
            eager(lambda: None)
    torch.cuda.current_stream().wait_stream(stream)

    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with implementation(name):
        with torch.cuda.graph(forward):
            y = layer(x)
        with torch.cuda.graph(backward, pool=forward.pool()):
            gradients = torch.autograd.grad(y, [x, *layer.parameters()], dy)

    def run(mark, outputs=(y, gradients)):  # kept alive as long as the graphs
        mark()
        forward.replay()
        mark()
        backward.replay()
        mark()

    return run


def _copy_run(x: Tensor) -> Run:
    source = x.detach()
    target = torch.empty_like(source)

    def run(mark):
        mark()
        target.copy_(source)
        mark()

    return run


def _layer_rows(shape: tuple[int, int, int, int], options: Options) -> list[Row]:
    x = torch.randn(shape, dtype=options.dtype, device=options.device).contiguous(memory_format=options.memory_format)
    dy = torch.randn_like(x)
    x.requires_grad_()
    layers = [layer for layer in _layers(options) if x.numel() > shape[1] or not layer.batch_statistics]
    modules = [layer.build(shape[1]).to(options.device) for layer in layers]

    kept = []
    for layer, module in zip(layers, modules, strict=True):
        with implementation(layer.implementation):
            kept.append(saved_bytes(lambda module=module: module(x), module))
    make_run = _graphed_layer_run if options.cuda_graphs else _layer_run
    runs = [make_run(module, layer.implementation, x, dy) for layer, module in zip(layers, modules, strict=True)]
    rounds = options.repeats or (7 if options.quick else 25)
    copy, *times = interleaved([_copy_run(x), *runs], options.device, rounds)
    times = {layer[:2]: np.c_[measured, measured.sum(1)] for layer, measured in zip(layers, times, strict=True)}

    rows = []
    for layer, bytes_kept in zip(layers, kept, strict=True):
        for column, (name, accesses) in enumerate(PASSES.items()):
            measured = times[layer[:2]][:, column]
            bases = {key: times[base][:, column] if base in times else None
                     for key, base in _bases(layer.name).items()}
            rows.append({
                'layer': layer.name, 'implementation': layer.implementation, 'shape': 'x'.join(map(str, shape)),
                'pass': name, 'ms': float(np.median(measured)),
                **{key: median_ratio(measured, base) for key, base in bases.items()},
                'copy_ms': float(np.median(copy)),
                'copy_bandwidth_share': accesses / 2 * median_ratio(copy[:, 0], measured),
                'saved_bytes': bytes_kept, 'saved_per_input': bytes_kept / x.nbytes})
    return rows


def layers(options: Options, shapes: Sequence[tuple[int, int, int, int]] | None = None) -> list[Row]:
    """Measure forward and backward passes of single layers."""
    if shapes is None:
        shapes = TARGET_SHAPES if options.quick else [(batch, channels, side, side) for batch in options.layer_batches
                                                      for channels, side in LAYER_SHAPES]
    return [row for shape in track(shapes, 'Layers') for row in _layer_rows(shape, options)]


LAYER_COLUMNS = {
    'shape': '', 'layer': '', 'implementation': '', 'ms': '.3f', 'vs_group_norm': '.2f', 'vs_batch_norm': '.2f',
    'vs_plain': '.2f', 'copy_bandwidth_share': '.0%', 'saved_per_input': '.2f'}


def draw_layers(rows: list[Row]) -> Figure:
    """Draw times of forward plus backward per shape as bars, from GroupNorm's line upwards (slower) or downwards."""
    rows = [row for row in rows if row['pass'] == 'both']
    batches = {}
    for row in rows:
        batches.setdefault(row['shape'].split('x')[0], []).append(row)
    names = [name for name in dict.fromkeys(map(_name, rows)) if name != _bases(name[0])['vs_group_norm']]
    most = max(len({row['shape'] for row in part}) for part in batches.values())
    figure = Figure(figsize=(14, 1 + 3 * len(batches)), layout='constrained')
    grid = figure.subplots(len(batches), squeeze=False, sharey=True)[:, 0]
    for axes, (batch, part) in zip(grid, sorted(batches.items()), strict=True):
        _draw_ratios(axes, part, names)
        axes.set_xlim(-0.6, most - 0.4)
        axes.set_title(f'batch {batch} (channels, height × width)', loc='left')
    figure.supylabel('time of forward and backward / nn.GroupNorm')
    figure.legend(*grid[0].get_legend_handles_labels(), loc='outside upper center',
                  ncols=min(5, len(names)), frameon=False)
    return figure


def _name(row: Row) -> tuple[str, str]:
    return row['layer'], row['implementation']


def _draw_ratios(axes: Axes, rows: list[Row], names: list[tuple[str, str]]) -> None:
    shapes = list(dict.fromkeys(row['shape'] for row in rows))
    width = 1 / (len(names) + 1)
    for index, (name, color) in enumerate(zip(names, cycle(COLORS), strict=False)):
        ratios = {shapes.index(row['shape']): row['vs_group_norm'] for row in rows if _name(row) == name}
        left = [shape + width * (index + 0.5) - 0.5 for shape in ratios]
        bars = axes.bar(left, [ratio - 1 for ratio in ratios.values()], width, bottom=1, align='edge',
                        color=color, label=' '.join(name))
        axes.bar_label(bars, [f'{ratio:.1f}' for ratio in ratios.values()], fontsize=7, padding=1)
    sizes = [shape.split('x')[1:] for shape in shapes]
    axes.set_xticks(range(len(shapes)), [f'{channels}\n{height} × {width}' for channels, height, width in sizes])
    axes.set_yscale('log', base=2)
    axes.yaxis.set_major_formatter('{x:g}')
    axes.margins(y=0.12)
    axes.grid(axis='y', alpha=0.3)
    axes.set_axisbelow(True)
    axes.axhline(1, color='black', linewidth=1)


BENCHMARK = Benchmark(layers, LAYER_COLUMNS, draw_layers, layer_dtype)
