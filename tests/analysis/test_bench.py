"""A bench makes of one calibrated model what quantizing from the start makes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe, Rule
from fxquant.analysis.bench import Bench
from fxquant.diagnosis import bench_for
from tests.helpers import Net, outputs

RECIPE = Recipe.minmax(weight_bits=4, activation_bits=4)
CHANGES: dict[str, Any] = {
    "rules": {"rules": (Rule("conv", weights=8), Rule("fc", activations=8))},
    "an input in float": {"rules": (Rule("conv", activations=None),)},
    "a layer in float": {"rules": (Rule("fc", skip=True),)},
    "weights alone": {"activations": None},
    "activations alone": {"weights": None},
    "other ranges": {"activations": fxquant.TensorSpec(bits=4, range="mse")},
    "biases corrected": {"bias_correction": True},
    "batch norms tuned": {"batchnorm_tuning": True},
    "equalized": {"equalization": True},
    "channel by channel": {"activations": fxquant.TensorSpec(bits=4, per_channel=True)},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net(
        lambda m, x: m.fc(m.other(m.bn(m.conv(x)).relu()).relu().flatten(1)),
        conv=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8), other=nn.Conv2d(8, 8, 3),
        fc=nn.Linear(128, 5),
    ).eval()  # fmt: skip


def data() -> list[Tensor]:
    return [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(4)]


def made() -> Bench:
    return bench_for(network(), data(), RECIPE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHANGES)
def test_a_variant_is_what_quantizing_gives(name: str) -> None:
    recipe, x = replace(RECIPE, **CHANGES[name]), data()[0]
    found = made().quantized(recipe)
    wanted = fxquant.quantize(network(), data(), recipe)
    assert torch.equal(outputs(found, x), outputs(wanted, x))


def test_only_what_needs_other_observers_is_calibrated_anew() -> None:
    bench = made()
    for name in ("rules", "weights alone", "other ranges", "biases corrected"):
        bench.quantized(replace(RECIPE, **CHANGES[name]))
    assert bench.num_calibrations == 1
    bench.quantized(replace(RECIPE, equalization=True))
    bench.quantized(replace(RECIPE, **CHANGES["channel by channel"]))
    assert bench.num_calibrations == 3


def test_smoothing_of_the_studied_recipe_is_done_once_and_stays() -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(16)
    model = nn.Sequential(norm, nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))
    with torch.no_grad():
        norm.weight[0] = 100.0
    batches = [torch.randn(32, 16) for _ in range(4)]
    recipe = Recipe.minmax(smoothing=True)
    found = bench_for(model, batches, recipe).quantized(recipe)
    wanted = fxquant.quantize(model, batches, recipe)
    assert torch.allclose(outputs(found, batches[0]), outputs(wanted, batches[0]), atol=1e-5)
