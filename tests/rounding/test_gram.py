"""Integers by the Gram matrix of the inputs: no single one of them could be better."""

import itertools

import pytest
import torch
from torch import Tensor

from fxquant.rounding.gram import GramProblem, round_at_scale, round_on_gram

SWEEPS = 50


def problem(
    groups: int = 1,
    outputs: int = 3,
    inputs: int = 6,
    bits: int = 3,
    seed: int = 0,
    per_channel: bool = True,
) -> tuple[GramProblem, Tensor]:
    """Return a problem, and the scale to start with."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(groups, 64, inputs, generator=generator)
    rows = rows + 2 * rows[..., :1]  # inputs that go together, as channels of images do
    weight = torch.randn(groups, outputs, inputs, generator=generator)
    half = 2.0 ** (bits - 1)
    largest = weight.abs().amax(dim=2, keepdim=True)
    scale = (largest if per_channel else largest.amax().expand_as(largest)) / half
    cross = 0.1 * torch.randn(groups, outputs, inputs, generator=generator)
    bounds = torch.tensor(-half), torch.tensor(half - 1)
    return GramProblem(weight, *bounds, rows.mT @ rows / 64, cross, per_channel), scale


def loss(of: GramProblem, integers: Tensor, scale: Tensor) -> Tensor:
    """Return Eq. (2) of each output, (groups, out), with the damping that rounding works with."""
    mean = of.gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    gram = of.gram + 0.01 * mean * torch.eye(of.gram.shape[1])
    difference = integers * scale - of.weight
    return (difference @ gram * difference + 2 * of.cross * difference).sum(dim=2)


def nearest(of: GramProblem, scale: Tensor) -> Tensor:
    return torch.clamp((of.weight / scale).round(), of.low, of.high)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_no_change_of_one_integer_is_better(groups: int, bits: int) -> None:
    given, scale = problem(groups=groups, bits=bits)
    of, _ = given.ordered()
    integers = round_at_scale(of, scale, SWEEPS)
    best = of.loss(integers, scale)
    assert torch.equal(integers, integers.round())
    assert integers.min() >= given.low
    assert integers.max() <= given.high
    for place, step in itertools.product(range(integers.shape[2]), (-1, 1)):
        other = integers.clone()
        other[:, :, place] = (other[:, :, place] + step).clamp(given.low, given.high)
        assert (of.loss(other, scale) >= best - 1e-4).all()


def test_no_other_scale_is_better_for_the_integers() -> None:
    of, start = problem(groups=2, bits=2)
    integers, scale = round_on_gram(of, start, SWEEPS)
    for factor in (0.99, 1.01):
        assert (loss(of, integers, scale * factor) > loss(of, integers, scale)).all()


def test_is_near_the_best_of_all_integers() -> None:
    excess, saved = 0.0, 0.0
    for seed in range(10):
        of, start = problem(outputs=1, inputs=4, bits=2, seed=seed)
        everything = torch.tensor(list(itertools.product(range(-2, 2), repeat=4)))
        errors = torch.stack([loss(of, each[None, None], start) for each in everything]).flatten()
        found = loss(of, *round_on_gram(of, start, SWEEPS)).item()
        excess += found - errors.min().item()
        saved += loss(of, nearest(of, start), start).item() - found
    assert excess < 0.1 * saved


def test_is_far_better_than_rounding_to_nearest_where_inputs_go_together() -> None:
    of, start = problem(outputs=16, inputs=300, bits=4)
    found, before = loss(of, *round_on_gram(of, start, 8)), loss(of, nearest(of, start), start)
    assert found.sum() < 0.5 * before.sum()


def test_outputs_that_share_a_scale_go_on_sharing_it() -> None:
    of, start = problem(outputs=16, per_channel=False)
    integers, scale = round_on_gram(of, start, 8)
    assert scale.shape == start.shape
    assert (scale == scale[0, 0]).all()
    assert loss(of, integers, scale).sum() < loss(of, nearest(of, start), start).sum()


def test_inputs_that_never_vary_round_to_nearest() -> None:
    of, start = problem()
    of.gram[:, 2], of.gram[:, :, 2], of.cross[:, :, 2] = 0, 0, 0
    integers, scale = round_on_gram(of, start, SWEEPS)
    assert torch.equal(integers[..., 2], nearest(of, scale)[..., 2])
    of.gram.zero_()
    of.cross.zero_()
    integers, scale = round_on_gram(of, start, SWEEPS)
    assert torch.equal(integers, nearest(of, scale))


def test_integers_may_end_further_than_one_from_the_weight() -> None:
    of, start = problem(outputs=16, inputs=40, bits=8)
    integers, scale = round_on_gram(of, start, 8)
    assert (integers - of.weight / scale).abs().max() > 1
