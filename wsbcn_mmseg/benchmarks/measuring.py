"""Measure time and memory of several runs side by side.

All runs are measured in one process, interleaved in rounds, so that disturbances of the machine affect all of them. A
reported ratio is the median over rounds of the ratio within a round.
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

WARM_UP = 3  # warm-up rounds, which do not count

Row = dict[str, str | float | None]
Run = Callable[[Callable[[], None]], None]  # runs, and calls its argument at every time to record


@dataclass(frozen=True)
class Options:
    """Options of a measurement."""
    device: str = 'cpu'
    dtype: torch.dtype = torch.float32  # dtype of the layers' inputs
    channels_last: bool = False
    cuda_graphs: bool = False  # replay layers from CUDA graphs, without the host's launch overhead
    amp: bool = False  # run networks under autocast to bfloat16
    quick: bool = False
    repeats: int | None = None  # number of measured rounds
    crop: int = 257
    batches: Sequence[int] = (2, )  # depth of the networks
    layer_batches: Sequence[int] = (1, 2, 4)
    depths: Sequence[int] = (50, 101)
    configs: Path = Path('configs')

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of activations, and of the networks' weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


@cache
def _cache_flush(device: str) -> Tensor:
    """Memory larger than the GPU's cache, written before each measurement so that no input is already cached."""
    return torch.empty(256 * 2**20, dtype=torch.int8, device=device)


def _milliseconds(run: Run, device: str) -> list[float]:
    """The times between the marks that ``run`` sets, on the host's or the GPU's clock.

    With one thread it is the processor time of this process, which other processes do not affect.
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
    """Bytes that ``forward()`` saves for backward. Each storage counts once; parameters and buffers do not count."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = forward()  # held until all are counted: freed memory may be reused
    for tensor in chain(module.parameters(), module.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del outputs
    return sum(kept.values())


def peak_bytes(run: Run, others: int) -> int:
    """Peak of the GPU memory allocated during ``run``, minus the memory of ``others``."""
    run(lambda: None)  # the first run allocates permanent memory: momentum, convolution workspaces
    torch.cuda.reset_peak_memory_stats()
    run(lambda: None)
    return torch.cuda.max_memory_allocated() - others


def implementation(name: str):
    """Within a ``with`` block, make BCN layers use the implementation of this name."""
    return mock.patch.dict(os.environ, WSBCN_IMPL=name if name in IMPLEMENTATIONS else '')


def implementations(device: str) -> list[str]:
    """Names of BCN's implementations that run on ``device``, the plain composition first."""
    if device == 'cpu':
        return ['reference', 'fused', *(['cpp'] if cpp.WHY_NOT is None else [])]
    return ['reference', 'fused', *(['triton'] if importlib.util.find_spec('triton') else [])]


def median_ratio(times: np.ndarray, base: np.ndarray | None) -> float | None:
    """Median over rounds of the ratio within a round; None without a base."""
    return None if base is None else float(np.median(times / base))


class Benchmark(NamedTuple):
    """The export of each benchmark module: the function to run, the columns to show, and the plot."""
    run: Callable[[Options], list[Row]]
    columns: dict[str, str]  # keys of a row and their format specifications
    draw: Callable[[list[Row]], Figure]
    dtype: Callable[[Options], str]  # used in the names of its files
    computed: bool = False  # nothing is timed, so rows and file names do not depend on a machine
    summary: Callable[[list[Row]], list[Row]] = list  # the rows to show


def layer_dtype(options: Options) -> str:
    """For benchmarks whose inputs have ``options.dtype``."""
    return str(options.dtype).removeprefix('torch.')


def network_dtype(options: Options) -> str:
    """For benchmarks that train networks."""
    return 'amp_bfloat16' if options.amp else 'float32'
