"""What is quantized for TensorRT comes out as a file that keeps to its rules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import LoweringError, Recipe
from fxquant.deploy.tensorrt_rules import check
from tests.helpers import randomize_batchnorms

onnx: Any = pytest.importorskip("onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Residual(nn.Module):
    """A block of a ResNet with a downsampled skip, then one without, a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.stem(x)).relu())
        x = (self.first(x).relu() + self.down(x)).relu()
        x = (self.second(x) + x).relu()
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]


class Mixed(nn.Module):
    """SiLU, a gate, a concatenation, transposed convolutions, groups, a product of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=4)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.up, self.up_grouped = (
            nn.ConvTranspose2d(8, 8, 2),
            nn.ConvTranspose2d(8, 8, 2, groups=2),
        )
        self.average, self.join = nn.AvgPool2d(2), nn.Conv2d(16, 8, 1)
        self.tokens = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.stem(x))
        x = nn.functional.hardswish(self.grouped(x))
        x = x * self.gate(x)
        x = torch.cat([self.up(x), 4 * self.up_grouped(x).relu()], 1)
        x = self.average(self.join(x))
        return self.tokens(x.flatten(2).transpose(1, 2))  # type: ignore[no-any-return]


def for_tensorrt(model: nn.Module, x: Tensor, **options: Any) -> nn.Module:
    randomize_batchnorms(model)
    recipe = Recipe.aciq(target="tensorrt", **options)
    return fxquant.quantize(model.eval(), [x], recipe, progress=False)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("model", [Residual, Mixed])
def test_a_file_keeps_to_the_rules_and_to_the_values(
    tmp_path: Path, model: type[nn.Module], bits: int
) -> None:
    x = torch.randn(4, 3, 12, 12)
    quantized = for_tensorrt(model(), x, weight_bits=bits, activation_bits=bits)
    path = tmp_path / "model.onnx"
    fxquant.export_onnx(quantized, path, x)
    assert [str(each) for each in check(path)] == []
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), quantized(x), atol=1e-5, rtol=1e-4)


def test_what_tensorrt_would_not_take_is_refused_with_all_reasons(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 12, 12)
    quantized = for_tensorrt(Residual(), x, weight_bits=4)
    with pytest.raises(LoweringError, match="export_onnx: not for TensorRT:") as refused:
        fxquant.export_onnx(quantized, tmp_path / "model.onnx", x, int4=True)
    assert str(refused.value).count("Cast to INT8; store INT8") == 5
    assert not (tmp_path / "model.onnx").exists()
