"""Record the calls of a segment in its forward pass, so that its recomputation is cheap and exact.

The outputs of convolutions and linear layers are recorded. For a BCN the tensors that it saves for backward are
recorded: they hold the statistics, so its output is one affine map per image and channel and does not depend on the
estimates, which may have changed.

A replayed operator creates no node in the autograd graph and saves nothing. The tape knows which arguments the operator
had saved, and passes these on.
"""
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wsbcn_mmseg.ops import batch_channel_norm, standardized_convolution
from wsbcn_mmseg.ops.batch_channel_norm import repetition

# Operators whose outputs are recorded, and how many of their first arguments (input and kernel) they save in another
# dtype under autocast. The standardized kernel of a standardized convolution is not one of its arguments.
_PRODUCTS = {torch.conv1d: 2, torch.conv2d: 2, torch.conv3d: 2, torch.nn.functional.linear: 2,
             standardized_convolution: 1}
_bind = inspect.signature(batch_channel_norm).bind


def ran_differently() -> RuntimeError:
    """The error for a recomputation that differs from the forward pass."""
    return RuntimeError('a block took another path in its recomputation than in its forward pass; exclude it from '
                        'save_memory by the argument blocks')


class Saved:
    """A tensor that autograd saved for backward.

    Attributes:
        index: Its position among the saved tensors of the segment.
        tensor: The tensor, as long as it is kept.
        needed: Whether the recomputation needs it and cannot compute it.
    """
    __slots__ = ('index', 'needed', 'owner', 'tensor', 'version')

    def __init__(self, index: int, tensor: Tensor):
        self.index, self.tensor, self.owner, self.version = index, tensor, None, tensor._version
        self.needed = False

    def is_intact(self) -> bool:
        """Whether it was not changed in place since it was saved."""
        return self.tensor._version == self.version

    def keep(self, owner: Tensor) -> None:
        """Keep it. ``owner`` shares its memory, and its version shows changes in place."""
        self.tensor, self.owner, self.version = self.tensor.detach(), owner.detach(), owner._version

    def get(self) -> Tensor:
        """The tensor, which must be kept.

        Raises:
            RuntimeError: If it was changed in place.
        """
        if self.owner._version != self.version:
            raise RuntimeError('a tensor that the backward pass needs was changed in place after the forward pass '
                               f'(shape {tuple(self.tensor.shape)}); change a copy of it')
        return self.tensor


@dataclass
class _Source:
    """A saved tensor as a function of the operator's arguments: one of them, perhaps in another dtype, layout or shape;
    or the tensor itself if it is not one of them."""
    argument: int | None
    tensor: Tensor | None
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    def of(self, arguments: list[Tensor]) -> Tensor:
        """The tensor that the operator would save."""
        if self.tensor is not None:
            return self.tensor
        argument = arguments[self.argument].detach().reshape(self.shape)
        if argument.dtype == self.dtype and argument.stride() == self.stride:
            return argument
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=argument.device).copy_(argument)


def _same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same memory and order of values; their shapes may differ."""
    if a.data_ptr() != b.data_ptr() or a.dtype != b.dtype or a.numel() != b.numel():
        return False
    return a.shape == b.shape and a.stride() == b.stride() or a.is_contiguous() and b.is_contiguous()


def _sources(saved: list[Saved], arguments: list[Tensor], convertible: int) -> list[_Source]:
    """The sources of saved tensors. ``convertible`` is how many of the arguments may be saved in another dtype."""
    sources, left = [], list(range(convertible))
    for one in saved:
        tensor = one.tensor
        argument = next((index for index, argument in enumerate(arguments) if _same_values(argument, tensor)), None)
        if argument is None:
            fitting = [index for index in left if arguments[index].shape == tensor.shape
                       and arguments[index].dtype != tensor.dtype]
            if len(fitting) == 1:
                argument = fitting[0]
                left.remove(argument)
        one.needed = argument is None
        sources.append(_Source(argument, tensor.detach() if one.needed else None, tensor.dtype, tensor.shape,
                               tensor.stride()))
    return sources


def _tensors(args: tuple, kwargs: dict) -> list[Tensor]:
    return [argument for argument in (*args, *kwargs.values()) if isinstance(argument, Tensor)]


@dataclass
class _Call:
    """A recorded call.

    Attributes:
        operator: The operator.
        sources: Sources of the tensors that it saved, in order.
        requires_grad: Whether its output requires a gradient.
        value: The output; if None, the operator runs again.
        version: Version of the value when it was recorded.
        again: For norms, a function that computes the output from the saved tensors.
        estimates: For norms without ``again``, the running mean and variance that they normalized by.
    """
    operator: Callable[..., Tensor]
    sources: list[_Source]
    requires_grad: bool
    value: Tensor | None = None
    version: int = 0
    again: Callable[[list[Tensor]], Tensor] | None = None
    estimates: tuple[Tensor, Tensor] | None = None


class _Value(torch.autograd.Function):
    """A value that is not a leaf of the graph."""

    @staticmethod
    def forward(ctx, anchor: Tensor, value: Callable[[], Tensor]) -> Tensor:
        return value()

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError('a recomputed segment cannot be differentiated')


class Tape:
    """The calls of a segment, in order."""

    def __init__(self, keeps: Callable[[Tensor], bool]):
        self.keeps = keeps  # whether to record the output, by the kernel
        self.calls: list[_Call] = []

    def values(self) -> list[Tensor]:
        """The recorded outputs, without those that were changed in place since."""
        for call in self.calls:
            if call.value is not None and call.value._version != call.version:
                call.value = None
        return [call.value for call in self.calls if call.value is not None]

    def forget_values(self) -> None:
        """Called after a recomputation, when others hold what is needed. Another one would run the operators again."""
        for call in self.calls:
            call.value = None


class _Mode(TorchFunctionMode):

    def __init__(self, tape: Tape):
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is batch_channel_norm:
            return self.norm(args, kwargs)
        if func in _PRODUCTS and self.tape.keeps(args[1] if len(args) > 1 else kwargs['weight']):
            return self.product(func, args, kwargs)
        return func(*args, **kwargs)


class Recording(_Mode):
    """Records calls while it is active.

    Args:
        tape: The tape to record on.
        saved: List that grows as tensors are saved.
    """

    def __init__(self, tape: Tape, saved: list[Saved]):
        super().__init__(tape)
        self.saved = saved

    def _call(self, func, args, kwargs) -> tuple[Tensor, _Call]:
        first = len(self.saved)
        output = func(*args, **kwargs)
        sources = _sources(self.saved[first:], _tensors(args, kwargs), _PRODUCTS.get(func, 0))
        call = _Call(func, sources, output.requires_grad)
        self.tape.calls.append(call)
        return output, call

    def product(self, func, args, kwargs) -> Tensor:
        output, call = self._call(func, args, kwargs)
        call.value, call.version = output.detach(), output._version
        return output

    def norm(self, args, kwargs) -> Tensor:
        first = len(self.saved)
        bound = _bind(*args, **kwargs)
        bound.apply_defaults()
        again = repetition(bound.arguments)  # first: kernels may fail in the call
        output, call = self._call(batch_channel_norm, args, kwargs)
        call.again = again if call.sources else None
        if call.again is None:
            call.estimates = bound.arguments['running_mean'].clone(), bound.arguments['running_var'].clone()
            for saved in self.saved[first:]:
                saved.needed = False  # the operator runs again and saves them again
        return output


class Replaying(_Mode):
    """Replaces recorded calls by their results while it is active.

    Args:
        tape: The tape with the recorded calls.
        save: Function to call with each tensor that a call had saved, in order.
    """

    def __init__(self, tape: Tape, save: Callable[[Tensor], None]):
        super().__init__(tape)
        self.save, self.calls = save, iter(tape.calls)

    def _next(self, operator: Callable[..., Tensor]) -> _Call:
        call = next(self.calls, None)
        if call is None or call.operator is not operator:
            raise ran_differently()
        return call

    def _replayed(self, call: _Call, args, kwargs, value: Callable[[list[Tensor]], Tensor]) -> Tensor:
        arguments = _tensors(args, kwargs)
        saved = [source.of(arguments) for source in call.sources]
        for tensor in saved:
            self.save(tensor)
        if not call.requires_grad:
            return value(saved)
        return _Value.apply(torch.empty(0, requires_grad=True), lambda: value(saved))

    def product(self, func, args, kwargs) -> Tensor:
        call = self._next(func)
        if call.value is None:
            return func(*args, **kwargs)
        return self._replayed(call, args, kwargs, lambda _: call.value.detach())

    def norm(self, args, kwargs) -> Tensor:
        call = self._next(batch_channel_norm)
        if call.again is not None:
            return self._replayed(call, args, kwargs, call.again)
        bound = _bind(*args, **kwargs)
        bound.arguments['running_mean'], bound.arguments['running_var'] = call.estimates
        return batch_channel_norm(*bound.args, **bound.kwargs)
