"""What `prepare` assumed without an example, and the first batch contradicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CaptureError, Recipe
from fxquant.capture.naming import find_regions
from fxquant.numerics.decibels import sqnr

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([0.0, 1.0, 2.0, -1.0])


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.first(x).relu()
        return self.second(y if mask is None else y * mask)  # type: ignore[no-any-return]


class Loop(nn.Module):
    """Python around what takes the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.masked = Masked()

    def forward(self, x: Tensor) -> Tensor:
        return self.masked(x, MASK) if x.sum() < 1000 else x


GIVEN = [(Masked, {"x": X, "mask": MASK}), (Loop, X)]


@pytest.mark.parametrize(("make", "batch"), GIVEN)
@pytest.mark.parametrize("recipe", [Recipe.minmax(), Recipe.adaround(steps=2)])
def test_an_argument_that_only_the_first_batch_gives(make: Any, batch: Any, recipe: Recipe) -> None:
    model = make().eval()
    prepared = fxquant.prepare(model, recipe)
    regions = list(find_regions(prepared))
    assert fxquant.calibrate(prepared, [batch, batch]) is prepared
    assert list(find_regions(prepared)) == regions
    quantized = fxquant.convert(prepared)
    call = batch if isinstance(batch, dict) else {"x": batch}
    assert sqnr(model(**call), quantized(**call)) > (35 if recipe.reconstruction is None else 15)


def test_one_that_only_a_later_batch_gives_is_an_error() -> None:
    prepared = fxquant.prepare(Masked(), "minmax")
    with pytest.raises(CaptureError, match="argument 'mask' fixed at None"):
        fxquant.calibrate(prepared, [X, {"x": X, "mask": MASK}])


def test_without_the_callers_model_there_is_nothing_to_capture_again() -> None:
    prepared = fxquant.prepare(Masked(), "minmax", verify=False)
    with pytest.raises(CaptureError, match="example_inputs"):
        fxquant.calibrate(prepared, [{"x": X, "mask": MASK}])


def test_what_an_example_decided_is_not_decided_again() -> None:
    prepared = fxquant.prepare(Masked(), "minmax", example_inputs=X)
    with pytest.raises(CaptureError, match="argument 'mask' fixed at None"):
        fxquant.calibrate(prepared, [{"x": X, "mask": MASK}])
