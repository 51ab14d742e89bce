"""Batch-Channel Normalization in C++ for the CPU: an optional extension, built from ``csrc`` for one version of torch.

``pip install --no-build-isolation`` builds it if there is a C++ compiler (``setup.py``). Without it, stock operators
compute the same.
"""
from pathlib import Path

import torch
from torch import Tensor

INSTALL = "pip install --no-build-isolation --force-reinstall --no-deps . in a clone of the repository builds them"
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def library_name(version: str) -> str:
    """The name of the library for a version of torch, whose C++ interface changes with every minor release."""
    return '_cpp_torch_' + '_'.join(version.split('.')[:2])


def _load() -> str | None:
    """Load the library; if that fails, return the reason."""
    path = next(Path(__file__).parent.glob(f'{library_name(torch.__version__)}.*'), None)
    if path is None:
        return f'the C++ kernels have not been built for torch {torch.__version__}'
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f'the C++ kernels cannot be loaded ({error})'
    return None


WHY_NOT = _load()  # loaded at import, so that torch.compile sees a constant

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


def serves(x: Tensor, running_mean: Tensor, sync: bool) -> bool:
    """Whether the kernels support a call; they do not support statistics over several processes."""
    if WHY_NOT is not None or sync or not x.is_cpu or x.dtype not in DTYPES:
        return False
    # Estimates of another dtype are rounded between update and use; only the stock operators do this
    return running_mean.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)


def batch_channel_norm_cpp(x: Tensor, batch_weight: Tensor, batch_bias: Tensor, running_mean: Tensor,
                           running_var: Tensor, channel_weight: Tensor, channel_bias: Tensor, num_groups: int,
                           update: bool, batch_statistics: bool, rate: float | Tensor, eps: float, sync: bool,
                           skipped_updates: Tensor | None, relu: bool = False) -> Tensor:
    """Same arguments and result as :func:`~.reference.batch_channel_norm_reference`; ``relu`` may follow.

    Raises:
        RuntimeError: If the kernels do not support the call.
    """
    if WHY_NOT is not None:
        raise RuntimeError(f"{WHY_NOT}; {INSTALL}; or choose impl='auto'")
    if not serves(x, running_mean, sync):
        raise RuntimeError(
            f'the C++ kernels need a CPU tensor of {", ".join(map(str, DTYPES))}, running estimates of the dtype that '
            f'they compute in, and sync=False; got {x.dtype} on {x.device}, {running_mean.dtype} and sync={sync}: '
            "choose impl='auto'")
    if not isinstance(rate, Tensor):
        rate = torch.full((), rate, dtype=torch.float64)
    return torch.ops.wsbcn.batch_channel_norm.default(
        x, batch_weight, batch_bias, running_mean, running_var, channel_weight, channel_bias, update, batch_statistics,
        rate, eps, relu, skipped_updates)


def repeated_cpp(relu: bool, saved: list[Tensor]) -> Tensor:
    """Recompute the output of a forward pass from the tensors it saved; equal bit for bit."""
    x, kept, *_ = saved
    return torch.ops.wsbcn.batch_channel_norm_map(x, kept, relu)
