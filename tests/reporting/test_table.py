"""The report says what was done to each call and what that lost."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import PassError, Recipe
from fxquant.reporting.rows import Row
from tests import helpers


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
    head = ["multiply-adds: 1.88 k a sample; 100 % in quantized layers", ""]
    assert str(report).splitlines()[:2] == head
    assert len(str(report).splitlines()) == len(report.rows) + len(head) + 2
    assert "nan" not in str(report)
    assert report.num_quantized == 3


def test_a_prepared_model_has_a_report_too() -> None:
    prepared = fxquant.prepare(Net())
    assert list(rows(prepared)) == ["conv1", "conv2", "fc"]
    assert str(fxquant.report(prepared)).startswith("multiply-adds: not counted: the model was not")


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
    assert str(report).endswith("\n\nfixed by the example: x.ndim == 3; fc.shape[1] == 3")
