"""The whole way to a .pte file: ExecuTorch's runtime computes what was simulated, in integers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe
from tests.helpers import Net

pytest.importorskip("executorch", reason="ExecuTorch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # ExecuTorch's own, of several kinds

X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(inputs: int = 4, outputs: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **options})


def residual(m: Any, x: Tensor) -> Any:
    y = m.pool(m.a(x)).relu()
    y = (m.b(y) + y).relu()
    y = torch.cat([m.depthwise(y).clamp(0, 6), y], 1)
    return m.head(m.c(y).relu().mean((2, 3), keepdim=True).flatten(1))


def attending(m: Any, x: Tensor) -> Any:
    y = F.silu(m.a(x))
    gate = m.up(F.relu(m.down(y.mean((2, 3), keepdim=True)))).sigmoid()
    return m.b(y * gate) + x


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "residual": (
        lambda: Net(
            residual, a=conv(), b=conv(), depthwise=conv(groups=4), c=conv(8, 4),
            pool=nn.MaxPool2d(2), head=nn.Linear(4, 3),
        ),
        5,
    ),
    "squeeze and excitation": (
        lambda: Net(
            attending, a=conv(), b=conv(), down=nn.Conv2d(4, 2, 1), up=nn.Conv2d(2, 4, 1)
        ),
        4,
    ),
    "one layer called twice": (lambda: Net(lambda m, x: m.a(m.a(x).relu()), a=conv()), 2),
    "read in float too": (
        lambda: Net(lambda m, x: m.b(y := m.a(x)) + y.exp(), a=conv(), b=conv()), 2
    ),
    "padded by reflection": (lambda: nn.Sequential(conv(padding_mode="reflect"), nn.ReLU()), 1),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 2, 2, 2), nn.ReLU6(), conv(2, 4)), 2
    ),
}  # fmt: skip


def program_of(model: nn.Module, weight_bits: int) -> tuple[nn.Module, Any]:
    """Return the simulation, and the program for ExecuTorch."""
    recipe = Recipe.minmax(weight_bits=weight_bits, target="executorch")
    quantized = fxquant.quantize(model, [X], recipe, progress=False)
    return quantized, torch.export.export(fxquant.to_qdq(quantized), (X,))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_delegated_in_integers_and_a_step_off_at_most(name: str) -> None:
    from benchmarks.peers import executorch_pte

    torch.manual_seed(0)
    make, layers = MODELS[name]
    quantized, program = program_of(make(), weight_bits=4 if name == "residual" else 8)
    lowered = executorch_pte.lower(program)
    gm = lowered.exported_program().graph_module
    assert executorch_pte.layers_in_integers(gm) == f"{layers} of {layers}"
    assert executorch_pte.steps_in_place(program, X) <= 1
    (found,) = executorch_pte.in_runtime(lowered.to_executorch().buffer)(X.numpy())
    with torch.no_grad():
        expected = quantized(X)
    step = (expected.max() - expected.min()).item() / 255
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=3 * step)
