"""Running a network on made-up input, and leaving it as it was."""
import itertools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .dataflow import Dataflow, record_dataflow

SIDES = (64, 224, 32, 28, 128, 299, 16, 8, 256, 512)  # of made-up images: the first that a network takes
CLIP = 8  # frames


def trial_run(model: nn.Module, example_inputs, convs: list[nn.Module], norms: list[nn.Module]) -> Dataflow:
    """See which of ``convs`` feed which of ``norms``, by a forward pass in evaluation mode.

    Parts that run in training only, such as auxiliary heads, are seen in a second pass in training mode, made where
    norms did not run in the first. Norms are in evaluation mode in both. The network comes back as it was: flags,
    buffers, and the states of random number generators.

    Args:
        model: The network.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments; None to make up images of shape
            (1, C, 64, 64) or larger, and for OpenMMLab's models also labels, so that their losses run.
        convs, norms: As for :func:`~wsbcn_mmseg.conversion.dataflow.record_dataflow`.

    Raises:
        ValueError: If no input could be made up that the network takes.
    """
    flow, failures = Dataflow(), []
    with _as_it_was(model):
        for training in (False, True):
            _set_modes(model, norms, training)
            seen, failure = _first_that_runs(_calls(model, example_inputs, training), convs, norms)
            if failure is not None and example_inputs is not None and not training:
                raise failure
            flow = _merged(flow, seen)
            failures.append(failure)
            if all(norm in flow.sources for norm in norms):
                return flow
    if all(failures):
        raise ValueError(f'{type(model).__name__} runs on no input that could be made up for it '
                         f'({_first_line(failures[0])}); pass example_inputs') from failures[0]
    return flow


def _first_that_runs(calls: Iterable[Callable[[], object]], convs, norms) -> tuple[Dataflow, Exception | None]:
    """Make calls until one ends without an error; what was seen until the errors of others counts too."""
    flow, failure = Dataflow(), ValueError('it has no convolution to make up images for')
    for call in calls:
        failure = None

        def run(call=call):
            nonlocal failure
            try:
                return call()
            except Exception as error:  # networks of others raise errors of any kind
                failure = error

        flow = _merged(flow, record_dataflow(run, convs, norms))
        if failure is None:
            break
    return flow, failure


def _merged(first: Dataflow, second: Dataflow) -> Dataflow:
    merged = Dataflow(dict(first.sources), dict(first.targets), first.shared | second.shared, dict(first.calls))
    for norm, sources in second.sources.items():
        merged.sources[norm] = merged.sources.get(norm, []) + sources
    for conv, targets in second.targets.items():
        merged.targets[conv] = merged.targets.get(conv, set()) | targets
        merged.calls[conv] = max(merged.calls.get(conv, 0), second.calls[conv])
    return merged


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(module, name, buffer, buffer.clone()) for module in model.modules()
               for name, buffer in module._buffers.items() if buffer is not None]
    states = random.getstate(), np.random.get_state()
    devices = {parameter.device.index for parameter in model.parameters() if parameter.is_cuda}
    try:
        with torch.random.fork_rng(list(devices)), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, flag in flags:
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)


def _set_modes(model: nn.Module, norms: Iterable[nn.Module], training: bool) -> None:
    """Flags set by hand: ``train()`` of OpenMMLab's backbones freezes parameters too."""
    for module in model.modules():
        module.training = training
    for norm in norms:
        for module in norm.modules():
            module.training = False


def _calls(model: nn.Module, example_inputs, training: bool) -> Iterator[Callable[[], object]]:
    if example_inputs is None:
        for images in _images(model, batch_size=2 if training else 1):
            if isinstance(model, BaseModel):
                samples = [_labelled(model, images.shape[-2:]).to(images.device) for _ in images]
                mode = 'loss' if training else 'tensor'
                yield lambda images=images, samples=samples, mode=mode: model(images, samples, mode=mode)
            else:
                yield lambda images=images: model(images)
    elif isinstance(example_inputs, dict):
        yield lambda: model(**example_inputs)
    else:
        yield lambda: model(*example_inputs if isinstance(example_inputs, (tuple, list)) else [example_inputs])


def _images(model: nn.Module, batch_size: int) -> Iterator[Tensor]:
    """Random images of shape (N, C, *), C as the first convolution says or 3; clips of MMAction2 are of shape
    (N, T, C, H, W) or (N, 1, C, T, H, W)."""
    first = next((module for module in model.modules() if isinstance(module, _ConvNd)), None)
    if first is None:
        return
    preprocessor = getattr(model, 'data_preprocessor', None)
    mean, crop_size = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'size', None)
    likely = (3, first.in_channels) if isinstance(model, BaseModel) else (first.in_channels, 3)
    dimensions = first.weight.dim() - 2
    sizes = [(side, side) for side in SIDES]
    if crop_size is not None:  # which some transformers insist on
        sizes.insert(1, tuple(crop_size))
    for size, channels in itertools.product(sizes, dict.fromkeys(likely) if mean is None else [mean.numel()]):
        shape = [channels, *[CLIP] * (dimensions == 3), *size[:dimensions]]
        if _project(model) == 'mmaction':
            shape = [1 if dimensions == 3 else CLIP, *shape]
        yield torch.randn(batch_size, *shape, dtype=first.weight.dtype, device=first.weight.device)


def _project(model: nn.Module) -> str | None:
    """Which of OpenMMLab's projects a model is of."""
    packages = [base.__module__.split('.')[0] for base in type(model).__mro__]
    return next((package for package in packages if package in ('mmseg', 'mmdet', 'mmpretrain', 'mmaction')), None)


def _labelled(model: BaseModel, size: tuple[int, int]):
    """A data sample for an image of ``size``: one object that fills it, or class 0 everywhere."""
    project, (height, width) = _project(model), size
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0),
                num_clips=1)
    if project == 'mmdet':
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        objects = InstanceData(bboxes=torch.tensor([[0.0, 0.0, width, height]]), labels=torch.zeros(1).long(),
                               masks=BitmapMasks(np.ones((1, height, width), np.uint8), height, width))
        ignored = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        return DetDataSample(metainfo=meta, gt_instances=objects, ignored_instances=ignored)
    if project == 'mmpretrain':
        from mmpretrain.structures import DataSample
        return DataSample(metainfo=meta).set_gt_label(0)
    if project == 'mmaction':
        from mmaction.structures import ActionDataSample
        return ActionDataSample(metainfo=meta).set_gt_label(0)
    zeros = torch.zeros(1, height, width)
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=zeros.long()),
                         gt_edge_map=PixelData(data=zeros.long()), gt_depth_map=PixelData(data=zeros))


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0]}'
