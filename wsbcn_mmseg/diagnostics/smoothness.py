"""The parts that Weight Standardization removes from gradients and Hessians (Section 5.2)."""
from collections.abc import Callable

import torch
from torch import Tensor


def gradient_shares(standardized: Tensor, gradient: Tensor) -> Tensor:
    r"""The parts of the gradient that Eq. 12 and Eq. 11 remove, and what is left (Eq. 17 and 20; Fig. 4, right).

    For each output channel with fan-in I:
    :math:`\frac1I \langle\hat W, \nabla\rangle^2`, :math:`\frac1I \langle 1, \nabla\rangle^2` and
    :math:`\sigma_W^2 \|\nabla_W L\|^2`, as shares of their sum. The sum equals the squared gradient norm if
    :math:`\|\hat W\|^2 = I`, that is, if eps of Eq. 7 is small compared with the variance.

    Args:
        standardized: The standardized kernel :math:`\hat W`, shape (O, I/groups, *kernel_size).
        gradient: Gradient of the loss with respect to it, :math:`\nabla = \nabla_{\hat W} L`; same shape.

    Returns:
        Shares removed by Eq. 12, removed by Eq. 11, and left, shape (O, 3); NaN where the gradient is zero.
    """
    weight, gradient = (tensor.flatten(1).to(torch.promote_types(tensor.dtype, torch.float32))
                        for tensor in (standardized, gradient))
    fan_in = weight.shape[1]
    along_weight = (weight * gradient).sum(1, keepdim=True) / fan_in
    along_ones = gradient.mean(1, keepdim=True)
    left = gradient - along_weight * weight - along_ones  # Eq. 14 and 15, but for 1 / sigma
    parts = torch.cat([fan_in * along_weight.square(), fan_in * along_ones.square(),
                       left.square().sum(1, keepdim=True)], 1)
    return parts / parts.sum(1, keepdim=True)


def hessian_norms(loss: Callable[[Tensor], Tensor], weight: Tensor, channel: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Squared Frobenius norm of a channel's Hessian block before and after centring the weights (Eq. 21-24).

    It is computed row by row with 2 I Hessian-vector products, so it suits small layers only.

    Args:
        loss: The loss as a function of the centered kernel :math:`\dot W`; twice differentiable.
        weight: The kernel W, shape (O, I, *kernel_size).
        channel: Output channel of the block.

    Returns:
        :math:`\|\dot H\|_F^2`, :math:`\|H\|_F^2`, and the minimum difference by Eq. 24,
        :math:`(\sum_{ij} \dot H_{ij})^2 / I^2`; 0-dim tensors. (The paper prints the norms without their squares.)
    """
    def center(w: Tensor) -> Tensor:
        return w - w.flatten(1).mean(1).view(-1, *[1] * (w.dim() - 1))

    before = _hessian_block(loss, center(weight.detach()), channel)
    after = _hessian_block(lambda w: loss(center(w)), weight.detach(), channel)
    return before.square().sum(), after.square().sum(), (before.sum() / len(before)).square()


def _hessian_block(loss: Callable[[Tensor], Tensor], weight: Tensor, channel: int) -> Tensor:
    """Second derivatives with respect to one output channel's kernel, shape (I, I)."""
    weight = weight.clone().requires_grad_()
    gradient, = torch.autograd.grad(loss(weight), weight, create_graph=True)
    rows = [torch.autograd.grad(value, weight, retain_graph=True)[0][channel].flatten()
            for value in gradient[channel].flatten()]
    return torch.stack(rows)
