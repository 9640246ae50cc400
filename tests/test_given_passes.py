"""A caller's passes run in front of prepare's and behind calibration; what they break is named."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

import fxquant
from fxquant import PassError, Pipeline, Recipe, Rule
from fxquant.numerics.decibels import sqnr
from tests.helpers import randomize_batchnorms


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Any) -> Any:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


class Around(nn.Module):
    """Its Python decides by values: `body` becomes a region."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Net()

    def forward(self, x: Any) -> Any:
        return self.body(x) if x.sum() > -1e9 else x


def made(kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    model = kind().eval()
    randomize_batchnorms(model)
    return model


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(4)]


def use_sigmoid(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        if node.target is torch.relu:
            node.target = torch.sigmoid


def double(gm: fx.GraphModule) -> None:
    for name, layer in gm.named_modules():
        if name.endswith("fc") and isinstance(layer, nn.Linear):
            with torch.no_grad():
                layer.weight.mul_(2)
                layer.bias.mul_(2)


def drop_head(gm: fx.GraphModule) -> None:
    (output,) = gm.graph.find_nodes(op="output")
    output.args = (output.args[0].args[0],)
    gm.graph.eliminate_dead_code()


def add_input(gm: fx.GraphModule) -> None:
    with gm.graph.inserting_before(next(iter(gm.graph.nodes))):
        gm.graph.placeholder("mask")


def narrow(gm: fx.GraphModule) -> None:
    name = next(name for name, _ in gm.named_modules() if name.endswith("conv"))
    gm.set_submodule(name, nn.Conv2d(3, 2, 3))


def add_layer(gm: fx.GraphModule) -> None:
    (output,) = gm.graph.find_nodes(op="output")
    gm.add_module("extra", nn.Linear(5, 5))
    with gm.graph.inserting_before(output):
        output.args = (gm.graph.call_module("extra", output.args),)


def drop_observer(gm: fx.GraphModule) -> None:
    observer = gm.graph.find_nodes(op="call_module", target="observers.mean")[0]
    observer.replace_all_uses_with(observer.args[0])
    gm.graph.erase_node(observer)


def drop_all_observers(gm: fx.GraphModule) -> None:
    """Take them out of the graph; the modules stay in `gm`."""
    for node in list(gm.graph.nodes):
        if str(node.target).startswith("observers."):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)


def enlarge(gm: fx.GraphModule) -> None:
    """Change what an observer sees, and how much of it, but nothing behind."""
    (mean,) = gm.graph.find_nodes(op="call_method", target="mean")
    observer = next(node for node in mean.users if "observers" in str(node.target))
    with gm.graph.inserting_before(observer):
        observer.args = (gm.graph.call_function(torch.cat, ([mean, mean],)),)
    (cut,) = observer.users
    with gm.graph.inserting_after(observer):
        half = gm.graph.call_function(torch.narrow, (observer, 0, 0, 8))
    cut.replace_input_with(observer, half)


@pytest.mark.parametrize("kind", [Net, Around])
def test_what_follows_computes_what_a_pass_in_front_made(kind: type[nn.Module]) -> None:
    model, (x, *_) = made(kind), images()
    before = model(x).clone()
    prepared = fxquant.prepare(model, passes=[use_sigmoid], example_inputs=x)
    net: Any = model if kind is Net else model.body
    expected = net.fc(torch.sigmoid(net.bn(net.conv(x))).mean((2, 3)))
    torch.testing.assert_close(prepared(x), expected)
    assert "torch.sigmoid" in fxquant.text(prepared)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("example", [True, False])
def test_a_pass_that_writes_to_weights_changes_nobody_elses(example: bool) -> None:
    model, (x, *rest) = made(), images()
    before = model(x).clone()
    quantized = fxquant.quantize(
        model,
        [x, *rest],
        forward=None if example else lambda m, x: m(x),
        prepare_passes=double,
    )
    assert torch.equal(model(x), before)
    assert sqnr(2 * before, quantized(x)) > 20


def test_a_layer_that_a_pass_in_front_made_is_quantized() -> None:
    quantized = fxquant.quantize(made(), images(), prepare_passes=[fuse, add_layer])
    assert type(quantized.get_submodule("extra")).__name__ == "QuantizedLinear"


def test_a_pass_in_front_may_change_the_outputs_of_a_whole_model_only() -> None:
    x = images()[0]
    assert fxquant.prepare(made(), passes=drop_head, example_inputs=x)(x).shape == (8, 4)
    with pytest.raises(PassError, match=r"^drop_head: body: the graph returns \(8, 4\) now, and"):
        fxquant.prepare(made(Around), passes=drop_head, example_inputs=x)


@pytest.mark.parametrize("recipe", [Recipe.aciq(), Recipe.adaround(steps=2, samples=16)])
def test_behind_calibration_a_pass_sees_observers_and_makes_the_float_model(recipe: Recipe) -> None:
    model, batches = made(), images()
    prepared = fxquant.prepare(model, recipe)
    fxquant.calibrate(prepared, batches)
    text, expected = fxquant.text(prepared), 2 * model(batches[0])
    seen: list[float] = []
    quantized = fxquant.convert(
        prepared,
        passes=[lambda gm: seen.append(float(gm.get_buffer("observers.x.high"))), Pipeline(double)],
    )
    assert seen == [float(torch.cat(batches).max())]
    assert sqnr(expected, quantized(batches[0])) > 20
    assert fxquant.text(prepared) == text
    torch.testing.assert_close(2 * prepared(batches[0]), expected)


def test_a_budget_is_spent_on_what_the_passes_made() -> None:
    recipe = Recipe.mixed(average_bits=4, steps=2, samples=16)
    model, batches = made(), images()
    quantized = fxquant.quantize(model, batches, recipe, convert_passes=[double])
    assert sqnr(2 * model(batches[0]), quantized(batches[0])) > 5


IN_FRONT: dict[str, tuple[Callable[[fx.GraphModule], Any], str]] = {
    "fails": (
        narrow,
        "narrow: behind it the graph fails on (8, 3, 8, 8): bn: RuntimeError: running_mean should "
        "contain 2 elements not 4",
    ),
    "inputs": (
        add_input,
        "add_input: the graph takes mask, x now, and took x: its callers give the same as before",
    ),
}
OBSERVES = (
    "to be quantized there: keep the observers, or give the pass to prepare(model, passes=[…]), "
    "which observes what it makes"
)
BEHIND: dict[str, tuple[Callable[[fx.GraphModule], Any], str]] = {
    "new layer": (add_layer, f"add_layer: no observer has seen fc, {OBSERVES}"),
    "observer": (drop_observer, f"drop_observer: no observer has seen mean, {OBSERVES}"),
    "all": (
        drop_all_observers,
        f"drop_all_observers: no observer has seen conv, mean, x, {OBSERVES}",
    ),
    "fused relu": (use_sigmoid, f"use_sigmoid: no observer has seen relu, {OBSERVES}"),
    "outputs": (
        drop_head,
        "drop_head: the graph returns (8, 4) now, and returned (8, 5): its callers take the same "
        "as before",
    ),
    "inputs": IN_FRONT["inputs"],
}


@pytest.mark.parametrize(("given", "expected"), IN_FRONT.values(), ids=IN_FRONT)
def test_what_a_pass_in_front_breaks_is_named(
    given: Callable[[fx.GraphModule], Any], expected: str
) -> None:
    with pytest.raises(PassError) as caught:
        fxquant.prepare(made(), passes=[Pipeline(given)], example_inputs=images()[0])
    assert str(caught.value) == expected


@pytest.mark.parametrize(("given", "expected"), BEHIND.values(), ids=BEHIND)
def test_what_a_pass_behind_calibration_breaks_is_named(
    given: Callable[[fx.GraphModule], Any], expected: str
) -> None:
    prepared = fxquant.prepare(made(), Recipe.minmax())
    fxquant.calibrate(prepared, images())
    with pytest.raises(PassError) as caught:
        fxquant.convert(prepared, passes=[given])
    assert str(caught.value) == expected


def test_another_shape_at_an_observer_is_an_error() -> None:
    prepared = fxquant.prepare(made(), Recipe.minmax())
    fxquant.calibrate(prepared, images())
    with pytest.raises(PassError, match=r"^enlarge: (cat .*\(16, 4\)|no observer has seen)"):
        fxquant.convert(prepared, passes=[enlarge])


def test_values_that_observers_never_saw_are_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def scale(gm: fx.GraphModule) -> None:
        with torch.no_grad():
            gm.get_parameter("conv.weight").mul_(4)

    def scale_both(gm: fx.GraphModule) -> None:
        scale(gm)
        for name in ("relu", "mean"):
            gm.get_buffer(f"observers.{name}.high").mul_(4)

    prepared = fxquant.prepare(made(), Recipe.minmax())
    fxquant.calibrate(prepared, images())
    fxquant.convert(prepared, passes=[scale])
    (message,) = caplog.messages
    assert message.startswith("scale: 2 tensors changed whose observers saw what was there before")
    caplog.clear()
    fxquant.convert(prepared, passes=[scale_both])
    assert not caplog.messages


def test_a_tensor_left_in_float_needs_no_observer() -> None:
    recipe = Recipe.minmax(rules=[Rule("fc", skip=True)])
    prepared = fxquant.prepare(made(), recipe)
    fxquant.calibrate(prepared, images())
    assert fxquant.convert(prepared, passes=[double])(images()[0]).shape == (8, 5)


def test_passes_run_once_a_graph_in_their_order(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fxquant"):
        fxquant.quantize(made(Around), images(), prepare_passes=[double, use_sigmoid])
    lines = [line for line in caplog.messages if line.startswith(("double", "use_sigmoid"))]
    assert lines == ["double: changed", "use_sigmoid: changed"]
