"""Time and memory, measured side by side.

All runs are measured in one process, interleaved in rounds, so that disturbances of the machine affect all of them. A
ratio is the median over the rounds of the ratios within a round.
"""
import gc
import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from wsbcn_mmseg.ops import cpp
from wsbcn_mmseg.ops.batch_channel_norm import IMPLEMENTATIONS

WARM_UP = 3  # rounds before those that count

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
    layer_batches: Sequence[int] = (1, 2, 4)
    depths: Sequence[int] = (50, 101)
    configs: Path = Path('configs')

    @property
    def memory_format(self) -> torch.memory_format:
        """Of activations, and of the networks' weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


@cache
def _cache_flush(device: str) -> Tensor:
    """Memory larger than the GPU's cache, written before each measurement so that no input is already cached."""
    return torch.empty(256 * 2**20, dtype=torch.int8, device=device)


def _milliseconds(run: Run, device: str) -> list[float]:
    """The times between the moments that ``run`` marks: on the host's clock, or on the GPU's own.

    With one thread it is the time that the processor spends on this process, whatever others do meanwhile.
    """
    if device == 'cpu':
        moments, clock = [], time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        run(lambda: moments.append(clock()))
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
    """Time all ``runs`` once per round, in a different order each round, since the order affects what is cached.

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
    return mock.patch.dict(os.environ, WSBCN_IMPL=name if name in IMPLEMENTATIONS else '')


def implementations(device: str) -> list[str]:
    """Names of BCN's implementations that ``device`` runs, the plain composition first."""
    if device == 'cpu':
        return ['reference', 'fused', *(['cpp'] if cpp.WHY_NOT is None else [])]
    return ['reference', 'fused', *(['triton'] if importlib.util.find_spec('triton') else [])]


def median_ratio(times: np.ndarray, base: np.ndarray | None) -> float | None:
    """Median over the rounds of the ratios within a round; None without a base."""
    return None if base is None else float(np.median(times / base))


class Benchmark(NamedTuple):
    """The export of each benchmark module: the function to run, the columns to show, and the plot."""
    run: Callable[[Options], list[Row]]
    columns: dict[str, str]  # keys of a row, with format specifications
    draw: Callable[[list[Row]], Figure]
    dtype: Callable[[Options], str]  # as the names of its files have it
    computed: bool = False  # nothing is timed: its rows and the names of its files say nothing of a machine
    summary: Callable[[list[Row]], list[Row]] = list  # the rows to show


def layer_dtype(options: Options) -> str:
    """Of benchmarks whose inputs have ``options.dtype``."""
    return str(options.dtype).removeprefix('torch.')


def network_dtype(options: Options) -> str:
    """Of benchmarks that train networks."""
    return 'amp_bfloat16' if options.amp else 'float32'
