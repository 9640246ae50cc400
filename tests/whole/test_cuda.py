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
    "blocks, freely": Recipe.adaround(blocks=True, method="adaquant", steps=50),
    "learned in parallel": Recipe.adaround(parallel=True, steps=100),
    "values in files": Recipe.adaround(max_bytes=10_000, steps=100),
    "smoothed": Recipe.minmax(smoothing=True),
    "equalized": Recipe.minmax(equalization=True),
    "percentile": Recipe.minmax(activation_range="percentile"),
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


class Recurrent(nn.Module):
    """A layer with several weights, one that looks words up, and one of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.layer = nn.LSTM(16, 16, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(self.layer(self.words(x))[0])
        return y


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_model_on_a_gpu_ends_as_one_on_the_cpu(recipe: Recipe) -> None:
    model, batches = network(), images()
    on_cpu = fxquant.quantize(model, batches, recipe)
    on_gpu = fxquant.quantize(copy.deepcopy(model).cuda(), [x.cuda() for x in batches], recipe)
    assert {value.device.type for value in on_gpu.state_dict().values()} == {"cuda"}
    wanted = model(batches[0]).detach()
    cpu, gpu = computed(on_cpu, batches[0]), computed(on_gpu, batches[0].cuda())
    assert sqnr(wanted, gpu) > sqnr(wanted, cpu) - 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_on_a_gpu(dtype: torch.dtype) -> None:
    batches = [x.cuda().to(dtype) for x in images()]
    model = network().cuda().to(dtype)
    quantized = fxquant.quantize(model, batches, Recipe.adaround(method="gram"))
    assert sqnr(computed(model, batches[0]).float(), computed(quantized, batches[0]).float()) > 15


@pytest.mark.parametrize("recipe", [RECIPES["adaround"], RECIPES["gram"]], ids=["adaround", "gram"])
def test_recurrent_layers_and_attention_on_a_gpu(recipe: Recipe) -> None:
    model, batches = Recurrent().eval().cuda(), [torch.randint(0, 20, (8, 6)).cuda()] * 4
    quantized = fxquant.quantize(model, batches, recipe)
    assert sqnr(computed(model, batches[0]), computed(quantized, batches[0])) > 10


def test_batches_on_the_cpu_for_a_model_on_a_gpu_are_an_error_or_moved() -> None:
    model, batches = network().cuda(), images()
    with pytest.raises(fxquant.CalibrationError, match="cuda"):
        fxquant.quantize(model, batches)
    quantized = fxquant.quantize(model, batches, forward=lambda each, x: each(x.cuda()))
    assert sqnr(computed(model, batches[0].cuda()), computed(quantized, batches[0].cuda())) > 20


def test_what_a_model_lost_is_analyzed_on_a_gpu() -> None:
    model, batches = network().cuda(), [x.cuda() for x in images()]
    assert str(fxquant.analyze(model, batches, Recipe.minmax(weight_bits=4)))
    assert str(fxquant.search(model, batches, max_drop=100.0))


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
