"""Integers by the Gram matrix of the inputs: no single one of them could be better."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fxquant.numerics.affine import Affine, Grid
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.methods.gram import GramProblem, round_on_gram, rounded_at_scale

SWEEPS = 50


def problem(
    groups: int = 1,
    outputs: int = 3,
    inputs: int = 6,
    bits: int = 3,
    seed: int = 0,
    per_channel: bool = True,
) -> GramProblem:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(groups, 64, inputs, generator=generator)
    rows = rows + 2 * rows[..., :1]  # inputs that go together, as channels of images do
    weight = torch.randn(groups, outputs, inputs, generator=generator)
    grid = Grid.of(bits, signed=True)
    largest = weight.abs().amax(dim=2, keepdim=True)
    scale = (largest if per_channel else largest.amax().expand_as(largest)) / -grid.quant_min
    cross = 0.1 * torch.randn(groups, outputs, inputs, generator=generator)
    rounding = Rounding(weight, Affine(scale, torch.zeros_like(scale), grid), per_channel)
    return GramProblem(rounding, rows.mT @ rows / 64, cross)


def loss(of: GramProblem, integers: Tensor, scale: Tensor, damping: float = 0.01) -> Tensor:
    """Return Eq. (2) of each output, (groups, out), with the damping that rounding works with.

    A problem in order is damped already.
    """
    mean = of.gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    gram = of.gram + damping * mean * torch.eye(of.gram.shape[1])
    difference = integers * scale - of.rounding.weight
    return (difference @ gram * difference + 2 * of.cross * difference).sum(dim=2)


def loss_of_nearest(of: GramProblem) -> Tensor:
    return loss(of, of.rounding.nearest(), of.rounding.affine.scale)


def nearest(of: GramProblem, scale: Tensor) -> Tensor:
    return replace(of.rounding.affine, scale=scale).quantize(of.rounding.weight)


@pytest.mark.parametrize(("groups", "outputs"), [(1, 3), (4, 3), (4, 1)])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_no_change_of_one_integer_is_better(groups: int, outputs: int, bits: int) -> None:
    given = problem(groups=groups, outputs=outputs, bits=bits, inputs=9)
    grid, scale = given.rounding.affine.grid, given.rounding.affine.scale
    of, _ = given.ordered()
    integers = rounded_at_scale(of, scale, SWEEPS).integers
    best = loss(of, integers, scale, damping=0)
    assert torch.equal(integers, integers.round())
    assert integers.min() >= grid.quant_min
    assert integers.max() <= grid.quant_max
    for place, step in itertools.product(range(integers.shape[2]), (-1, 1)):
        other = integers.clone()
        other[:, :, place] = (other[:, :, place] + step).clamp(grid.quant_min, grid.quant_max)
        assert (loss(of, other, scale, damping=0) >= best - 1e-4).all()


def test_no_other_scale_is_better_for_the_integers() -> None:
    of = problem(groups=2, bits=2)
    integers, scale = round_on_gram(of, SWEEPS)
    for factor in (0.99, 1.01):
        assert (loss(of, integers, scale * factor) > loss(of, integers, scale)).all()


def test_is_near_the_best_of_all_integers() -> None:
    excess, saved = 0.0, 0.0
    for seed in range(10):
        of = problem(outputs=1, inputs=4, bits=2, seed=seed)
        start = of.rounding.affine.scale
        everything = torch.tensor(list(itertools.product(range(-2, 2), repeat=4)))
        errors = torch.stack([loss(of, each[None, None], start) for each in everything]).flatten()
        found = loss(of, *round_on_gram(of, SWEEPS)).item()
        excess += found - errors.min().item()
        saved += loss_of_nearest(of).item() - found
    assert excess < 0.1 * saved


def test_is_far_better_than_rounding_to_nearest_where_inputs_go_together() -> None:
    of = problem(outputs=16, inputs=300, bits=4)
    assert loss(of, *round_on_gram(of, 8)).sum() < 0.5 * loss_of_nearest(of).sum()


def test_outputs_that_share_a_scale_go_on_sharing_it() -> None:
    of = problem(outputs=16, per_channel=False)
    integers, scale = round_on_gram(of, 8)
    assert scale.shape == (1, 16, 1)
    assert (scale == scale[0, 0]).all()
    assert loss(of, integers, scale).sum() < loss_of_nearest(of).sum()


def test_inputs_that_never_vary_round_to_nearest() -> None:
    of = problem()
    of.gram[:, 2], of.gram[:, :, 2], of.cross[:, :, 2] = 0, 0, 0
    integers, scale = round_on_gram(of, SWEEPS)
    assert torch.equal(integers[..., 2], nearest(of, scale)[..., 2])
    of.gram.zero_()
    of.cross.zero_()
    integers, scale = round_on_gram(of, SWEEPS)
    assert torch.equal(integers, nearest(of, scale))


def test_integers_may_end_further_than_one_from_the_weight() -> None:
    of = problem(outputs=16, inputs=40, bits=8)
    integers, scale = round_on_gram(of, 8)
    assert (integers - of.rounding.weight / scale).abs().max() > 1
