"""A judge gives a model's points and dB beside the float one's."""

import math

import pytest
import torch
from torch import Tensor, nn

from fxquant import CalibrationError
from fxquant.analysis.judge import Judge, Score, margin_of
from fxquant.numerics.decibels import sqnr


class Shifted(nn.Module):
    """Adds a number to the first of three logits."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift * torch.tensor([1.0, 0.0, 0.0])


def test_points_are_decisions_that_stay_and_decibels_are_of_all_outputs() -> None:
    batches = [torch.eye(3), torch.tensor([[0.0, 2.0, 0.0]])]
    judge = Judge(Shifted(0.0), batches, None, None)
    assert judge.float_score == Score(100.0, math.inf)
    assert judge.num_decisions == 4
    found, exact = judge(Shifted(1.5)), torch.cat(batches)
    assert found.points == 50.0
    assert found.decibels == pytest.approx(sqnr(exact, Shifted(1.5)(exact)))


def test_a_metric_takes_the_place_of_decisions() -> None:
    judge = Judge(Shifted(0.0), [torch.eye(3)], lambda model: float(model(torch.ones(3))[0]), None)
    assert (judge.is_metric, judge.num_decisions) == (True, None)
    assert judge(Shifted(2.0)).points == 3.0


class Rows(nn.Module):
    """Gives as many rows as are above a threshold."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x[x[:, 0] > self.least]]


def test_outputs_of_other_shapes_have_no_decibels_and_lists_no_decisions() -> None:
    judge = Judge(Rows(0.0), [torch.tensor([[1.0, 2.0], [3.0, 4.0]])], None, None)
    assert judge.float_score.points is None
    assert judge(Rows(0.0)).decibels == math.inf
    assert judge(Rows(2.0)).decibels is None


def test_what_cannot_be_compared_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="returns Tensor without tensors that can be comp"):
        Judge(nn.Identity(), [torch.zeros(3, dtype=torch.int64)], None, None)


def test_the_margin_of_all_or_nothing_is_not_zero() -> None:
    assert margin_of(50.0, 100) == 5.0
    assert 0 < margin_of(100.0, 100) < 1
