"""Switchable Normalization (Luo, Ren, Peng, Zhang and Li, "Differentiable Learning-to-Normalize via Switchable
Normalization", ICLR 2019), which Table 8 of the paper compares with."""
import torch
from torch import Tensor, nn

from wsbcn_mmseg.ops.arguments import check_eps, check_flag, check_input, check_integer, check_number

from .tracing import is_symbolic, leaf_call


class SwitchableNorm(nn.Module):
    r"""Switchable Normalization: normalizes by a learned mixture of instance, layer and batch statistics.

    .. math:: y = \gamma_c \frac{x - \sum_k w_k \mu_k}{\sqrt{\sum_k v_k \sigma_k^2 + \epsilon}} + \beta_c,
        \quad k \in \{\text{instance}, \text{layer}, \text{batch}\}

    w and v are softmaxes over ``mean_weight`` and ``var_weight``. Variances are biased. The running batch statistics
    are in an inner BatchNorm, ``bn``, and follow its conventions. (In the authors' code, both start at 0, momentum is
    the share that is kept, and the instance variance is unbiased.) ``bn.eval()`` freezes them. Each process has its
    own.

    Args:
        num_features: Number of channels C.
        eps: Added to the variance, inside the root. Defaults to 1e-5.
        momentum: Momentum of the running batch statistics, as in BatchNorm. Defaults to 0.1.
        batch_statistics: If False, the batch statistics are left out, as the authors do with one image per process.
            Defaults to True.

    Input and output of shape (N, C, \*).
    """
    _abbr_ = 'sn'

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, batch_statistics: bool = True):
        super().__init__()
        self.num_features = check_integer('num_features', num_features, 1)
        self.eps, self.batch_statistics = check_eps(eps), check_flag('batch_statistics', batch_statistics)
        check_number('momentum', momentum, 0, 1)
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        kinds = 3 if batch_statistics else 2
        self.mean_weight, self.var_weight = nn.Parameter(torch.ones(kinds)), nn.Parameter(torch.ones(kinds))
        self.bn = nn.BatchNorm2d(num_features, eps, momentum, affine=False) if batch_statistics else None

    def forward(self, input: Tensor) -> Tensor:
        if is_symbolic(input):
            return leaf_call(self, input)
        check_input(input, self.num_features, min_dims=3)
        if input.numel() == 0:
            return input + (self.weight.sum() + self.bias.sum()).to(input.dtype)
        rows = input.to(torch.promote_types(input.dtype, torch.float32)).flatten(2)
        mean_in = rows.mean(2, keepdim=True)
        var_in = (rows - mean_in).square().mean(2, keepdim=True)
        # The variance over more values is the mean of the variances plus the variance of the means: no cancellation
        mean_ln = mean_in.mean(1, keepdim=True)
        means = [mean_in, mean_ln]
        variances = [var_in, (var_in + (mean_in - mean_ln).square()).mean(1, keepdim=True)]
        if self.bn is not None:
            mean, var = self._batch_statistics(mean_in, var_in, rows.shape[0] * rows.shape[2])
            means.append(mean)
            variances.append(var)
        mean = sum(weight * value for weight, value in zip(self.mean_weight.softmax(0), means, strict=True))
        var = sum(weight * value for weight, value in zip(self.var_weight.softmax(0), variances, strict=True))
        scale = self.weight[:, None] * (var + self.eps).rsqrt()
        return (scale * (rows - mean) + self.bias[:, None]).view(input.shape).to(input.dtype)

    def _batch_statistics(self, mean_in: Tensor, var_in: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Mean and variance over the batch, shape (C, 1); in evaluation the running ones."""
        bn = self.bn
        if not (self.training and bn.training):
            return bn.running_mean[:, None], bn.running_var[:, None]
        mean = mean_in.mean(0)
        var = (var_in + (mean_in - mean).square()).mean(0)
        with torch.no_grad():
            bn.running_mean.lerp_(mean[:, 0].to(bn.running_mean.dtype), bn.momentum)
            bn.running_var.lerp_((var[:, 0] * count / max(1, count - 1)).to(bn.running_var.dtype), bn.momentum)
            bn.num_batches_tracked.add_(1)
        return mean, var

    def extra_repr(self) -> str:
        return f'{self.num_features}, eps={self.eps}, batch_statistics={self.batch_statistics}'
