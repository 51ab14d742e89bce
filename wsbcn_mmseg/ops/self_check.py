"""Check of the Triton kernels at their first use on a device, and fallback to stock operators if it fails.

At the first call on a device in a dtype, the kernels run on small activations, forward and backward, and are compared
with stock operators in float64 on the CPU. Agreement is remembered by the process, and on disk for the same device,
driver, torch, Triton and kernels (:mod:`.agreements`). Any failure (Triton is missing, the compiler fails, the device
is not supported, results differ, a later launch fails) gives one warning that names the cause, and stock operators are
used for this device and dtype until the process ends.
"""
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import agreements
from .fused import batch_channel_norm_fused

DEVICE_TYPES = ('cuda', 'cpu') if os.environ.get('TRITON_INTERPRET') == '1' else ('cuda', )
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_GROUP_CHANNELS = 8192
MAX_PIXELS = 2**31 - 2**12  # per plane: offsets within a plane have 32 bits, across planes 64
# Relative to the largest value, or to 1. Arithmetic is float32, and results of the input's dtype are rounded to it
TOLERANCES = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NEAR_ZERO = 1e-3  # such outputs may fall on either side of ReLU's kink, so they get no gradient here

RATE, EPS = 0.25, 1e-5
RESULTS = ('output', 'running mean', 'running variance', 'count of skipped updates', 'gradient of the input',
           'gradient of gamma^b', 'gradient of beta^b', 'gradient of gamma^c', 'gradient of beta^c')

_trusted: dict[tuple[torch.device, torch.dtype], bool] = {}
_warned: set[str] = set()
_lock = threading.RLock()  # nn.DataParallel calls layers from several threads


class Case(NamedTuple):
    """An activation, and how it is normalized."""
    shape: tuple[int, ...]
    num_groups: int
    channels_last: bool
    update: bool
    batch_statistics: bool
    relu: bool

    def __str__(self) -> str:
        mode = 'large-batch' if self.batch_statistics else 'micro-batch' if self.update else 'frozen'
        return (f'{mode} BCN{" and ReLU" * self.relu} of {"channels-last" if self.channels_last else "contiguous"} '
                f'{self.shape}')


# Planes of odd size, of one tile, several tiles and one pixel; one image, and more than a block of images; groups of
# few and of many channels, for which different kernels are compiled
CASES = (
    Case((2, 6, 5, 7), 2, False, True, False, False),
    Case((2, 6, 5, 7), 2, True, True, True, True),
    Case((1, 4, 47, 47), 2, False, True, False, True),
    Case((1, 36, 9, 15), 2, True, True, False, False),
    Case((2, 6, 4, 4), 1, False, False, False, False),
    Case((5, 36), 2, False, True, True, False),
)


def kernels_serve(x: Tensor, num_groups: int) -> bool:
    """Whether the kernels support a call; checks them first if that has not been done."""
    if (x.dtype not in DTYPES or x.device.type not in DEVICE_TYPES or x.shape[1] // num_groups > MAX_GROUP_CHANNELS
            or x.numel() > MAX_PIXELS * x.shape[0] * x.shape[1]
            or type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__):  # FakeTensor and the like have no memory
        return False
    trusted = _trusted.get((x.device, x.dtype))
    return _decide(x.device, x.dtype) if trusted is None else trusted


def distrusted(x: Tensor) -> bool:
    """Whether kernels have failed on this device in this dtype."""
    return _trusted.get((x.device, x.dtype)) is False


def _decide(device: torch.device, dtype: torch.dtype) -> bool:
    if capturing(device):
        _warn(device, dtype, 'a CUDA graph is being captured, in which they cannot be checked; run the network once '
              'before')
        return False
    with _lock:
        if (device, dtype) not in _trusted:
            agreement = agreements.key(device, dtype)
            cause = None if agreements.holds(agreement) else _announced_check(device, dtype)
            if cause is None:
                _trusted[device, dtype] = True
                agreements.remember(agreement)
            else:
                fall_back(device, dtype, cause)
        return _trusted[device, dtype]


def _announced_check(device: torch.device, dtype: torch.dtype) -> str | None:
    with suppress(OSError, ValueError):  # the terminal or stream is closed
        print(f'wsbcn_mmseg: checking the Triton kernels of BCN on {device} in {dtype}; they are compiled once, which '
              'can take a minute', file=sys.stderr, flush=True)
    return check_kernels(device, dtype)


def fall_back(device: torch.device, dtype: torch.dtype, cause: str) -> None:
    """Use stock operators from now on, and warn once."""
    with _lock:
        first = _trusted.get((device, dtype)) is not False
        _trusted[device, dtype] = False
    if first:
        _warn(device, dtype, cause)


def _warn(device: torch.device, dtype: torch.dtype, cause: str) -> None:
    if cause not in _warned:
        _warned.add(cause)
        warnings.warn(f'BCN uses stock operators, which are slower, instead of its Triton kernels on {device} in '
                      f'{dtype}: {cause}. The command wsbcn check --gpu shows more; WSBCN_IMPL=fused uses stock '
                      'operators without a warning', stacklevel=2)


def cause_of(error: Exception) -> str:
    """An error in one line: the last line, or for ptxas the line before the command that reproduces the error."""
    text = str(error).partition('Repro command:')[0] or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[-1].rstrip(".")}' if lines else type(error).__name__


def out_of_memory(error: Exception) -> bool:
    """Whether the device is out of memory, in PyTorch's allocator or in the driver when it loads a kernel.

    This is no fault of the kernels, unlike "out of resource: shared memory".
    """
    return isinstance(error, torch.cuda.OutOfMemoryError) or 'out of memory' in str(error)


def capturing(device: torch.device) -> bool:
    """Whether work on the current stream is captured into a CUDA graph instead of running now."""
    return device.type == 'cuda' and torch.cuda.is_current_stream_capturing()


def device_works(device: torch.device) -> bool:
    """Whether the device still works after a failure; after an illegal memory access, for example, all calls fail."""
    if device.type != 'cuda' or capturing(device):
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def check_kernels(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Compare the kernels with stock operators; remembers nothing.

    They run in a separate thread, where the caller's autograd mode, autocast, hooks, modes, stream and current device
    do not apply. No random number is drawn.

    Args:
        device: Where the kernels run.
        dtype: Dtype of the activation.

    Returns:
        None if they agree, else the cause in one sentence.

    Raises:
        RuntimeError: If a failure leaves the device unusable, or it has no memory left.
    """
    device = torch.device(device)
    if device.type == 'cuda' and device.index is None:
        device = torch.device('cuda', torch.cuda.current_device())
    try:
        from . import triton_kernels  # noqa: F401
    except Exception as error:  # not installed, or installed and broken
        missing = isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name == 'triton'
        return 'Triton is not installed (pip install triton)' if missing else cause_of(error.__cause__ or error)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_check_cases, device, dtype).result()


def _check_cases(device: torch.device, dtype: torch.dtype) -> str | None:
    for case in CASES:
        try:
            difference = _difference(case, device, dtype)
        except Exception as error:  # may come from a compiler, a driver, or this package
            if out_of_memory(error) or not device_works(device):
                raise
            return f'{case}: {cause_of(error)}'
        if difference:
            return f'{case}: {difference}'
    return None


def _difference(case: Case, device: torch.device, dtype: torch.dtype) -> str | None:
    """A sentence on what differs, or None."""
    inputs = _inputs(case, dtype)
    first, second = (_run_kernels(case, device, inputs) for _ in range(2))
    for name, got, again, expected in zip(RESULTS, first, second, _run_stock(case, inputs), strict=True):
        error = (got.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
        if not error <= TOLERANCES.get(got.dtype, 0):  # also catches NaN
            return f'{name} differs by {error:.1e} of the largest value from stock operators'
        if not torch.equal(got, again):
            return f'{name} differs between two runs'
    return None


def _inputs(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """On the CPU: x, dy, gamma^b, beta^b, mean, variance, gamma^c, beta^c, without a regular pattern."""
    channels, groups = case.shape[1], case.num_groups
    shapes = [case.shape, case.shape, *[(channels, )] * 4, (groups, ), (groups, )]
    tensors = []
    for number, shape in enumerate(shapes):
        values = torch.arange(torch.Size(shape).numel(), dtype=torch.float64, device='cpu')
        tensors.append(((values + 1) * (number + 1) * 0.7).square().sin().view(shape))
    tensors[0] = 2 * tensors[0] + 1
    tensors[5] = tensors[5].abs() + 0.5
    tensors = [t.to(dtype) if number < 2 else t.float() for number, t in enumerate(tensors)]
    if case.relu:
        near = _stock_output(case, [t.double() for t in tensors]).abs() < NEAR_ZERO
        tensors[1] = tensors[1].masked_fill(near, 0)
    if case.channels_last:
        tensors[:2] = [t.contiguous(memory_format=torch.channels_last) for t in tensors[:2]]
    return tensors


def _run_kernels(case: Case, device: torch.device, inputs: list[Tensor]) -> list[Tensor]:
    """Runs without autograd, which would wait for its own thread if the caller is in a backward pass."""
    from . import triton_kernels
    x, dy, gamma_b, beta_b, mean, var, gamma_c, beta_c = (t.to(device, copy=True) for t in inputs)
    skipped = torch.zeros(x.shape[1], dtype=torch.int64, device=device)  # as in layers: without is another kernel
    call = triton_kernels.Call(mean, var, skipped, RATE, case.num_groups, case.update, case.batch_statistics, EPS,
                               False, case.relu, True)
    with triton_kernels.on_device_of(x):
        y, kept, count = triton_kernels.forward(x, [gamma_b, beta_b, gamma_c, beta_c], call)
        dx, of_parameters = triton_kernels.backward(dy, x, kept, [gamma_b, beta_b, gamma_c], call, count)
    return [t.cpu() for t in (y, mean, var, skipped, dx, *of_parameters)]


def _run_stock(case: Case, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [t.to(torch.float64, copy=True) for t in inputs]
    x, dy, gamma_b, beta_b, mean, var, gamma_c, beta_c = inputs
    learned = [t.requires_grad_() for t in (x, gamma_b, beta_b, gamma_c, beta_c)]
    y = _stock_output(case, inputs)
    y = y.relu() if case.relu else y
    return [y.detach(), mean, var, torch.zeros_like(mean), *torch.autograd.grad(y, learned, dy)]


def _stock_output(case: Case, inputs: list[Tensor]) -> Tensor:
    """Output before ReLU. Updates the estimates."""
    x, _, gamma_b, beta_b, mean, var, gamma_c, beta_c = inputs
    return batch_channel_norm_fused(x, gamma_b, beta_b, mean, var, gamma_c, beta_c, case.num_groups, case.update,
                                    case.batch_statistics, RATE, EPS, False, None)


def agree_on_kernels(device: torch.device | str, dtypes: Sequence[torch.dtype] = DTYPES) -> bool:
    """Make all processes of ``torch.distributed`` use the same implementation: the kernels, if they work on all.

    This is a collective: call it on all processes, for example before training. Without it each process decides for
    itself, which changes results in the last digits only, since both implementations call the same collectives. A
    single process decides alone. Where ``WSBCN_IMPL`` is set, it decides for its process, without a check.

    Args:
        device: The device of this process.
        dtypes: Dtypes of activations. Defaults to all that the kernels support.

    Returns:
        Whether the kernels are used for all ``dtypes``.
    """
    device, impl = torch.device(device), os.environ.get('WSBCN_IMPL') or 'auto'
    trusted = [impl == 'triton' or impl == 'auto' and device.type in DEVICE_TYPES
               and kernels_serve(torch.empty(1, 1, device=device, dtype=dtype), 1) for dtype in dtypes]
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return all(trusted)
    together = torch.tensor(trusted, dtype=torch.int32, device=device)
    dist.all_reduce(together, dist.ReduceOp.MIN)
    for dtype, own, all_ranks in zip(dtypes, trusted, together.tolist(), strict=True):
        if own and not all_ranks and impl == 'auto':
            fall_back(torch.empty(0, device=device).device, dtype, 'another process cannot use them')
    return bool(together.all())
