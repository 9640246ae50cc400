"""AdaRound's relaxation of a rounding, and its schedule."""

import pytest
import torch
from torch import Tensor

from fxquant.numerics.affine import Affine, Grid
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.rounding.methods.soft_rounding import Schedule, SoftWeight, initial_v, soft_rounding


def affine(scale: Tensor) -> Affine:
    return Affine(scale, torch.zeros_like(scale), Grid(-4, 3))


def test_v_starts_where_soft_rounding_gives_the_fraction() -> None:
    fraction = torch.linspace(0, 0.999, 100)
    torch.testing.assert_close(soft_rounding(initial_v(fraction)), fraction, rtol=0, atol=1e-6)


def test_soft_rounding_reaches_0_and_1() -> None:
    v = torch.tensor([-100.0, -3.0, 0.0, 3.0, 100.0])
    torch.testing.assert_close(soft_rounding(v), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_a_soft_weight_starts_at_the_weight_itself() -> None:
    weight = torch.tensor([[0.26, -0.99, 1.4], [-1.2, 0.1, 0.7]])
    soft = SoftWeight(weight, affine(torch.tensor([[0.5], [0.3]])))
    torch.testing.assert_close(soft.soft(), weight, rtol=0, atol=1e-6)
    assert soft.integers().tolist() == [[1, -2, 3], [-4, 0, 2]]


def test_what_is_outside_of_the_grid_goes_to_its_end_and_stays() -> None:
    soft = SoftWeight(torch.tensor([-9.3, 3.2, 9.3]), affine(torch.tensor(1.0)))
    soft.v.requires_grad_()
    assert soft.soft().tolist() == soft.integers().tolist() == [-4, 3, 3]
    (gradient,) = torch.autograd.grad(soft.soft().sum(), soft.v)
    assert not gradient.any()


def test_what_is_on_the_grid_has_no_gradient() -> None:
    soft = SoftWeight(torch.tensor([0.0, 0.25, 0.5, 0.6]), affine(torch.tensor(0.25)))
    soft.v.requires_grad_()
    (gradient,) = torch.autograd.grad(soft.soft().sum(), soft.v)
    assert (gradient != 0).tolist() == [False, False, False, True]
    assert soft.integers().tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("beta", [2, 4, 8, 20])
def test_undecided_is_one_half_way_and_zero_at_the_ends(beta: int) -> None:
    soft = SoftWeight(torch.tensor([0.5, 0.0, 0.75]), affine(torch.tensor(1.0)))
    expected = torch.tensor([1.0, 0.0, 1 - 0.5**beta])
    torch.testing.assert_close(soft.undecided(beta), expected, rtol=0, atol=1e-5)


def test_beta_is_off_in_the_warm_start_and_falls_to_its_end() -> None:
    betas = Schedule(10, 0.01, 0.1, 0.2, (20.0, 2.0)).betas()
    assert betas[:3] == [0, 0, 20]
    assert sorted(betas[2:], reverse=True) == betas[2:]
    assert 2 <= betas[-1] <= 4
    assert not any(beta % 2 for beta in betas)


def test_fewer_steps_are_regularized_more() -> None:
    long, short = (Schedule.of(Reconstruction(steps=steps)) for steps in (2000, 250))
    assert long.regularization == pytest.approx(0.3)
    assert long.betas().count(0) == 400
    assert short.regularization == pytest.approx(1.2)
    assert short.betas().count(0) == 50
