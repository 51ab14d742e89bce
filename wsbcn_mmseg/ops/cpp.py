"""Batch-Channel Normalization in C++ for the CPU: an optional extension, built from ``csrc`` for one version of torch.

``pip install --no-build-isolation`` builds it where a C++ compiler is found (``setup.py``). Without it everything works,
by stock operators.
"""
from pathlib import Path

import torch
from torch import Tensor

from .fused import batch_channel_norm_fused

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def library_name(version: str) -> str:
    """The name of the library for a version of torch, whose C++ interface changes with every minor release."""
    return '_cpp_torch_' + '_'.join(version.split('.')[:2])


def _load() -> str | None:
    """Load the library; if that fails, return why."""
    path = next(Path(__file__).parent.glob(f'{library_name(torch.__version__)}.*'), None)
    if path is None:
        return f'the C++ kernels have not been built for torch {torch.__version__}'
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f'the C++ kernels cannot be loaded ({error})'
    return None


WHY_NOT = _load()  # at import, so that compilers see a constant

if WHY_NOT is None:
    @torch.library.register_fake('wsbcn::batch_channel_norm_forward')
    def _(x, batch_weight, batch_bias, running_mean, running_var, channel_weight, channel_bias, update,
          batch_statistics, rate, eps, relu, skipped_updates):
        images, channels = x.shape[:2]
        return torch.empty_like(x), batch_weight.new_empty(6 * images * channels + 2 * channels)

    @torch.library.register_fake('wsbcn::batch_channel_norm_backward')
    def _(dy, x, kept, batch_weight, channel_weight, batch_statistics, relu):
        return (torch.empty_like(x), *map(torch.empty_like, (batch_weight, batch_weight, channel_weight,
                                                             channel_weight)))


def serves(x: Tensor) -> bool:
    """Whether the kernels have been built and can take ``x``."""
    return WHY_NOT is None and x.is_cpu and x.dtype in DTYPES


def batch_channel_norm_cpp(x: Tensor, batch_weight: Tensor, batch_bias: Tensor, running_mean: Tensor,
                           running_var: Tensor, channel_weight: Tensor, channel_bias: Tensor, num_groups: int,
                           update: bool, batch_statistics: bool, rate: float | Tensor, eps: float, sync: bool,
                           skipped_updates: Tensor | None, relu: bool = False) -> Tensor:
    """Same arguments and result as :func:`~.reference.batch_channel_norm_reference`, on the CPU; ``relu`` may follow.

    Statistics over several processes, and estimates in another dtype than the arithmetic's, which are rounded between
    their update and their use, are left to stock operators.

    Raises:
        RuntimeError: If the kernels have not been built, or cannot take ``x``.
    """
    if WHY_NOT is not None:
        raise RuntimeError(f"{WHY_NOT}: choose impl='auto', or install the package by pip install --no-build-isolation")
    if not serves(x):
        raise RuntimeError(f'the C++ kernels need a CPU tensor of {", ".join(map(str, DTYPES))}, got {x.dtype} on '
                           f"{x.device}: choose impl='auto'")
    if sync or running_mean.dtype != (torch.float64 if x.dtype == torch.float64 else torch.float32):
        y = batch_channel_norm_fused(x, batch_weight, batch_bias, running_mean, running_var, channel_weight,
                                     channel_bias, num_groups, update, batch_statistics, rate, eps, sync,
                                     skipped_updates)
        return y.relu() if relu else y
    if not isinstance(rate, Tensor):
        rate = torch.full((), rate, dtype=torch.float64)
    return torch.ops.wsbcn.batch_channel_norm.default(
        x, batch_weight, batch_bias, running_mean, running_var, channel_weight, channel_bias, update, batch_statistics,
        rate, eps, relu, skipped_updates)
