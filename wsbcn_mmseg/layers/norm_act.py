"""Norms that contain their activation: alternatives to BCN for small batches.

``apply_act`` has timm's meaning: False if no activation follows the norm, for example before the addition at the end
of a residual block.
"""
import torch
from torch import Tensor, nn

from wsbcn_mmseg.ops.arguments import check_eps, check_flag, check_input, check_integer

from .bcn import default_num_groups
from .tracing import is_symbolic, leaf_call


class NormAct(nn.Module):
    """Base: scale and shift per channel, and whether the activation is applied.

    Args:
        num_features: Number of channels C.
        eps: Added to the second moment, inside the root.
        apply_act: Whether to activate. Defaults to True.
    """

    def __init__(self, num_features: int, eps: float, apply_act: bool = True):
        super().__init__()
        self.num_features = check_integer('num_features', num_features, 1)
        self.eps, self.apply_act = check_eps(eps), check_flag('apply_act', apply_act)
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))

    def forward(self, input: Tensor) -> Tensor:
        if is_symbolic(input):
            return leaf_call(self, input)
        check_input(input, self.num_features)
        if input.numel() == 0:
            return input + sum(parameter.sum() for parameter in self.parameters()).to(input.dtype)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        return self._normalize(x).to(input.dtype)

    def _normalize(self, x: Tensor) -> Tensor:
        """The layer on values of at least float32."""
        raise NotImplementedError

    def _affine(self, x: Tensor) -> Tensor:
        shape = -1, *[1] * (x.dim() - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)

    def extra_repr(self) -> str:
        return f'{self.num_features}, eps={self.eps}, apply_act={self.apply_act}'


class EvoNormS0(NormAct):
    r"""EvoNorm-S0 (Liu, Brock, Simonyan and Le, "Evolving Normalization-Activation Layers", NeurIPS 2020, Table 2).

    .. math:: y = \gamma_c \frac{x\,\mathrm{sigmoid}(v_c x)}{\sqrt{\sigma^2_{bg} + \epsilon}} + \beta_c

    with the biased variance of each image and group of channels. With ``apply_act=False``, only the scale and shift
    are applied, as in the authors' code.

    Args:
        num_features: Number of channels C.
        num_groups: Groups of channels. Defaults to None: as for :class:`~wsbcn_mmseg.layers.BCN`.
        min_channels_per_group: See ``num_groups``. Defaults to 2.
        eps: Defaults to 1e-5.
        apply_act: See :class:`NormAct`.
    """
    _abbr_ = 'evonorm'

    def __init__(self, num_features: int, num_groups: int | None = None, min_channels_per_group: int = 2,
                 eps: float = 1e-5, apply_act: bool = True):
        super().__init__(num_features, eps, apply_act)
        self.num_groups = default_num_groups(num_features, min_channels_per_group) if num_groups is None else num_groups
        if num_features % check_integer('num_groups', self.num_groups, 1):
            raise ValueError(f'num_groups must divide num_features, got {num_groups} for {num_features} channels')
        self.v = nn.Parameter(torch.ones(num_features))

    def _normalize(self, x: Tensor) -> Tensor:
        if not self.apply_act:
            return self._affine(x)
        var = x.reshape(x.shape[0], self.num_groups, -1).var(2, correction=0)
        deviation = (var + self.eps).sqrt().repeat_interleave(self.num_features // self.num_groups, 1)
        shape = -1, *[1] * (x.dim() - 2)
        return self._affine(x * torch.sigmoid(self.v.view(shape) * x) / deviation.view(x.shape[0], *shape))


class FRN(NormAct):
    r"""Filter Response Normalization with Thresholded Linear Units (Singh and Krishnan, CVPR 2020, Eq. 1-4).

    .. math:: y = \max\left(\gamma_c \frac{x}{\sqrt{\nu^2_{bc} + |\epsilon|}} + \beta_c, \tau_c\right)

    with :math:`\nu^2_{bc}` the mean square over the positions of one channel of one image.

    Args:
        num_features: Number of channels C.
        eps: Defaults to 1e-6.
        learn_eps: Add a learned :math:`|\epsilon_c|` with initial value 1e-4. The authors advise it for maps with one
            position, where the norm would otherwise return only the sign. Defaults to False.
        apply_act: Whether the threshold is applied; see :class:`NormAct`.
    """
    _abbr_ = 'frn'

    def __init__(self, num_features: int, eps: float = 1e-6, learn_eps: bool = False, apply_act: bool = True):
        super().__init__(num_features, eps, apply_act)
        check_flag('learn_eps', learn_eps)
        self.learned_eps = nn.Parameter(torch.full((num_features, ), 1e-4)) if learn_eps else None
        self.tau = nn.Parameter(torch.zeros(num_features))

    def _normalize(self, x: Tensor) -> Tensor:
        square = x.reshape(*x.shape[:2], -1).square().mean(2)
        eps = self.eps if self.learned_eps is None else self.eps + self.learned_eps.abs()
        shape = -1, *[1] * (x.dim() - 2)
        y = self._affine(x * (square + eps).rsqrt().view(x.shape[0], *shape))
        return torch.maximum(y, self.tau.view(shape)) if self.apply_act else y
