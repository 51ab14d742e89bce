"""Training steps of DeepLabV3: forward, loss, backward, SGD."""
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from rich.progress import track
from torch import Tensor, nn

from wsbcn_mmseg.conversion import fuse_relu
from wsbcn_mmseg.layers import BCN

from .drawing import draw_bars
from .measuring import (
    Benchmark,
    Options,
    Row,
    implementation,
    implementations,
    interleaved,
    median_ratio,
    network_dtype,
    peak_bytes,
    saved_bytes,
)

UPDATE_RATE = 0.007


class Network(NamedTuple):
    """A row of the network benchmark: one of our configs, and optionally a class to use instead of our ConvWS."""
    name: str
    implementation: str
    config: str
    conv: type[nn.Module] | None = None  # used instead of our ConvWS
    fuse_relu: bool = False


def _networks(device: str) -> list[Network]:
    fast = [name for name in implementations(device) if name != 'reference']
    return [Network('BN', 'native', 'bn'),
            Network('GN', 'native', 'gn'),
            Network('GN+WS', 'mmcv', 'gn_ws', ConvWS2d),
            Network('GN+WS', 'ours', 'gn_ws'),
            Network('BCN+WS micro-batch', 'reference', 'bcn_ws_micro', ConvWS2d),
            *[Network('BCN+WS micro-batch', name, 'bcn_ws_micro') for name in fast],
            *[Network('BCN+WS micro-batch, ReLU fused', name, 'bcn_ws_micro', fuse_relu=True) for name in fast],
            *[Network('BCN+WS large-batch', name, 'bcn_ws') for name in fast]]


def build_network(network: Network, depth: int, options: Options) -> nn.Module:
    """DeepLabV3 from one of our configs, with another depth."""
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
    if network.fuse_relu:
        fuse_relu(model)
    return model.to(options.device, memory_format=options.memory_format)


def random_batch(batch: int, options: Options) -> tuple[Tensor, list[SegDataSample]]:
    """Random images and labels of 21 classes."""
    size = options.crop, options.crop
    images = torch.randn(batch, 3, *size, device=options.device).contiguous(memory_format=options.memory_format)
    return images, [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(21, (1, *size), device=options.device)))
                    for _ in range(batch)]


def training_step(model: nn.Module, name: str, images: Tensor, samples: list[SegDataSample], amp: bool):
    """A function that returns the loss, and a function that runs a whole step."""
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
    images, samples = random_batch(batch, options)
    networks, rows, runs = _networks(options.device), [], []
    for network in networks:
        others = torch.cuda.memory_allocated() if options.device != 'cpu' else 0
        model = build_network(network, depth, options)
        loss, run = training_step(model, network.implementation, images, samples, options.amp)
        rows.append({
            'network': f'DeepLabV3-R{depth}', 'layer': network.name, 'implementation': network.implementation,
            'shape': 'x'.join(map(str, images.shape)), 'pass': 'training step', 'saved_bytes': saved_bytes(loss, model),
            'peak_bytes': peak_bytes(run, others) if options.device != 'cpu' else None})
        runs.append(run)

    rounds = options.repeats or (2 if options.quick else 7 if options.device == 'cpu' else 20)
    title = f'DeepLabV3-R{depth}, batch {batch}'
    times = interleaved(runs, options.device, rounds, warm_up=1, progress=partial(track, description=title))
    for row, measured in zip(rows, times, strict=True):
        row |= {'ms': float(np.median(measured)), 'vs_bn': median_ratio(measured, times[0]),
                'saved_vs_bn': row['saved_bytes'] / rows[0]['saved_bytes'],
                'peak_vs_bn': row['peak_bytes'] / rows[0]['peak_bytes'] if row['peak_bytes'] else None}
    return rows


def networks(options: Options) -> list[Row]:
    """Measure training steps of DeepLabV3: forward, loss, backward, SGD."""
    torch.backends.cudnn.benchmark = True  # as in our configs
    return [row for depth in options.depths for batch in options.batches
            for row in _network_rows(depth, batch, options)]


NETWORK_COLUMNS = {
    'network': '', 'shape': '', 'layer': '', 'implementation': '', 'ms': '.1f', 'vs_bn': '.2f', 'saved_bytes': ',',
    'saved_vs_bn': '.2f', 'peak_bytes': ',', 'peak_vs_bn': '.2f'}


def draw_networks(rows: list[Row]) -> Figure:
    """Draw time and memory as bars, relative to the network with BN."""
    return draw_bars(rows, {'vs_bn': 'time of a step / BN', 'saved_vs_bn': 'bytes saved for backward / BN',
                             'peak_vs_bn': 'peak memory / BN'})


BENCHMARK = Benchmark(networks, NETWORK_COLUMNS, draw_networks, network_dtype)
