"""Time and memory of BCN and Weight Standardization beside what they stand for: single layers, whole training steps,
and networks out of training.

Everything is measured side by side in one process, all in turn in every round, so that what disturbs the machine
disturbs all alike; a ratio is the median over the rounds of the ratios within a round.

A benchmark is a function of :class:`Options` that returns tidy rows (one measured thing each), the columns that its
table shows, and a function that draws the rows. To add one, write these and enter them in :data:`BENCHMARKS`.
"""
import datetime
import gc
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import mmcv
import mmseg
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import wsbcn_mmseg
from wsbcn_mmseg.conversion import fold
from wsbcn_mmseg.engine import NormStatisticsHook
from wsbcn_mmseg.export import Logits, onnx_runner
from wsbcn_mmseg.export import write as write_exported
from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.visualization import COLOURS, write_csv

WARM_UP = 3  # rounds before those that count
UPDATE_RATE = 0.007

Row = dict[str, str | float | None]
Run = Callable[[Callable[[], None]], None]  # does its work, and calls its argument at every moment that counts


@dataclass(frozen=True)
class Options:
    """What to measure, and on what."""
    device: str = 'cpu'
    dtype: torch.dtype = torch.float32  # of the layers' inputs
    channels_last: bool = False
    cuda_graphs: bool = False  # layers replayed from CUDA graphs: without what it costs the host to launch them
    amp: bool = False  # networks under autocast to bfloat16
    quick: bool = False
    repeats: int | None = None  # rounds that count
    crop: int = 257
    batches: Sequence[int] = (2, )  # of the networks
    depths: Sequence[int] = (50, 101)
    configs: Path = Path('configs')

    @property
    def memory_format(self) -> torch.memory_format:
        """Of activations, and of the networks' weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


# Measuring

@cache
def _cache_flush(device: str) -> Tensor:
    """More memory than a GPU has cache, written between measurements: nobody finds its input there already."""
    return torch.empty(256 * 2**20, dtype=torch.int8, device=device)


def _milliseconds(run: Run, device: str) -> list[float]:
    """The times between the moments that ``run`` marks: on the host's clock, or on the GPU's own."""
    if device == 'cpu':
        moments = []
        run(lambda: moments.append(time.perf_counter()))
        return [1e3 * (end - start) for start, end in pairwise(moments)]

    events = []

    def mark() -> None:
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()

    _cache_flush(device).zero_()
    run(mark)
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairwise(events)]


def interleaved(runs: Sequence[Run], device: str, rounds: int, warm_up: int = WARM_UP,
                progress: Callable[[range], Iterable] = iter) -> list[np.ndarray]:
    """Time all ``runs`` once per round, in another order each round: who runs after whom decides what is in the caches.

    Returns:
        One array per run, of shape (rounds, intervals between its marks), in milliseconds.
    """
    times, order = [[] for _ in runs], np.random.default_rng(0)
    gc.collect()
    gc.disable()
    try:
        for _ in progress(range(warm_up + rounds)):
            for index in order.permutation(len(runs)):
                times[index].append(_milliseconds(runs[index], device))
    finally:
        gc.enable()
    return [np.array(measured[warm_up:]) for measured in times]


def saved_bytes(forward: Callable[[], object], module: nn.Module) -> int:
    """Bytes that ``forward()`` keeps for backward: every storage once, without the module's parameters and buffers."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = forward()  # held until all is counted: freed memory may be given out again
    for tensor in chain(module.parameters(), module.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del outputs
    return sum(kept.values())


def peak_bytes(run: Run, others: int) -> int:
    """Peak of the GPU memory allocated during ``run``, less what belongs to ``others``."""
    run(lambda: None)  # the first run allocates what stays: momentum, convolution workspaces
    torch.cuda.reset_peak_memory_stats()
    run(lambda: None)
    return torch.cuda.max_memory_allocated() - others


def implementation(name: str):
    """Let BCN layers compute by the implementation of this name, within a ``with`` block."""
    return mock.patch.dict(os.environ, WSBCN_IMPL=name if name in ('reference', 'fused', 'triton') else '')


def implementations(device: str) -> list[str]:
    """Names of BCN's implementations that ``device`` runs, the plain composition first."""
    triton = device != 'cpu' and importlib.util.find_spec('triton') is not None
    return ['reference', 'fused', *(['triton'] if triton else [])]


def _ratio(times: np.ndarray, base: np.ndarray | None) -> float | None:
    return None if base is None else float(np.median(times / base))


# Layers

# Channels and side of the normalised activations of DeepLabV3-R101 at crop 513
LAYER_SHAPES = (
    (64, 257),  # stem
    (64, 129), (256, 129),  # layer 1
    (128, 65), (512, 65),  # layer 2
    (256, 65), (256, 33), (1024, 33),  # layer 3; the first before its stride; 256 at 33 is the ASPP's too
    (512, 33), (2048, 33),  # layer 4
    (256, 1),  # image pooling
)
TARGET_SHAPES = ((2, 256, 65, 65), (2, 2048, 33, 33), (1, 256, 129, 129))
PASSES = {'forward': 3, 'backward': 5, 'both': 8}  # with how often each must read or write an activation, uncached
LAYER_BASES = {'vs_group_norm': ('GroupNorm', 'native'), 'vs_batch_norm': ('BatchNorm2d', 'native'),
               'vs_plain': ('BCN micro-batch', 'reference')}


class Layer(NamedTuple):
    """A normalisation layer to measure."""
    name: str
    implementation: str
    build: Callable[[int], nn.Module]
    batch_statistics: bool = False  # refuses one value per channel


def _layers(options: Options) -> list[Layer]:
    # PyTorch's group normalisation alone wants parameters of the input's type
    layers = [Layer('GroupNorm', 'native', partial(nn.GroupNorm, 32, dtype=options.dtype)),
              Layer('BatchNorm2d', 'native', nn.BatchNorm2d, batch_statistics=True)]
    names = implementations(options.device)
    layers += [Layer('BCN micro-batch', name, partial(BCN, update_rate=UPDATE_RATE)) for name in names]
    layers += [Layer('BCN large-batch', name, partial(BCN, mode='large_batch'), batch_statistics=True)
               for name in names if name != 'reference']
    return layers


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
    """The same, captured in two CUDA graphs that share their memory."""
    eager = _layer_run(layer, name, x, dy)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # before a capture, everything must have run once on another stream
        for _ in range(WARM_UP):
            eager(lambda: None)
    torch.cuda.current_stream().wait_stream(stream)

    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with implementation(name):
        with torch.cuda.graph(forward):
            y = layer(x)
        with torch.cuda.graph(backward, pool=forward.pool()):
            gradients = torch.autograd.grad(y, [x, *layer.parameters()], dy)

    def run(mark, outputs=(y, gradients)):  # which live as long as the graphs do
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
            bases = {key: times[base][:, column] if base in times else None for key, base in LAYER_BASES.items()}
            rows.append({
                'layer': layer.name, 'implementation': layer.implementation, 'shape': 'x'.join(map(str, shape)),
                'pass': name, 'ms': float(np.median(measured)),
                **{key: _ratio(measured, base) for key, base in bases.items()},
                'copy_ms': float(np.median(copy)),
                'copy_bandwidth_share': accesses / 2 * _ratio(copy[:, 0], measured),
                'saved_bytes': bytes_kept, 'saved_per_input': bytes_kept / x.nbytes})
    return rows


def layers(options: Options, shapes: Sequence[tuple[int, int, int, int]] | None = None) -> list[Row]:
    """Forward and backward pass of single layers."""
    if shapes is None:
        shapes = TARGET_SHAPES if options.quick else [(batch, channels, side, side) for batch in (1, 2, 4)
                                                      for channels, side in LAYER_SHAPES]
    return [row for shape in track(shapes, 'Layers') for row in _layer_rows(shape, options)]


LAYER_COLUMNS = {
    'shape': '', 'layer': '', 'implementation': '', 'ms': '.3f', 'vs_group_norm': '.2f', 'vs_batch_norm': '.2f',
    'vs_plain': '.2f', 'copy_bandwidth_share': '.0%', 'saved_per_input': '.2f'}


def draw_layers(rows: list[Row]) -> Figure:
    """Bars of forward and backward together, per shape, from the line of GroupNorm upwards (slower) or down."""
    rows = [row for row in rows if row['pass'] == 'both']
    batches = {}
    for row in rows:
        batches.setdefault(row['shape'].split('x')[0], []).append(row)
    names = [name for name in dict.fromkeys(map(_name, rows)) if name != LAYER_BASES['vs_group_norm']]
    most = max(len({row['shape'] for row in part}) for part in batches.values())
    figure = Figure(figsize=(14, 1 + 3 * len(batches)), layout='constrained')
    grid = figure.subplots(len(batches), squeeze=False, sharey=True)[:, 0]
    for axes, (batch, part) in zip(grid, sorted(batches.items()), strict=True):
        _draw_ratios(axes, part, names)
        axes.set_xlim(-0.6, most - 0.4)
        axes.set_title(f'batch {batch} (channels, height × width)', loc='left')
    figure.supylabel('time of forward and backward / nn.GroupNorm')
    figure.legend(*grid[0].get_legend_handles_labels(), loc='outside upper center', ncols=len(names), frameon=False)
    return figure


def _name(row: Row) -> tuple[str, str]:
    return row['layer'], row['implementation']


def _draw_ratios(axes: Axes, rows: list[Row], names: list[tuple[str, str]]) -> None:
    shapes = list(dict.fromkeys(row['shape'] for row in rows))
    width = 1 / (len(names) + 1)
    for index, name in enumerate(names):
        ratios = {shapes.index(row['shape']): row['vs_group_norm'] for row in rows if _name(row) == name}
        left = [shape + width * (index + 0.5) - 0.5 for shape in ratios]
        bars = axes.bar(left, [ratio - 1 for ratio in ratios.values()], width, bottom=1, align='edge',
                        color=COLOURS[index], label=' '.join(name))
        axes.bar_label(bars, [f'{ratio:.1f}' for ratio in ratios.values()], fontsize=7, padding=1)
    sizes = [shape.split('x')[1:] for shape in shapes]
    axes.set_xticks(range(len(shapes)), [f'{channels}\n{height} × {width}' for channels, height, width in sizes])
    axes.set_yscale('log', base=2)
    axes.yaxis.set_major_formatter('{x:g}')
    axes.margins(y=0.12)
    axes.grid(axis='y', alpha=0.3)
    axes.set_axisbelow(True)
    axes.axhline(1, color='black', linewidth=1)


# Networks

class Network(NamedTuple):
    """A row of the network benchmark: a config of ours, and what is put in another's place there."""
    name: str
    implementation: str
    config: str
    conv: type[nn.Module] | None = None  # in the place of our ConvWS


def _networks(device: str) -> list[Network]:
    fast = [name for name in implementations(device) if name != 'reference']
    return [Network('BN', 'native', 'bn'),
            Network('GN', 'native', 'gn'),
            Network('GN+WS', 'mmcv', 'gn_ws', ConvWS2d),
            Network('GN+WS', 'ours', 'gn_ws'),
            Network('BCN+WS micro-batch', 'reference', 'bcn_ws_micro', ConvWS2d),
            *[Network('BCN+WS micro-batch', name, 'bcn_ws_micro') for name in fast],
            *[Network('BCN+WS large-batch', name, 'bcn_ws') for name in fast]]


def build_network(network: Network, depth: int, options: Options) -> nn.Module:
    """DeepLabV3 of a config of ours, with another depth."""
    cfg = Config.fromfile(options.configs / f'deeplabv3_r101_{network.config}_voc.py')
    init_default_scope(cfg.default_scope)
    cfg = cfg.model
    cfg.backbone.depth = depth
    if network.conv:
        cfg.backbone.conv_cfg = cfg.decode_head.conv_cfg = dict(type=network.conv)
    model = MODELS.build(cfg).train()
    for module in model.modules():
        if isinstance(module, BCN):
            module.update_rate = UPDATE_RATE
    return model.to(options.device, memory_format=options.memory_format)


def _training_step(model: nn.Module, name: str, images: Tensor, samples: list[SegDataSample], amp: bool):
    """A function that returns the loss, and one that makes a whole step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=UPDATE_RATE, momentum=0.9, weight_decay=1e-4)

    def loss() -> Tensor:
        with implementation(name), torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            return model.parse_losses(model.loss(images, samples))[0]

    def run(mark) -> None:
        mark()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        mark()

    return loss, run


def _network_rows(depth: int, batch: int, options: Options) -> list[Row]:
    crop = options.crop
    images = torch.randn(batch, 3, crop, crop, device=options.device).contiguous(memory_format=options.memory_format)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(21, (1, crop, crop), device=options.device)))
               for _ in range(batch)]
    networks, rows, runs = _networks(options.device), [], []
    for network in networks:
        others = torch.cuda.memory_allocated() if options.device != 'cpu' else 0
        model = build_network(network, depth, options)
        loss, run = _training_step(model, network.implementation, images, samples, options.amp)
        rows.append({
            'network': f'DeepLabV3-R{depth}', 'layer': network.name, 'implementation': network.implementation,
            'shape': f'{batch}x3x{crop}x{crop}', 'pass': 'training step', 'saved_bytes': saved_bytes(loss, model),
            'peak_bytes': peak_bytes(run, others) if options.device != 'cpu' else None})
        runs.append(run)

    rounds = options.repeats or (2 if options.quick else 7 if options.device == 'cpu' else 20)
    title = f'DeepLabV3-R{depth}, batch {batch}'
    times = interleaved(runs, options.device, rounds, warm_up=1, progress=partial(track, description=title))
    for row, measured in zip(rows, times, strict=True):
        row |= {'ms': float(np.median(measured)), 'vs_bn': _ratio(measured, times[0]),
                'saved_vs_bn': row['saved_bytes'] / rows[0]['saved_bytes'],
                'peak_vs_bn': row['peak_bytes'] / rows[0]['peak_bytes'] if row['peak_bytes'] else None}
    return rows


def networks(options: Options) -> list[Row]:
    """Training steps of DeepLabV3: forward, loss, backward, SGD."""
    torch.backends.cudnn.benchmark = True  # as in our configs
    return [row for depth in options.depths for batch in options.batches
            for row in _network_rows(depth, batch, options)]


NETWORK_COLUMNS = {
    'network': '', 'shape': '', 'layer': '', 'implementation': '', 'ms': '.1f', 'vs_bn': '.2f', 'saved_bytes': ',',
    'saved_vs_bn': '.2f', 'peak_bytes': ',', 'peak_vs_bn': '.2f'}


def draw_networks(rows: list[Row]) -> Figure:
    """Bars of time and memory beside the line of the network with BN."""
    return _draw_bars(rows, {'vs_bn': 'time of a step / BN', 'saved_vs_bn': 'bytes saved for backward / BN',
                             'peak_vs_bn': 'peak memory / BN'})


def _draw_bars(rows: list[Row], panels: dict[str, str]) -> Figure:
    panels = {key: title for key, title in panels.items() if rows[0][key]}
    runs = list(dict.fromkeys((row['network'], row['shape']) for row in rows))
    figure = Figure(figsize=(2 + 4.5 * len(panels), 0.8 + 3 * len(runs)), layout='constrained')
    grid = figure.subplots(len(runs), len(panels), squeeze=False, sharey='row')
    for line, (network, shape) in zip(grid, runs, strict=True):
        part = [row for row in rows if (row['network'], row['shape']) == (network, shape)][::-1]
        labels = [f'{row["layer"]}, {row["implementation"]}' for row in part]
        for axes, (key, title), colour in zip(line, panels.items(), COLOURS, strict=False):
            bars = axes.barh(labels, [row[key] for row in part], color=colour)
            axes.bar_label(bars, fmt='{:.2f}', padding=3)
            axes.axvline(1, color='black', linewidth=1)
            axes.set(xlabel=title)
            axes.margins(x=0.15)
        line[0].set_title(f'{network}, {shape.replace("x", " × ")}', loc='left')
    return figure


# Watching

def _watched(run: Run, model: nn.Module, gradients: bool) -> Run:
    """A training step at which :class:`~wsbcn_mmseg.engine.NormStatisticsHook` samples."""
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
    """Training steps of DeepLabV3-R50 with BCN and WS: plain, and those at which the norms are watched."""
    batch, crop = options.batches[0], options.crop
    images = torch.randn(batch, 3, crop, crop, device=options.device)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(21, (1, crop, crop), device=options.device)))
               for _ in range(batch)]
    model = build_network(Network('', '', 'bcn_ws_micro'), 50, options)
    _, run = _training_step(model, 'auto', images, samples, options.amp)
    runs = {'plain': run, 'sampled': _watched(run, model, False), 'sampled, gradients': _watched(run, model, True)}
    rounds = options.repeats or (2 if options.quick else 9 if options.device == 'cpu' else 20)
    times = interleaved(list(runs.values()), options.device, rounds, warm_up=1,
                        progress=partial(track, description='DeepLabV3-R50, watched'))
    return [{'network': 'DeepLabV3-R50', 'layer': 'BCN+WS', 'implementation': name, 'shape': f'{batch}x3x{crop}x{crop}',
             'pass': 'training step', 'ms': float(np.median(measured)), 'vs_plain': _ratio(measured, times[0]),
             'percent_at_interval_50': 2 * (_ratio(measured, times[0]) - 1)}
            for name, measured in zip(runs, times, strict=True)]


WATCHING_COLUMNS = {'network': '', 'shape': '', 'implementation': '', 'ms': '.1f', 'vs_plain': '.2f',
                    'percent_at_interval_50': '.2f'}


def draw_watching(rows: list[Row]) -> Figure:
    """Bars of time beside the line of the plain step."""
    return _draw_bars(rows, {'vs_plain': 'time of a step / plain'})


# Deployment

def _inference_run(network: Callable[[Tensor], Tensor], images: Tensor) -> Run:
    def run(mark) -> None:
        with torch.inference_mode():
            mark()
            network(images)
            mark()

    return run


def _in_onnx_runtime(network: Logits) -> Callable[[Tensor], Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        write_exported('onnx', network, Path(folder, 'network.onnx'))
        return onnx_runner(Path(folder, 'network.onnx'), torch.get_num_threads())


def _deployment_rows(depth: int, batch: int, options: Options) -> list[Row]:
    images = torch.randn(batch, 3, options.crop, options.crop, device=options.device)
    images = images.contiguous(memory_format=options.memory_format)
    plain, original = (Logits(build_network(Network('', '', config), depth, options)).eval()
                       for config in ('gn', 'bcn_ws'))
    folded = Logits(fold(original.segmentor))
    networks = {('GN', 'native'): plain, ('BCN+WS', 'original'): original, ('BCN+WS', 'folded'): folded}
    if options.device == 'cpu' and importlib.util.find_spec('onnxruntime') and importlib.util.find_spec('onnxscript'):
        networks['BCN+WS', 'ONNX Runtime'] = _in_onnx_runtime(folded)

    rounds = options.repeats or (3 if options.quick else 41 if options.device == 'cpu' else 50)
    times = interleaved([_inference_run(network, images) for network in networks.values()], options.device, rounds,
                        progress=partial(track, description=f'DeepLabV3-R{depth}, batch {batch}'))
    base, original_times, *_ = times
    return [{'network': f'DeepLabV3-R{depth}', 'layer': layer, 'implementation': name,
             'shape': 'x'.join(map(str, images.shape)), 'pass': 'inference', 'ms': float(np.median(measured)),
             'vs_group_norm': _ratio(measured, base), 'vs_original': _ratio(measured, original_times)}
            for (layer, name), measured in zip(networks, times, strict=True)]


def deployment(options: Options) -> list[Row]:
    """Inference of DeepLabV3, trained with BCN and WS: as it was trained, folded, and exported; beside GroupNorm's."""
    torch.backends.cudnn.benchmark = True  # as in our configs
    return [row for depth in options.depths for batch in options.batches
            for row in _deployment_rows(depth, batch, options)]


DEPLOYMENT_COLUMNS = {
    'network': '', 'shape': '', 'layer': '', 'implementation': '', 'ms': '.1f', 'vs_group_norm': '.2f',
    'vs_original': '.2f'}


def draw_deployment(rows: list[Row]) -> Figure:
    """Bars of time beside the line of the network with GroupNorm."""
    return _draw_bars(rows, {'vs_group_norm': 'time of inference / GroupNorm'})


# Reports

class Benchmark(NamedTuple):
    """What to run, what of it to show, and how to draw it."""
    run: Callable[[Options], list[Row]]
    columns: dict[str, str]  # keys of a row, with format specifications
    draw: Callable[[list[Row]], Figure]


BENCHMARKS = {'layers': Benchmark(layers, LAYER_COLUMNS, draw_layers),
              'networks': Benchmark(networks, NETWORK_COLUMNS, draw_networks),
              'watching': Benchmark(watching, WATCHING_COLUMNS, draw_watching),
              'deployment': Benchmark(deployment, DEPLOYMENT_COLUMNS, draw_deployment)}


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.processor())
    return f'{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}'


def machine(options: Options) -> Row:
    """On what, with what and when a row was measured."""
    triton = importlib.util.find_spec('triton') and importlib.import_module('triton').__version__
    return {'device': options.device, 'memory_format': str(options.memory_format).removeprefix('torch.'),
            'cuda_graphs': options.cuda_graphs,
            'machine': _processor() if options.device == 'cpu' else torch.cuda.get_device_name(options.device),
            'threads': torch.get_num_threads(), 'torch': torch.__version__, 'triton': triton,
            'mmcv': mmcv.__version__, 'mmseg': mmseg.__version__, 'wsbcn_mmseg': wsbcn_mmseg.__version__,
            'date': datetime.date.today().isoformat()}


def _dtype(benchmark: str, options: Options) -> str:
    if benchmark == 'networks':
        return 'amp_bfloat16' if options.amp else 'float32'
    if benchmark == 'deployment':
        return 'float32'
    return str(options.dtype).removeprefix('torch.')


def stem(benchmark: str, options: Options) -> str:
    """Name of the benchmark's files, without extension."""
    flags = [flag for flag in ('channels_last', 'cuda_graphs', 'quick') if getattr(options, flag)]
    return '_'.join([benchmark, options.device, _dtype(benchmark, options), *flags])


def table(title: str, rows: list[Row], columns: dict[str, str]) -> Table:
    """The rows for the terminal, a section per shape; of a layer's passes only both together."""
    rows = [row for row in rows if row['pass'] not in ('forward', 'backward')]
    shown = {key: spec for key, spec in columns.items() if any(row[key] is not None for row in rows)}
    result = Table(title=title)
    for key, spec in shown.items():
        result.add_column(key.replace('vs_', '/ ').replace('_', ' '), justify='right' if spec else 'left')
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        last = following is None or following['shape'] != row['shape']
        result.add_row(*['' if row[key] is None else format(row[key], spec) for key, spec in shown.items()],
                       end_section=last)
    return result


def write(benchmark: str, rows: list[Row], options: Options, folder: Path) -> tuple[Path, Path]:
    """Write the rows, with the machine's columns, and their plot; return the paths of the CSV and the PNG file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{stem(benchmark, options)}.csv'
    rows = [row | {'dtype': _dtype(benchmark, options)} | machine(options) for row in rows]
    write_csv(rows, path)
    figure = BENCHMARKS[benchmark].draw(rows)
    note = f'{rows[0]["machine"]}; torch {torch.__version__}; {path.stem}'
    figure.supxlabel(note, fontsize='small', x=0.99, ha='right')
    figure.savefig(path.with_suffix('.png'), dpi=150)
    return path, path.with_suffix('.png')
