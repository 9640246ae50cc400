"""`steps` lists what a recipe asks of `convert`; the passes run in that order on every graph."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant import Recipe
from fxquant.conversion import steps

FIRST = ["FoldBatchNorm → AbsorbBatchNorm"]
QUANTIZE = ["KeepFloats → ChooseRanges → MarkFusedRelu → QuantizeWeights"]
FLOAT = ["a float copy"]
RECIPES: dict[str, tuple[Recipe, list[str]]] = {
    "minmax": (Recipe.minmax(), [*FIRST, *QUANTIZE]),
    "aciq": (Recipe.aciq(), [*FIRST, *FLOAT, *QUANTIZE, "CorrectBias against the float copy"]),
    "weights": (
        Recipe.aciq(bias_correction="weights"),
        [*FIRST, *FLOAT, *QUANTIZE, "CorrectWeights against the float copy"],
    ),
    "blocks": (
        Recipe.adaround(blocks=True),
        [*FIRST, *FLOAT, *QUANTIZE, "ReconstructBlocks on calls of both"],
    ),
    "all": (
        Recipe.adaround(bias_correction=True, batchnorm_tuning=True),
        [
            *FIRST, *FLOAT, *QUANTIZE, "ReconstructRounding on calls of both",
            "CorrectBias against the float copy", "TuneBatchNorm on calls of both",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "expected"), RECIPES.values(), ids=RECIPES)
def test_the_list_is_what_the_recipe_asks_for(recipe: Recipe, expected: list[str]) -> None:
    assert [str(step) for step in steps(recipe)] == expected


class Twins(nn.Module):
    """Two regions with Python between them, the second called first."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))

    def forward(self, x: Any) -> Any:
        y = self.two(x)
        return self.one(y) if y.sum() > -1 else y


def test_what_learns_runs_in_the_order_of_calls_and_the_rest_in_that_of_the_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = Recipe.adaround(steps=2, samples=8, batchnorm_tuning=True)
    prepared = fxquant.prepare(Twins(), recipe)
    fxquant.calibrate(prepared, [torch.rand(8, 4)], progress=False)
    caplog.clear()
    with caplog.at_level(logging.INFO, "fxquant"):
        fxquant.convert(prepared, progress=False)
    names = ("ReconstructRounding", "TuneBatchNorm", "QuantizeWeights")
    done = [line for line in caplog.messages if line.startswith((*names, "one", "two"))]
    assert [line.split(":")[0] for line in done] == [
        *["QuantizeWeights"] * 2,
        *["two.0", "ReconstructRounding", "one.0", "ReconstructRounding"],
        *["TuneBatchNorm"] * 2,
    ]
