"""The report says what share of the multiply-adds is quantized or in int8, what is left and why."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe
from fxquant.recipe import TensorSpec
from fxquant.reporting.coverage import Coverage, LeftInFloat, percent
from tests.detectors import detector, images
from tests.helpers import Net, needs_int8


class Recurrent(nn.Module):
    """Every kind of product; 10 steps, a batch in front."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.up = nn.ConvTranspose1d(6, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lstm(self.conv(x).transpose(1, 2))[0]
        y = torch.softmax(y @ y.transpose(1, 2), dim=-1) @ y
        return self.fc(self.up(y.transpose(1, 2)).transpose(1, 2))  # type: ignore[no-any-return]


CONV, LSTM, PRODUCT, UP, FC = 10 * 8 * 4 * 3, 10 * 24 * 14, 10 * 10 * 6, 10 * 36, 10 * 6 * 3
TOTAL = CONV + LSTM + 2 * PRODUCT + UP + FC


def covered(model: nn.Module) -> Coverage:
    coverage = fxquant.report(model).coverage
    assert coverage is not None
    return coverage


def quantized(model: nn.Module, *arguments: Any, **options: Any) -> nn.Module:
    x = torch.randn(3, 4, 10)
    return fxquant.quantize(model.eval(), [x], *arguments, **options)


def test_products_of_rounded_operands_count() -> None:
    products = TensorSpec(range="mse")
    coverage = covered(quantized(Recurrent(), Recipe.minmax(products=products)))
    assert coverage.products == pytest.approx(2 * PRODUCT / TOTAL)
    assert coverage.quantized == pytest.approx((TOTAL - LSTM) / TOTAL)
    assert "in quantized layers and products" in str(coverage)
    assert list(shares(coverage)) == ["lstm"]


def shares(coverage: Coverage) -> dict[str, tuple[float, str]]:
    return {each.name: (each.share, each.reason) for each in coverage.left}


def test_recurrent_layers_and_products_of_activations_count_and_are_left() -> None:
    found = covered(quantized(Recurrent()))
    assert found.multiply_adds == TOTAL
    assert found.quantized == pytest.approx((CONV + UP + FC) / TOTAL)
    assert (found.weights_only, found.int8) == (0.0, None)
    assert found.left == (
        LeftInFloat("lstm", "LSTM", pytest.approx(LSTM / TOTAL), "LSTM is called as a whole"),  # type: ignore[arg-type]
        LeftInFloat("matmul", "matmul", PRODUCT / TOTAL, "a product of activations"),
        LeftInFloat("matmul_1", "matmul", PRODUCT / TOTAL, "a product of activations"),
    )


@needs_int8
def test_what_lower_refuses_is_left_too() -> None:
    model = quantized(Recurrent())
    found = covered(fxquant.lower(model))
    assert found.quantized == covered(model).quantized
    assert found.int8 == pytest.approx((CONV + FC) / TOTAL)
    reason = "not lowered: there is no int8 kernel for transposed convolutions"
    assert shares(found)["up"] == (UP / TOTAL, reason)
    assert list(shares(found)) == ["lstm", "matmul", "matmul_1", "up"]


def test_a_chain_that_becomes_one_kernel_keeps_the_multiply_adds() -> None:
    model = Net(
        lambda m, x: torch.relu(m.b(torch.relu(m.a(x))) + x),
        a=nn.Conv1d(4, 4, 3, padding=1),
        b=nn.Conv1d(4, 4, 1),
    )
    found = covered(fxquant.lower(quantized(model)))
    assert (found.multiply_adds, found.int8) == (10 * 16 * 4, 1.0)


def test_standard_operators_are_quantized_layers() -> None:
    model = quantized(Recurrent())
    assert covered(fxquant.to_qdq(model)) == covered(model)


def test_layers_with_inputs_in_float_are_told_apart() -> None:
    found = covered(quantized(Recurrent(), Recipe.minmax(activation_bits=None)))
    assert found.quantized == found.weights_only == pytest.approx((CONV + UP + FC) / TOTAL)
    assert "24.75 % in quantized layers (24.75 % with inputs in float)" in str(found)


def test_what_a_recipe_leaves_out_is_said() -> None:
    found = covered(quantized(Recurrent(), Recipe.minmax(skip=["fc"])))
    assert shares(found)["fc"] == (FC / TOTAL, "left in float by the recipe")


def test_leaf_modules_are_left_whole() -> None:
    model = nn.Sequential(nn.Conv1d(4, 8, 1), nn.Sequential(nn.Conv1d(8, 8, 1), nn.ReLU()))
    left = shares(covered(quantized(model, leaf_modules=["1"])))
    assert left == {"1": (64 / 96, "Sequential is called as a whole")}


def test_calls_of_one_layer_add_up() -> None:
    model = Net(lambda m, x: m.b(m.a(m.a(x))), a=nn.Conv1d(4, 4, 1), b=nn.Conv1d(4, 8, 1))
    found = covered(quantized(model, Recipe.minmax(skip=["a"])))
    assert found.multiply_adds == 10 * (16 + 16 + 32)
    assert shares(found) == {"a": (0.5, "left in float by the recipe")}


def test_functional_layers_are_layers() -> None:
    model = Net(
        lambda m, x: nn.functional.conv1d(x, m.weight, groups=2),
        weight=nn.Parameter(torch.randn(8, 2, 3)),
    )
    for options in ({}, {"example_inputs": torch.randn(5, 4, 10)}):
        found = covered(quantized(model, **options))
        assert (found.multiply_adds, found.quantized) == (8 * 8 * 2 * 3, 1.0)


def test_a_model_in_regions_has_shares_of_all_that_runs() -> None:
    prepared = fxquant.prepare(detector(), regions=["backbone", "head.tower"])
    found = covered(fxquant.convert(fxquant.calibrate(prepared, [images(2)])))
    heads = 80 * 8 * 7
    total = (64 * 3 + 16 * 8 + 2 * 80 * 8) * 8 * 9 + heads
    assert found.multiply_adds == total
    assert found.quantized == pytest.approx(1 - heads / total)
    assert shares(found) == {
        "head.boxes": (80 * 8 * 4 / total, "in Python: not among the regions asked for"),
        "head.scores": (80 * 8 * 3 / total, "in Python: not among the regions asked for"),
    }


def test_products_in_python_have_the_reason_of_what_is_around_them() -> None:
    class Loops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.mT if x.sum() > 0 else x @ -x.mT

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.loops = nn.Conv1d(4, 8, 1), Loops()

        def forward(self, x: Tensor) -> Tensor:
            return self.loops(self.conv(x))  # type: ignore[no-any-return]

    found = covered(quantized(Model()))
    (left,) = found.left
    assert found.multiply_adds == 10 * 32 + 10 * 64
    assert (left.name, left.kind, left.share) == ("loops", "Loops", 2 / 3)
    assert left.reason == "in Python: nothing in it to quantize"


def test_a_file_has_the_same_coverage(tmp_path: Path) -> None:
    prepared = fxquant.prepare(detector(), regions=["backbone"])
    model = fxquant.convert(fxquant.calibrate(prepared, [images(2)]))
    fxquant.save(model, tmp_path / "model.fxq")
    kinds = [type(each) for each in detector().modules()]
    assert covered(fxquant.load(tmp_path / "model.fxq", custom=kinds)) == covered(model)


def test_before_convert_there_is_nothing_to_share() -> None:
    found = covered(fxquant.prepare(Recurrent(), example_inputs=torch.randn(1, 4, 10)))
    assert (found.quantized, found.left) == (0.0, ())
    assert str(found) == "multiply-adds: 6.06 k a sample; none is quantized before convert"


def test_without_a_call_there_is_no_figure() -> None:
    recipe = Recipe.minmax(activation_bits=None)
    assert fxquant.report(fxquant.convert(fxquant.prepare(Recurrent(), recipe))).coverage is None


def test_the_table_shows_the_greatest_and_the_sum_of_the_rest() -> None:
    left = tuple(LeftInFloat(f"fc{n}", "Linear", 0.05, "skipped") for n in range(10))
    coverage = Coverage(2.5e9, 0.5, 0.0, 0.0, 0.25, left)
    said = "multiply-adds: 2.5 G a sample; 50 % in quantized layers, 25 % in int8"
    assert str(coverage) == said
    text = coverage.table().text(80).splitlines()
    assert text[0].split() == ["left", "in", "float", "kind", "share", "because", "of"]
    assert len(text) == 11
    assert text[2].split() == ["fc0", "Linear", "5", "%", "skipped"]
    assert text[-1].split() == ["2", "more", "10", "%"]


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.999999, "99.99 %"), (0.9971, "99.71 %"), (0.5, "50 %"), (1e-6, "< 0.01 %")],
)
def test_only_all_is_100_percent(share: float, text: str) -> None:
    assert percent(share) == text
