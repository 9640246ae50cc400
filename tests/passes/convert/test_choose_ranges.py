"""ChooseRanges puts a quantizer where each tensor is final, over the range that was seen."""

from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxquant
from fxquant import CalibrationError, Recipe, TensorSpec
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.observers import Observer
from fxquant.numerics.affine import Grid
from fxquant.passes import ChooseRanges, InsertObservers, MarkFusedRelu
from tests.helpers import Net, apply, graph_text, outputs, refusals, relative_error

MINMAX = Recipe.minmax()


def identity(num: int) -> nn.Linear:
    """Return a linear layer that computes its input, so that ranges are known."""
    layer = nn.Linear(num, num, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def calibrated(model: nn.Module, *batches: torch.Tensor, recipe: Recipe = MINMAX) -> fx.GraphModule:
    gm = fxquant.trace(model)
    apply(MarkFusedRelu(), gm)
    apply(InsertObservers(recipe), gm)
    for batch in batches:
        outputs(gm, batch)
    return gm


def short_text(gm: fx.GraphModule) -> str:
    return graph_text(gm).replace("FakeQuantize 8 bits minmax", "FakeQuantize")


def quantizers(gm: fx.GraphModule) -> dict[str, FakeQuantize]:
    """Return the distinct quantizers by the last part of their names."""
    named = {name.split(".")[-1]: module for name, module in gm.named_modules()}
    return {name: module for name, module in named.items() if isinstance(module, FakeQuantize)}


def test_moves_each_quantizer_behind_the_relu_that_its_observer_stood_before() -> None:
    model = Net(lambda m, x: m.b(m.relu(m.a(x))), a=identity(2), relu=nn.ReLU(), b=identity(2))
    x = torch.tensor([[-1.0, 3.0], [1.0, 2.0]])
    gm = calibrated(model, x)
    assert graph_text(gm) == cleandoc("""
        x = input()
        observers_x = self.observers.x(x) # Observer 8 bits minmax
        a = self.a(observers_x) # Linear · fused: relu
        observers_relu = self.observers.relu(a) # Observer 8 bits minmax
        relu = self.relu(observers_relu) # ReLU · fused into a
        b = self.b(relu) # Linear
        return b
    """)
    assert apply(ChooseRanges(), gm)
    # scale = 4/255, zero_point = round(1/scale) = 64; behind the ReLU 3/255 and 0
    assert short_text(gm) == cleandoc("""
        x = input()
        quantizers_x = self.quantizers.x(x) # FakeQuantize scale=0.01569 zero_point=64
        a = self.a(quantizers_x) # Linear · fused: relu
        relu = self.relu(a) # ReLU · fused into a
        quantizers_relu = self.quantizers.relu(relu) # FakeQuantize scale=0.01176 zero_point=0
        b = self.b(quantizers_relu) # Linear
        return b
    """)
    assert not any(isinstance(module, Observer) for module in gm.modules())
    assert relative_error(outputs(gm, x), outputs(model, x)) < 4 / 255 / 3  # one step of the input
    assert not apply(ChooseRanges(), gm)


def test_rounds_to_the_nearest_point_of_the_grid() -> None:
    x = torch.tensor([[-1.0, -0.4, 0.0, 0.9], [0.1, 1.3, 1.6, 2.0]])
    gm = calibrated(nn.Sequential(identity(4)), x, recipe=Recipe.minmax(activation_bits=2))
    apply(ChooseRanges(), gm)  # 4 points over [-1, 2]: -1, 0, 1, 2
    expected = torch.tensor([[-1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 2.0, 2.0]])
    torch.testing.assert_close(outputs(gm, x), expected)


@pytest.mark.parametrize(
    ("spec", "low", "high", "grid", "zero_point"),
    [
        (TensorSpec(bits=4), 0.0, 3.0, Grid(0, 15), 0),
        (TensorSpec(bits=4), -3.0, 0.0, Grid(0, 15), 15),
        (TensorSpec(bits=4), -1.0, 2.0, Grid(0, 15), 5),
        (TensorSpec(bits=4), 1.0, 3.0, Grid(0, 15), 0),  # widened to hold 0
        (TensorSpec(bits=4, symmetric=True), -1.0, 7.0, Grid(-8, 7), 0),
        (TensorSpec(bits=4, symmetric=True), 0.0, 7.0, Grid(0, 15), 0),
        (TensorSpec(bits=16), 0.0, 3.0, Grid(0, 65535), 0),
        (TensorSpec(bits=4), 0.0, 0.0, Grid(0, 15), 0),
    ],
)
def test_spreads_the_grid_over_the_range(
    spec: TensorSpec, low: float, high: float, grid: Grid, zero_point: int
) -> None:
    x = torch.tensor([[low, high]])
    gm = calibrated(nn.Sequential(identity(2)), x, recipe=Recipe(activations=spec))
    apply(ChooseRanges(), gm)
    (quantizer,) = quantizers(gm).values()
    assert (quantizer.grid, quantizer.zero_point.item()) == (grid, zero_point)
    steps = grid.steps if not (spec.symmetric and low < 0) else grid.quant_max
    width = max(high, 0) - (0 if spec.symmetric else min(low, 0))
    assert quantizer.scale.item() == pytest.approx(width / steps if width else 1.0)


def test_takes_the_range_over_all_batches() -> None:
    batches = [torch.full((2, 2), value) for value in (1.0, -5.0, 2.5, 0.0)]
    gm = calibrated(nn.Sequential(identity(2)), *batches)
    apply(ChooseRanges(), gm)
    assert quantizers(gm)["input_1"].scale.item() == pytest.approx(7.5 / 255)


def test_clips_an_outlier_where_the_recipe_says_so() -> None:
    x = torch.randn(64, 256)
    x[0, 0] = 1000.0
    scales = {}
    for method in ("minmax", "mse", "percentile"):
        recipe = Recipe.minmax(
            activation_bits=4, activation_range=method, activation_percentile=99.9
        )
        gm = calibrated(nn.Sequential(identity(256)), x, recipe=recipe)
        apply(ChooseRanges(), gm)
        scales[method] = quantizers(gm)["input_1"].scale.item()
    assert scales["minmax"] == pytest.approx((1000 - x.min().item()) / 15)
    assert scales["percentile"] < 1


def test_stops_at_the_bound_of_a_fused_relu6() -> None:
    model = nn.Sequential(identity(2), nn.ReLU6(), identity(2))
    gm = calibrated(model, torch.tensor([[-9.0, 30.0]]))
    apply(ChooseRanges(), gm)
    assert quantizers(gm)["_1"].scale.item() == pytest.approx(6 / 255)


def test_the_inputs_of_a_concatenation_share_one_quantizer() -> None:
    model = Net(lambda m, x: m.b(torch.cat([m.a(x), x * 3], 1)), a=identity(2), b=identity(4))
    gm = calibrated(model, torch.tensor([[-1.0, 2.0]]))
    apply(ChooseRanges(), gm)
    assert short_text(gm) == cleandoc("""
        x = input()
        quantizers_x = self.quantizers.x(x) # FakeQuantize scale=0.01176 zero_point=85
        a = self.a(quantizers_x) # Linear
        quantizers_cat = self.quantizers.cat(a) # FakeQuantize scale=0.03529 zero_point=85
        mul = operator.mul(x, 3)
        quantizers_cat_1 = self.quantizers.cat(mul) # FakeQuantize scale=0.03529 zero_point=85
        cat = torch.cat([quantizers_cat, quantizers_cat_1], 1)
        b = self.b(cat) # Linear
        return b
    """)


def test_an_operand_that_others_read_in_finer_steps_is_rounded_once_more() -> None:
    model = Net(
        lambda m, x: m.b(torch.cat([y := m.a(x).relu(), y * 50], 1)) + m.c(y).sum(),
        **{"a": identity(2), "b": identity(4), "c": identity(2)},
    )
    gm = calibrated(model, torch.tensor([[0.0, 2.0]]))
    apply(ChooseRanges(), gm)
    assert short_text(gm) == cleandoc("""
        x = input()
        quantizers_x = self.quantizers.x(x) # FakeQuantize scale=0.007843 zero_point=0
        a = self.a(quantizers_x) # Linear · fused: relu
        relu = a.relu() # fused into a
        quantizers_relu = self.quantizers.relu(relu) # FakeQuantize scale=0.007843 zero_point=0
        mul = operator.mul(relu, 50)
        quantizers_cat = self.quantizers.cat(mul) # FakeQuantize scale=0.3922 zero_point=0
        quantizers_cat_1 = self.quantizers.cat(quantizers_relu) # FakeQuantize scale=0.3922 zero_point=0
        cat = torch.cat([quantizers_cat_1, quantizers_cat], 1)
        b = self.b(cat) # Linear
        c = self.c(quantizers_relu) # Linear
        sum_1 = c.sum()
        add = operator.add(b, sum_1)
        return add
    """)  # noqa: E501


@pytest.mark.parametrize(("factor", "num"), [(1.05, 1), (1.3, 2)])
def test_an_operand_shares_what_costs_it_no_more_than_a_decibel(factor: float, num: int) -> None:
    model = Net(
        lambda m, x: m.b(torch.cat([x, x * factor], 1)).sum() + m.c(x).sum(),
        **{"b": identity(4), "c": identity(2)},
    )
    gm = calibrated(model, torch.rand(1000, 2))
    apply(ChooseRanges(), gm)
    assert len({id(module) for module in quantizers(gm).values()}) == num


def test_operands_of_nested_concatenations_share_the_outer_ones() -> None:
    def forward(m: Any, x: Any) -> Any:
        inner = torch.cat([m.a(x).relu(), x], 1)
        return m.c(torch.cat([inner, m.b(inner)], 1))

    model = Net(forward, a=identity(2), b=identity(4), c=identity(8))
    gm = calibrated(model, torch.rand(64, 2))
    apply(ChooseRanges(), gm)
    assert set(quantizers(gm)) == {"cat_1"}


def test_what_is_behind_a_relu_is_rounded_for_those_alone_that_read_integers() -> None:
    model = Net(lambda m, x: m.b(y := m.a(x).relu()) * y, a=identity(2), b=identity(2))
    gm = calibrated(model, torch.rand(8, 2))
    apply(ChooseRanges(), gm)
    assert "b = self.b(quantizers_relu)" in graph_text(gm)
    assert "mul = operator.mul(b, relu)" in graph_text(gm)


def test_records_the_sqnr_on_what_was_seen() -> None:
    x = torch.randn(64, 256)
    gm = calibrated(nn.Sequential(identity(256)), x)
    apply(ChooseRanges(), gm)
    (quantizer,) = quantizers(gm).values()
    noise = (quantizer(x) - x).square().mean()
    expected = 10 * torch.log10(x.square().mean() / noise).item()
    assert quantizer.sqnr == pytest.approx(expected, abs=0.5)


def test_leaves_a_tensor_in_float_that_held_no_floating_point_value() -> None:
    model = Net(lambda m, x: m.b(m.a(x) + (x > 0)), a=identity(2), b=identity(2))
    x = torch.randn(4, 2)
    gm = calibrated(model, x)
    apply(ChooseRanges(), gm)
    assert refusals(gm) == {"gt": ("left in float: no floating-point value seen in calibration",)}
    assert set(quantizers(gm)) == {"x", "add"}
    assert relative_error(outputs(gm, x), outputs(model, x)) < 0.02


def test_raises_without_calibration() -> None:
    gm = calibrated(nn.Sequential(identity(2), nn.ReLU(), identity(2)))
    with pytest.raises(CalibrationError, match="none of the 2 observed tensors has seen a batch"):
        ChooseRanges()(gm)


def test_raises_where_calibration_saw_nan() -> None:
    model = Net(lambda m, x: m.b(m.a(x).relu()), a=identity(2), b=identity(2))
    gm = calibrated(model, torch.ones(2, 2), torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(
        CalibrationError, match=r"NaN or infinity in 'x' \(the first of 2 observed tensors\)"
    ):
        ChooseRanges()(gm)


def test_a_graph_without_observers_stays_as_it_is() -> None:
    gm = fxquant.trace(nn.Sequential(identity(2)))
    assert not apply(ChooseRanges(), gm)


def test_takes_another_name_if_the_model_has_quantizers() -> None:
    gm = calibrated(Net(lambda m, x: m.quantizers(x), quantizers=identity(2)), torch.ones(1, 2))
    apply(ChooseRanges(), gm)
    assert "self.quantizers_1.x(x)" in graph_text(gm)
