"""Several ranks learn what one process with all rows learns."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from fxquant import Reconstruction
from fxquant.numerics.affine import Affine, Grid
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.methods.activations import Activation, Clamp, Identity
from fxquant.rounding.methods.learners import learn
from fxquant.rounding.methods.losses import Rows
from fxquant.rounding.methods.shares import ALL, Share
from fxquant.streaming.distributed import from_all_ranks, sum_over_ranks
from tests.processes import ranks

Method = Literal["adaround", "adaquant", "gram"]
SHAPES = {"dense": (1, 7, 12), "depthwise": (6, 1, 9), "few outputs": (1, 2, 12)}


def make(shape: tuple[int, int, int], *, per_channel: bool = True) -> tuple[Rounding, Rows, Rows]:
    torch.manual_seed(0)
    groups, outputs, inputs = shape
    weight = torch.randn(shape)
    high = weight.abs().amax(2, keepdim=True) if per_channel else weight.abs().max()
    affine = Affine.over(-high, high, Grid.of(4, signed=True), symmetric=True)
    affine = affine.map(lambda each: each.expand(groups, outputs, 1))  # as `Rounding.of` does it
    x = torch.bmm(torch.randn(groups, 180, 4), torch.randn(groups, 4, inputs)).relu()
    y = torch.bmm(x, weight.mT)
    seen = x + 0.02 * torch.randn_like(x)
    rows = Rows(seen, torch.bmm(seen, weight.mT), y.relu())
    return Rounding(weight, affine, per_channel), part(rows, 0, 120), part(rows, 120, 180)


def part(rows: Rows, start: int, end: int) -> Rows:
    return Rows(*(each[:, start:end] for each in (rows.inputs, rows.outputs, rows.targets)))


def learned(
    shape: tuple[int, int, int],
    per_channel: bool,
    method: Method,
    activation: Activation,
    number: int,
    rank: int,
) -> tuple[Tensor, float]:
    """Return integers and error of a rank that has some of the rows, the first twice as many."""
    rounding, rows, judged = make(shape, per_channel=per_channel)
    ends = [0, *(len(rows) * (each + 2) // (number + 1) for each in range(number))]
    own = part(rows, ends[rank], ends[rank + 1])
    every = len(judged) // number
    options = Reconstruction(method=method, steps=300)
    judges = part(judged, rank * every, (rank + 1) * every)
    found = learn(rounding, own, judges, activation, options)
    error, signal = found.error(rounding, judged, activation).tolist()
    return found.integers, error / signal


@pytest.mark.parametrize("activation", [Clamp(), Identity()], ids=["relu", "linear"])
@pytest.mark.parametrize("method", ["adaround", "adaquant", "gram"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
def test_ranks_learn_what_one_process_learns(
    tmp_path: Path,
    method: Method,
    shape: tuple[int, int, int],
    per_channel: bool,
    activation: Activation,
) -> None:
    one = partial(learned, shape, per_channel, method, activation)
    _, alone = one(1, 0)
    found: list[Any] = ranks(3, partial(one, 3), tmp_path)
    assert all(torch.equal(integers, found[0][0]) for integers, _ in found)
    assert all(each == found[0][1] for _, each in found)
    # A step sees all rows: their order does not count. What AdaQuant rounds anew in each step may
    # tip over where sums are taken in another order.
    assert found[0][1] < (1.3 if method == "adaquant" else 1.05) * alone


def test_shares_are_all_outputs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxquant.rounding.methods.shares.num_ranks", lambda: 3)
    for shape in SHAPES.values():
        rounding, _, _ = make(shape)
        seen = torch.zeros(shape)
        for rank in range(3):
            monkeypatch.setattr("fxquant.rounding.methods.shares.rank", lambda own=rank: own)
            share = Share.of_this_rank(rounding)
            assert share.of_rounding(rounding).weight.numel() > 0
            seen[share.groups, share.outputs] += 1
        assert torch.equal(seen, torch.full(shape, 3.0 if share == ALL else 1.0))
        assert (share == ALL) == (shape == SHAPES["few outputs"])


def interleaved(axis: int, dtype: torch.dtype, rank: int) -> Tensor:
    first, number = (0, 4) if rank == 0 else (10, 2)
    tensor = torch.arange(first, first + number, dtype=dtype).expand(3, number)  # with gaps
    return from_all_ranks(tensor.T if axis == 0 else tensor, axis)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_all_ranks_take_turns(tmp_path: Path, axis: int, dtype: torch.dtype) -> None:
    for found in ranks(2, partial(interleaved, axis, dtype), tmp_path):
        assert found.dtype == dtype
        for each in found.unbind(1 - axis):
            assert each.tolist() == [0, 10, 1, 2, 11, 3]


def uneven(rank: int) -> Tensor:
    return from_all_ranks(torch.zeros(2, 3 + rank), 0)


def test_ranks_whose_slices_differ_are_out_of_step(tmp_path: Path) -> None:
    for found in ranks(2, uneven, tmp_path):
        assert "out of step" in found


def expanded(rank: int) -> None:
    sum_over_ranks(torch.zeros(1).expand(64))


def test_what_gloo_would_read_past_its_end_is_refused(tmp_path: Path) -> None:
    for found in ranks(2, expanded, tmp_path):
        assert "with strides (0,)" in found
