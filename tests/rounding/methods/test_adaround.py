"""AdaRound's equations, and what learning does with them."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxquant.numerics.affine import Affine, Grid
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.methods.activations import Activation, Clamp, Identity
from fxquant.rounding.methods.adaround import RoundingOptimizer, learn_rounding
from fxquant.rounding.methods.losses import Loss, Rows, cheaper_loss
from fxquant.rounding.methods.soft_rounding import Schedule, soft_rounding

SCHEDULE = Schedule(400, 0.05, 0.3, 0.2, (8.0, 2.0))
THREE_BITS = Grid(-4, 3)


def problem(
    groups: int = 1, out: int = 4, inputs: int = 16, activation: Activation | None = None
) -> tuple[Rounding, Rows]:
    """Return a weight to round to 3 bits, and correlated rows."""
    weight = torch.randn(groups, out, inputs)
    scale = weight.abs().amax(2, keepdim=True) / 3.5
    mixing = torch.randn(groups, inputs, inputs)
    x = torch.bmm(torch.randn(groups, 256, inputs), mixing).relu()
    outputs = torch.bmm(x, weight.mT)
    return of(weight, scale), Rows(x, outputs, (activation or Identity())(outputs))


def of(weight: Tensor, scale: Tensor, grid: Grid = THREE_BITS) -> Rounding:
    return Rounding(weight, Affine(scale, torch.zeros_like(scale), grid))


def error(rows: Rows, rounding: Rounding, integers: Tensor) -> float:
    difference = integers * rounding.affine.scale - rounding.weight
    return rows.error(difference, Identity())[0].item()


@pytest.mark.parametrize("beta", [0, 2, 4, 6, 8, 14, 20])
@pytest.mark.parametrize("activation", [Identity(), Clamp(), Clamp(0.0, 2.0)], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_the_gradient_of_v_is_autograds(groups: int, activation: Activation, beta: int) -> None:
    rounding, rows = problem(groups, activation=activation)
    weight, scale = rounding.weight, rounding.affine.scale
    optimizer = RoundingOptimizer(rounding, cheaper_loss(rows, activation, 1000, 1000), SCHEDULE)
    optimizer.v += 0.5 * torch.randn_like(optimizer.v)
    v = optimizer.v.clone().requires_grad_()
    rounded = scale * torch.clamp(torch.floor(weight / scale) + soft_rounding(v), -4, 3)  # (19)
    y = rows.outputs + torch.bmm(rows.inputs, (rounded - weight).mT)
    errors = (activation(y) - rows.targets).square().mean(1, keepdim=True).mT
    power = rows.inputs.square().mean((1, 2))[:, None, None]
    loss = (errors / (scale.square() * power)).sum()
    if beta:
        loss = loss + 0.3 * (1 - (2 * soft_rounding(v) - 1).abs() ** beta).sum()  # (21)
    (expected,) = torch.autograd.grad(loss, v)
    torch.testing.assert_close(optimizer.gradient(0, beta), expected, rtol=1e-4, atol=1e-5)


def test_learning_comes_close_to_the_best_of_all_roundings() -> None:
    rounding, rows = problem(out=32, inputs=8)
    weight, scale = rounding.weight, rounding.affine.scale
    whole = torch.floor(weight / scale)
    choices = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    every = (whole[0, :, None] + choices).clamp(-4, 3)  # (out, choices, inputs)
    wrong = (every * scale[0, :, None] - weight[0, :, None]) @ rows.inputs[0].T
    best = wrong.double().square().sum(2).amin(1).sum().item()
    nearest = error(rows, rounding, rounding.nearest())
    learned = learn_rounding(rounding, cheaper_loss(rows, Identity(), 256, 400), SCHEDULE)
    reached = error(rows, rounding, learned)
    assert best <= reached < best + 0.2 * (nearest - best)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_are_on_the_grid_and_next_to_the_weight(bits: int) -> None:
    grid = Grid.of(bits, signed=True)
    given, rows = problem(2)
    weight = given.weight
    scale = weight.abs().amax(2, keepdim=True) / 2 ** (bits - 1) / 1.3  # some are clipped
    loss = cheaper_loss(rows, Identity(), 256, 400)
    integers = learn_rounding(of(weight, scale, grid), loss, SCHEDULE)
    assert (integers >= grid.quant_min).all()
    assert (integers <= grid.quant_max).all()
    assert (integers == integers.round()).all()
    clipped = (weight / scale).clamp(grid.quant_min, grid.quant_max)
    assert ((integers - clipped).abs() < 1).all()


def test_weights_on_the_grid_stay_there_so_pruned_ones_stay_zero() -> None:
    rounding, rows = problem()
    rounding.weight[:, :, ::2] = 0
    integers = learn_rounding(rounding, cheaper_loss(rows, Identity(), 256, 400), SCHEDULE)
    assert not integers[:, :, ::2].any()


@given(st.sampled_from([-20, -10, 10, 20]), st.sampled_from([-20, -10, 10, 20]))
@settings(max_examples=8, deadline=None)
def test_the_scale_of_weights_and_inputs_changes_nothing(w: int, x: int) -> None:
    torch.manual_seed(0)
    rounding, rows = problem()

    def learned(rounding: Rounding, rows: Rows) -> Tensor:
        schedule = Schedule(100, 0.05, 0.3, 0.2, (8.0, 2.0))
        loss: Loss = cheaper_loss(rows, Identity(), 256, 100)
        return learn_rounding(rounding, loss, schedule)

    scaled = Rows(
        rows.inputs * 2.0**x, rows.outputs * 2.0 ** (w + x), rows.targets * 2.0 ** (w + x)
    )
    larger = of(rounding.weight * 2.0**w, rounding.affine.scale * 2.0**w)
    assert torch.equal(learned(larger, scaled), learned(rounding, rows))


DEAD: dict[str, Callable[[Tensor, Rows], None]] = {
    "inputs of zero": lambda weight, rows: rows.inputs.zero_(),  # type: ignore[dict-item]
    "weights of zero": lambda weight, rows: weight.zero_(),  # type: ignore[dict-item]
    "constant inputs": lambda weight, rows: rows.inputs.fill_(2.0),  # type: ignore[dict-item]
    "huge weights": lambda weight, rows: weight.mul_(1e30),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("change", DEAD.values(), ids=DEAD)
def test_degenerate_layers_give_integers_all_the_same(
    change: Callable[[Tensor, Rows], None],
) -> None:
    given, rows = problem()
    weight = given.weight
    change(weight, rows)
    scale = (weight.abs().amax(2, keepdim=True) / 3.5).clamp(min=1e-6)
    loss = cheaper_loss(rows, Identity(), 256, 400)
    integers = learn_rounding(of(weight, scale), loss, SCHEDULE)
    assert ((integers - (weight / scale).clamp(-4, 3)).abs() <= 1).all()


def test_large_layers_are_done_block_by_block_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounding, rows = problem(groups=2, out=6)
    results = []
    for block in (1 << 18, 32):
        monkeypatch.setattr("fxquant.rounding.methods.adaround._BLOCK", block)
        loss = cheaper_loss(rows, Clamp(), 256, 400)
        results.append(learn_rounding(rounding, loss, SCHEDULE))
    assert torch.equal(*results)


def test_a_step_is_adams() -> None:
    rounding, rows = problem()
    # Else W̃ = W at the first step, and the gradient is rounding noise.
    rows = Rows(rows.inputs, rows.outputs, rows.targets + torch.randn_like(rows.targets))
    loss = cheaper_loss(rows, Identity(), 1000, 1000)
    optimizer = RoundingOptimizer(rounding, loss, Schedule(3, 0.1, 0.0, 1.0, (8.0, 2.0)))
    v = optimizer.v.clone().requires_grad_()
    torchs = torch.optim.Adam([v], lr=0.1)
    shadow = RoundingOptimizer(rounding, loss, SCHEDULE)
    for _ in range(3):
        shadow.v.copy_(v.detach())
        v.grad = shadow.gradient(0, 0)
        torchs.step()
    optimizer.run()
    torch.testing.assert_close(optimizer.v, v.detach(), rtol=1e-4, atol=1e-5)
