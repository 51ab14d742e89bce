"""Find which convolution feeds which norm by running a network once."""
import gc
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass
class Dataflow:
    """The dataflow that was observed in one run of a network.

    Attributes:
        sources: For each norm that ran, one entry per call: the convolution whose output it got unchanged, or None if
            its input came from anything else.
        targets: For each convolution, the norms that got its output unchanged.
        read_elsewhere: Convolutions whose output is also read by something other than a norm (an addition, a
            concatenation, an operation in place, the caller of the network), and convolutions and norms whose
            parameters or buffers are read by anything else.
        calls: How often each observed layer ran.
        positions: For each norm that ran, the fewest positions (pixels) of its inputs.
        dims: For each norm that ran, the number of dimensions of its input.
    """
    sources: dict[nn.Module, list[nn.Module | None]] = field(default_factory=dict)
    targets: dict[nn.Module, set[nn.Module]] = field(default_factory=dict)
    read_elsewhere: set[nn.Module] = field(default_factory=set)
    calls: dict[nn.Module, int] = field(default_factory=dict)
    positions: dict[nn.Module, int] = field(default_factory=dict)
    dims: dict[nn.Module, int] = field(default_factory=dict)

    def sole_source(self, norm: nn.Module) -> nn.Module | None:
        """The convolution that feeds ``norm`` at every call and feeds nothing else; None if there is none."""
        sources = set(self.sources.get(norm, []))
        conv = sources.pop() if len(sources) == 1 else None
        return conv if conv is not None and self.targets[conv] == {norm} and conv not in self.read_elsewhere else None

    def merge(self, other: 'Dataflow') -> None:
        """Add the observations of another run."""
        for norm, sources in other.sources.items():
            self.sources.setdefault(norm, []).extend(sources)
            self.positions[norm] = min(self.positions.get(norm, other.positions[norm]), other.positions[norm])
        for conv, targets in other.targets.items():
            self.targets.setdefault(conv, set()).update(targets)
        for layer, calls in other.calls.items():
            self.calls[layer] = max(self.calls.get(layer, 0), calls)
        self.read_elsewhere |= other.read_elsewhere
        self.dims |= other.dims


def storage_of(tensor: Tensor | None) -> int:
    """A key that is equal for tensors with the same values in memory."""
    if tensor is None or tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _Readers(TorchDispatchMode):
    """Reports every tensor that an operation reads."""

    def __init__(self, report: Callable[[Tensor], None]):
        super().__init__()
        self.report = report

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.report(leaf)
        return func(*args, **(kwargs or {}))


class _Recorder:
    """Hooks on layers that fill a :class:`Dataflow`."""

    def __init__(self, convs: list[nn.Module], norms: list[nn.Module]):
        self.flow = Dataflow()
        self.outputs = WeakTensorKeyDictionary()  # output of a convolution: the convolution, and the output's version
        self.inside: list[tuple[nn.Module, Tensor | None]] = []  # running layers, and the inputs of norms
        self.holders: dict[int, set[nn.Module]] = {}
        for layer in (*convs, *norms):
            for tensor in (*layer.parameters(), *layer.buffers()):
                self.holders.setdefault(storage_of(tensor), set()).add(layer)
        self.handles = []
        for conv in convs:
            self.handles += [conv.register_forward_pre_hook(self.before_conv),
                             conv.register_forward_hook(self.after_conv)]
        for norm in norms:
            self.handles += [norm.register_forward_pre_hook(self.before_norm, with_kwargs=True),
                             norm.register_forward_hook(self.after_norm, prepend=True)]  # hooks of others read later

    def before_conv(self, conv: nn.Module, *_) -> None:
        self.inside.append((conv, None))

    def after_conv(self, conv: nn.Module, _, output: Tensor) -> None:
        self.inside.pop()
        self.flow.calls[conv] = self.flow.calls.get(conv, 0) + 1
        self.flow.targets.setdefault(conv, set())
        if isinstance(output, Tensor):
            self.outputs[output] = conv, _version(output)

    def before_norm(self, norm: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        conv, version = self.outputs.get(x, (None, None))
        conv = conv if version == _version(x) else None  # changed in place since
        self.flow.sources.setdefault(norm, []).append(conv)
        self.flow.calls[norm] = self.flow.calls.get(norm, 0) + 1
        self.flow.dims[norm], positions = x.dim(), math.prod(x.shape[2:])
        self.flow.positions[norm] = min(self.flow.positions.get(norm, positions), positions)
        if conv is not None:
            self.flow.targets[conv].add(norm)
        self.inside.append((norm, x))

    def after_norm(self, *_) -> None:
        self.inside.pop()

    def is_output(self, tensor: Tensor) -> bool:
        """Whether the tensor is the output of a convolution and was not changed in place since."""
        return tensor in self.outputs and self.outputs[tensor][1] == _version(tensor)

    def read(self, tensor: Tensor) -> None:
        if self.is_output(tensor) and not any(tensor is own for _, own in self.inside):
            self.flow.read_elsewhere.add(self.outputs[tensor][0])
        holders = self.holders.get(storage_of(tensor))
        if holders is not None and not any(layer in holders for layer, _ in self.inside):
            self.flow.read_elsewhere |= holders

    def finish(self) -> None:
        for handle in self.handles:
            handle.remove()


def record_dataflow(run: Callable[[], object], convs: Iterable[nn.Module], norms: Iterable[nn.Module]) -> Dataflow:
    """Call ``run`` once, without gradients, and record which of ``convs`` feed which of ``norms``.

    Args:
        run: Calls the network in its current mode and returns its result.
        convs: Modules with one output tensor.
        norms: Modules whose first input is the tensor that they normalize.

    Returns:
        The dataflow. Modules that did not run are in none of its dictionaries.
    """
    recorder = _Recorder(list(convs), list(norms))
    try:
        with torch.no_grad(), _Readers(recorder.read):
            result = run()
    finally:
        recorder.finish()
    if len(recorder.outputs):  # outputs that are left are held by the result
        gc.collect()
    recorder.flow.read_elsewhere.update(
        conv for tensor, (conv, _) in recorder.outputs.items() if recorder.is_output(tensor))
    del result
    return recorder.flow
