"""What goes as batches, and what does not; `tests/test_mistakes.py` has what the errors say."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fxquant import CalibrationError
from fxquant.calling.loaders import is_empty, no_batches, require_batches

X = torch.zeros(4, 3)
MODEL = nn.Sequential(nn.Linear(3, 2))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield X


class Indexed:
    """A sequence of the old kind, without `__iter__`."""

    def __getitem__(self, number: int) -> Any:
        return [X, X][number]


@pytest.mark.parametrize(
    "batches",
    [
        [X],
        (X,),
        iter([X]),
        (X for _ in range(2)),
        Stream(),
        Indexed(),
        DataLoader(TensorDataset(X)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_gives_batches_one_by_one_goes(batches: Any) -> None:
    require_batches(batches, "calibrate", MODEL)


def test_a_generator_is_refused_only_when_it_was_gone_through() -> None:
    batches = (X for _ in range(2))
    next(batches)
    require_batches(batches, "calibrate", MODEL)
    list(batches)
    with pytest.raises(CalibrationError, match="a generator that has been gone through"):
        require_batches(batches, "calibrate", MODEL)


def test_a_dataset_of_batches_is_told_the_way() -> None:
    with pytest.raises(CalibrationError, match=r"or batch_size=None, if its items are batches$"):
        require_batches(TensorDataset(X), "calibrate", MODEL)


def test_a_batch_is_empty_if_all_its_tensors_are() -> None:
    assert is_empty((X[:0], X[:0]))
    assert not is_empty((X[:0], X))
    assert not is_empty("text")


def test_empty_batches_tell_what_made_them_so() -> None:
    loader = DataLoader(TensorDataset(X), batch_size=5, drop_last=True)
    assert "batch_size=5 and drop_last=True" in str(no_batches(loader, "report"))
    assert str(no_batches([], "report")) == "report: `batches` is empty: give at least one batch"


@pytest.mark.parametrize(
    ("model", "rank"),
    [(MODEL, 2), (nn.Sequential(nn.Conv1d(3, 8, 3)), 3), (nn.Sequential(nn.Conv2d(3, 8, 3)), 4)],
    ids=["linear", "sequences", "images"],
)
def test_a_tensor_goes_if_its_rows_are_batches(model: nn.Module, rank: int) -> None:
    require_batches(torch.zeros([2] * (rank + 1)), "calibrate", model)
    with pytest.raises(CalibrationError, match="and its rows would be the batches"):
        require_batches(torch.zeros([2] * rank), "calibrate", model)
    require_batches(torch.zeros([2] * rank), "calibrate", model, forward=lambda m, x: m(x[None]))
