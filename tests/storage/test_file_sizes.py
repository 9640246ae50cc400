"""A file takes the bits of the weights, their scales and biases, and little for all else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fxquant
from benchmarks.networks.cifar_resnet import CifarResNet
from fxquant import Recipe
from fxquant.modules.quantized_layer import QuantizedLayer
from tests.helpers import randomize_batchnorms


def expected_bytes(model: nn.Module) -> float:
    """Return the bits of the weights, and float32 scales and biases, in bytes."""
    layers = [each for each in model.modules() if isinstance(each, QuantizedLayer)]
    weights = sum(each.weight_integers.numel() * each.weight_spec.bits for each in layers)
    others = [tensor for each in layers for tensor in (each.weight_scale, each.bias)]
    return weights / 8 + 4 * sum(each.numel() for each in others if isinstance(each, Tensor))


def is_small(path: Path, model: nn.Module) -> bool:
    """Say whether a file takes no more than that, 3 %, and 120 bytes to describe each tensor."""
    return path.stat().st_size < 1.03 * expected_bytes(model) + 120 * len(load_file(path))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_a_file_of_270_000_weights_takes_little_more_than_their_bits(
    bits: int, tmp_path: Path
) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 128, 3), nn.ReLU(),
        nn.Conv2d(128, 128, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(128, 640),
    )  # fmt: skip
    model = fxquant.quantize(net, [torch.randn(1, 3, 8, 8)], Recipe.minmax(weight_bits=bits))
    path = tmp_path / "model.fxq"
    fxquant.save(model, path)
    assert is_small(path, model)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_file_of_a_deep_small_network_takes_little_more_than_its_bits(
    bits: int, tmp_path: Path
) -> None:
    net = CifarResNet().eval()
    randomize_batchnorms(net)
    model = fxquant.quantize(net, [torch.randn(1, 3, 32, 32)], Recipe.aciq(weight_bits=bits))
    path = tmp_path / "model.fxq"
    fxquant.save(model, path)
    assert is_small(path, model)
