"""A float model takes the graphs of what was made of it."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fxquant
from fxquant import CalibrationError, Recipe
from fxquant.capture.naming import find_regions
from fxquant.reporting.float_form import first_of, graphs_of_both
from tests.detectors import detector, images
from tests.helpers import Net, graph_text


def names(model: nn.Module) -> dict[str, list[str]]:
    return {
        path: [each.name for each in gm.graph.nodes] for path, gm in find_regions(model).items()
    }


@pytest.mark.parametrize("regions", [None, ["backbone", "head.tower"]], ids=["all", "chosen"])
def test_regions_are_those_of_the_other(regions: list[str] | None) -> None:
    model = detector()
    prepared = fxquant.prepare(model, Recipe.minmax(activation_bits=None), regions=regions)
    form, _ = graphs_of_both(model, prepared, images(), None, "test")
    assert names(form) == names(prepared)


def test_what_was_left_whole_is_left_whole() -> None:
    part = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = Net(lambda m, x: m.fc(m.part(x)), part=part, fc=nn.Linear(4, 2))
    prepared = fxquant.prepare(model, leaf_modules=["part"])
    form, _ = graphs_of_both(model, prepared, torch.randn(2, 4), None, "test")
    assert "part = self.part(x)" in graph_text(form)
    assert "fc = self.fc(part)" in graph_text(form)


def test_the_first_batch_is_not_lost() -> None:
    def numbers() -> Iterator[int]:
        yield from (1, 2, 3)

    model = nn.Linear(1, 1)
    first, remaining = first_of(numbers(), model, None, "test")
    assert (first, list(remaining)) == (1, [1, 2, 3])
    with pytest.raises(CalibrationError, match="test: `batches` is empty: give at least one"):
        first_of([], model, None, "test")
