"""Modules with hooks, or a forward of their own, go through all stages as what they compute."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant.numerics.decibels import sqnr
from tests.helpers import needs_int8, outputs, refusals, whole

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def doubled_and_shifted(module: nn.Module) -> None:
    module.register_forward_hook(lambda _, inputs, output: 3 - 2 * output)


def halved_before(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda _, inputs: (1 - 3 * inputs[0],))


def wrapped(module: Any) -> None:
    forward = type(module).forward
    module.forward = lambda x: 3 - 2 * forward(module, x)


OVERRIDES: dict[str, Callable[[Any], None]] = {
    "hook": doubled_and_shifted,
    "pre-hook": halved_before,
    "forward": wrapped,
}
MIDDLE: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "Hardswish": nn.Hardswish,
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "AvgPool2d": lambda: nn.AvgPool2d(2),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d(1),
    "Identity": nn.Identity,
    "Dropout": nn.Dropout,
    "Upsample": lambda: nn.Upsample(scale_factor=2),
    "ZeroPad2d": lambda: nn.ZeroPad2d(1),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "Conv2d": lambda: nn.Conv2d(4, 4, 1),
    "Flatten": lambda: nn.Flatten(2, 3),
    "PixelShuffle": lambda: nn.PixelShuffle(1),
}


def model_with(middle: nn.Module) -> nn.Module:
    last = nn.Conv1d(4, 4, 1) if isinstance(middle, nn.Flatten) else nn.Conv2d(4, 4, 1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), middle, last, nn.ReLU()).eval()


def agreement(model: nn.Module, reference: nn.Module) -> float:
    return sqnr(outputs(reference, X), outputs(model, X))


@pytest.mark.parametrize("override", OVERRIDES)
@pytest.mark.parametrize("middle", MIDDLE)
def test_an_overridden_module_keeps_its_results(middle: str, override: str) -> None:
    overridden = MIDDLE[middle]()
    OVERRIDES[override](overridden)
    model = model_with(overridden)
    quantized = fxquant.quantize(model, [X], "minmax", example_inputs=X)
    assert agreement(quantized, model) > 25
    assert fxquant.report(quantized).num_quantized >= 2


@needs_int8
@pytest.mark.parametrize("override", OVERRIDES)
@pytest.mark.parametrize("middle", MIDDLE)
def test_an_overridden_module_is_lowered_with_its_results(middle: str, override: str) -> None:
    overridden = MIDDLE[middle]()
    OVERRIDES[override](overridden)
    model = model_with(overridden)
    quantized = fxquant.quantize(model, [X], "minmax")
    assert sqnr(outputs(quantized, X), outputs(fxquant.lower(quantized), X)) > 35


@pytest.mark.parametrize(
    ("override", "reason"),
    [("hook", "forward hooks"), ("pre-hook", "forward hooks"), ("forward", "a forward of its own")],
)
def test_an_overridden_layer_stays_in_float_and_says_why(override: str, reason: str) -> None:
    layer = nn.Conv2d(4, 4, 1)
    OVERRIDES[override](layer)
    prepared = whole(fxquant.prepare(model_with(layer), "minmax", leaf_modules=["1"]))
    assert refusals(prepared)["_1"] == (
        f"left in float: its Conv2d has {reason}, which may use its parameters",
    )


@pytest.fixture
def global_hook() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    yield
    handle.remove()


@pytest.mark.usefixtures("global_hook")
def test_hooks_on_all_modules_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fxquant"):
        fxquant.trace(nn.Sequential(nn.Linear(4, 4)))
    assert "Sequential: hooks on all modules are registered" in caplog.text
