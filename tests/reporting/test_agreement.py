"""How often two models decide the same."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fxquant import CalibrationError
from fxquant.reporting.agreement import Agreement


class Table(nn.Module):
    """Return the rows of a table that the input names."""

    def __init__(self, *decisions: int, wrap: bool = False) -> None:
        super().__init__()
        self.decisions, self.wrap = torch.tensor(decisions), wrap

    def forward(self, x: Tensor) -> object:
        y = nn.functional.one_hot(self.decisions[x], 4).float()
        return {"out": y} if self.wrap else y


INPUTS = [(torch.tensor([0, 1]),), (torch.tensor([2, 3]),)]


@pytest.mark.parametrize("wrap", [False, True])
def test_counts_the_samples_that_get_the_same_largest_output(wrap: bool) -> None:
    agreement = Agreement(Table(0, 1, 2, 3, wrap=wrap), INPUTS, "test")
    assert agreement(Table(0, 1, 2, 3)) == 100
    assert agreement(Table(0, 1, 2, 0)) == 75
    assert agreement(Table(1, 2, 3, 0)) == 0


def test_counts_every_position_of_a_segmenter() -> None:
    x = torch.randn(2, 3, 4, 4)
    agreement = Agreement(nn.Identity(), [(x,)], "test")
    flip = nn.Hardtanh(-1e-9, 1e-9)
    share = (x.argmax(1) == flip(x).argmax(1)).double().mean().item() * 100
    assert agreement(flip) == pytest.approx(share)


def test_leaves_the_model_in_its_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)).train()
    agreement = Agreement(model, [(torch.randn(8, 3),)], "test")
    assert model.training
    assert agreement(model) == 100


@dataclass
class Result:
    loss: Tensor
    logits: Tensor


class Judged(Table):
    def forward(self, x: Tensor) -> object:
        logits = super().forward(x)
        assert isinstance(logits, Tensor)
        return Result(logits.sum(), logits)


def test_looks_into_results_of_any_class_and_past_a_loss() -> None:
    assert Agreement(Judged(0, 1, 2, 3), INPUTS, "test")(Judged(0, 1, 2, 0)) == 75


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        (nn.Flatten(0), r"a tensor \(6,\)"),
        (nn.Unflatten(1, (1, 3)), r"a tensor \(2, 1, 3\)"),
    ],
)
def test_says_where_there_is_no_largest_output(model: nn.Module, shown: str) -> None:
    with pytest.raises(CalibrationError, match=f"search: the model returns {shown}"):
        Agreement(model, [(torch.randn(2, 3),)], "search")
