"""A part of a network that is recomputed in the backward pass.

It works like ``torch.utils.checkpoint`` with ``use_reentrant=False``: hooks receive every tensor that autograd saves in
the forward pass. When backward needs the first of them, the function runs again until all are recomputed. There are two
differences. Tensors that are alive anyway (inputs, outputs, parameters, and the outputs on the tape) are kept and not
recomputed, so recomputation stops before the last norm and the addition of a residual block. And the recomputation uses
the same random numbers, autocast settings and buffers as the forward pass.
"""
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from wsbcn_mmseg.layers import BCN

from .tape import Recording, Replaying, Saved, Tape, ran_differently

SMALL = 64  # saved tensors this many times smaller than the largest input are kept, such as statistics of norms

_running = threading.local()


def inside_segment() -> bool:
    """Whether a segment runs in this thread."""
    return getattr(_running, 'inside', False)


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    before, _running.inside = inside_segment(), True
    try:
        yield
    finally:
        _running.inside = before


class _AllRecomputed(Exception):
    """Raised by a hook to stop a recomputation when all tensors are recomputed."""


def tensors_in(tree: object) -> list[Tensor]:
    """Tensors in nested tuples, lists and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


class _Surroundings:
    """The current state that a function depends on besides its arguments: random states, autocast, and the buffers of
    modules that may write to them."""

    def __init__(self, tensors: list[Tensor], modules: Sequence[nn.Module]):
        self.cpu_state = torch.get_rng_state()
        self.devices, self.device_states = get_device_states(*tensors)
        self.device_type = next((tensor.device.type for tensor in tensors if not tensor.is_cpu), 'cpu')
        self.autocast = [dict(device_type=device, dtype=torch.get_autocast_dtype(device),
                              enabled=torch.is_autocast_enabled(device),
                              cache_enabled=torch.is_autocast_cache_enabled())
                         for device in {'cpu', self.device_type} if torch.amp.is_autocast_available(device)]
        # The tape records what BCN needs
        layers = [layer for module in modules for layer in module.modules() if layer.training]
        inner = {layer.bn for layer in layers if isinstance(layer, BCN)}
        self.buffers = [(layer, name, buffer.clone()) for layer in layers
                        if not isinstance(layer, BCN) and layer not in inner
                        for name, buffer in layer._buffers.items() if buffer is not None]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the state inside a ``with`` block."""
        with contextlib.ExitStack() as stack:
            kind = {} if self.device_type == 'cpu' else dict(device_type=self.device_type)
            stack.enter_context(torch.random.fork_rng(self.devices, **kind))
            torch.set_rng_state(self.cpu_state)
            if self.devices:
                set_device_states(self.devices, self.device_states, **kind)
            for options in self.autocast:
                stack.enter_context(torch.autocast(**options))
            for layer, name, buffer in self.buffers:
                stack.callback(layer._buffers.__setitem__, name, layer._buffers[name])
                layer._buffers[name] = buffer.clone()
            yield


class Segment:
    """One run of a function that is recomputed in the backward pass.

    Args:
        function: The function.
        modules: The modules it calls.
        keeps: See :class:`Tape`.
    """

    def __init__(self, function: Callable, modules: Sequence[nn.Module], keeps: Callable[[Tensor], bool]):
        self.function, self.modules, self.tape = function, modules, Tape(keeps)
        self.dropped: dict[int, torch.Size] = {}
        self.recomputed: dict[int, Tensor] = {}

    def run(self, args: tuple, kwargs: dict) -> object:
        """The function's output, with a graph that recomputes dropped tensors."""
        leaves, self.structure = tree_flatten((args, kwargs))
        self.leaves = [(leaf.detach(), leaf.requires_grad) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs = tensors_in(leaves)
        self.surroundings = _Surroundings(inputs, self.modules)
        saved: list[Saved] = []

        def save(tensor: Tensor) -> Saved:
            saved.append(Saved(len(saved), tensor))
            return saved[-1]

        versions = [tensor._version for tensor in inputs]
        with saved_tensors_hooks(save, self._load), Recording(self.tape, saved), _inside():
            output = self.function(*args, **kwargs)
        if versions != [tensor._version for tensor in inputs]:
            raise RuntimeError(f'{type(self.modules[0]).__name__} changes its input in place, so it cannot be '
                               'recomputed from it; set inplace=False in its first activation, or exclude it from '
                               'save_memory by the argument blocks')
        parameters = [tensor for module in self.modules for tensor in (*module.parameters(), *module.buffers())]
        self._drop(saved, [*inputs, *tensors_in(output), *parameters, *self.tape.values()],
                   max(map(_bytes, inputs)) // SMALL)
        return output

    def _drop(self, saved: list[Saved], alive: list[Tensor], small: int) -> None:
        """Drop tensors that can be recomputed, except small ones and those that are alive anyway."""
        owners = {_memory(tensor): tensor for tensor in alive}
        for one in saved:
            owner = owners.get(_memory(one.tensor))
            if owner is not None and one.is_intact():
                one.keep(owner)
            elif one.needed or _bytes(one.tensor) <= small:
                one.keep(one.tensor)
            else:
                self.dropped[one.index] = one.tensor.shape
                one.tensor = None
        saved.clear()  # the hooks hold the list and live as long as the graph

    def _load(self, one: Saved) -> Tensor:
        if one.tensor is not None:
            return one.get()
        if one.index not in self.recomputed:
            self._recompute()
        return self.recomputed.pop(one.index)

    def _recompute(self) -> None:
        self.recomputed.clear()
        count = 0

        def save(tensor: Tensor) -> Tensor:
            nonlocal count
            if count in self.dropped:
                if tensor.shape != self.dropped[count]:
                    raise ran_differently()
                self.recomputed[count] = tensor.detach()
                if len(self.recomputed) == len(self.dropped):
                    raise _AllRecomputed
            count += 1
            return tensor.detach()

        args, kwargs = tree_unflatten([leaf[0].detach().requires_grad_(leaf[1]) if isinstance(leaf, tuple) else leaf
                                       for leaf in self.leaves], self.structure)
        with self.surroundings.restored(), torch.enable_grad(), saved_tensors_hooks(save, lambda tensor: tensor), \
                Replaying(self.tape, save), _inside():
            try:
                self.function(*args, **kwargs)
            except _AllRecomputed:
                self.tape.forget_values()
                return
        raise ran_differently()

