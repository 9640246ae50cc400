"""The report says what was done to each call and what that lost."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import CalibrationError, PassError, Recipe
from fxquant.numerics.decibels import sqnr
from fxquant.reporting.rows import Row
from tests import helpers
from tests.detectors import detector, images


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1(x)), inplace=True)
        x = F.relu(self.conv2(x) + x, inplace=True)
        return self.fc(x.amax(dim=(2, 3)))  # type: ignore[no-any-return]


def batch() -> Tensor:
    return torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def rows(model: nn.Module, **options: object) -> dict[str, Row]:
    return {row.name: row for row in fxquant.report(model, **options).rows}  # type: ignore[arg-type]


def test_lists_layers_and_integer_additions_in_order() -> None:
    found = rows(fxquant.quantize(Net(), [batch()]))
    assert list(found) == ["conv1", "conv2", "add", "fc"]
    assert [row.kind for row in found.values()] == ["Conv2d", "Conv2d", "add", "Linear"]


def test_notes_what_was_folded_and_fused() -> None:
    assert rows(fxquant.quantize(Net(), [batch()]))["conv1"].notes == "folded bn; fused relu"


def test_scales_are_those_of_the_modules() -> None:
    quantized = fxquant.quantize(Net(), [batch()])
    row = rows(quantized)["conv2"]
    assert row.input_scale == pytest.approx(quantized.get_buffer("quantizers.relu.scale").item())
    scale = quantized.get_buffer("conv2.weight_scale").mean().item()
    assert row.weight_scale == pytest.approx(scale)


def test_a_layer_behind_max_pool_shows_the_quantizer_before_it() -> None:
    assert rows(fxquant.quantize(Net(), [batch()]))["fc"].inputs == "8 bits aciq/corrected"


def test_fewer_bits_show_a_greater_loss() -> None:
    eight = rows(fxquant.quantize(Net(), [batch()]))["conv1"]
    four = rows(fxquant.quantize(Net(), [batch()], Recipe.aciq(weight_bits=4, activation_bits=4)))
    assert eight.weight_sqnr > four["conv1"].weight_sqnr + 15
    assert eight.input_sqnr > four["conv1"].input_sqnr + 15


def test_outputs_are_measured_against_the_prepared_model() -> None:
    prepared = fxquant.calibrate(fxquant.prepare(Net()), [batch()])
    quantized = fxquant.convert(prepared)
    found = rows(quantized, reference=prepared, batches=[batch(), (batch(), 1)])
    assert found["conv1"].output_sqnr > 30
    assert math.isnan(found["add"].output_sqnr)
    expected, actual = prepared(batch()), quantized(batch())
    by_hand = 10 * torch.log10(expected.square().sum() / (actual - expected).square().sum())
    assert found["fc"].output_sqnr == pytest.approx(by_hand.item(), abs=0.01)


SEVERAL = helpers.Net(
    lambda m, x: m.fc(m.bn(m.conv(x["image"])).mean((2, 3)) + x["more"]),
    conv=nn.Conv2d(1, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 3),
).eval()  # fmt: skip
FLOATS: dict[str, tuple[nn.Module, list[Any], Any]] = {
    "batch norms": (Net(), [batch()], "aciq"),
    "wrapped": (nn.DataParallel(Net()), [batch()], "aciq"),
    "equalized": (Net(), [batch()], Recipe.aciq(equalization=True)),
    "four bits, tuned": (Net(), [batch()], Recipe.aciq(weight_bits=4, batchnorm_tuning=True)),
    "several inputs": (SEVERAL, [{"image": batch(), "more": torch.randn(8, 4)}], "aciq"),
    "regions": (detector(), [images()], "aciq"),
    "a part is left whole": (
        helpers.Net(lambda m, x: m.fc(m.part(x)), part=Net(), fc=nn.Linear(3, 3)),
        [batch()],
        "aciq",
    ),
}


@pytest.mark.parametrize(("model", "data", "recipe"), FLOATS.values(), ids=FLOATS)
def test_the_float_model_is_as_good_a_reference_as_the_prepared_one(
    model: nn.Module, data: list[Any], recipe: Any
) -> None:
    leaves = ["part"] if hasattr(model, "part") else []
    prepared = fxquant.prepare(model, recipe, leaf_modules=leaves)
    fxquant.calibrate(prepared, data)
    quantized = fxquant.convert(prepared)
    found = rows(quantized, reference=model, batches=iter(data))
    expected = rows(quantized, reference=prepared, batches=data)
    assert {name: row.output_sqnr for name, row in found.items()} == pytest.approx(
        {name: row.output_sqnr for name, row in expected.items()}, abs=0.01, nan_ok=True
    )
    assert min(row.output_sqnr for row in found.values() if row.weights) > 15


def test_models_that_write_to_their_input_are_measured_on_the_same() -> None:
    model = helpers.Net(lambda m, x: m.fc(x.mul_(2).sub_(1)), fc=nn.Linear(4, 4))
    data = [torch.randn(16, 4)]
    before = data[0].clone()
    quantized = fxquant.quantize(model, data)
    (row,) = rows(quantized, reference=model, batches=data).values()
    assert torch.equal(data[0], before)
    expected, found = model(before.clone()), quantized(before.clone())
    assert row.output_sqnr == pytest.approx(sqnr(expected, found), abs=0.01)
    assert row.output_sqnr > 35


def test_batches_of_any_kind_are_measured_by_a_forward() -> None:
    def forward(model: nn.Module, batch: Any) -> Any:
        return model(batch["images"][0])

    quantized = fxquant.quantize(net := Net(), [batch()])
    found = rows(quantized, reference=net, batches=[{"images": (batch(),)}], forward=forward)
    expected = rows(quantized, reference=net, batches=[batch()])
    assert found["fc"].output_sqnr == expected["fc"].output_sqnr


class Chooses(nn.Module):
    """Calls its head on what it finds good, which may be less once it is quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        good = [each for each in y if each[0] > 0]
        return sum(self.head(each) for each in good) if len(good) > 1 else y  # type: ignore


def test_layers_whose_calls_differ_are_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    data = [torch.randn(64, 4)]
    prepared = fxquant.calibrate(fxquant.prepare(Chooses()), data)
    quantized = fxquant.convert(prepared)
    assert rows(quantized, reference=prepared, batches=data)["head"].output_sqnr > 20
    body: Any = quantized.get_submodule("body.traced")
    body.bias[0] -= 0.5
    found = rows(quantized, reference=prepared, batches=data)
    assert found["body"].output_sqnr < 20
    assert math.isnan(found["head"].output_sqnr)
    assert "head.traced: its output is not measured: in `model` it gives " in caplog.text


def test_says_what_can_be_no_reference() -> None:
    model, data = Net(), [batch()]
    quantized = fxquant.quantize(model, data)
    with pytest.raises(CalibrationError, match="report: `reference` without `batches`: give both"):
        fxquant.report(quantized, reference=model)
    with pytest.raises(CalibrationError, match="report: `batches` without `reference`: give both"):
        fxquant.report(quantized, batches=data)
    with pytest.raises(CalibrationError, match="report: `batches` is empty"):
        fxquant.report(quantized, reference=model, batches=[])
    with pytest.raises(PassError, match="the weight of 'conv1' in the float model is not"):
        fxquant.report(quantized, reference=Net(), batches=data)
    with pytest.raises(PassError, match=r"no layer 'conv1' with a weight \(4, 1, 3, 3\): give the"):
        fxquant.report(quantized, reference=nn.Conv2d(1, 4, 3), batches=data)
    with pytest.raises(PassError, match=r"Detector has the graphs 'backbone', .* give two forms"):
        fxquant.report(quantized, reference=fxquant.prepare(detector()), batches=data)


@helpers.needs_int8
def test_layers_of_a_lowered_model_are_not_measured_in_silence() -> None:
    quantized = fxquant.quantize(model := Net(), [batch()])
    with pytest.raises(PassError, match="layers of a lowered model give integers: measure those"):
        fxquant.report(fxquant.lower(quantized), reference=model, batches=[batch()])


def test_a_batch_norm_left_alone_is_listed_with_its_reason() -> None:
    class Shared(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv1(x)
            return self.fc((self.bn(y) + y).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    row = rows(fxquant.quantize(Shared(), [batch()]))["bn"]
    assert row.weights == ""
    assert row.notes == "not folded: conv1 also feeds add"


def test_the_table_has_a_line_a_row_and_leaves_missing_numbers_blank() -> None:
    report = fxquant.report(fxquant.quantize(Net(), [batch()]))
    assert str(report).splitlines()[:4] == [
        "3 of 3 layers quantized",
        "multiply-adds: 1.88 k a sample; 100 % in quantized layers",
        "1 folded; 2 activations fused",
        "300 bytes of parameters in float, 220 bytes packed (73.3 %)",
    ]
    lines = str(report).split("\n\n")[1].splitlines()
    assert len(lines) == len(report.rows) + 3
    assert lines[0] == (
        "weights: 8 bits minmax; inputs: 8 bits aciq/corrected, where a row says nothing else"
    )
    assert lines[1].replace(" ", "") == "callkindwscalewdBinscaleindBabsorbed"
    assert "nan" not in str(report)
    assert report.num_quantized == 3


def test_the_summary_names_the_five_weakest_and_of_what() -> None:
    report = fxquant.report(fxquant.quantize(Net(), [batch()], Recipe.aciq(weight_bits=4)))
    weakest = min(
        (value, row.name, side)
        for row in report.rows
        for value, side in ((row.weight_sqnr, "weights"), (row.input_sqnr, "inputs"))
        if not math.isnan(value)
    )
    said = report.heads()[-1]
    assert said.startswith(f"weakest: {weakest[1]} {weakest[0]:.1f} dB ({weakest[2]}), ")
    assert said.count("dB") == len(report.rows) == 4
    assert [row.name for row in report.worst(1).rows] == [weakest[1]]


def test_calls_with_a_refusal_are_counted_in_the_summary() -> None:
    class Shared(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv1(x)
            return self.fc((self.bn(y) + y).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    report = fxquant.report(fxquant.quantize(Shared(), [batch()]))
    assert report.heads()[2] == "1 calls with a refusal"


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    recipe = Recipe.adaround(weight_bits=4, steps=2)
    reports = [
        fxquant.report(fxquant.quantize(Net(), [batch()], recipe)),
        fxquant.report(fxquant.quantize(detector(), [images()])),
    ]
    for report in reports:
        assert max(map(len, str(report).splitlines())) <= width
        assert all(row.name in "".join(str(report).split()) for row in report.rows)


def test_choosing_rows_keeps_the_summary() -> None:
    report = fxquant.report(fxquant.quantize(Net(), [batch()]))
    chosen = report.select("conv*")
    assert [row.name for row in chosen.rows] == ["conv1", "conv2"]
    assert chosen.heads() == report.heads()
    by_scale = report.sort("input_scale", descending=True).rows
    assert by_scale[0].input_scale == max(row.input_scale for row in report.rows)


def test_a_prepared_model_has_a_report_too() -> None:
    prepared = fxquant.prepare(Net())
    assert list(rows(prepared)) == ["conv1", "conv2", "fc"]
    said = fxquant.report(prepared).heads()
    assert said[0] == "0 of 3 layers quantized"
    assert said[1].startswith("multiply-adds: not counted: the model was not")


def test_a_float_model_is_refused_by_type() -> None:
    with pytest.raises(PassError, match="got a Net"):
        fxquant.report(Net())


def test_says_what_the_example_fixed() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.fc(x)
        return sum(y[:, i] for i in range(y.shape[1])) if x.ndim == 3 else y

    batches = [torch.randn(2, 3, 4)]
    report = fxquant.report(fxquant.quantize(helpers.Net(forward, fc=nn.Linear(4, 4)), batches))
    assert report.fixed == ("x.ndim == 3", "fc.shape[1] == 3")
    assert report.heads()[-1] == "fixed by the example: x.ndim == 3; fc.shape[1] == 3"
