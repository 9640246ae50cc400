"""A card says in Markdown what the report knows."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fxquant
from fxquant import PassError, Recipe
from tests.helpers import needs_int8


def model(**options: object) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    recipe = Recipe.aciq(weight_bits=4, skip=["3"])
    return fxquant.quantize(net, [torch.randn(2, 3, 6, 6)], recipe)


def test_it_holds_recipe_sizes_data_results_and_rows() -> None:
    quantized = model()
    card = fxquant.card(
        quantized,
        title="Tiny | small",
        data="two images",
        results={"top-1 %": 71.2, "mAP": "n/a"},
        license="apache-2.0",
    )
    lines = card.splitlines()
    assert lines[:5] == [
        "---",
        'library_name: "fxquant"',
        'tags: ["fxquant", "quantization", "post-training-quantization"]',
        'license: "apache-2.0"',
        "---",
    ]
    assert lines[6] == "# Tiny | small"
    for sentence in fxquant.report(quantized).heads():
        assert f"* {sentence}" in lines
    assert "| top-1 %  |    71.2 |" in card or "| top-1 %  | 71.2    |" in card
    assert "two images" in lines
    assert "* weights: 4 bits minmax, one scale a channel" in lines
    assert "left in float by the recipe" in card
    assert "y = model(input_1)" in lines
    assert card._repr_markdown_() == card


def test_what_nobody_said_has_no_heading(tmp_path: Path) -> None:
    card = fxquant.card(model())
    assert "# Quantized model, weights 4 bits, activations 8 bits" in card
    assert "Results" not in card
    assert "Calibration data" not in card
    card.save(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == card


@needs_int8
def test_it_says_what_form_the_model_has() -> None:
    quantized = fxquant.quantize(nn.Sequential(nn.Linear(64, 64)), [torch.randn(4, 64)])
    assert "a simulation: integer weights" in fxquant.card(quantized)
    assert "on int8 kernels" in fxquant.card(fxquant.lower(quantized))


def test_a_float_model_has_no_card() -> None:
    with pytest.raises(PassError, match=r"^card: got a Linear: give what convert or lower made$"):
        fxquant.card(nn.Linear(2, 2))
