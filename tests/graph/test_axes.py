"""Where axes come from: what moves them is followed back, as far as the graph tells."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fxquant.graph.axes import axis_before
from fxquant.graph.operations import operation_of
from tests.helpers import last_call, outputs

MOVES: list[Callable[[Any], Any]] = [
    lambda x: x.flatten(0, 1),
    lambda x: x.flatten(1, 2),
    lambda x: x.flatten(2),
    lambda x: torch.flatten(x, start_dim=0, end_dim=-2),
    lambda x: x.transpose(1, 2),
    lambda x: torch.transpose(x, -1, 0),
    lambda x: x.swapaxes(0, 3),
    lambda x: x.permute(0, 3, 1, 2),
    lambda x: torch.permute(x, (0, -1, 1, -2)),
    lambda x: x.permute([3, 2, 1, 0]),
    lambda x: x.contiguous(),
]


@pytest.mark.parametrize("move", MOVES)
def test_an_axis_is_found_where_it_came_from(move: Callable[[Any], Any]) -> None:
    gm, call = last_call(lambda m, x: move(x))
    shape = (2, 3, 5, 7)
    moved = outputs(gm, torch.zeros(shape)).shape
    found = [axis_before(operation_of(gm, call), axis, 4) for axis in range(len(moved))]
    assert found == [shape.index(size) if size in shape else None for size in moved]


def test_the_rank_must_be_known_where_axes_are_counted_from_the_end() -> None:
    gm, call = last_call(lambda m, x: x.transpose(1, -1))
    assert axis_before(operation_of(gm, call), 1, None) is None
    assert axis_before(operation_of(gm, call), 1, 3) == 2


@pytest.mark.parametrize("other", [lambda x: x.exp(), lambda x: x.reshape(6, -1), lambda x: x.mT])
def test_no_axis_is_followed_through_another_call(other: Callable[[Any], Any]) -> None:
    gm, call = last_call(lambda m, x: other(x))
    assert axis_before(operation_of(gm, call), 1, 4) is None
