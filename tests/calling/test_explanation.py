"""Errors of the caller's forward, said again: what goes through, and what stays of them."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant import CalibrationError, CaptureError
from fxquant.calling.explanation import explained
from tests.helpers import Net

X = torch.zeros(2, 4)


class OwnError(Exception):
    """Of the caller's."""


def raising(error: BaseException) -> nn.Module:
    def fail(m: Any, x: Any) -> Any:
        raise error

    return Net(fail)


def run(model: nn.Module, x: Any = X) -> None:
    with explained("batch 3", x):
        model(x)


def test_an_error_keeps_its_type_its_text_and_its_place_in_the_chain() -> None:
    own = OwnError("too small\nby far")
    with pytest.raises(CalibrationError) as raised:
        run(raising(own))
    assert raised.value.__cause__ is own
    assert str(raised.value).startswith(
        "batch 3 (float32 2×4): the model's own forward (Net; test_"
    )
    assert str(raised.value).endswith(") raised OwnError: too small")


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        CalibrationError("of our own"),
        SystemExit(1),
    ],
    ids=repr,
)
def test_what_is_no_fault_of_the_batch_comes_out_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        run(raising(error))
    assert raised.value is error
    assert error.__cause__ is None


def test_what_tracing_took_for_granted_is_told_with_the_batch_once() -> None:
    error = CaptureError("traced with x.shape[0] == 4")
    with pytest.raises(CaptureError), explained("batch 3", X):
        run(raising(error))
    assert str(error) == "batch 3 (float32 2×4): traced with x.shape[0] == 4"


def test_a_long_first_line_is_cut() -> None:
    with pytest.raises(CalibrationError) as raised:
        run(raising(ValueError("a" * 500)))
    assert str(raised.value).endswith(f"ValueError: {'a' * 200}…")


def test_a_stop_of_iteration_is_an_error_like_any() -> None:
    with pytest.raises(CalibrationError, match=r"raised StopIteration$"):
        run(raising(StopIteration()))


def test_what_others_print_appears_and_listings_of_graphs_do_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def say(m: Any, x: Any) -> Any:
        print("mine", file=sys.stderr)
        return graph(x)

    graph = fxquant.trace(Net(lambda m, x: torch.flatten(m.fc(x), 5), fc=nn.Linear(4, 4)))
    with pytest.raises(CalibrationError, match="flatten raised"):
        run(Net(say, graph=graph))
    assert capfd.readouterr().err == "mine\n"
