"""The Triton kernels compiled for GPUs that need not be present: registers, spills, shared memory and vector loads."""
import importlib.util
import itertools
from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.plotting import COLORS
from wsbcn_mmseg.runtime.errors import UsageError

from .layers import LAYER_SHAPES, UPDATE_RATE
from .measuring import Benchmark, Options, Row

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)
TARGETS = ('sm_75', 'sm_80', 'sm_86', 'sm_90', 'gfx90a', 'gfx942')
QUICK_TARGETS = ('sm_90', 'gfx942')
QUICK_SHAPES = ((256, 65), (256, 1))


def layer_calls(shape: tuple[int, int], dtype: torch.dtype,
                memory_format: torch.memory_format) -> list[Callable[[], Tensor]]:
    """Functions that run BCN by Algorithm 1, alone and with ReLU, and in large-batch mode.

    Args:
        shape: Channels and side of the activation. It has one image, or two in large-batch mode.
    """
    def call(images: int, relu: bool = False, **arguments) -> Tensor:
        layer = BCN(shape[0], update_rate=UPDATE_RATE, **arguments)
        layer.fused_relu = relu
        x = torch.empty(images, shape[0], shape[1], shape[1], dtype=dtype).contiguous(memory_format=memory_format)
        return layer(x.requires_grad_())

    return [lambda: call(1), lambda: call(1, relu=True), lambda: call(2, mode='large_batch')]


def kernels(options: Options) -> list[Row]:
    """The most demanding variant of each kernel, per target, dtype and memory format, at the shapes of DeepLabV3-R101.

    Raises:
        UsageError: If Triton is not installed, interprets its kernels, or has no disassembler.
    """
    if importlib.util.find_spec('triton') is None:
        raise UsageError('the kernels are compiled by Triton, which is not installed here; run: pip install triton')
    from . import kernel_code
    if reason := kernel_code.why_not():
        raise UsageError(f'the code of the kernels cannot be read here: {reason}')
    targets, shapes = (QUICK_TARGETS, QUICK_SHAPES) if options.quick else (TARGETS, LAYER_SHAPES)
    combinations = list(itertools.product(targets, DTYPES, MEMORY_FORMATS))
    rows = []
    for target, dtype, memory_format in track(combinations, 'Kernels'):
        codes = {shape: [code for call in layer_calls(shape, dtype, memory_format)
                         for code in kernel_code.compiled(target, call)] for shape in shapes}
        names = dict.fromkeys(code.kernel for of_shape in codes.values() for code in of_shape)
        rows += [{'target': target, 'dtype': _name(dtype), 'memory_format': _name(memory_format), **_row(name, codes)}
                 for name in names]
    return rows


def _name(setting: object) -> str:
    return str(setting).removeprefix('torch.').removesuffix('_format')


def _row(name: str, codes: dict[tuple[int, int], list]) -> Row:
    """The maximum of each number over a kernel's variants, but the minimum for instructions on 16 bytes; a plane of one
    value is too small for these."""
    variants = {code for of_shape in codes.values() for code in of_shape if code.kernel == name}
    large = {code for (_, side), of_shape in codes.items() for code in of_shape if code.kernel == name and side > 1}
    return {'kernel': name, 'variants': len(variants),
            **{key: max(getattr(code, key) for code in variants) for key in ('registers', 'spills', 'shared_bytes')},
            **{key: min(getattr(code, key) for code in large) for key in ('loads_128', 'stores_128')}}


def summary(rows: list[Row]) -> list[Row]:
    """One row per kernel: registers on each target, and the worst of the other numbers."""
    result = []
    for name in dict.fromkeys(row['kernel'] for row in rows):
        own = [row for row in rows if row['kernel'] == name]
        registers = {target: max(int(row['registers']) for row in own if row['target'] == target)
                     for target in dict.fromkeys(row['target'] for row in own)}
        worst = {key: max(int(row[key]) for row in own) for key in ('spills', 'shared_bytes')}
        vectors = {f'{platform}_{key}': min((int(row[key]) for row in own if row['target'].startswith(prefix)),
                                            default=None)
                   for platform, prefix in (('cuda', 'sm_'), ('rocm', 'gfx')) for key in ('loads_128', 'stores_128')}
        result.append({'kernel': name, **registers, **worst, **vectors})
    return result


KERNEL_COLUMNS = {'kernel': '', **dict.fromkeys(TARGETS, 'd'), 'spills': 'd', 'shared_bytes': ',',
                  **dict.fromkeys(('cuda_loads_128', 'cuda_stores_128', 'rocm_loads_128', 'rocm_stores_128'), 'd')}


def draw_kernels(rows: list[Row]) -> Figure:
    """Draw the registers per thread of each kernel's most demanding variant on each target."""
    targets = list(dict.fromkeys(row['target'] for row in rows))
    figure = Figure(figsize=(3 + 2 * len(targets), 4), layout='constrained')
    axes = figure.subplots()
    names = list(dict.fromkeys(row['kernel'] for row in rows))
    width = 1 / (len(names) + 1)
    for index, (name, color) in enumerate(zip(names, itertools.cycle(COLORS), strict=False)):
        most = [max(row['registers'] for row in rows if (row['target'], row['kernel']) == (target, name))
                for target in targets]
        bars = axes.bar([place + width * (index - len(names) / 2) for place in range(len(targets))], most, width,
                        align='edge', color=color, label=name)
        axes.bar_label(bars, fontsize=7, padding=1)
    axes.set_xticks(range(len(targets)), targets)
    axes.set(ylabel='registers per thread')
    axes.legend(ncols=len(names), frameon=False, loc='upper center', bbox_to_anchor=(0.5, 1.12))
    return figure


BENCHMARK = Benchmark(kernels, KERNEL_COLUMNS, draw_kernels, lambda options: '', True, summary)
