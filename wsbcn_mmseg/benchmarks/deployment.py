"""Inference of DeepLabV3 as trained, folded and exported, compared with GroupNorm."""
import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor

from wsbcn_mmseg.conversion import fold
from wsbcn_mmseg.export import Logits, onnx_runner, write_exported

from .drawing import draw_bars
from .measuring import Benchmark, Options, Row, Run, interleaved, median_ratio
from .networks import Network, build_network


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
             'vs_group_norm': median_ratio(measured, base), 'vs_original': median_ratio(measured, original_times)}
            for (layer, name), measured in zip(networks, times, strict=True)]


def deployment(options: Options) -> list[Row]:
    """Measure inference of DeepLabV3 with BCN and WS as trained, folded and exported, compared with GroupNorm."""
    torch.backends.cudnn.benchmark = True  # as in our configs
    return [row for depth in options.depths for batch in options.batches
            for row in _deployment_rows(depth, batch, options)]


DEPLOYMENT_COLUMNS = {
    'network': '', 'shape': '', 'layer': '', 'implementation': '', 'ms': '.1f', 'vs_group_norm': '.2f',
    'vs_original': '.2f'}


def draw_deployment(rows: list[Row]) -> Figure:
    """Draw times as bars, relative to the network with GroupNorm."""
    return draw_bars(rows, {'vs_group_norm': 'time of inference / GroupNorm'})


BENCHMARK = Benchmark(deployment, DEPLOYMENT_COLUMNS, draw_deployment, lambda options: 'float32')
