"""Batch-Channel Normalization (Qiao et al., Section 7) and the choice of its implementation."""
import functools
import os
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from . import cpp, self_check
from .arguments import check_choice, check_eps, check_flag, check_input, check_integer, check_number
from .estimates import recomputing
from .execution import needs_plain_operations
from .fused import batch_channel_norm_fused, repeated_fused
from .overriding import overridable
from .reference import batch_channel_norm_reference

MODES = ('micro_batch', 'large_batch')
IMPLEMENTATIONS = ('reference', 'fused', 'cpp', 'triton')


@overridable
def batch_channel_norm(x: Tensor,
                       batch_weight: Tensor,
                       batch_bias: Tensor,
                       running_mean: Tensor,
                       running_var: Tensor,
                       channel_weight: Tensor,
                       channel_bias: Tensor,
                       num_groups: int,
                       *,
                       training: bool,
                       mode: str = 'micro_batch',
                       rate: float | Tensor = 0.01,
                       eps: float = 1e-5,
                       impl: str = 'auto',
                       sync: bool = False,
                       skipped_updates: Tensor | None = None,
                       relu: bool = False) -> Tensor:
    r"""Normalize channels by batch statistics, then groups of channels by group statistics (Eq. 40-43, Algorithm 1).

    .. math::
        \dot x_{bc} &= \gamma^b_c (x_{bc} - \hat\mu_c) / \sqrt{\hat\sigma_c^2 + \epsilon} + \beta^b_c \\
        y_{bg} &= \gamma^c_g (\dot x_{bg} - \mu_{bg}) / \sqrt{\sigma_{bg}^2 + \epsilon} + \beta^c_g

    In training, ``'micro_batch'`` updates the running estimates with the batch's statistics at ``rate``, then
    normalizes by them, without gradient through them (Algorithm 1); ``'large_batch'`` normalizes by the batch's
    statistics, with gradient, and updates the estimates as BatchNorm does (Eq. 43). In evaluation both normalize by the
    estimates. When a checkpointed segment is recomputed in backward, the estimates are not updated again. If the layer
    ran several times in the meantime, the recomputation uses the estimates of its last run.
    Statistics are computed in float32 or higher precision. Non-finite inputs give NaN outputs. If the batch statistics
    of a channel are not finite, its estimates keep their values. An empty batch (B = 0) gives an empty output, as with
    GroupNorm, and updates nothing.

    Args:
        x: Activations of shape (B, C, \*), floating point; contiguous and channels-last inputs are not copied.
        batch_weight, batch_bias: gamma^b and beta^b, shape (C,).
        running_mean, running_var: The estimates, shape (C,), updated in place in training.
        channel_weight, channel_bias: gamma^c and beta^c, shape (num_groups,): one pair per *group*.
        num_groups: Number of channel groups G, a divisor of C.
        training: Whether the estimates are updated (and, in large-batch mode, batch statistics normalize).
        mode: ``'micro_batch'`` or ``'large_batch'``. Defaults to ``'micro_batch'``.
        rate: Update rate r of the estimates, in [0, 1]; BatchNorm's momentum in large-batch mode. Defaults to 0.01.
        eps: Added to both variances, inside the roots; above 0. Defaults to 1e-5.
        impl: ``'reference'`` (plain operations, any number of derivatives), ``'fused'`` (any device), ``'cpp'`` (CPU
            kernels, if they were built), ``'triton'`` (CUDA kernels) or ``'auto'``. ``'auto'`` uses the implementation
            that the environment variable ``WSBCN_IMPL`` names, else the kernels of the device if they support the
            call, else ``'fused'``. While a network is traced or exported, and under torch.func, it always uses
            ``'reference'``. It checks the CUDA kernels at their first use; if they fail, it warns once and uses
            ``'fused'``. Defaults to ``'auto'``.
        sync: Compute the statistics over all ranks of ``torch.distributed``, with one collective in forward and one in
            backward; large-batch mode only. Defaults to False.
        skipped_updates: Integer tensor of shape (C,) that counts, on the device, how often the estimates of each
            channel kept their values because its batch was not finite. Defaults to None.
        relu: Whether ReLU follows; ``'cpp'`` and ``'triton'`` apply it in the same pass. Defaults to False.

    Returns:
        Tensor of x's shape, dtype and memory format.

    Raises:
        ValueError: If an argument is invalid; the message names the expected and the actual value.
        RuntimeError: If the requested implementation does not support the call.

    Examples:
        >>> x, c = torch.randn(2, 8, 5, 5), (torch.ones(8), torch.zeros(8), torch.zeros(8), torch.ones(8))
        >>> y = batch_channel_norm(x, *c, torch.ones(4), torch.zeros(4), 4, training=True)
    """
    if not torch.jit.is_tracing():
        _check(x, batch_weight, channel_weight, num_groups, mode, rate, eps, sync, skipped_updates)
        check_flag('training', training)
        check_flag('relu', relu)
        _check_shapes(batch_weight.shape, batch_bias=batch_bias, running_mean=running_mean, running_var=running_var)
        _check_shapes(channel_weight.shape, channel_bias=channel_bias)
    if not torch.jit.is_tracing() and x.shape[0] == 0:
        parameters = batch_weight, batch_bias, channel_weight, channel_bias
        return x + sum(parameter.sum() for parameter in parameters).to(x.dtype)  # DDP needs all gradients
    sync = sync and _several_ranks()
    batch_statistics = training and mode == 'large_batch'
    if batch_statistics and not sync and x.numel() == x.shape[1]:
        raise ValueError('large-batch BCN needs more than one value per channel in training, got input of shape '
                         f"{tuple(x.shape)}: use mode='micro_batch', or sync=True over several ranks")
    sync = sync and batch_statistics
    name, forced = _choice(impl, x, num_groups, running_mean, sync)
    run = _implementation(name)
    _warn_of_captured_rate(x, training, rate)
    arguments = (x, batch_weight, batch_bias, running_mean, running_var, channel_weight, channel_bias, num_groups,
                 training and not recomputing(), batch_statistics, rate, eps, sync, skipped_updates)
    if name in ('cpp', 'triton'):
        return run(*arguments, relu, forced) if name == 'triton' else run(*arguments, relu)
    return run(*arguments).relu_() if relu else run(*arguments)


def _warn_of_captured_rate(x: Tensor, training: bool, rate: float | Tensor) -> None:
    on_host = training and x.is_cuda and isinstance(rate, Tensor) and rate.is_cpu
    if on_host and not torch.compiler.is_compiling() and self_check.capturing(x.device):
        warnings.warn('a CUDA graph is being captured, which keeps the current update rate even if another is assigned '
                      'later; call wsbcn_mmseg.layers.make_capturable(model) before the capture', stacklevel=3)


def _check_shapes(shape: torch.Size, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if getattr(tensor, 'shape', None) != shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else tensor
            raise ValueError(f'expected {name} of shape {tuple(shape)}, got {got}')


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def values_per_group(x: Tensor, num_groups: int) -> int:
    """The number of values in a group of one image."""
    pixels = 1
    for side in x.shape[2:]:
        pixels = pixels * side
    return x.shape[1] // num_groups * pixels


def _check(x: Tensor, batch_weight: Tensor, channel_weight: Tensor, num_groups: int, mode: str, rate: float | Tensor,
           eps: float, sync: bool, skipped_updates: Tensor | None) -> None:
    check_choice('mode', mode, MODES)
    if not torch.compiler.is_compiling():  # it may be a symbol there
        check_eps(eps)
    # Reading the value would synchronize with the device, and it would become a constant in a compiled graph
    if not isinstance(rate, Tensor) or rate.device.type == 'cpu' and not torch.compiler.is_compiling():
        check_number('rate', rate, 0, 1)
    check_flag('sync', sync)
    if sync and mode == 'micro_batch':
        raise ValueError('sync=True needs mode=\'large_batch\': the estimates of micro-batch BCN are each rank\'s own; '
                         'average them with SyncNormStatisticsHook')
    channels = batch_weight.numel()
    check_input(x, channels)
    if check_integer('num_groups', num_groups, 1) < 1 or channels % num_groups or channel_weight.shape[0] != num_groups:
        raise ValueError(f'expected num_groups that divides {channels} channels and one channel weight per group, '
                         f'got num_groups={num_groups} and {channel_weight.shape[0]} weights')
    if skipped_updates is not None and (skipped_updates.is_floating_point()
                                        or skipped_updates.shape != batch_weight.shape):
        raise ValueError(f'expected integer skipped_updates of shape ({channels},), got {tuple(skipped_updates.shape)}')
    if x.numel() == 0 and x.shape[0] != 0:
        raise ValueError(f'expected at least one pixel, got input of shape {tuple(x.shape)}')


def implementation_name(impl: str, x: Tensor, num_groups: int, running_mean: Tensor, sync: bool) -> str:
    """The name of the implementation for a call: ``impl``, or the one that ``'auto'`` chooses."""
    return _choice(impl, x, num_groups, running_mean, sync)[0]


def _choice(impl: str, x: Tensor, num_groups: int, running_mean: Tensor, sync: bool) -> tuple[str, bool]:
    """An implementation, and whether the caller or the environment asked for it by name."""
    if impl == 'auto':
        impl = 'reference' if needs_plain_operations() else os.environ.get('WSBCN_IMPL') or 'auto'
    return (_fastest(x, num_groups, running_mean, sync), False) if impl == 'auto' else (impl, True)


def _implementation(impl: str) -> Callable[..., Tensor]:
    if impl == 'reference':
        return batch_channel_norm_reference
    if impl == 'fused':
        return batch_channel_norm_fused
    if impl == 'cpp':
        return cpp.batch_channel_norm_cpp
    if impl == 'triton':
        from .triton_kernels import batch_channel_norm_triton  # imported only when used: it needs Triton
        return batch_channel_norm_triton
    raise ValueError(f"impl must be 'auto' or one of {IMPLEMENTATIONS}, got {impl!r}")


def repetition(arguments: dict) -> Callable[[list[Tensor]], Tensor] | None:
    """A function that recomputes the output of a call by one map from the tensors that the call saved for backward. It
    does not read the estimates, which may have changed. None if the implementation has no such function.

    Args:
        arguments: The arguments of the call, by name.
    """
    batch_statistics = arguments['training'] and arguments['mode'] == 'large_batch'
    name, forced = _choice(arguments['impl'], arguments['x'], arguments['num_groups'], arguments['running_mean'],
                           arguments['sync'] and batch_statistics and _several_ranks())
    if name == 'cpp':
        return functools.partial(cpp.repeated_cpp, arguments['relu'])
    if name == 'fused' and not arguments['relu']:
        return functools.partial(repeated_fused, arguments['channel_weight'].detach(),
                                 arguments['channel_bias'].detach())
    if name == 'triton':
        from .triton_kernels import repeated_triton
        return functools.partial(repeated_triton, arguments['relu'], arguments['num_groups'], forced)
    return None


def _fastest(x: Tensor, num_groups: int, running_mean: Tensor, sync: bool) -> str:
    """The fastest implementation that can be used."""
    if cpp.serves(x, running_mean, sync):
        return 'cpp'
    # Compilers for GPUs fuse stock operators themselves
    if not torch.compiler.is_compiling() and self_check.kernels_serve(x, num_groups):
        return 'triton'
    return 'fused'
