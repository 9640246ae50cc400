"""InsertObservers watches the tensors that will be quantized, and no others."""

import math
from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe, Rule
from fxquant.graph.operations import data_input, module_of
from fxquant.graph.records import record
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.observers import Observer
from fxquant.passes import InsertObservers, MarkFusedRelu
from tests.helpers import Net, apply, graph_text, node, outputs

Function = Callable[[Any, Any], Any]

MINMAX = Recipe.minmax()


def convs(function: Function, **parts: Any) -> Net:
    """Return a model that finds four 1x1 convolutions of 4 channels in itself."""
    names = ("a", "b", "c", "d")
    return Net(function, **{name: nn.Conv2d(4, 4, 1) for name in names}, **parts)


def swapped(first: Any, second: Any) -> Any:
    return second + first


def observed(model: nn.Module, recipe: Recipe = MINMAX) -> fx.GraphModule:
    gm = fxquant.trace(model)
    apply(MarkFusedRelu(), gm)
    apply(InsertObservers(recipe), gm)
    return gm


def watched(gm: fx.GraphModule) -> dict[str, Observer]:
    """Return the observers by the names of the nodes that they watch."""
    return {
        source.name: module
        for each in gm.graph.nodes
        if isinstance(module := module_of(gm, each), Observer) and (source := data_input(each))
    }


def test_watches_the_input_and_each_tensor_that_feeds_a_layer() -> None:
    model = Net(
        lambda m, x: m.fc(m.pool(m.relu(m.conv1(x))).flatten(1)),
        conv1=nn.Conv2d(3, 4, 3),
        relu=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        fc=nn.Linear(16, 2),
    )
    gm = fxquant.trace(model)
    apply(MarkFusedRelu(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv1 = self.conv1(x) # Conv2d · fused: relu
        relu = self.relu(conv1) # ReLU · fused into conv1
        pool = self.pool(relu) # MaxPool2d
        flatten = pool.flatten(1)
        fc = self.fc(flatten) # Linear
        return fc
    """)
    assert apply(InsertObservers(MINMAX), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        observers_x = self.observers.x(x) # Observer 8 bits minmax
        conv1 = self.conv1(observers_x) # Conv2d · fused: relu
        observers_relu = self.observers.relu(conv1) # Observer 8 bits minmax
        relu = self.relu(observers_relu) # ReLU · fused into conv1
        pool = self.pool(relu) # MaxPool2d
        flatten = pool.flatten(1)
        fc = self.fc(flatten) # Linear
        return fc
    """)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(outputs(gm, x), outputs(model, x))
    assert not apply(InsertObservers(MINMAX), gm)
    assert watched(gm)["conv1"].clamp == (0, math.inf)
    assert watched(gm)["x"].clamp is None


PLACES: dict[str, tuple[Function, set[str]]] = {
    "one layer": (lambda m, x: m.a(x), {"x"}),
    "no layer": (lambda m, x: x.relu(), set()),
    "the output": (lambda m, x: m.b(m.a(x)), {"x", "a"}),
    "a fused ReLU, before it": (lambda m, x: m.b(m.a(x).relu()), {"x", "a"}),
    "a ReLU not fused, behind it": (lambda m, x: m.b((y := m.a(x)).relu()) + y, {"x", "relu"}),
    "a ReLU behind something else": (lambda m, x: m.b(x.exp().relu()), {"relu"}),
    "SiLU": (lambda m, x: m.b(F.silu(m.a(x))), {"x", "silu"}),
    "a shared layer": (lambda m, x: m.a(m.a(x)), {"x", "a"}),
    "two users of one tensor": (lambda m, x: m.a(x) * m.b(x), {"x"}),
    "an average": (lambda m, x: m.b(F.avg_pool2d(m.a(x), 2)), {"x", "a", "avg_pool2d"}),
    "an average behind a ReLU": (
        lambda m, x: m.b(m.a(x).relu().mean((2, 3), keepdim=True)), {"x", "a", "mean"}
    ),
    "an average that feeds no layer": (lambda m, x: m.a(x).relu().mean((2, 3)), {"x"}),
    "add into a conv's accumulator": (
        lambda m, x: m.c(m.b(y := m.a(x).relu()) + y), {"x", "a", "add"}
    ),
    "add into the conv executed last": (lambda m, x: m.c(m.a(x) + m.b(x)), {"x", "a", "add"}),
    "add into the conv executed last, swapped": (
        lambda m, x: m.c(swapped(m.a(x), m.b(x))), {"x", "a", "add"}
    ),
    "add into no conv that also feeds another": (
        lambda m, x: m.c((y := m.a(x)) + x) * y, {"x", "a", "add"}
    ),
    "add of two pools": (
        lambda m, x: m.b(F.max_pool2d(m.a(x), 2) + F.avg_pool2d(x, 2)),
        {"x", "a", "avg_pool2d", "add"},
    ),
    "add of two results in float": (lambda m, x: m.a(x.exp() + x.sin()), {"exp", "sin", "add"}),
    "add behind a fused ReLU": (
        lambda m, x: m.c((m.b(y := m.a(x).relu()) + y).relu()), {"x", "a", "add"}
    ),
    "add before max-pool": (
        lambda m, x: m.c(F.max_pool2d(m.b(y := m.a(x)) + y, 2)), {"x", "a", "add"}
    ),
    "add before layer norm": (
        lambda m, x: m.c(F.layer_norm(m.a(x) + x, (6,))), {"x", "layer_norm"}
    ),
    "add that is the output": (lambda m, x: m.b(m.a(x).relu()) + x, {"x", "a"}),
    "add of a number": (lambda m, x: m.b(m.a(x) + 1), {"x", "add"}),
}  # fmt: skip


@pytest.mark.parametrize(("function", "names"), PLACES.values(), ids=PLACES)
def test_watches(function: Function, names: set[str]) -> None:
    model = convs(function)
    gm = observed(model)
    assert set(watched(gm)) == names
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(outputs(gm, x), outputs(model, x))
    before = graph_text(gm)
    assert not apply(InsertObservers(MINMAX), gm)
    assert graph_text(gm) == before


KEEPING: dict[str, Function] = {
    "max-pool": lambda m, x: F.max_pool2d(x, 2),
    "max-pool module": lambda m, x: m.pool(x),
    "flatten": lambda m, x: x.flatten(2).unsqueeze(3),
    "reshape": lambda m, x: x.reshape(2, 4, 4, 9),
    "transpose": lambda m, x: x.transpose(2, 3).contiguous(),
    "zero padding": lambda m, x: F.pad(x, (1, 1)),
    "reflection": lambda m, x: F.pad(x, (1, 1, 1, 1), "reflect"),
    "nearest": lambda m, x: F.interpolate(x, scale_factor=2),
    "upsample": lambda m, x: m.up(x),
    "dropout": lambda m, x: m.drop(F.dropout(x, 0.5, m.training)),
    "pixel shuffle": lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
}
CHANGING: dict[str, Function] = {
    "sigmoid": lambda m, x: x.sigmoid(),
    "mul": lambda m, x: x * 2,
    "padding with 1": lambda m, x: F.pad(x, (1, 1), value=1.0),
    "bilinear": lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "softmax": lambda m, x: x.softmax(1),
}


@pytest.mark.parametrize("function", KEEPING.values(), ids=KEEPING)
def test_a_call_that_keeps_values_hands_the_parameters_on(function: Function) -> None:
    parts = {"pool": nn.MaxPool2d(2), "up": nn.Upsample(scale_factor=2), "drop": nn.Dropout()}
    model = convs(lambda m, x: m.b(function(m, m.a(x).relu())), **parts)
    gm = observed(model)
    assert set(watched(gm)) == {"x", "a"}
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(outputs(gm, x), outputs(model, x))


@pytest.mark.parametrize("function", CHANGING.values(), ids=CHANGING)
def test_a_call_that_changes_values_gets_an_observer_behind_it(function: Function) -> None:
    gm = observed(convs(lambda m, x: m.b(function(m, m.a(x).relu()))))
    observer = data_input(node(gm, "b"))
    assert observer is not None
    assert set(watched(gm)) == {"x", str(observer.args[0])}
    assert str(observer.args[0]) not in ("a", "relu")


def test_the_inputs_of_a_concatenation_are_watched_one_by_one() -> None:
    gm = observed(convs(lambda m, x: m.e(torch.cat([m.a(x), x.exp()], 1)), e=nn.Conv2d(8, 2, 1)))
    assert graph_text(gm) == cleandoc("""
        x = input()
        observers_x = self.observers.x(x) # Observer 8 bits minmax
        a = self.a(observers_x) # Conv2d
        observers_a = self.observers.a(a) # Observer 8 bits minmax
        exp = x.exp()
        observers_exp = self.observers.exp(exp) # Observer 8 bits minmax
        cat = torch.cat([observers_a, observers_exp], 1)
        e = self.e(cat) # Conv2d
        return e
    """)


def test_concatenations_of_each_other_are_watched_by_what_they_hold() -> None:
    parts = {"e": nn.Conv2d(8, 4, 1), "f": nn.Conv2d(12, 4, 1)}
    gm = observed(
        convs(lambda m, x: m.f(torch.cat([y := torch.cat([x, m.a(x)], 1), m.e(y)], 1)), **parts)
    )
    assert set(watched(gm)) == {"x", "a", "e"}


def test_each_operand_of_a_concatenation_is_watched_before_its_relu() -> None:
    parts = {"e": nn.Conv2d(12, 2, 1)}
    gm = observed(
        convs(lambda m, x: m.e(torch.cat([m.a(x).relu(), F.relu6(m.b(x)), m.c(x)], 1)), **parts)
    )
    clamps = {name: module.clamp for name, module in watched(gm).items()}
    assert clamps == {"x": None, "a": (0, math.inf), "b": (0, 6), "c": None}


def read_by(gm: fx.GraphModule, name: str) -> set[str]:
    """Return who reads the result of a node, past its observer."""
    return {
        user.name
        for user in node(gm, name).users
        if not isinstance(module_of(gm, user), (Observer, ChannelMean))
    }


IN_FLOAT: dict[str, tuple[Function, dict[str, set[str]]]] = {
    "by a float operation": (lambda m, x: m.a(y := m.b(x)) * y, {"x": set(), "b": {"mul"}}),
    "by a concatenation that a float operation reads": (
        lambda m, x: (m.a(x), torch.cat([x, m.b(x)], 1).exp()), {"x": {"cat"}}
    ),
    "a half of a split": (
        lambda m, x: m.e((p := m.a(x).chunk(2, 1))[0]) * p[1],
        {"x": set(), "a": {"chunk"}, "getitem": set(), "getitem_1": {"mul"}},
    ),
    "an average beside the channels it weighs": (
        lambda m, x: m.c((y := m.a(x).relu()) * m.b(F.adaptive_avg_pool2d(y, 1)).sigmoid()),
        {"x": set(), "relu": {"adaptive_avg_pool2d", "mul"}},
    ),
    "a residual stream that a norm reads": (
        lambda m, x: F.layer_norm((y := m.a(x) + x) + m.b(y), (6,)),
        {"x": {"add"}, "add": {"add_1"}},
    ),
    "a sum that is an output": (lambda m, x: (m.a(y := m.b(x) + m.a(x)), y), {"add": set()}),
    "an input that is an output": (lambda m, x: (m.a(x), x), {"x": {"output"}}),
    "a product that is an output": (lambda m, x: (m.a(y := x * 2), y), {"mul": {"output"}}),
    "a layer that is an output": (lambda m, x: (m.a(y := m.b(x)), y), {"b": set()}),
    "what leads to an output alone": (
        lambda m, x: (m.a(y := m.b(x)), y.flatten(1) + y),
        {"b": set()},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("function", "readers"), IN_FLOAT.values(), ids=IN_FLOAT)
def test_what_is_read_in_float(function: Function, readers: dict[str, set[str]]) -> None:
    gm = observed(convs(function, e=nn.Conv2d(2, 4, 1)))
    assert {name: read_by(gm, name) for name in readers} == readers


def test_a_target_may_return_what_layers_compute_in_float() -> None:
    gm = observed(
        convs(lambda m, x: (m.a(y := m.b(x)), m.a(z := y + x), z, y)),
        Recipe.minmax(target="openvino"),
    )
    assert read_by(gm, "b") == {"output"}
    assert read_by(gm, "add") == set()


def test_an_observer_before_a_relu_says_whom_it_serves() -> None:
    gm = observed(convs(lambda m, x: m.b(y := m.a(x).relu()) * y.exp()))
    assert record(node(gm, "observers_relu")).serves == ("b",)
    gm = observed(convs(lambda m, x: m.b(m.a(x).relu())))
    assert record(node(gm, "observers_relu")).serves is None


def test_a_part_is_watched_beside_the_whole() -> None:
    gm = observed(
        convs(lambda m, x: m.e((y := m.a(x))[:, :2]) * m.e(y[:, 2:]), e=nn.Conv2d(2, 4, 1))
    )
    assert set(watched(gm)) == {"x", "a", "getitem", "getitem_1"}


def test_leaves_the_adds_of_a_transformer_in_float() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
            self.mix, self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            x = x + self.mix(self.norm1(x))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    gm = observed(nn.Sequential(Block(), Block(), nn.LayerNorm(4), nn.Linear(4, 2)))
    assert set(watched(gm)) == {
        *("_0_norm1", "_0_norm2", "gelu"),
        *("_1_norm1", "_1_norm2", "gelu_1"),
        "_2",
    }


@pytest.mark.parametrize("bits", [(4, 8), (8, 4)])
def test_rules_that_differ_over_one_tensor_give_it_the_most_bits(bits: tuple[int, int]) -> None:
    rules = [Rule(name, activations=each) for name, each in zip("ab", bits, strict=True)]
    gm = observed(convs(lambda m, x: m.a(x) * m.b(x)), Recipe.minmax(rules=rules))
    assert watched(gm)["x"].spec.bits == 8


def test_a_rule_gives_a_call_and_what_it_hands_on_its_bits() -> None:
    model = convs(lambda m, x: m.c(F.max_pool2d(m.a(x), 2)) * m.b(x).max())
    gm = observed(model, Recipe.minmax(rules=[Rule("c", activations=4)]))
    assert {name: module.spec.bits for name, module in watched(gm).items()} == {"x": 8, "a": 4}


def test_a_skipped_layer_asks_for_nothing() -> None:
    gm = observed(convs(lambda m, x: m.b(m.a(x))), Recipe.minmax(skip=["a"]))
    assert set(watched(gm)) == {"a"}


def test_nothing_is_added_into_a_skipped_layer() -> None:
    model = convs(lambda m, x: m.c(m.b(y := m.a(x).relu()) + y))
    gm = observed(model, Recipe.minmax(skip=["b"]))
    assert set(watched(gm)) == {"x", "a", "b", "add"}


def test_the_operands_of_a_skipped_add_stay_in_float() -> None:
    gm = observed(convs(lambda m, x: m.a(x.exp() + x.sin())), Recipe.minmax(skip=["add"]))
    assert set(watched(gm)) == {"add"}


def test_weights_only_needs_no_observer() -> None:
    gm = fxquant.trace(convs(lambda m, x: m.b(m.a(x))))
    assert not apply(InsertObservers(Recipe.minmax(activation_bits=None)), gm)
    assert watched(gm) == {}


def test_bias_correction_watches_the_mean_input_of_each_layer() -> None:
    gm = observed(
        convs(lambda m, x: m.b(m.a(x)), fc=nn.Linear(4, 4)), Recipe.minmax(bias_correction=True)
    )
    assert graph_text(gm) == cleandoc("""
        x = input()
        observers_x = self.observers.x(x) # Observer 8 bits minmax
        input_means_a = self.input_means.a(observers_x) # ChannelMean
        a = self.a(input_means_a) # Conv2d
        observers_a = self.observers.a(a) # Observer 8 bits minmax
        input_means_b = self.input_means.b(observers_a) # ChannelMean
        b = self.b(input_means_b) # Conv2d
        return b
    """)
    assert {m.axis for m in gm.modules() if isinstance(m, ChannelMean)} == {-3}


@pytest.mark.parametrize("activation_bits", [8, None])
def test_the_second_run_with_bias_correction_changes_nothing(activation_bits: int | None) -> None:
    recipe = Recipe.aciq(activation_bits=activation_bits)
    gm = fxquant.trace(convs(lambda m, x: m.b(m.a(x))))
    assert apply(InsertObservers(recipe), gm)
    before = graph_text(gm)
    assert not apply(InsertObservers(recipe), gm)
    assert graph_text(gm) == before


def test_says_unmodified_where_there_is_nothing_to_watch() -> None:
    gm = fxquant.trace(nn.Sequential(nn.ReLU()))
    assert not apply(InsertObservers(Recipe.aciq()), gm)


def test_observers_land_behind_all_inputs() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Any:
            return self.fc(x) * self.fc(y)

    assert graph_text(observed(TwoInputs())) == cleandoc("""
        x = input()
        y = input()
        observers_y = self.observers.y(y) # Observer 8 bits minmax
        observers_x = self.observers.x(x) # Observer 8 bits minmax
        fc = self.fc(observers_x) # Linear
        fc_1 = self.fc(observers_y) # Linear
        mul = operator.mul(fc, fc_1)
        return mul
    """)


def test_takes_another_name_if_the_model_has_observers() -> None:
    gm = observed(Net(lambda m, x: m.observers(x), observers=nn.Linear(4, 4)))
    assert graph_text(gm).splitlines()[1] == (
        "observers_1_x = self.observers_1.x(x) # Observer 8 bits minmax"
    )
