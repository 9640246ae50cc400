"""Two forms of one model are compared node by node, each in its place and alone."""

import math
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import CalibrationError, PassError, Recipe
from fxquant.display.figures import Bars
from fxquant.int8.modules import Int8Conv
from fxquant.numerics.decibels import sqnr
from fxquant.reporting.comparison import NodeComparison
from fxquant.reporting.node_by_node import compare
from tests import helpers
from tests.detectors import detector, images
from tests.helpers import needs_int8, whole


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x), inplace=True)
        x = F.max_pool2d(F.relu(self.conv2(x) + x), 2)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def batch() -> Tensor:
    return torch.randn(16, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def quantized() -> nn.Module:
    torch.manual_seed(0)
    return fxquant.quantize(Net(), [batch()])


def rows(a: nn.Module, b: nn.Module) -> dict[str, NodeComparison]:
    return {row.name: row for row in compare(a, b, [batch()]).rows}


def test_lists_each_node_of_the_lowered_graph_with_the_one_that_it_stands_for() -> None:
    simulated = quantized()
    found = rows(simulated, fxquant.lower(simulated))
    assert {name: row.reference for name, row in found.items()} == {
        "quantize": "quantizers_x",
        "conv1": "quantizers_relu",
        "conv2": "quantizers_relu_1",
        "max_pool2d": "max_pool2d",
        "mean": "quantizers_mean",
        "fc": "fc",
    }
    assert [row.kind for row in found.values()][1:4] == ["Int8Conv", "Int8Conv", "max_pool2d"]
    quantizer: Any = whole(simulated).get_submodule("quantizers.relu")
    simulated_step = quantizer.scale.item()
    assert found["conv1"].step == simulated_step
    assert math.isnan(found["fc"].step)
    assert found["conv1"].alone.num_values == 16 * 8 * 10 * 10


def test_a_lowered_model_is_never_off_by_more_than_a_step_alone() -> None:
    simulated = quantized()
    comparison = compare(simulated, fxquant.lower(simulated), [batch(), 2 * batch()])
    assert comparison.first_departure is None
    steps = [row.alone.largest for row in comparison.rows if not math.isnan(row.step)]
    assert max(steps) < 1.01
    assert all(row.alone.share < 1e-3 for row in comparison.rows if not math.isnan(row.step))


def test_names_the_first_node_that_departs_and_not_those_behind_it() -> None:
    simulated = quantized()
    lowered = fxquant.lower(simulated)
    conv2 = lowered.get_submodule("conv2")
    assert isinstance(conv2, Int8Conv)
    assert conv2.bias is not None
    conv2.bias[3] += 1.0
    comparison = compare(simulated, lowered, [batch()])
    first = comparison.first_departure
    assert first is not None
    assert first.name == "conv2"
    assert [row.name for row in comparison.rows if row.departs] == ["conv2"]
    fc = comparison.rows[-1]
    assert fc.alone.sqnr > 100
    assert fc.in_place.sqnr < 60


def test_counts_in_steps_of_the_output() -> None:
    simulated = quantized()
    lowered = fxquant.lower(simulated)
    conv1 = lowered.get_submodule("conv1")
    assert isinstance(conv1, Int8Conv)
    assert conv1.bias is not None
    assert conv1.output is not None
    conv1.bias += 3 * conv1.output.scale
    row = rows(simulated, lowered)["conv1"]
    assert round(row.alone.largest) == 3
    assert 0.3 < row.alone.share < 1  # where the ReLU gives 0 both are 0


def test_a_model_agrees_with_itself_to_the_last_bit() -> None:
    simulated = quantized()
    for row in compare(simulated, simulated, [batch()]).rows:
        assert row.in_place.largest == row.alone.largest == 0
        assert row.in_place.sqnr == math.inf


def test_compares_a_prepared_model_with_what_became_of_it() -> None:
    torch.manual_seed(0)
    prepared = fxquant.prepare(Net(), Recipe.minmax(weight_bits=4))
    fxquant.calibrate(prepared, [batch()])
    found = rows(prepared, fxquant.convert(prepared))
    assert list(found) == ["conv1", "relu", "conv2", "add", "relu_1", "max_pool2d", "mean", "fc"]
    assert found["conv1"].departs  # 4-bit weights
    assert found["relu"].alone.sqnr == math.inf


def test_compares_region_by_region() -> None:
    torch.manual_seed(0)
    simulated = fxquant.quantize(detector(), [images()])
    comparison = compare(simulated, fxquant.lower(simulated), [images()])
    assert comparison.first_departure is None
    names = [row.name for row in comparison.rows]
    assert "backbone.first_0" in names
    assert sum(row.alone.num_values for row in comparison.rows) > 0


def test_leaves_both_models_as_they_are() -> None:
    simulated = quantized()
    lowered = fxquant.lower(simulated)
    before = simulated(batch()), lowered(batch())
    texts = fxquant.text(simulated), fxquant.text(lowered)
    compare(simulated, lowered, [batch()])
    assert torch.equal(simulated(batch()), before[0])
    assert torch.equal(lowered(batch()), before[1])
    assert (fxquant.text(simulated), fxquant.text(lowered)) == texts


def test_a_page_draws_how_far_each_node_is_off() -> None:
    simulated = quantized()
    found = compare(simulated, fxquant.lower(simulated), [batch()])
    (bars,) = found.figures()
    assert isinstance(bars, Bars)
    assert [bar.name for bar in bars.bars] == [row.name for row in found.rows]
    sqnr_alone = found.rows[-1].alone.sqnr
    assert bars.bars[-1].values[0] == pytest.approx(100 * 10 ** (-sqnr_alone / 20))


def test_the_table_marks_what_departs() -> None:
    simulated = quantized()
    lowered = fxquant.lower(simulated)
    conv2_module: Any = lowered.get_submodule("conv2")
    conv2_module.bias[0] += 5.0
    comparison = compare(simulated, lowered, [batch()])
    assert comparison.heads()[0].startswith(
        f"1 of {len(comparison)} nodes depart; the first is conv2 (Int8Conv), "
    )
    assert [row.name for row in comparison.worst(1).rows] == ["conv2"]
    lines = str(comparison).splitlines()
    assert lines[3].split()[:4] == ["node", "kind", "alone", "most"]
    (conv2,) = [line for line in lines if line.startswith("conv2 ")]
    assert conv2.endswith("departs")
    assert sum(line.endswith("departs") for line in lines) == 1


IN_PLACE: dict[str, Any] = {
    "a call on its own": lambda m, x: (y := m.one(x), y.mul_(0.5), m.two(y))[-1],
    "in a row": lambda m, x: (y := m.one(x), y.mul_(0.5).sub_(1), m.two(y))[-1],
    "through a view": lambda m, x: (y := m.one(x), y.view(-1).mul_(0.5), m.two(y))[-1],
    "through a transpose": lambda m, x: (y := m.one(x), y.t().mul_(0.5), m.two(y))[-1],
    "of a part": lambda m, x: (y := m.one(x), operator.setitem(y, 0, 0.5), m.two(y))[-1],
    "of the input": lambda m, x: m.two(torch.relu_(m.one(x.mul_(2).sub_(1)))),
    "read before and behind": lambda m, x: (
        y := m.one(x), z := m.two(y), F.relu(y, inplace=True), m.two(y) + z
    )[-1],
    "added into": lambda m, x: (y := m.one(x), y.add_(m.two(x)), m.two(torch.relu_(y)))[-1],
}  # fmt: skip


@needs_int8
@pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE)
def test_what_is_changed_in_place_departs_from_nothing(function: Any) -> None:
    torch.manual_seed(0)
    model = helpers.Net(function, one=nn.Linear(8, 8), two=nn.Linear(8, 8)).eval()
    data = [torch.randn(16, 8) for _ in range(4)]
    before = [each.clone() for each in data]
    simulated = fxquant.quantize(model, data)
    comparison = compare(simulated, fxquant.lower(simulated), data)
    assert comparison.first_departure is None
    assert all(map(torch.equal, data, before))
    assert sqnr(model(before[0].clone()), simulated(before[0].clone())) > 30


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        return {"out": self.fc(inputs[0] + inputs[1])}


@needs_int8
def test_models_of_any_arguments_are_compared() -> None:
    model, pair = Several(), (torch.randn(8, 4), torch.randn(8, 4))
    nested = [[*pair], "label"]
    simulated = fxquant.quantize(model, [nested])
    comparison = compare(simulated, fxquant.lower(simulated), [nested])
    assert comparison.first_departure is None
    assert comparison.rows[0].alone.num_values == 32
    simulated = fxquant.quantize(model, [pair], example_inputs=pair)
    assert compare(simulated, fxquant.lower(simulated), [pair]).first_departure is None
    comparison = compare(simulated, simulated, [{"a": pair}], forward=lambda m, b: m(*b["a"]))
    assert comparison.rows[0].in_place.num_values == 32


def test_a_float_model_is_compared_with_what_became_of_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    helpers.randomize_batchnorms(model)
    recipe = Recipe.minmax(weight_bits=4)
    prepared = fxquant.calibrate(fxquant.prepare(model, recipe), [batch()])
    quantized_model = fxquant.convert(prepared)
    assert rows(model, quantized_model) == rows(prepared, quantized_model)
    assert rows(model, quantized_model)["_0"].alone.sqnr < 30


def test_tensors_of_inference_mode_are_compared() -> None:
    simulated = quantized()
    with torch.inference_mode():
        data = batch().clone()
        assert compare(simulated, simulated, [data]).first_departure is None


def test_refuses_models_that_are_no_forms_of_one() -> None:
    parts = fxquant.quantize(detector(), [images()])
    with pytest.raises(PassError, match=r"GraphModule|Net has the graphs '', Detector .* give two"):
        compare(quantized(), parts, [batch()])
    with pytest.raises(PassError, match=r"no layer 'conv1' with a weight \(8, 3, 3, 3\): give the"):
        compare(nn.Linear(10, 2), quantized(), [batch()])
    with pytest.raises(CalibrationError, match="compare: `batches` is empty"):
        compare(quantized(), quantized(), [])
