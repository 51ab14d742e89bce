"""Calibration of converted networks for fine-tuning: the channel normalization is set from a few unlabeled images."""
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.ops.arguments import check_input
from wsbcn_mmseg.runtime.errors import UsageError


class CalibrationError(UsageError, ValueError):
    """A network that cannot be calibrated, or images with which it cannot."""


@torch.no_grad()
def calibrate(model: nn.Module, images: Iterable | Tensor) -> int:
    """Set each BCN's channel scales and shifts to its groups' deviations and means in the BatchNorm network.

    After ``convert_model(model, preserve=True)``, the batch normalization of BCN equals the BatchNorm that it
    replaced. The channel normalization after it changes the output; its scale and shift compensate for this on
    average, with values derived from the parameters of BatchNorm. This function measures these values instead: it
    runs the network without its channel normalizations, which is the BatchNorm network, and averages each group's
    mean and standard deviation over the images. About ten images are enough. Layers whose estimates have their
    initial values, such as those of a new head, keep their scales and shifts.

    Args:
        model: A converted network, in training or evaluation mode. Its mode and its running estimates do not change.
        images: A tensor of shape (N, C, H, W) for one call of the model, or an iterable of inputs for one call each:
            tensors, tuples of positional arguments or dicts of keyword arguments.

    Returns:
        The number of layers that were set.

    Raises:
        CalibrationError: A ``ValueError``, if no BCN layer with trained estimates has run, or if statistics of the
            images are not finite.

    Examples:
        >>> from wsbcn_mmseg import convert_model
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).train()
        >>> _ = model(torch.rand(8, 3, 16, 16))
        >>> _ = convert_model(model, preserve=True)
        >>> calibrate(model, torch.rand(8, 3, 16, 16))
        1
    """
    if not isinstance(model, nn.Module) or not isinstance(images, Iterable) or isinstance(images, (str, dict)):
        raise CalibrationError(f'expected a network and images, got {type(model).__name__} and '
                               f'{type(images).__name__}')
    layers = [module for module in model.modules() if isinstance(module, BCN) and _has_estimates(module)]
    if not layers:
        raise CalibrationError('the network has no BCN with trained estimates; load the weights of a network that was '
                               'trained with BatchNorm, then convert it to BCN with preserve=True, then calibrate it')
    moments: dict[BCN, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    with _without_channel_norm(model, moments):
        for inputs in [images] * bool(len(images)) if isinstance(images, Tensor) else images:
            if isinstance(inputs, dict):
                model(**inputs)
            else:
                model(*inputs if isinstance(inputs, (tuple, list)) else [inputs])
    seen = {layer: values for layer, values in moments.items() if values}
    if not seen:
        raise CalibrationError('no BCN with trained estimates has run on the images; is there at least one?')
    if not all(part.isfinite().all() for values in seen.values() for pair in values for part in pair):
        raise CalibrationError('the statistics of a layer are not finite on these images; nothing was changed')
    for layer, values in seen.items():
        means, deviations = (torch.cat(parts).mean(0) for parts in zip(*values, strict=True))
        layer.bias.copy_(means)
        layer.weight.copy_(deviations)
    return len(seen)


def _has_estimates(layer: BCN) -> bool:
    if layer.bn.running_mean is None:
        return False
    return bool(layer.bn.running_mean.any()) or not bool((layer.bn.running_var == 1).all())


@contextmanager
def _without_channel_norm(model: nn.Module, moments: dict[BCN, list]) -> Iterator[None]:
    """Evaluation mode in which each layer of ``moments`` runs only its batch normalization and records its groups."""
    flags = [(module, module.training) for module in model.modules()]
    for module, _ in flags:  # set by hand: train() and eval() of OpenMMLab's backbones do more
        module.training = False
    for layer, values in moments.items():
        layer.forward = partial(_batch_norm, layer, values)
    try:
        yield
    finally:
        for layer in moments:
            del layer.forward
        for module, flag in flags:
            module.training = flag


def _batch_norm(layer: BCN, values: list, x: Tensor) -> Tensor:
    bn = layer.bn
    check_input(x, layer.num_channels)
    y = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=layer.eps)
    groups = y.float().reshape(len(x), layer.num_groups, -1)
    var, mean = torch.var_mean(groups, 2, correction=0)
    values.append((mean, (var + layer.eps).sqrt()))
    return y
