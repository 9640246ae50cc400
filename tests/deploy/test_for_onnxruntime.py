"""What is quantized for onnxruntime works on integers there, by the kernels that it has."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant.numerics.decibels import sqnr
from fxquant.recipe import TensorSpec
from tests.helpers import Net

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime: Any = pytest.importorskip("onnxruntime")


def activations(m: Any, x: Tensor) -> Tensor:
    """ReLU6, SiLU, hardswish and GELU; no kernel but those of SiLU has integers for them."""
    y = m.b(F.silu(m.b(F.relu6(4 * m.a(x)))))
    return m.c(F.gelu(m.b(F.hardswish(y))))  # type: ignore[no-any-return]


def branches(m: Any, x: Tensor) -> Tensor:
    """An addition, halves, a concatenation of unequal sizes, and a reader of float values."""
    y = m.a(x)
    z = m.b((y + m.b(y.relu())).relu())
    left, right = z.chunk(2, 1)
    return m.c(torch.cat([left, m.thin(right)], 1)) + m.wide(  # type: ignore[no-any-return]
        torch.cat([y.exp(), 9 * z.sigmoid(), m.b(z)], 1)
    )


def sizes(m: Any, x: Tensor) -> Tensor:
    """Pools, squeeze and excitation, nearest neighbours, a transposed convolution."""
    y = F.avg_pool2d(F.max_pool2d(m.a(x).relu(), 3, 1, 1), 2)
    y = m.b(y * m.b(F.adaptive_avg_pool2d(y, 1)).sigmoid())
    y = m.up(m.b(F.interpolate(y, scale_factor=2.0)).relu())
    return m.fc(m.b(y).mean((2, 3)))  # type: ignore[no-any-return]


KERNELS = {
    activations: {"QLinearConv": 5, "QLinearSigmoid": 1, "QLinearMul": 1},
    branches: {"QLinearConv": 7, "QLinearAdd": 1, "Split": 1, "QLinearConcat": 2},
    sizes: {
        **{"QLinearConv": 5, "NhwcMaxPool": 1, "QLinearAveragePool": 1, "Resize": 1, "QGemm": 1},
        **{"QLinearGlobalAveragePool": 2, "QLinearSigmoid": 1, "QLinearMul": 1},
    },
}


def kernels_used(
    folder: Path, model: nn.Module, recipe: fxquant.Recipe, batches: list[Tensor], x: Tensor
) -> Counter[str]:
    """Return what onnxruntime runs of the quantized model, whose outputs for `x` are right."""
    quantized = fxquant.quantize(model, batches, recipe, progress=False)
    fxquant.export_onnx(quantized, folder / "model.onnx", batches[0])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        simulated, expected = quantized(x), model(x)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert sqnr(simulated, torch.from_numpy(found)) > 35
    assert sqnr(expected, torch.from_numpy(found)) > 25
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize(("function", "kernels"), KERNELS.items())
def test_all_convolutions_work_on_integers(
    tmp_path: Path, function: Any, kernels: dict[str, int]
) -> None:
    model = Net(
        function,
        a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 8, 1), c=nn.Conv2d(8, 4, 1),
        wide=nn.Conv2d(24, 4, 1), thin=nn.Conv2d(4, 4, 3, padding=1), fc=nn.Linear(8, 4),
        up=nn.ConvTranspose2d(8, 8, 2, 2),
    ).eval()  # fmt: skip
    batches, x = [torch.randn(4, 3, 8, 8) for _ in range(4)], torch.randn(3, 3, 8, 8)
    recipe = fxquant.Recipe.minmax(target="onnxruntime")
    used = kernels_used(tmp_path, model, recipe, batches, x)
    assert {kind: used[kind] for kind in kernels} == kernels
    assert not {"Conv", "FusedConv"} & used.keys()


def attention(m: Any, x: Tensor) -> Tensor:
    """Written out, with what is left out of it below -10^4, and as one function."""
    scores = m.a(x) @ m.b(x).transpose(-2, -1) / 4
    left_out = (x.mean(-1) > 0).to(x.dtype).unsqueeze(-2) * -1e30
    y = (scores + left_out).softmax(-1) @ m.c(x)
    return m.d(F.scaled_dot_product_attention(y, x, y)) + x  # type: ignore[no-any-return]


def test_products_of_activations_work_on_integers_where_the_recipe_asks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(attention, **{name: nn.Linear(16, 16) for name in "abcd"}).eval()
    batches, x = [torch.randn(4, 6, 16) for _ in range(4)], torch.randn(3, 6, 16)
    recipe = fxquant.Recipe.minmax(target="onnxruntime", products=TensorSpec(range="mse"))
    used = kernels_used(tmp_path, model, recipe, batches, x)
    assert used["QLinearMatMul"] + used["MatMulIntegerToFloat"] + used["QGemm"] == 4 + 4
    assert not {"MatMul", "FusedMatMul"} & used.keys()
