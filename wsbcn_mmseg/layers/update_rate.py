"""r of Algorithm 1 follows the learning rate (Section 7.2.2), in any training loop of PyTorch."""
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from wsbcn_mmseg.ops.arguments import check_number

from .bcn import BCN


class UpdateRate:
    """Sets ``update_rate`` of every micro-batch :class:`BCN` to the learning rate of its parameters.

    "We set the update rate r to be the learning rate of trainable parameters" (Section 7.2.2). The rate of a layer is
    ``factor`` times the learning rate of the parameter group that holds its parameters, within [``min_rate``,
    ``max_rate``]. Layers without a trainable parameter in any optimizer keep their rate.

    Created by :func:`follow_learning_rate`, which also calls :meth:`update` before every training forward pass.

    Args:
        model: The network.
        optimizers: One optimizer or several.
        factor, min_rate, max_rate: See above. Default to 1, 0 and 1.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, model: nn.Module, optimizers: Optimizer | Sequence[Optimizer], factor: float = 1.0,
                 min_rate: float = 0.0, max_rate: float = 1.0):
        for name, value in dict(factor=factor, min_rate=min_rate, max_rate=max_rate).items():
            check_number(name, value)
        if not 0 <= min_rate <= max_rate <= 1:
            raise ValueError(f'expected 0 <= min_rate <= max_rate <= 1, got {min_rate} and {max_rate}')
        if factor < 0:
            raise ValueError(f'expected factor >= 0, got {factor}')
        self.factor, self.min_rate, self.max_rate = factor, min_rate, max_rate
        optimizers = list(optimizers) if isinstance(optimizers, (list, tuple)) else [optimizers]
        if not isinstance(model, nn.Module) or not all(hasattr(optimizer, 'param_groups') for optimizer in optimizers):
            raise ValueError('expected an nn.Module and an optimizer or a list of these, got '
                             f'{type(model).__name__} and {[type(optimizer).__name__ for optimizer in optimizers]}')
        # Loading an optimizer's state replaces its group dictionaries, so store the index of a group, not the group.
        places = {id(parameter): (optimizer, index) for optimizer in optimizers
                  for index, group in enumerate(optimizer.param_groups) for parameter in group['params']}
        self.layers = {name: layer for name, layer in model.named_modules()
                       if isinstance(layer, BCN) and layer.mode == 'micro_batch'}
        self._places, self.lost = [], []
        for name, layer in self.layers.items():
            layer.update_rate = layer.update_rate  # stops the warning about a constant rate
            trainable = [parameter for parameter in layer.parameters() if parameter.requires_grad]
            place = next((places[id(parameter)] for parameter in trainable if id(parameter) in places), None)
            if place is not None:
                self._places.append((layer, *place))
            elif trainable:
                self.lost.append(name)

    def update(self) -> None:
        """Set the rates from the current learning rates, without synchronizing devices."""
        for layer, optimizer, index in self._places:
            rate = min(max(self.factor * optimizer.param_groups[index]['lr'], self.min_rate), self.max_rate)
            if layer.update_rate != rate:  # with accumulation, the rate rarely changes
                layer.update_rate = rate


def follow_learning_rate(model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], factor: float = 1.0,
                         min_rate: float = 0.0, max_rate: float = 1.0) -> UpdateRate:
    """Make the update rate of a network's BCN layers follow the learning rate.

    The rates are set before every forward pass of ``model`` in training mode. This works with any scheduler, with
    gradient accumulation, and after loading an optimizer's state. It breaks the graph of a compiled model before the
    network; with ``fullgraph=True``, call ``UpdateRate(model, optimizer).update()`` before each iteration instead.

    Args:
        model: The converted network that the training loop calls, or its wrapper for several GPUs.
        optimizer: The optimizer of its parameters, or a list of several.
        factor: Multiplies the learning rate. Defaults to 1.
        min_rate, max_rate: Bounds of the update rate. Default to 0 and 1. With small learning rates (AdamW at 1e-4),
            the estimates would change too slowly; pass a ``factor`` or a ``min_rate``.

    Returns:
        The :class:`UpdateRate`; its ``lost`` lists the names of BCN layers whose parameters are in no optimizer.

    Raises:
        ValueError: If a number is out of range, or the network has no micro-batch BCN.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), BCN(8))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        >>> rate = follow_learning_rate(model, optimizer)
        >>> _ = model(torch.randn(1, 3, 8, 8))
        >>> model[1].update_rate
        0.02
    """
    rate = UpdateRate(model, optimizer, factor, min_rate, max_rate)
    if not rate.layers:
        raise ValueError('the network has no micro-batch BCN; convert it before')

    @torch.compiler.disable
    def before_forward(module: nn.Module, _) -> None:
        if module.training:
            rate.update()

    model.register_forward_pre_hook(before_forward)
    return rate


def make_capturable(model: nn.Module) -> nn.Module:
    """Keep the update rates of a network's micro-batch BCN layers on their devices, where CUDA graphs can read them.

    Otherwise the rate is a number in host memory, and a captured graph always uses its value at the capture. After
    this call, ``layer.update_rate = r`` also changes the rate in captured graphs, and so do
    :func:`follow_learning_rate` and ``BCNUpdateRateHook``. Each change costs a small kernel launch per layer. Call it
    after ``model.to(device)`` and before the capture. As with ``capturable=True`` of optimizers, nothing else
    changes.

    Args:
        model: The network.

    Returns:
        The same network.

    Examples:
        >>> model = make_capturable(nn.Sequential(nn.Conv2d(3, 8, 3), BCN(8)))
    """
    for layer in model.modules():
        if isinstance(layer, BCN) and layer.mode == 'micro_batch':
            layer.keep_update_rate_on(layer.skipped_updates.device)
    return model
