"""Training with gradient accumulation: kernels standardized in every micro-step or once per optimizer step."""
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import nn

from wsbcn_mmseg.layers import HeldKernels

from .drawing import draw_bars
from .measuring import Benchmark, Options, Row, Run, interleaved, median_ratio, network_dtype
from .networks import UPDATE_RATE, Network, build_network, random_batch

MICRO_STEPS = (2, 5)


def _optimizer_step(model: nn.Module, micro_steps: int, hold: bool, options: Options) -> Run:
    """Forward and backward passes of several batches, and an SGD step."""
    batches = [random_batch(options.batches[0], options) for _ in range(micro_steps)]
    optimizer = torch.optim.SGD(model.parameters(), lr=UPDATE_RATE, momentum=0.9, weight_decay=1e-4)
    kernels = HeldKernels(model)

    def run(mark) -> None:
        mark()
        for step, (images, samples) in enumerate(batches, 1):
            with kernels.micro_step(last=step == micro_steps) if hold else nullcontext():
                with torch.autocast(options.device, torch.bfloat16, enabled=options.amp):
                    loss = model.parse_losses(model.loss(images, samples))[0] / micro_steps
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mark()

    return run


def accumulation(options: Options) -> list[Row]:
    """Measure optimizer steps of DeepLabV3 with BCN and WS, each with several micro-steps."""
    rounds = options.repeats or (2 if options.quick else 9 if options.device == 'cpu' else 20)
    rows = []
    for depth in options.depths:
        model = build_network(Network('', '', 'bcn_ws_micro'), depth, options)
        shape = 'x'.join(map(str, (options.batches[0], 3, options.crop, options.crop)))
        for micro_steps in MICRO_STEPS:
            runs = [_optimizer_step(model, micro_steps, hold, options) for hold in (False, True)]
            times = interleaved(runs, options.device, rounds, warm_up=1,
                                progress=partial(track, description=f'R{depth}, {micro_steps} micro-steps'))
            rows += [{'network': f'DeepLabV3-R{depth}', 'layer': f'{micro_steps} micro-steps', 'implementation': name,
                      'shape': shape, 'pass': 'micro-step', 'ms': float(np.median(measured)) / micro_steps,
                      'vs_every': median_ratio(measured, times[0])}
                     for name, measured in zip(('standardized in each', 'standardized once'), times, strict=True)]
    return rows


ACCUMULATION_COLUMNS = {'network': '', 'shape': '', 'layer': '', 'implementation': '', 'ms': '.1f', 'vs_every': '.3f'}


def draw_accumulation(rows: list[Row]) -> Figure:
    """Draw times as bars, relative to standardization in every micro-step."""
    return draw_bars(rows, {'vs_every': 'time of a micro-step / standardized in each'})


BENCHMARK = Benchmark(accumulation, ACCUMULATION_COLUMNS, draw_accumulation, network_dtype)
