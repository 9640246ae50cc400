"""Example inputs run once: they tell shapes, and whether folding kept what each graph computes."""

import logging
import re
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import CalibrationError, PassError
from fxquant.calling.examples import Example, check_folding, example_call, run_examples
from fxquant.capture.example import Call
from fxquant.capture.naming import find_regions
from fxquant.capture.partition import capture
from tests.helpers import Net, node


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 1.0, shift: float = 0.0) -> Any:
        return self.fc(x) * scale + shift


class Twice(nn.Module):
    """Calls `part` in a loop that cannot be traced, and writes over what it gave and got."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.unused = Scaled(), Scaled()

    def forward(self, xs: Any, y: Any = None) -> Any:
        results = []
        for x in xs:
            given = x + 0
            result = self.part(given, shift=3.0)
            results.append(result.clone())
            given.zero_(), result.zero_()
        return results if y is None else [*results, self.part(y)]


class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x.add_(1).mul_(2))


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def captured() -> nn.Module:
    return capture(Twice()).model


def test_what_the_model_raises_on_the_example_is_the_cause_of_the_error() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 3)
    with pytest.raises(RuntimeError) as own:
        model(x)
    with pytest.raises(CalibrationError, match=r"^example_inputs \(float32 2×3\): 0 ") as found:
        fxquant.prepare(model, example_inputs=x)
    assert str(found.value.__cause__) == str(own.value)


def examples_of(model: nn.Module, inputs: Any) -> dict[str, Example]:
    """Return the examples by the names of their graphs."""
    names = {gm: name for name, gm in find_regions(model).items()}
    return {
        names[example.gm]: example for example in run_examples(model, example_call(model, inputs))
    }


@pytest.mark.parametrize(
    "inputs", [X, (X,), [X], {"x": X}], ids=["tensor", "tuple", "list", "dict"]
)
def test_one_graph_takes_a_tensor_arguments_or_keywords(inputs: Any) -> None:
    gm = fxquant.trace(Scaled())
    (example,) = examples_of(gm, inputs).values()
    assert example.gm is gm
    torch.testing.assert_close(example.output, gm(X))


@pytest.mark.parametrize(
    "inputs", [([X, X],), {"xs": [X, X]}, ([X, X], X)], ids=["tuple", "dict", "two"]
)
def test_a_model_with_regions_takes_a_list_as_an_argument(inputs: Any) -> None:
    model = captured()
    examples = examples_of(model, inputs)
    assert list(examples) == ["part"]  # the other one is not called


def test_the_first_call_of_a_region_is_kept_as_it_was_made() -> None:
    model = captured()
    example = examples_of(model, ([X, -X],))["part"]
    assert torch.equal(example.args[0], X)
    assert example.kwargs == {"shift": 3.0}
    assert example.output.abs().sum() > 0  # the code around writes zeros over it


def test_keywords_that_leave_a_default_out_reach_their_arguments() -> None:
    model = captured()
    example = examples_of(model, ([X],))["part"]
    torch.testing.assert_close(example.output, model.part.fc(X) + 3.0)  # type: ignore[union-attr, operator]
    check_folding([example])


def test_every_node_of_a_graph_that_is_called_knows_its_shape() -> None:
    model = captured()
    run_examples(model, example_call(model, ([X],)))
    part, unused = find_regions(model).values()
    assert node(part, "fc").meta["tensor_meta"].shape == (2, 4)
    assert not any("tensor_meta" in each.meta for each in unused.graph.nodes)


def test_the_model_is_left_without_hooks_and_with_its_own_forward() -> None:
    model = captured()
    run_examples(model, example_call(model, ([X],)))
    with pytest.raises(RuntimeError):
        run_examples(model, Call(([torch.ones(2, 5)],)))
    for module in model.modules():
        assert not module._forward_hooks
        assert "forward" not in vars(module)


def test_results_that_change_are_an_error() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 4)))
    examples = run_examples(gm, example_call(gm, X))
    check_folding(examples)
    with torch.no_grad():
        gm.get_parameter("0.weight").mul_(1.1)
        gm.get_parameter("0.bias").mul_(1.1)
    with pytest.raises(PassError) as caught:
        check_folding(examples)
    assert str(caught.value) == (
        "folding changed the outputs on the example inputs: they agree to 20.0 dB, less than "
        "40.0: please report the model"
    )


def test_of_what_amplifies_rounding_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.fc(x)
        return y, (y * 1e8).sin()

    gm = fx.symbolic_trace(Net(forward, fc=nn.Linear(4, 4)))
    examples = run_examples(gm, example_call(gm, X))
    with torch.no_grad():
        gm.get_parameter("fc.weight").mul_(1 + 1e-6)
    check_folding(examples)
    (message,) = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert re.fullmatch(
        r"folding: 1 of 2 outputs agree to -?\d\.\d dB on the example inputs, and to -?\d\.\d dB "
        "when these change in their last bits: what folding did cannot be told; compare with .*",
        message,
    )
    with torch.no_grad():
        gm.get_parameter("fc.weight").mul_(1.1)  # shows in the other output
    with pytest.raises(PassError, match="folding changed the outputs"):
        check_folding(examples)


def test_every_result_of_a_graph_is_checked(caplog: pytest.LogCaptureFixture) -> None:
    gm = fx.symbolic_trace(Net(lambda m, x: (x, [{"y": m.fc(x)}], 3, x > 0), fc=nn.Linear(4, 4)))
    examples = run_examples(gm, example_call(gm, X))
    with caplog.at_level(logging.INFO, "fxquant"):
        check_folding(examples)
    assert caplog.messages == ["folding: outputs agree to inf dB on the example inputs"] * 2
    nn.init.zeros_(gm.get_parameter("fc.weight"))
    with pytest.raises(PassError, match="folding changed the outputs"):
        check_folding(examples)


def test_an_empty_result_says_nothing() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 4)))
    check_folding(run_examples(gm, example_call(gm, X[:0])))


class Guarded(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(x * 1) if x.shape[0] > 1 else None


@pytest.mark.parametrize("around", [Guarded, nn.Sequential], ids=["region", "whole"])
def test_a_graph_that_changes_its_input_in_place_keeps_its_results(around: Any) -> None:
    model = capture(around(ChangesItsInput())).model
    (example,) = run_examples(model, example_call(model, X.clone()))
    assert torch.equal(example.args[0], X)
    check_folding([example])
