"""What a graph uses can be called as it likes: names that modules or Python forbid are replaced."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import CaptureError, Recipe
from fxquant.capture.attributes import use_free_names
from fxquant.capture.naming import find_regions
from fxquant.capture.tracer import trace_graph
from fxquant.numerics.decibels import sqnr

# Of modules and graph modules, of Python, and of what fxquant puts beside them.
NAMES = [
    *("to", "train", "half", "eval", "cpu", "type", "apply", "modules", "parameters", "forward"),
    *("graph", "code", "meta", "recompile", "_graph", "_code", "class", "None", "self", "a'b"),
    *("fxquant", "observers", "quantizers", "input_means", "kept_inputs", "traced", "path"),
]
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def _part(model: Any) -> Any:
    return model._modules[model.name]


class Named(nn.Module):
    """Holds a layer and two tensors under a name, past all methods of that name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.inner = nn.Sequential(nn.Linear(4, 4))
        self._modules[name] = nn.Linear(4, 4)
        self.inner._parameters[name] = nn.Parameter(torch.randn(4))
        self.deeper: Any = nn.Sequential()
        self.deeper._buffers[name] = torch.randn(4)

    def forward(self, x: Tensor) -> Any:
        y = self.inner(_part(self)(x))
        return y * self.inner._parameters[self.name] + self.deeper._buffers[self.name]


class Branching(nn.Module):
    """Cannot be traced, and holds its body under a name."""

    def __init__(self, name: str, body: nn.Module) -> None:
        super().__init__()
        self.name = name
        self._modules[name] = body

    def forward(self, x: Tensor) -> Any:
        return _part(self)(x) if x.isfinite().all() else x


def check(model: nn.Module) -> nn.Module:
    """Return `model` quantized, after checks of all its stages."""
    expected = model(X)
    prepared = fxquant.prepare(model, Recipe.aciq(), example_inputs=X)
    converted = fxquant.convert(fxquant.calibrate(prepared, [X]))
    for each in (converted, fxquant.to_qdq(converted)):
        assert sqnr(expected, each(X)) > 25
    return converted


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_holds_what_it_uses_whatever_it_is_called(name: str) -> None:
    assert isinstance(check(Named(name).eval()), fx.GraphModule)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_regions_hold_what_they_use_or_are_taken_apart(name: str) -> None:
    assert find_regions(check(Branching("body", Named(name)).eval()))


@torch.no_grad()
@pytest.mark.parametrize("name", sorted({*NAMES} - {"fxquant"}))
def test_a_region_may_be_called_as_it_likes(name: str) -> None:
    model = check(Branching(name, nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval())
    assert list(find_regions(model)) == [name]


def test_a_model_in_python_that_needs_our_one_name_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"^Branching has an attribute 'fxquant': rename it"):
        fxquant.prepare(Branching("fxquant", nn.Linear(4, 4)))


def test_a_region_does_not_hide_an_attribute_that_the_code_around_it_reads() -> None:
    body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    body.path, body.meta = "a path", {"depth": 2}  # type: ignore[assignment]
    prepared: Any = fxquant.prepare(Branching("body", body))
    assert list(find_regions(prepared)) == ["body.0"]
    assert (prepared.body.path, prepared.body.meta) == ("a path", {"depth": 2})


def test_names_that_can_be_used_stay_and_others_get_the_first_free_number() -> None:
    model = nn.Module()
    for name in ("graph", "graph_1", "1x", "fine"):
        model.add_module(name, nn.Identity())
    graph = fx.Graph()
    x = graph.placeholder("x")
    for name in ("graph", "graph_1", "graph", "1x", "fine"):
        x = graph.call_module(name, (x,))
    graph.output(x)
    use_free_names(model, graph)
    targets = [node.target for node in graph.find_nodes(op="call_module")]
    assert targets == ["graph_2", "graph_1", "graph_2", "1x", "fine"]
    assert list(model._modules) == ["graph_2", "graph_1", "1x", "fine"]


def test_a_node_is_never_called_self() -> None:
    model = Named("self")
    graph = trace_graph(model)
    use_free_names(model, graph)
    assert "self_1 = self.self_1(x)" in fx.GraphModule(model, graph).code
