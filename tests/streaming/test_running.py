"""Running a model on what it is called with, node by node where asked."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import CalibrationError
from fxquant.streaming.running import interpreted


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Any = None) -> Any:
        return self.fc(x if y is None else x + y)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.fc((self.fc(x) - self.fc(y) - 1e9).log())


def test_a_graph_that_is_interpreted_takes_the_arguments_that_it_took() -> None:
    gm = fx.symbolic_trace(Two(), {"y": None})
    before = inspect.signature(gm.forward)
    with interpreted(gm, fx.Interpreter(gm)):
        assert inspect.signature(gm.forward) == before
    assert inspect.signature(gm.forward) == before


def test_the_call_that_makes_nan_is_named_where_there_are_several_inputs() -> None:
    prepared, batch = fxquant.prepare(Several()), (torch.ones(2, 4), torch.ones(2, 4), "label")
    with pytest.raises(CalibrationError, match="NaN or infinity first in the result of 'log'"):
        fxquant.calibrate(prepared, [batch])
