"""Own modules answer for themselves; those of others know nothing."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant.calibration.input_keeper import InputKeeper
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.figures import Figures
from fxquant.modules.observers import Observer
from fxquant.modules.own import OwnModule, as_own, own_modules
from fxquant.modules.quantized_layer import quantize_layer
from fxquant.numerics.affine import Affine, Grid
from fxquant.recipe.spec import TensorSpec

SPEC, WIDE = TensorSpec(), TensorSpec(bits=16)
ONE = Affine(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), Grid(0, 255))
LAYER = quantize_layer(nn.Linear(2, 2), TensorSpec(symmetric=True))
ALL: dict[str, OwnModule] = {
    "observer": Observer(SPEC),
    "mean": ChannelMean(2, -1),
    "keeper": InputKeeper(3),
    "layer": LAYER,
    "quantizer": FakeQuantize(ONE, SPEC, 30.0),
    "wide": FakeQuantize(ONE, WIDE, math.nan),
    "dynamic": DynamicQuantize(SPEC),
}


def those(answer: str) -> list[str]:
    """Return the modules whose answer is neither None nor empty nor False."""
    found = []
    for name, module in ALL.items():
        value: Any = getattr(module, answer)
        if value() if callable(value) else value:
            found.append(name)
    return found


def test_each_says_what_it_is_there_for() -> None:
    assert those("watches") == ["observer", "mean", "keeper"]
    assert those("rounds") == ["quantizer", "wide", "dynamic"]
    assert those("fixed_spec") == ["layer", "quantizer", "wide"]
    assert those("weight_figures") == ["layer"]
    assert those("output_figures") == ["quantizer", "wide", "dynamic"]
    assert those("why_no_integers") == ["wide", "dynamic"]
    assert those("seen_rank") == []


def test_figures_are_those_of_the_quantizer() -> None:
    assert ALL["quantizer"].output_figures() == [Figures(str(SPEC), 0.5, 30.0)]
    assert str(ALL["dynamic"].output_figures()[0].scale) == "nan"
    figures = LAYER.weight_figures()
    assert (figures.spec, figures.sqnr) == (str(LAYER.weight_spec), LAYER.weight_sqnr)
    assert figures.scale == pytest.approx(LAYER.weight_scale.mean().item())


def test_a_lowered_module_knows_its_weight_and_its_inputs() -> None:
    model = fxquant.quantize(nn.Sequential(nn.Linear(4, 2)), [torch.randn(8, 4)])
    try:
        lowered = fxquant.lower(model)
    except fxquant.LoweringError as error:
        pytest.skip(str(error))
    before, (_, after) = as_own(model.get_submodule("0")), next(own_modules(lowered))
    assert after.weight_figures() == before.weight_figures()
    assert [figures.spec for figures in after.input_figures()] == ["0 to 255"]
    assert after.stage == "lowered"


def test_modules_of_others_know_nothing() -> None:
    for module in (nn.ReLU(), nn.Linear(2, 2), None):
        own = as_own(module)
        assert (own.stage, own.watches, own.rounds, own.fixed_spec) == (None, False, False, None)
        assert (own.facts(), own.input_figures(), own.why_no_integers()) == ("", [], None)
    assert as_own(LAYER) is LAYER


def test_own_modules_come_with_their_names() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2), LAYER))
    assert list(own_modules(model)) == [("1.1", LAYER)]
