"""Check that a converted network runs like the original."""
from functools import partial

from torch import Tensor, nn

from wsbcn_mmseg.runtime.errors import describe

from .dataflow import Dataflow
from .report import ConversionError, count, quoted
from .selection import Selection
from .trial_run import TrialRun


def check_result(trial: TrialRun, selection: Selection, before: list[Tensor]) -> None:
    """Raise an error unless the converted network runs the same layers as before and its output is finite.

    Args:
        trial: The run of the network before the conversion, which is repeated here.
        selection: The layers of the network.
        before: The output of the network before the conversion.

    Raises:
        ConversionError: If the check fails.
    """
    convs, norms = selection.convs, selection.norms
    expected = Dataflow()
    for attempt in trial.repeated():
        expected.merge(attempt.seen)
    watch = _LayerWatch({selection.name(layer): layer for layer in (*convs, *norms)})
    try:
        with watch:
            seen = trial.again(convs, norms)
    except Exception as error:
        raise ConversionError('the converted network does not run, nothing was converted: '
                              f'{quoted(watch.running())} raised {describe(error)}') from error
    for layer, calls in expected.calls.items():
        if seen.calls.get(layer) != calls:
            raise ConversionError(f'{quoted(selection.name(layer))} ran {count(calls, "time")} before the '
                                  f'conversion and {count(seen.calls.get(layer, 0), "time")} after; nothing was '
                                  'converted, exclude it')
    if all(output.isfinite().all() for output in before) and not all(
            output.isfinite().all() for output in trial.outputs):
        raise ConversionError('the output of the converted network is not finite, nothing was converted; the first '
                              f'such output is that of {quoted(watch.not_finite or "")}')


class _LayerWatch:
    """Tracks which layers are running, and the first layer whose output is not finite."""

    def __init__(self, layers: dict[str, nn.Module]):
        self.layers, self.not_finite = layers, None
        self._inside: list[str] = []

    def running(self) -> str:
        """The innermost layer that has started and not finished."""
        return self._inside[-1] if self._inside else ''

    def __enter__(self):
        self._handles = []
        for name, layer in self.layers.items():
            self._handles += [layer.register_forward_pre_hook(partial(self._begin, name)),
                              layer.register_forward_hook(partial(self._end, name))]
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()

    def _begin(self, name: str, *_) -> None:
        self._inside.append(name)

    def _end(self, name: str, layer: nn.Module, inputs, output) -> None:
        self._inside.pop()
        if self.not_finite is None and isinstance(output, Tensor) and not output.isfinite().all():
            self.not_finite = name


def relative_change(before: list[Tensor], after: list[Tensor]) -> float | None:
    """Norm of the change divided by the norm of the output, over all output tensors together."""
    pairs = [(old.double(), new.double()) for old, new in zip(before, after, strict=False) if old.shape == new.shape]
    size = sum(float(old.square().sum()) for old, _ in pairs)
    return (sum(float((new - old).square().sum()) for old, new in pairs) / size)**.5 if size else None
