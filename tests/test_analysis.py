"""The paper's quantities against hand-worked cases and independent formulations in float64."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsbcn_mmseg.diagnostics.singularities import (
    distance_to_batch_norm,
    eliminated,
    stat_diff,
    under_represented,
    weight_elimination,
)
from wsbcn_mmseg.diagnostics.smoothness import gradient_shares, hessian_norms
from wsbcn_mmseg.ops import standardize_weight


def test_stat_diff_by_hand():
    """Means 1 and 3 (deviation 1), deviations 2 and 4 (mean 3): 1/3; equal means: 0."""
    mean, var = torch.tensor([1., 3., 5., 5.]), torch.tensor([4., 16., 1., 9.])
    torch.testing.assert_close(stat_diff(mean, var, 2), torch.tensor([1 / 3, 0.]))
    # As one group, by the formula as printed
    printed = ((mean**2).mean() - mean.mean()**2).sqrt() / var.sqrt().mean()
    torch.testing.assert_close(stat_diff(mean, var, 1), printed[None])


def test_stat_diff_is_zero_after_batch_norm_and_grows_with_the_means():
    x = torch.randn(8, 6, 5, 5, dtype=torch.float64) * 3 + torch.arange(6.).view(6, 1, 1)
    y = F.batch_norm(x, None, None, training=True)
    moments = [(t.mean((0, 2, 3)), t.var((0, 2, 3), correction=0)) for t in (x, y)]
    assert stat_diff(*moments[0], 2).min() > .1
    assert stat_diff(*moments[1], 2).max() < 1e-12


def test_eliminated_and_under_represented_channels():
    assert eliminated(torch.tensor([-.1, 0., 2.])).tolist() == [True, False, False]
    assert under_represented(torch.tensor([.5, .04, .6, .4, .06])).tolist() == [False, True, False, False, False]
    assert under_represented(torch.tensor([.5, .04, .6, .4, .06]), .2).sum() == 2


def test_distance_in_the_coordinates_of_figure_5():
    mean, var = torch.tensor([3., -4.]), torch.tensor([math.e**2, math.e**-4])  # log deviations 1 and -2
    torch.testing.assert_close(distance_to_batch_norm(mean, var),
                               (torch.tensor(12.5).sqrt(), torch.tensor(2.5).sqrt()))
    y = F.batch_norm(torch.randn(16, 4, 9, dtype=torch.float64), None, None, training=True, eps=1e-15)
    assert all(d < 1e-12 for d in distance_to_batch_norm(y.mean((0, 2)), y.var((0, 2), correction=0)))


def test_weight_elimination_by_hand():
    first = torch.tensor([[1., -3.], [1., 1.]]).view(2, 2, 1, 1)  # input channels weigh 2 and 4: 2/3
    second = torch.tensor([[0., 5.]]).view(1, 2, 1)  # the first is ignored: 0
    torch.testing.assert_close(weight_elimination([first, second]), torch.tensor(1 / 3))
    with pytest.raises(ValueError, match='at least one'):
        weight_elimination([])


def test_gradient_shares_are_what_autograd_leaves():
    """Eq. 20: sigma^2 |grad W|^2 is what is left of |grad W_hat|^2, by autograd through the standardization."""
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    standardized = standardize_weight(weight, eps=1e-20)
    standardized.retain_grad()
    F.conv2d(torch.randn(2, 3, 6, 6, dtype=torch.float64), standardized).exp().mean().backward()
    shares = gradient_shares(standardized.detach(), standardized.grad)
    gradient, variance = standardized.grad.flatten(1), weight.detach().flatten(1).var(1, correction=0)
    left = variance * weight.grad.flatten(1).square().sum(1)
    total = gradient.square().sum(1)
    torch.testing.assert_close(shares[:, 2], left / total)
    torch.testing.assert_close(shares[:, 1], gradient.sum(1).square() / 27 / total)
    torch.testing.assert_close(shares[:, 0], (standardized.detach().flatten(1) * gradient).sum(1).square() / 27 / total)
    torch.testing.assert_close(shares.sum(1), torch.ones(4, dtype=torch.float64))


def test_gradient_shares_of_pure_cases():
    weight = torch.tensor([[1., -1., 1., -1.]]).view(1, 4, 1, 1)
    for gradient, expected in ((weight, [1, 0, 0]), (torch.ones_like(weight), [0, 1, 0]),
                               (torch.tensor([[1., 1., -1., -1.]]).view(1, 4, 1, 1), [0, 0, 1])):
        torch.testing.assert_close(gradient_shares(weight, gradient), torch.tensor([expected]).float())
    assert gradient_shares(weight, torch.zeros_like(weight)).isnan().all()


def test_hessian_norms_against_the_full_hessian():
    """Eq. 22 elementwise, Eq. 23 and Eq. 24, from torch's own Hessian of the whole layer."""
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    x, target = torch.randn(2, 2, 5, 5, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    norm = nn.GroupNorm(3, 3).double()

    def loss(kernel):
        return F.mse_loss(torch.tanh(norm(F.conv2d(x, kernel))), target)

    before, after, bound = hessian_norms(loss, weight, channel=1)
    centered = weight - weight.mean((1, 2, 3), keepdim=True)
    block = torch.autograd.functional.hessian(loss, centered)[1, :, :, :, 1].reshape(8, 8)
    rows, columns = block.mean(1, keepdim=True), block.mean(0, keepdim=True)
    centred_block = block - rows - columns + block.mean()  # Eq. 22
    torch.testing.assert_close(before, block.square().sum())
    torch.testing.assert_close(after, centred_block.square().sum())
    torch.testing.assert_close(bound, block.sum().square() / 64)
    assert centred_block.sum().abs() < 1e-12
    assert after <= before - bound
