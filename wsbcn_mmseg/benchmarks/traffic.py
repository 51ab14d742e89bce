"""Memory traffic of BCN on a GPU, counted from the kernels' loads and stores, and the minimum time that it takes.

The times are estimates: bytes divided by the published bandwidth, without the host's time for launching kernels.
PyTorch's norms are not counted; their accesses are taken from their source, ``aten/src/ATen/native/cuda``.
"""
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch.nn.modules.batchnorm import _BatchNorm

import wsbcn_mmseg
from wsbcn_mmseg.plotting import COLORS
from wsbcn_mmseg.runtime.errors import UsageError

from .layers import LAYER_SHAPES
from .measuring import Benchmark, Options, Row
from .networks import Network, build_network, random_batch

QUICK_SHAPES = ((64, 17), (256, 1))
CROP, DEPTH = 513, 101  # for Table 11
ALL = 'all norms of a step'
ACCESSES = ('forward_read', 'forward_written', 'backward_read', 'backward_written')
LIMIT = dict(zip(ACCESSES, (2, 1, 4, 1), strict=True))  # x twice, y; x and dy twice, dx
SIZE = 4  # bytes per value, float32


class Gpu(NamedTuple):
    """Published numbers of a GPU."""
    name: str
    bandwidth: float  # memory bandwidth, bytes per second
    cache: float  # L2 cache, bytes


GPUS = {'h100': Gpu('H100 SXM', 3.35e12, 50e6), 'rtx4090': Gpu('RTX 4090', 1.008e12, 72e6),
        't4': Gpu('T4', 0.32e12, 4e6)}


def count(activations: list[tuple[int, int, str]]) -> list[dict[str, float]]:
    """Accesses per value, counted in a process with Triton's interpreter.

    Args:
        activations: Channels, side and memory format (``'contiguous'`` or ``'channels_last'``) of single images.
    """
    arguments = [f'1x{channels}x{side}x{side}:{name}' for channels, side, name in activations]
    path = [str(Path(wsbcn_mmseg.__file__).parent.parent), *filter(None, [os.environ.get('PYTHONPATH')])]
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-m', 'wsbcn_mmseg.benchmarks.traffic_count', *arguments], text=True,
        stdout=subprocess.PIPE, env={**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': os.pathsep.join(path)})
    counted = [json.loads(line) for line in track(process.stdout, 'Interpreted', total=len(arguments))]
    if process.wait():
        raise RuntimeError(f'counting failed with exit status {process.returncode}')
    return counted


def norms_of_a_step(options: Options) -> Counter:
    """Number of norms of DeepLabV3-R101 at crop 513 by channels and side of their input."""
    found = Counter()
    model = build_network(Network('', '', 'bn'), DEPTH, options).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(lambda _, inputs: found.update([inputs[0].shape[1:3]]))
    with torch.no_grad():
        model.loss(*random_batch(1, options))
    return Counter({tuple(shape): number for shape, number in found.items()})


def estimates(values: float, accesses: dict[str, float]) -> Row:
    """Milliseconds of a forward and backward pass over ``values`` values on each of :data:`GPUS`: first with all
    accesses from memory, then with second reads free if the data fit into half of the cache."""
    row, activation = {}, values * SIZE
    for key, gpu in GPUS.items():
        everything = sum(accesses.values()) * activation
        cached = sum(activation * tensors for tensors in (1, 2) if activation * tensors <= gpu.cache / 2)
        row |= {f'{key}_ms': 1e3 * everything / gpu.bandwidth,
                f'{key}_cached_ms': 1e3 * (everything - cached) / gpu.bandwidth}
    return row


def traffic(options: Options) -> list[Row]:
    """Accesses per value by BCN, GroupNorm and BatchNorm, and estimated times on several GPUs, for one image.

    Raises:
        UsageError: If Triton is not installed.
    """
    if importlib.util.find_spec('triton') is None:
        raise UsageError('bytes are counted in the interpreter of Triton, which is not installed here; '
                         'run: pip install triton')
    on_cpu = Options(crop=65 if options.quick else CROP, configs=options.configs)
    numbers = norms_of_a_step(on_cpu)
    shapes = QUICK_SHAPES if options.quick else LAYER_SHAPES
    activations = [(*shape, name) for name in ('contiguous', 'channels_last') for shape in shapes]
    rows = []
    for (channels, side, name), accesses in zip(activations, count(activations), strict=True):
        rows.append(_row('BCN', name, f'1x{channels}x{side}x{side}', numbers[channels, side], channels * side**2,
                         accesses))
    others = [_row(layer, 'contiguous', f'1x{channels}x{side}x{side}', numbers[channels, side], channels * side**2,
                   LIMIT) for layer in ('GroupNorm', 'BatchNorm2d') for channels, side in shapes]
    kinds = dict.fromkeys((row['layer'], row['memory_format']) for row in rows + others)
    sums = [_sum([row for row in rows + others if (row['layer'], row['memory_format']) == kind]) for kind in kinds]
    return sorted(rows, key=lambda row: shapes.index(tuple(map(int, row['shape'].split('x')[1:3])))) + sums


def _row(layer: str, memory_format: str, shape: str, number: int, values: int, accesses: dict[str, float]) -> Row:
    return {'shape': shape, 'pass': 'both', 'layer': layer, 'memory_format': memory_format,
            'norms': number, 'values': values, 'source': 'counted' if layer == 'BCN' else 'read',
            **{key: accesses[key] for key in ACCESSES},
            'above_limit': sum(accesses.values()) / sum(LIMIT.values()) - 1, **estimates(values, accesses)}


def _sum(rows: list[Row]) -> Row:
    """Sum over all norms of the network, with each shape as often as it occurs."""
    values = sum(row['norms'] * row['values'] for row in rows)
    total = {key: sum(row['norms'] * row['values'] * row[key] for row in rows) / max(values, 1)
             for key in (*ACCESSES, 'above_limit')}
    times = {key: sum(row['norms'] * row[key] for row in rows) for key in rows[0] if key.endswith('_ms')}
    return rows[0] | total | times | {'shape': ALL, 'norms': sum(row['norms'] for row in rows), 'values': values}


TRAFFIC_COLUMNS = {'shape': '', 'layer': '', 'memory_format': '', 'norms': 'd', 'source': '',
                   **dict.fromkeys(ACCESSES, '.3f'), 'above_limit': '.1%',
                   **{f'{key}{suffix}': '.3f' for key in GPUS for suffix in ('_ms', '_cached_ms')}}


def draw_traffic(rows: list[Row]) -> Figure:
    """Draw the estimated time of all norms of a step on each GPU."""
    rows = [row for row in rows if row['shape'] == ALL]
    figure = Figure(figsize=(4 * len(GPUS), 3.2), layout='constrained')
    for axes, (key, gpu) in zip(figure.subplots(1, len(GPUS), sharey=True), GPUS.items(), strict=True):
        labels = [f'{row["layer"]}, {row["memory_format"].replace("_", " ")}' for row in rows[::-1]]
        for suffix, color, label in zip(('_ms', '_cached_ms'), cycle(COLORS),
                                        ('all from memory', 'second reads from cache'), strict=False):
            bars = axes.barh(labels, [row[f'{key}{suffix}'] for row in rows[::-1]], color=color, label=label)
            axes.bar_label(bars, fmt='{:.2f}', padding=3 if suffix == '_ms' else -30)
        axes.set(title=gpu.name, xlabel='ms, estimated')
        axes.margins(x=0.2)
    figure.legend(*axes.get_legend_handles_labels(), loc='outside upper center', ncols=2, frameon=False)
    return figure


BENCHMARK = Benchmark(traffic, TRAFFIC_COLUMNS, draw_traffic, lambda options: '', True)
