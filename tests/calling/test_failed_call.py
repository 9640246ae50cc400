"""What a traceback tells of a call: the innermost module, its name, what it was given."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.calling.failed_call import FailedCall, failed_call
from tests.helpers import Net

X = torch.zeros(2, 4)


class Looping(nn.Module):
    """Stays in Python; its parts are regions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.ReLU())

    def forward(self, xs: Any) -> Any:
        return [self.body(x) for x in xs]


def failing(call: Callable[[], object], batch: Any = X) -> FailedCall:
    """Return what is known of the call that fails."""
    try:
        call()
    except Exception as error:
        return failed_call(error, batch, "batch 0")
    pytest.fail("it raised nothing")


def test_the_innermost_module_has_its_name_in_the_model() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Linear(4, 2))
    failed = failing(lambda: model(X))
    assert (failed.path, failed.model, failed.module) == ("1", model, model[1])
    assert failed.what() == "1 (Linear 4→2)"
    assert [each.shape for each in failed.inputs] == [(2, 3)]


def test_a_function_that_the_callers_code_calls_is_told_with_its_line() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return F.linear(x, torch.zeros(2, 5))

    failed = failing(lambda: nn.Sequential(Own())(X))
    assert failed.what().startswith("0 (Own; test_failed_call.py:")
    assert failed.what().endswith(": return F.linear(x, torch.zeros(2, 5)))")
    assert not failed.is_deliberate


def test_what_the_callers_code_raises_is_told_with_its_place_alone() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Any:
            raise LookupError("none")

    failed = failing(lambda: nn.Sequential(Own())(X))
    assert failed.is_deliberate
    assert failed.what().startswith("0 (Own; test_failed_call.py:")
    assert "raise" not in failed.what()


def test_of_a_graph_the_node_is_named_and_its_observers_run_no_second_time() -> None:
    model = Net(lambda m, x: torch.flatten(m.fc(x), 1).reshape(3, 3), fc=nn.Linear(4, 4))
    prepared = fxquant.prepare(model, verify=False)
    failed = failing(lambda: prepared(X))
    assert failed.what() == "reshape"
    assert failed.module is None
    assert prepared.get_submodule("observers.x").num_batches == 1


def test_a_node_that_an_interpreter_runs_is_named() -> None:
    gm = fx.symbolic_trace(Net(lambda m, x: torch.flatten(m.fc(x), 5), fc=nn.Linear(4, 4)))
    assert failing(lambda: fx.Interpreter(gm).run(X)).what() == "flatten"
    assert failing(lambda: fx.Interpreter(gm).run(X[:, :3])).what() == "fc (Linear 4→4)"


def test_a_layer_in_a_region_has_the_name_that_the_caller_knows() -> None:
    prepared = fxquant.prepare(Looping())
    assert failing(lambda: prepared([X[:, :3]])).path == "body.0.0"


def test_a_hook_that_runs_another_model_is_no_part_of_the_name() -> None:
    prepared = fxquant.prepare(nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))))
    failed = failing(lambda: prepared(X[:, :3]))  # the caller's model comes first, to compare with
    assert (failed.path, type(failed.module)) == ("0.0", nn.Linear)


def test_without_a_module_there_is_the_line_alone() -> None:
    empty: dict[str, Tensor] = {}
    failed = failing(lambda: empty["x"])
    assert failed.what().startswith("the call (test_failed_call.py:")
    assert failed.models == ()
