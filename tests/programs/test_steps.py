"""Steps find their values, and refuse what they were not made for."""

from typing import Any, NamedTuple

import pytest
import torch

from fxquant.programs.steps import (
    Call,
    Copy,
    Own,
    RequireNumbers,
    Slot,
    Unexpected,
    filled,
    mapped,
    method,
)


class Pair(NamedTuple):
    first: Any
    second: Any


def test_slots_are_filled_in_containers_of_all_kinds() -> None:
    values = [1, 2]
    nested = {"a": [Slot(0), 5], "b": (Slot(1), slice(Slot(0), None)), "c": Pair(Slot(1), "x")}
    expected = {"a": [1, 5], "b": (2, slice(1, None)), "c": Pair(2, "x")}
    assert filled(nested, values) == expected


def test_a_result_that_lies_in_memory_is_copied() -> None:
    memory = torch.zeros(2)
    own, value = filled((Own(memory), Own(Slot(0))), [memory])
    memory.fill_(1)
    assert own.tolist() == value.tolist() == [0, 0]


def test_arguments_are_mapped_with_their_containers() -> None:
    assert mapped([1, (2, {"x": 3})], lambda each: each + 1, (int,)) == [2, (3, {"x": 4})]


@pytest.mark.parametrize("nested", [False, True])
def test_a_call_keeps_its_result(nested: bool) -> None:
    values: list[Any] = [torch.ones(2), None]
    parts: Any = [[Slot(0), Slot(0)]] if nested else [Slot(0), Slot(0)]
    Call("call", torch.cat if nested else torch.add, parts, {}, Slot(1))(values)
    assert values[1].sum() == 4


def test_a_method_is_called_on_its_first_argument() -> None:
    assert method("sum")(torch.ones(3), dim=0) == 3


def test_nan_and_other_sizes_are_unexpected() -> None:
    step = RequireNumbers(Slot(0), torch.ones(2))
    step([torch.ones(2)])
    overlapping = torch.ones(1).expand(2)
    for wrong in (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 1e20]), overlapping):
        with pytest.raises(Unexpected):
            step([wrong])
    with pytest.raises(Unexpected):
        Copy(Slot(0), torch.zeros(3))([torch.ones(1)])
