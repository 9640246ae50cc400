"""torchvision's models go through prepare, one calibration batch and convert, and stay finite."""

import pytest
import torch
from torchvision import models
from torchvision.models import list_models

import fxquant
from benchmarks.capture.torchvision_models import build, first_tensor, model_names
from fxquant.graph.operations import is_batchnorm
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from tests.helpers import whole

# name, output SQNR in dB that 8/8 bits must reach with random weights, batch norms left.
# DenseNet's stand behind concatenations and before ReLUs, where nothing can take them.
SMALL = [
    ("resnet18", 20, 0),
    ("squeezenet1_1", 25, 0),
    ("mobilenet_v2", 15, 0),
    ("mobilenet_v3_small", 10, 0),
    ("shufflenet_v2_x0_5", 15, 0),
    ("mnasnet0_5", 15, 0),
    ("regnet_y_400mf", 15, 0),
    ("efficientnet_b0", 10, 0),
    ("googlenet", 20, 0),
    ("densenet121", 20, 62),
    ("lraspp_mobilenet_v3_large", 10, 0),
]


@pytest.mark.parametrize(("name", "least", "norms"), SMALL, ids=[row[0] for row in SMALL])
def test_small_models_quantize_whole(name: str, least: float, norms: int) -> None:
    model = build(name)
    x = torch.randn(2, 3, 64, 64)
    quantized = whole(fxquant.quantize(model, [x]))
    with torch.no_grad():
        expected, actual = first_tensor(model(x)), first_tensor(quantized(x))
    assert torch.isfinite(actual).all()
    assert sum(bool(is_batchnorm(quantized, node)) for node in quantized.graph.nodes) == norms
    assert sqnr(expected, actual) > least
    layers = sum(isinstance(each, QuantizedLayer) for each in quantized.modules())
    floats = [type(each).__name__ for each in quantized.modules() if type(each) in FLOAT_LAYERS]
    assert layers > 10
    assert floats == []


FLOAT_LAYERS = (torch.nn.Conv2d, torch.nn.Linear)


def test_resnet50_folds_all_of_its_53_batch_norms() -> None:
    prepared = fxquant.prepare(build("resnet50"))
    assert fxquant.text(prepared).count("folded:") == 53
    assert "BatchNorm2d" not in fxquant.text(prepared)


def test_the_script_knows_every_model_that_traces_whole() -> None:
    names = model_names()
    assert len(names) == len(set(names))
    for module in (models, models.segmentation, models.video):
        assert set(list_models(module)) - set(names) == {
            name for name in list_models(module) if name.startswith("quantized_")
        }
