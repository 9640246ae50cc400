"""Models on a GPU are calibrated, quantized and learned there, and end as on the CPU."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import LoweringError, Recipe
from fxquant.numerics.decibels import sqnr
from tests.helpers import randomize_batchnorms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

RECIPES = {
    "minmax": Recipe.minmax(),
    "aciq": Recipe.aciq(),
    "per channel": Recipe.aciq(activation_per_channel=True),
    "adaround": Recipe.adaround(steps=100),
    "adaround, biases corrected": Recipe.adaround(steps=100, bias_correction=True),
    "gram": Recipe.adaround(method="gram"),
    "adaquant": Recipe.adaround(method="adaquant", steps=100),
    "blocks": Recipe.adaround(blocks=True, steps=50),
    "batch norms tuned": Recipe.aciq(batchnorm_tuning=True),
    "for TensorRT": Recipe.aciq(target="tensorrt"),
    "every batch": Recipe.aciq(activation_dynamic=True),
    "mixed": Recipe.mixed(max_bytes=2_000),
}


def network() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    ).eval()
    randomize_batchnorms(model)
    return model


def images() -> list[Tensor]:
    return [torch.randn(16, 3, 8, 8) for _ in range(8)]


def computed(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(x)
    return y.cpu()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_model_on_a_gpu_ends_as_one_on_the_cpu(recipe: Recipe) -> None:
    model, batches = network(), images()
    on_cpu = fxquant.quantize(model, batches, recipe)
    on_gpu = fxquant.quantize(copy.deepcopy(model).cuda(), [x.cuda() for x in batches], recipe)
    assert {value.device.type for value in on_gpu.state_dict().values()} == {"cuda"}
    wanted = model(batches[0]).detach()
    cpu, gpu = computed(on_cpu, batches[0]), computed(on_gpu, batches[0].cuda())
    assert sqnr(wanted, gpu) > sqnr(wanted, cpu) - 1.0


def test_what_was_quantized_on_a_gpu_goes_on_from_the_cpu(tmp_path: Path) -> None:
    batches = [x.cuda() for x in images()]
    quantized = fxquant.quantize(network().cuda(), batches)
    expected = computed(quantized, batches[0])
    with pytest.raises(LoweringError, match=r"it is on cuda:0: move it with \.cpu\(\)"):
        fxquant.to_qdq(quantized)
    fxquant.save(quantized, tmp_path / "model.fxq")
    loaded = fxquant.load(tmp_path / "model.fxq")
    again = fxquant.load(tmp_path / "model.fxq", map_location="cuda")
    assert torch.equal(computed(again, batches[0]), expected)
    x = batches[0].cpu()
    for model in (loaded, fxquant.to_qdq(loaded), quantized.cpu()):
        assert sqnr(expected, computed(model, x)) > 40  # sums in another order, and so ties


def test_reports_and_compares_on_a_gpu() -> None:
    batches = [x.cuda() for x in images()]
    prepared = fxquant.prepare(network().cuda(), example_inputs=batches[0])
    fxquant.calibrate(prepared, batches)
    quantized = fxquant.convert(prepared)
    table = str(fxquant.report(quantized, reference=prepared, batches=batches[:1]))
    assert "Conv2d" in table
    assert "Linear" in table
    assert str(fxquant.compare(prepared, quantized, batches[:1]))


def test_a_conversion_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    batches = [x.cuda() for x in images()]
    prepared = fxquant.prepare(network().cuda(), RECIPES["adaround"], example_inputs=batches[0])
    fxquant.calibrate(prepared, batches)
    first = fxquant.convert(prepared, batches, checkpoint=tmp_path / "run")
    second = fxquant.convert(prepared, batches, checkpoint=tmp_path / "run")
    assert torch.equal(computed(first, batches[0]), computed(second, batches[0]))
