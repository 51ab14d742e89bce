"""Per-channel moments, maxima and activity of a norm's input and output, sampled during training."""
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wsbcn_mmseg.layers.bcn import default_num_groups
from wsbcn_mmseg.ops.planes import dense_format, plane_moments

ROWS = ('mean_in', 'var_in', 'mean_out', 'var_out', 'maximum', 'active')  # rows of a sample, each of shape (C,)


def merge(samples: Tensor, counts: Tensor) -> Tensor:
    """Merge samples of several calls or ranks into one, as if all their values were sampled together.

    Args:
        samples: Shape (S, 6, C), rows as in ``ROWS``.
        counts: Values per channel in each sample, shape (S,).

    Returns:
        Shape (6, C).
    """
    weights = (counts / counts.sum()).view(-1, 1)
    mean_in, var_in, mean_out, var_out, maximum, active = samples.unbind(1)
    merged = []
    for mean, var in ((mean_in, var_in), (mean_out, var_out)):
        merged.append((weights * mean).sum(0))
        merged.append((weights * (var + (mean - merged[-1]).square())).sum(0))
    return torch.stack([*merged, maximum.amax(0), (weights * active).sum(0)])


def _channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x if dense_format(x) else x.contiguous()
    moments = plane_moments(x)
    mean = moments.mean.mean(0)
    return mean, (moments.rstd.pow(-2) + (moments.mean - mean).square()).mean(0)


def sample_norm(x: Tensor, y: Tensor) -> Tensor:
    """A sample of a norm's input and output, shape (6, C), rows as in ``ROWS``."""
    x, y = (t.detach().to(torch.promote_types(t.dtype, torch.float32)) for t in (x, y))
    pixels = [dim for dim in range(y.dim()) if dim != 1]
    return torch.stack([*_channel_moments(x), *_channel_moments(y), y.amax(pixels),
                        (y > 0).sum(pixels) / (y.numel() // y.shape[1])])


@dataclass
class WatchedNorm:
    """A norm and its samples."""
    norm: nn.Module
    samples: list[Tensor] = field(default_factory=list)  # of the calls in this iteration
    counts: list[int] = field(default_factory=list)
    affine: Tensor | None = None  # scale and shift at the time of the samples, shape (2, C)
    running: Tensor | None = None  # mean and variance before the norm, shape (2, C)
    maxima: deque = field(default_factory=deque)

    @property
    def channels(self) -> int:
        return self.norm.num_channels if isinstance(self.norm, nn.GroupNorm) else self.norm.num_features

    @property
    def num_groups(self) -> int:
        """Number of groups that are normalized together; for norms without groups, GroupNorm's default."""
        return getattr(self.norm, 'num_groups', None) or default_num_groups(self.channels)

    def see(self, x: Tensor, y: Tensor) -> None:
        self.samples.append(sample_norm(x, y))
        self.counts.append(y.numel() // y.shape[1])
        scale, shift = (getattr(self.norm, name, None) for name in ('weight', 'bias'))
        scale = y.new_ones(self.channels) if scale is None else scale.detach()
        shift = torch.zeros_like(scale) if shift is None else shift.detach()
        self.affine = torch.stack([p.float().repeat_interleave(self.channels // len(p)) for p in (scale, shift)])

    def take(self) -> Tensor:
        """The calls of this iteration as one flat sample: count, rows, scale and shift. Count is 0 without calls."""
        if not self.samples:
            return torch.zeros(1 + (len(ROWS) + 2) * self.channels)
        counts = torch.tensor(self.counts, dtype=torch.float32, device=self.samples[0].device)
        sample = merge(torch.stack(self.samples), counts)
        self.samples, self.counts = [], []
        return torch.cat([counts.sum()[None], sample.flatten(), self.affine.flatten()]).float()

    def update(self, flat: Tensor, momentum: float, window: int) -> Tensor | None:
        """Merge the samples of all ranks, shape (ranks, 1 + 8 C), into one, and update the running statistics by it."""
        flat = flat[flat[:, 0] > 0]
        if not len(flat):
            return None
        rows = flat[:, 1:].view(len(flat), len(ROWS) + 2, self.channels)
        sample, self.affine = merge(rows[:, :-2], flat[:, 0]), rows[0, -2:]
        self.running = sample[:2] if self.running is None else self.running.lerp(sample[:2], momentum)
        self.maxima.append(sample[4])
        while len(self.maxima) > window:
            self.maxima.popleft()
        return sample

    def before_affine(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the normalized channels before the scale and shift, where the scale is not 0."""
        mean, var = sample[2], sample[3]
        scale, shift = self.affine
        kept = scale != 0
        return (mean - shift)[kept] / scale[kept], var[kept] / scale[kept].square()
