"""QuantizeWeights gives each layer module an integer weight, once."""

from inspect import cleandoc

import pytest
import torch
from torch import fx, nn

import fxquant
from fxquant import CalibrationError, Recipe, Rule, TensorSpec
from fxquant.graph.records import record
from fxquant.modules.layers import LAYERS, layer_type
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes import QuantizeWeights
from tests.helpers import Net, apply, graph_text, node, outputs, refusals, relative_error

MINMAX = Recipe.minmax()


def quantized(gm: fx.GraphModule, name: str) -> QuantizedLayer:
    layer = gm.get_submodule(name)
    assert isinstance(layer, QuantizedLayer)
    return layer


def test_turns_the_weight_into_integers() -> None:
    fc = nn.Linear(2, 2)
    fc.weight = nn.Parameter(torch.tensor([[1.27, -0.504], [0.0, 25.4]]))
    model = Net(lambda m, x: m.fc(x).relu(), fc=fc)
    gm = fxquant.trace(model)
    x = torch.randn(3, 2)
    assert graph_text(gm) == cleandoc("""
        x = input()
        fc = self.fc(x) # Linear
        relu = fc.relu()
        return relu
    """)
    assert apply(QuantizeWeights(MINMAX), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        fc = self.fc(x) # QuantizedLinear 8 bits minmax
        relu = fc.relu()
        return relu
    """)
    layer = quantized(gm, "fc")
    assert layer.weight_integers.dtype is torch.int8
    assert layer.weight_integers.tolist() == [[127, -50], [0, 127]]  # scales 0.01 and 0.2
    torch.testing.assert_close(layer.weight, torch.tensor([[1.27, -0.5], [0.0, 25.4]]))
    assert relative_error(outputs(gm, x), outputs(model, x)) < 0.005 / 0.2
    assert not apply(QuantizeWeights(MINMAX), gm)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_is_off_by_half_a_step_at_most(bits: int, per_channel: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3))
    gm = fxquant.trace(model)
    spec = TensorSpec(bits=bits, symmetric=True, per_channel=per_channel)
    apply(QuantizeWeights(Recipe(weights=spec)), gm)
    layer = quantized(gm, "0")
    weight = model.get_parameter("0.weight")
    rows = weight.detach().flatten(1) if per_channel else weight.detach().reshape(1, -1)
    most, least = 2 ** (bits - 1) - 1, -(2 ** (bits - 1))
    step = torch.maximum(rows.amax(1) / most, rows.amin(1) / least)
    torch.testing.assert_close(layer.weight_scale, step if per_channel else step[0])
    assert int(layer.weight_integers.amin()) >= least
    assert int(layer.weight_integers.amax()) <= most
    error = (layer.weight - weight).abs().reshape(rows.shape).amax(1)
    assert (error <= 0.5001 * step).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_quantizes_every_kind_of_layer(kind: type[nn.Module]) -> None:
    layer = nn.Linear(4, 6) if kind is nn.Linear else kind(4, 6, 3, groups=2)
    x = torch.randn(2, 4) if kind is nn.Linear else torch.randn(2, 4, *[5] * int(kind.__name__[-2]))
    gm = fxquant.trace(nn.Sequential(layer))
    apply(QuantizeWeights(MINMAX), gm)
    assert type(gm.get_submodule("0")).__name__ == f"Quantized{type(layer).__name__}"
    assert layer_type(gm.get_submodule("0")) is type(layer)
    assert quantized(gm, "0").weight_scale.shape == (6,)
    assert relative_error(outputs(gm, x), outputs(layer, x)) < 0.02


def test_computes_with_the_rounded_weight() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    gm = fxquant.trace(model)
    apply(QuantizeWeights(Recipe.minmax(weight_bits=3)), gm)
    for name in ("0", "2"):
        model.get_submodule(name).weight = nn.Parameter(quantized(gm, name).weight)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(outputs(gm, x), outputs(model, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    model = nn.Linear(8, 4).to(dtype)
    gm = fxquant.trace(nn.Sequential(model))
    apply(QuantizeWeights(MINMAX), gm)
    x = torch.randn(2, 8, dtype=dtype)
    assert relative_error(outputs(gm, x), outputs(model, x)) < 0.03


def test_quantizes_a_shared_module_once() -> None:
    gm = fxquant.trace(Net(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(4, 4)))
    apply(QuantizeWeights(MINMAX), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        fc = self.fc(x) # QuantizedLinear 8 bits minmax
        fc_1 = self.fc(fc) # QuantizedLinear 8 bits minmax
        return fc_1
    """)


def test_quantizes_a_module_of_two_names_once() -> None:
    gm = fxquant.trace(Net(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(4, 4)))
    gm.add_submodule("same", gm.get_submodule("fc"))
    node(gm, "fc_1").target = "same"
    gm.recompile()
    apply(QuantizeWeights(MINMAX), gm)
    assert quantized(gm, "same") is quantized(gm, "fc")


def test_rules_choose_bits_and_skip() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 1))
    rules = [Rule(nn.Linear, weights=4), Rule("1", weights=3), Rule("2", skip=True)]
    gm = fxquant.trace(model)
    apply(QuantizeWeights(Recipe.minmax(rules=rules)), gm)
    assert [quantized(gm, name).weight_spec.bits for name in "013"] == [4, 3, 8]
    assert type(gm.get_submodule("2")) is nn.Linear
    assert record(node(gm, "_2")).skipped
    assert not apply(QuantizeWeights(Recipe.minmax(rules=rules)), gm)


def test_leaves_a_layer_with_forward_hooks_in_float() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda module, inputs, output: module.weight.sum() * output)
    gm = fxquant.trace(model)
    x = torch.randn(2, 4)
    assert not apply(QuantizeWeights(MINMAX), gm)
    assert refusals(gm) == {
        "_0": ("left in float: its Linear has forward hooks, which may use its parameters",)
    }
    assert torch.equal(outputs(gm, x), outputs(model, x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_a_weight_that_is_not_finite(value: float) -> None:
    model = Net(lambda m, x: m.body(x), body=nn.Sequential(nn.Linear(4, 4)))
    with torch.no_grad():
        model.get_parameter("body.0.weight")[1, 2] = value
    gm = fxquant.trace(model)
    with pytest.raises(CalibrationError) as caught:
        QuantizeWeights(MINMAX)(gm)
    assert str(caught.value) == (
        "QuantizeWeights: body.0: NaN or infinity in its weight (1 of 16 values): train it again, "
        "or leave it in float with a Rule(…, skip=True)"
    )
    recipe = Recipe.minmax(skip=["body.0"])
    assert not apply(QuantizeWeights(recipe), gm)


def test_keeps_the_float_layer_and_the_bias_object() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 4)))
    layer = gm.get_submodule("0")
    weight, bias = gm.get_parameter("0.weight"), gm.get_parameter("0.bias")
    before = weight.detach().clone()
    apply(QuantizeWeights(MINMAX), gm)
    assert gm.get_parameter("0.bias") is bias
    assert layer.weight is weight
    assert torch.equal(weight, before)
    assert set(gm.state_dict()) == {
        "0.bias", "0.weight_integers", "0.weight_scale", "0.weight_zero_point"
    }  # fmt: skip
