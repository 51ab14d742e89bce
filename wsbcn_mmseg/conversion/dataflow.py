"""Which convolution feeds which norm: found by running a network once, not by guessing names."""
import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass
class Dataflow:
    """What one run of a network showed.

    Attributes:
        sources: For each norm that ran, one entry per call: the convolution whose output it got unchanged, or None
            where its input came from anything else.
        targets: For each convolution, the norms that got its output unchanged.
        shared: Convolutions whose output something other than a norm reads too: an addition, a concatenation, an
            operation in place, the caller of the network; and those whose kernel or bias anything else reads.
        calls: How often each observed convolution ran.
    """
    sources: dict[nn.Module, list[nn.Module | None]] = field(default_factory=dict)
    targets: dict[nn.Module, set[nn.Module]] = field(default_factory=dict)
    shared: set[nn.Module] = field(default_factory=set)
    calls: dict[nn.Module, int] = field(default_factory=dict)

    def sole_source(self, norm: nn.Module) -> nn.Module | None:
        """The convolution that feeds ``norm`` at every call and feeds nothing else; None if there is no such."""
        sources = set(self.sources.get(norm, []))
        conv = sources.pop() if len(sources) == 1 else None
        return conv if conv is not None and self.targets[conv] == {norm} and conv not in self.shared else None


class _Readers(TorchDispatchMode):
    """Reports every tensor that any operation reads."""

    def __init__(self, report: Callable[[Tensor], None]):
        super().__init__()
        self.report = report

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.report(leaf)
        return func(*args, **(kwargs or {}))


def record_dataflow(run: Callable[[], object], convs: Iterable[nn.Module], norms: Iterable[nn.Module]) -> Dataflow:
    """Run ``run`` once, without gradients, and see which of ``convs`` feed which of ``norms``.

    Args:
        run: Calls the network, in whatever mode it is, and returns what the network returns.
        convs: Modules with one output tensor.
        norms: Modules whose first input is the tensor that they normalise.

    Returns:
        What was seen. Modules that did not run are in none of its dictionaries.
    """
    convs, norms, flow = list(convs), list(norms), Dataflow()
    outputs = WeakTensorKeyDictionary()  # output of a convolution: the convolution, and the version it had then
    holders = {id(parameter): conv for conv in convs for parameter in conv.parameters()}
    inside: list[tuple[nn.Module, Tensor | None]] = []  # norms and convolutions that run now, and the norms' inputs

    def before_conv(conv, *_):
        inside.append((conv, None))

    def after_conv(conv, _, output):
        inside.pop()
        flow.calls[conv] = flow.calls.get(conv, 0) + 1
        flow.targets.setdefault(conv, set())
        outputs[output] = conv, output._version

    def before_norm(norm, args, kwargs):
        x = args[0] if args else next(iter(kwargs.values()))
        conv, version = outputs.get(x, (None, None))
        conv = conv if version == x._version else None  # an operation in place came between
        flow.sources.setdefault(norm, []).append(conv)
        if conv is not None:
            flow.targets[conv].add(norm)
        inside.append((norm, x))

    def after_norm(norm, *_):
        inside.pop()

    def read(tensor):
        if tensor in outputs and not any(tensor is own for _, own in inside):
            flow.shared.add(outputs[tensor][0])
        holder = holders.get(id(tensor))
        if holder is not None and not any(module is holder for module, _ in inside):
            flow.shared.add(holder)

    hooks = []
    for conv in convs:
        hooks += [conv.register_forward_pre_hook(before_conv), conv.register_forward_hook(after_conv)]
    for norm in norms:
        hooks += [norm.register_forward_pre_hook(before_norm, with_kwargs=True),
                  norm.register_forward_hook(after_norm)]
    try:
        with torch.no_grad(), _Readers(read):
            result = run()
    finally:
        for hook in hooks:
            hook.remove()
    if len(outputs):  # what the caller holds, in objects of whatever kind
        gc.collect()
    flow.shared.update(conv for conv, _ in outputs.values())
    del result
    return flow
