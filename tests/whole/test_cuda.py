"""Models on a GPU are calibrated, quantized and learned there, and end as on the CPU."""

import copy

import pytest
import torch
from torch import nn

import fxquant
from fxquant import Recipe
from fxquant.numerics.decibels import sqnr
from tests.helpers import randomize_batchnorms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

RECIPES = {
    "minmax": Recipe.minmax(),
    "aciq": Recipe.aciq(),
    "per channel": Recipe.aciq(per_channel=True),
    "adaround": Recipe.adaround(steps=100),
    "adaround, biases corrected": Recipe.adaround(steps=100, bias_correction=True),
    "gram": Recipe.adaround(method="gram"),
    "adaquant": Recipe.adaround(method="adaquant", steps=100),
    "blocks": Recipe.adaround(blocks=True, steps=50),
    "batch norms tuned": Recipe.aciq(batchnorm_tuning=True),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_model_on_a_gpu_ends_as_one_on_the_cpu(recipe: Recipe) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    ).eval()
    randomize_batchnorms(model)
    batches = [torch.randn(16, 3, 8, 8) for _ in range(8)]
    on_cpu = fxquant.quantize(model, batches, recipe)
    on_gpu = fxquant.quantize(copy.deepcopy(model).cuda(), [x.cuda() for x in batches], recipe)
    assert {value.device.type for value in on_gpu.state_dict().values()} == {"cuda"}
    with torch.no_grad():
        wanted = model(batches[0])
        cpu, gpu = on_cpu(batches[0]), on_gpu(batches[0].cuda()).cpu()
    assert sqnr(wanted, gpu) > sqnr(wanted, cpu) - 1.0
