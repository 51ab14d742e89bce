"""Run a network on an example without changing it."""
import dataclasses
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.runtime.errors import describe

from .dataflow import Dataflow, record_dataflow
from .made_up_inputs import made_up_calls

LARGER_SIDES = (224, 256, 512)  # sides of made-up images if smaller ones have too few positions for statistics


@dataclass
class _Attempt:
    """A call of the network in training or evaluation mode, and its result."""
    call: Callable[[], object]
    training: bool
    failure: Exception | None = None
    seen: Dataflow = field(default_factory=Dataflow)


class TrialRun:
    """Forward passes of a network on an example. They record which convolutions feed which norms, and the output.

    The first pass is in evaluation mode. A second pass in training mode covers parts and reads that occur only in
    training, such as auxiliary heads. Norms are in evaluation mode in both. The training flags and buffers of the
    network and the states of random number generators are restored.

    Args:
        model: The network.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments; None to make up images of shape
            (1, C, 64, 64) or larger, and for OpenMMLab's models also labels, so that their losses run.
        always_train: Whether to make the second pass even if all norms ran in the first. Defaults to True.

    Attributes:
        outputs: Floating-point tensors that the last pass in evaluation mode returned.
    """

    def __init__(self, model: nn.Module, example_inputs=None, always_train: bool = True):
        self.model, self.example_inputs, self.always_train = model, example_inputs, always_train
        self.attempts: list[_Attempt] = []
        self.outputs: list[Tensor] = []

    def run(self, convs: list[nn.Module], norms: list[nn.Module]) -> Dataflow:
        """Find calls that work, and record which of ``convs`` feed which of ``norms``.

        Raises:
            ValueError: If the network accepts none of the made-up inputs.
        """
        flow, self.attempts = Dataflow(), []
        with _as_it_was(self.model):
            for training in (False, True):
                _set_modes(self.model, norms, training)
                failure = self._first_that_runs(self._calls(training), training, convs, norms, flow)
                if failure is not None and self.example_inputs is not None and not training:
                    raise failure
                if not self.always_train and all(norm in flow.sources for norm in norms):
                    break
        if not any(attempt.failure is None for attempt in self.attempts):
            failure = self.attempts[0].failure if self.attempts else None
            reason = describe(failure) if failure else 'it has no convolution or linear layer to make up inputs for'
            raise ValueError(f'{type(self.model).__name__} does not run on any of the made-up inputs ({reason}); '
                             'pass example_inputs') from failure
        return flow

    def again(self, convs: list[nn.Module], norms: list[nn.Module]) -> Dataflow:
        """Repeat the calls of :meth:`run`, in the same modes.

        Raises:
            Exception: Any error of a call that ran without an error before.
        """
        flow = Dataflow()
        with _as_it_was(self.model):
            for attempt in self.repeated():
                _set_modes(self.model, norms, attempt.training)
                seen, failure = self._record(attempt.call, attempt.training, convs, norms)
                if failure is not None and attempt.failure is None:
                    raise failure
                flow.merge(seen)
        return flow

    def repeated(self) -> list[_Attempt]:
        """The attempts that :meth:`again` repeats: those without an error, or all of a mode that has none."""
        succeeded = {attempt.training for attempt in self.attempts if attempt.failure is None}
        return [attempt for attempt in self.attempts if attempt.failure is None or attempt.training not in succeeded]

    def on_larger_images(self, norms: list[nn.Module]) -> Dataflow:
        """The dataflow on larger made-up images; empty if an example was given or the network runs on none of them."""
        flow = Dataflow()
        if self.example_inputs is None:
            with _as_it_was(self.model):
                _set_modes(self.model, norms, False)
                outputs, attempts = self.outputs, self.attempts
                self._first_that_runs(made_up_calls(self.model, False, LARGER_SIDES), False, [], norms, flow)
                self.outputs, self.attempts = outputs, attempts
        return flow

    def _calls(self, training: bool) -> Iterable[Callable[[], object]]:
        example = self.example_inputs
        if example is None:
            return made_up_calls(self.model, training)
        if isinstance(example, dict):
            return [lambda: self.model(**example)]
        return [lambda: self.model(*example if isinstance(example, (tuple, list)) else [example])]

    def _first_that_runs(self, calls, training: bool, convs, norms, flow: Dataflow) -> Exception | None:
        """Make calls until one runs without an error. The dataflow of failed calls until their error counts too."""
        failure, self.attempts = None, list(self.attempts)
        for call in calls:
            seen, failure = self._record(call, training, convs, norms)
            flow.merge(seen)
            self.attempts.append(_Attempt(call, training, failure, seen))
            if failure is None:
                break
        return failure

    def _record(self, call: Callable[[], object], training: bool, convs, norms) -> tuple[Dataflow, Exception | None]:
        failure = None

        def run():
            nonlocal failure
            try:
                result = call()
            except Exception as error:  # third-party networks may raise any error
                failure = error
                return None
            if not training:
                self.outputs = [leaf.detach().clone() for leaf in tree_leaves(_open(result))
                                if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            return result

        return record_dataflow(run, convs, norms), failure


def _open(result):
    """The fields of a dataclass as a dictionary; anything else unchanged."""
    return vars(result) if dataclasses.is_dataclass(result) else result


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(module, name, buffer, buffer.clone()) for module in model.modules()
               for name, buffer in module._buffers.items() if buffer is not None]
    states, warned = (random.getstate(), np.random.get_state()), (BCN._warned, BCN._warned_of_few_values)
    devices = {parameter.device.index for parameter in model.parameters() if parameter.is_cuda}
    try:
        with torch.random.fork_rng(list(devices)), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        BCN._warned, BCN._warned_of_few_values = warned  # warnings that were suppressed here can be given later
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, flag in flags:
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)


def _set_modes(model: nn.Module, norms: Iterable[nn.Module], training: bool) -> None:
    """Set training flags directly, because ``train()`` of OpenMMLab's backbones also freezes parameters."""
    for module in model.modules():
        module.training = training
    for norm in norms:
        for module in norm.modules():
            module.training = False
