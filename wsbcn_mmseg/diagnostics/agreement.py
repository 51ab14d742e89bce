"""Compare an implementation of BCN, such as the Triton kernels, with the reference in float64.

``wsbcn check --gpu`` and ``tools/gpu_report.sh`` use it; the kernels' own check before their first use is smaller.
"""
import itertools
import math
import traceback
from typing import NamedTuple

import torch
from torch import Tensor

from wsbcn_mmseg.ops import batch_channel_norm
from wsbcn_mmseg.ops.self_check import NEAR_ZERO, TOLERANCES

ESTIMATES = 5e-6  # like TOLERANCES, for running estimates, which are float32
QUANTITIES = ('output', 'running_mean', 'running_var', 'count of skipped updates', 'gradient of the input',
              'gradient of batch_weight', 'gradient of batch_bias', 'gradient of channel_weight',
              'gradient of channel_bias')
LINES = 12  # lines of a traceback


class Case(NamedTuple):
    """A call of BCN."""
    name: str
    shape: tuple[int, ...]
    num_groups: int
    mode: str = 'micro_batch'
    training: bool = True
    channels_last: bool = False
    relu: bool = False
    transposed: bool = False  # strides of no memory format


CASES = (
    Case('odd planes', (1, 32, 33, 31), 2),
    Case('channels-last with ReLU', (2, 48, 9, 7), 8, channels_last=True, relu=True),
    Case('large-batch with ReLU', (3, 24, 17, 5), 6, mode='large_batch', relu=True),
    Case('large-batch, channels-last', (2, 40, 5, 7), 2, mode='large_batch', channels_last=True),
    Case('frozen estimates', (2, 24, 5, 7), 6, training=False),
    Case('frozen estimates, channels-last with ReLU', (1, 96, 5, 7), 1, training=False, channels_last=True, relu=True),
    Case('one pixel', (3, 64, 1, 1), 16),
    Case('transposed', (2, 6, 7, 5), 3, transposed=True))
MANY_CASES = (
    *CASES,
    *[Case(f'{mode if training else "frozen"}{", channels-last" * last}{", ReLU" * relu}', (2, 64, 33, 31), 32, mode,
           training, last, relu)
      for (mode, training), last, relu in itertools.product(
          [('micro_batch', True), ('large_batch', True), ('micro_batch', False)], [False, True], [False, True])],
    Case('odd channels', (5, 7, 3, 5), 7), Case('a single group', (2, 96, 17, 17), 1), Case('sequence', (2, 32, 9), 4),
    Case('volume', (2, 8, 3, 2, 5), 2), Case('features', (5, 12), 3), Case('many images', (37, 16, 5, 5), 4),
    Case('stem of ResNet-101', (1, 64, 257, 257), 32), Case('layer 3 of ResNet-101', (2, 256, 65, 65), 32),
    Case('layer 4 of ResNet-101, channels-last', (2, 2048, 33, 33), 32, channels_last=True))


class Agreement(NamedTuple):
    """The quantity of a case with the largest error, and its tolerance."""
    case: str
    dtype: str
    quantity: str
    error: float  # relative to the largest expected value, or to 1; NaN if there is a NaN
    tolerance: float

    @property
    def good(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def agreement(case: Case, device: str, dtype: torch.dtype, impl: str) -> Agreement:
    """Run a case forward and backward, and compare all its results with float64 on the same device.

    A second run must give the same bits.
    """
    inputs = _inputs(case, device, dtype)
    expected = _results(case, [tensor.double() for tensor in inputs], 'reference')
    got = _results(case, inputs, impl)
    again = _results(case, inputs, impl)
    name = str(dtype).removeprefix('torch.')
    for quantity, a, b in zip(QUANTITIES, got, again, strict=True):
        if not torch.equal(a.nan_to_num(), b.nan_to_num()):
            return Agreement(case.name, name, f'{quantity} of a second run', _error(a, b.double()), 0)
    found = [Agreement(case.name, name, quantity, _error(a, b), ESTIMATES if quantity.startswith('running')
                       else TOLERANCES[dtype]) for quantity, a, b in zip(QUANTITIES, got, expected, strict=True)]
    return max(found, key=lambda one: math.inf if math.isnan(one.error) else one.error / one.tolerance)


def first_failure(cases: tuple[Case, ...], device: str, dtype: torch.dtype, impl: str) -> tuple[str | None, float]:
    """The first failure or None, with the end of the traceback if it is an error, and the largest error of output and
    gradients up to then.
    """
    largest = 0.0
    for case in cases:
        try:
            one = agreement(case, device, dtype, impl)
        except Exception as error:  # drivers, compilers and kernels may raise any error
            return f'{case.name}: {tail(error)}', largest
        if not one.good:
            return (f'{case.name}: the {one.quantity} differs by {one.error:.0e}, more than {one.tolerance:.0e}',
                    largest)
        if not one.quantity.startswith('running'):
            largest = max(largest, one.error)
    return None, largest


def tail(error: BaseException) -> str:
    """The error, followed by the last lines of its traceback."""
    lines = ''.join(traceback.format_exception(error)).rstrip().splitlines()
    return '\n'.join([f'{type(error).__name__}: {str(error).strip() or "no message"}'.splitlines()[0],
                      *lines[-LINES:]])


def _inputs(case: Case, device: str, dtype: torch.dtype) -> list[Tensor]:
    """x, dy, gamma^b, beta^b, estimates, gamma^c and beta^c, none with default values; all but x and dy in float32."""
    random = torch.Generator().manual_seed(0)
    channels = case.shape[1]
    x, dy = (torch.randn(case.shape, generator=random) for _ in range(2))
    others = [torch.randn(size, generator=random) for size in (channels, channels, channels, channels,
                                                                case.num_groups, case.num_groups)]
    others[3] = others[3].abs() + 0.5
    tensors = [(2 * x + 1).to(device, dtype), dy.to(device, dtype), *(tensor.to(device) for tensor in others)]
    if case.channels_last:
        tensors[:2] = [tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors[:2]]
    if case.transposed:
        tensors[:2] = [tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in tensors[:2]]
    if case.relu:
        doubles = [tensor.double() for tensor in tensors]
        near = _call(case._replace(relu=False), doubles, 'reference').abs() < NEAR_ZERO
        tensors[1] = tensors[1].masked_fill(near, 0)
    return tensors


def _call(case: Case, tensors: list[Tensor], impl: str, skipped: Tensor | None = None) -> Tensor:
    x, _, batch_weight, batch_bias, mean, var, channel_weight, channel_bias = tensors
    return batch_channel_norm(x, batch_weight, batch_bias, mean, var, channel_weight, channel_bias, case.num_groups,
                              training=case.training, mode=case.mode, rate=0.1, impl=impl, relu=case.relu,
                              skipped_updates=skipped)


def _results(case: Case, inputs: list[Tensor], impl: str) -> list[Tensor]:
    """Results in the order of :data:`QUANTITIES`."""
    tensors = [tensor.detach().clone(memory_format=torch.preserve_format) for tensor in inputs]
    leaves = [tensors[index].requires_grad_() for index in (0, 2, 3, 6, 7)]
    skipped = torch.zeros_like(tensors[4], dtype=torch.int64)
    y = _call(case, tensors, impl, skipped)
    return [y.detach(), *tensors[4:6], skipped, *torch.autograd.grad(y, leaves, tensors[1])]


def _error(got: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp(min=1)
    return ((got.double() - expected).abs().max() / scale).item()
