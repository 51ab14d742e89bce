"""The four passes over an activation in the fused implementation, built from stock PyTorch operators.

A *plane* is one channel of one image, (b, c). Every function takes activations of shape (B, C, *) that are dense in the
contiguous or the channels-last format, and per-plane numbers of shape (B, C); none copies an activation.

The stock operators are chosen for speed alone. PyTorch's normalization layers contain fused and vectorized reductions
and maps, which are used here. Where they are not available (compilation, other devices), the same arithmetic is
written out.
"""
from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten
TINY = 1e-30  # keeps planes of variance 0 finite; too small to change any other


def dense_format(x: Tensor) -> torch.memory_format | None:
    """The memory format in which ``x`` is dense, or None."""
    if x.is_contiguous():
        return torch.contiguous_format
    candidate = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return candidate if candidate is not None and x.is_contiguous(memory_format=candidate) else None


def as_dtype(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """``Tensor.to(dtype)``, skipped if there is nothing to do: the call alone costs as much as arithmetic."""
    return [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors]


def _has_fused_norms(x: Tensor) -> bool:
    return (x.is_cpu or x.is_cuda) and not torch.compiler.is_compiling()


def _flat(x: Tensor) -> Tensor:
    """A contiguous activation as one image of B*C channels, shape (1, B*C, pixels)."""
    return x.view(1, x.shape[0] * x.shape[1], -1)


def _pixels(x: Tensor) -> Tensor:
    """As (B, C, pixels)."""
    return x.reshape(*x.shape[:2], -1)


def _per_plane(values: Tensor, x: Tensor) -> Tensor:
    return values.view(*values.shape, *[1] * (x.dim() - 2))


def _affine_into(out: Tensor, x: Tensor, center: Tensor, scale: Tensor, shift: Tensor) -> None:
    """A fused affine map per channel, by batch normalization in evaluation mode."""
    save_mean, save_invstd = scale.new_empty(0), scale.new_empty(0)  # two tensors, because CUDA's kernel writes to them
    torch.native_batch_norm(x, scale, shift, center, torch.ones_like(scale), False, 0.0, 0.0,
                            out=(out, save_mean, save_invstd))


class PlaneMoments(NamedTuple):
    """Mean and reciprocal standard deviation of every plane, each (B, C), and the operator's normalized output.

    ``normalized`` is rstd * (x - mean) in newly allocated memory, or None. It was just written and is still in cache,
    and an allocation costs as much as a pass, so the map reads it and writes its result into the same memory.
    """
    mean: Tensor
    rstd: Tensor
    normalized: Tensor | None = None


def plane_moments(x: Tensor) -> PlaneMoments:
    """Two-pass or Welford, so there is no cancellation."""
    batch, channels = x.shape[:2]
    if _has_fused_norms(x) and x.is_contiguous():
        pixels = x.numel() // (batch * channels)
        normalized, mean, rstd = torch.native_group_norm(x, None, None, batch, channels, pixels, channels, TINY)
        return PlaneMoments(mean, rstd, normalized)
    if _has_fused_norms(x):
        images = [aten.batch_norm_update_stats(image, None, None, 0.0) for image in x.split(1)]
        mean, var = (torch.stack(values) for values in zip(*images, strict=True))
    else:
        var, mean = torch.var_mean(_pixels(x), 2, correction=0)
    return PlaneMoments(mean, torch.rsqrt(var + TINY))


def plane_affine_of_normalized(moments: PlaneMoments, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale * rstd * (x - mean) + shift, with one number of each per plane. Overwrites ``moments``."""
    if moments.normalized is None:
        return plane_affine(x, moments.mean, scale * moments.rstd, shift)
    return plane_affine(moments.normalized, torch.zeros_like(shift), scale, shift, out=moments.normalized)


def plane_affine(x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """scale * (x - center) + shift, with one number of each per plane; written to ``out`` if given."""
    if not _has_fused_norms(x):
        return (x - _per_plane(center, x)) * _per_plane(scale, x) + _per_plane(shift, x)
    out = torch.empty_like(x) if out is None else out
    if x.is_contiguous():
        _affine_into(_flat(out), _flat(x), center.view(-1), scale.view(-1), shift.view(-1))
    else:
        for image in range(x.shape[0]):
            _affine_into(out[image:image + 1], x[image:image + 1], center[image], scale[image], shift[image])
    return out


def plane_dots(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over every plane of dy and of dy * rstd * (x - mean), each (B, C)."""
    if not _has_fused_norms(x):
        normalized = (x - _per_plane(mean, x)) * _per_plane(rstd, x)
        return _pixels(dy).sum(2), _pixels(dy * normalized).sum(2)

    def batch_norm_backward(dy, x, mean, rstd):  # its parameter gradients are the two sums
        weight = None if x.is_cpu else torch.ones_like(mean)  # CUDA's kernel gives no gradients without one
        _, dots, sums = aten.native_batch_norm_backward(dy, x, weight, mean, rstd, mean, rstd, True, 0.0,
                                                        [False, True, True])
        return sums, dots

    if x.is_contiguous():
        sums, dots = batch_norm_backward(_flat(dy), _flat(x), mean.view(-1), rstd.view(-1))
        return sums.view_as(mean), dots.view_as(mean)
    images = [batch_norm_backward(dy[i:i + 1], x[i:i + 1], mean[i], rstd[i]) for i in range(x.shape[0])]
    sums, dots = (torch.stack(values) for values in zip(*images, strict=True))
    return sums, dots


def plane_affine2(dy: Tensor, x: Tensor, scale_dy: Tensor, scale_x: Tensor, shift: Tensor) -> Tensor:
    """scale_dy * dy + scale_x * x + shift, with one number of each per plane."""
    out = plane_affine(dy, torch.zeros_like(shift), scale_dy, shift)
    return torch.addcmul(out, x, _per_plane(scale_x, x)) if not _has_fused_norms(x) else out.addcmul_(
        x, _per_plane(scale_x, x))
