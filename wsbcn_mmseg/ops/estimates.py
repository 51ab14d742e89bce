"""Update of BCN's running estimates, and combination of batch statistics over ranks."""
import math

import torch
import torch.distributed as dist
from torch import Tensor


def recomputing() -> bool:
    """Whether this forward pass recomputes a checkpointed segment inside a backward pass.

    The original pass has updated the estimates, and they must not be updated again. The recomputation uses their
    current values, which are those of the original pass unless the same layer ran again in between.
    """
    if torch.compiler.is_compiling():  # the query cannot be traced; compiled graphs call it at run time, below
        return False
    return torch._C._current_graph_task_id() != -1


def updated_estimates(running_mean: Tensor, running_var: Tensor, batch_mean: Tensor, batch_var: Tensor,
                   rate: float | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Steps 3 and 4 of Algorithm 1 (and the moving average of BatchNorm): estimate += rate * (batch - estimate).

    A channel whose batch statistics are not finite keeps its old estimates.

    Args:
        running_mean, running_var: Estimates before the update, shape (C,).
        batch_mean, batch_var: Statistics of the current batch, shape (C,).
        rate: Update rate r in [0, 1], a number or a 0-dim tensor.

    Returns:
        Updated mean and variance, shape (C,) in the estimates' dtype, and a bool mask of shape (C,), False for channels
        that were skipped because of their batch; None if none were skipped.
    """
    if torch.compiler.is_compiling():
        # Opaque to the compiler, which would recompute the update in backward, from buffers that were updated by then
        return _updated_opaquely(running_mean, running_var, batch_mean, batch_var, torch.as_tensor(rate))
    return _updated(running_mean, running_var, batch_mean, batch_var, rate)


def store_estimates(running_mean: Tensor, running_var: Tensor, skipped_updates: Tensor | None, mean: Tensor,
                    var: Tensor, finite: Tensor | None) -> None:
    """Write the result of :func:`updated_estimates` into the buffers, and count the skipped channels."""
    running_mean.copy_(mean)
    running_var.copy_(var)
    if skipped_updates is not None and finite is not None:
        skipped_updates += ~finite


@torch.no_grad()
def update_estimates(running_mean: Tensor, running_var: Tensor, skipped_updates: Tensor | None, batch_mean: Tensor,
                     batch_var: Tensor, rate: float | Tensor) -> None:
    """:func:`updated_estimates` in place."""
    store_estimates(running_mean, running_var, skipped_updates,
                    *updated_estimates(running_mean, running_var, batch_mean, batch_var, rate))


def _updated(running_mean, running_var, batch_mean, batch_var, rate):
    if isinstance(rate, Tensor):  # a number is faster on the CPU, but would synchronize elsewhere
        rate = rate.item() if rate.device.type == 'cpu' else rate.to(running_mean.dtype)
    mean = torch.lerp(running_mean, batch_mean.to(running_mean.dtype), rate)
    var = torch.lerp(running_var, batch_var.to(running_var.dtype), rate)
    total = mean + var
    if total.device.type == 'cpu' and math.isfinite(total.sum().item()):  # no synchronization on the CPU
        return mean, var, None
    finite = torch.isfinite(total)
    mean, var = torch.where(finite, mean, running_mean), torch.where(finite, var, running_var)
    return mean, var, finite | ~torch.isfinite(running_mean + running_var)  # old NaNs do not count as skipped


@torch.library.custom_op('wsbcn::updated_estimates', mutates_args=())
def _updated_opaquely(running_mean: Tensor, running_var: Tensor, batch_mean: Tensor, batch_var: Tensor,
                   rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if recomputing():
        mean, var, finite = running_mean.clone(), running_var.clone(), None
    else:
        mean, var, finite = _updated(running_mean, running_var, batch_mean, batch_var, rate)
    return mean, var, torch.ones_like(mean, dtype=torch.bool) if finite is None else finite


@_updated_opaquely.register_fake
def _(running_mean, running_var, batch_mean, batch_var, rate):
    return torch.empty_like(running_mean), torch.empty_like(running_var), running_mean.new_empty(
        running_mean.shape, dtype=torch.bool)


class _GatherRows(torch.autograd.Function):
    """Stack one row per rank, shape (K,) -> (ranks, K); the gradient of a row is summed over the ranks."""

    @staticmethod
    def forward(ctx, row: Tensor) -> Tensor:
        rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, row.contiguous())
        return torch.stack(rows)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def merge_over_ranks(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the mean and biased variance of each rank into those over all ranks, in one collective.

    The law of total variance has only non-negative terms, so there is no cancellation. Differentiable.

    Args:
        mean, var: This rank's statistics, shape (C,).
        count: Number of values per channel; may differ between ranks.

    Returns:
        Mean and variance of shape (C,), and the total count as a 0-dim tensor.
    """
    channels = mean.shape[0]
    rows = _GatherRows.apply(torch.cat([mean, var, mean.new_full((1, ), count)]))
    means, variances, counts = rows.split([channels, channels, 1], dim=1)
    total = counts.sum()
    merged_mean = (counts * means).sum(0) / total
    merged_var = (counts * (variances + (means - merged_mean).square())).sum(0) / total
    return merged_mean, merged_var, total
