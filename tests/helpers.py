"""What the tests of the passes share: models in a few lines, and the checks of every pass."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

import fxquant
from fxquant import Recipe, TensorSpec
from fxquant.graph.records import record
from fxquant.int8 import onednn
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import Affine, Grid

BYTE = Grid(0, 255)
needs_int8 = pytest.mark.skipif(
    onednn.why_unavailable() is not None, reason=str(onednn.why_unavailable())
)


class Net(nn.Module):
    """A model in one expression: `Net(lambda m, x: m.bn(m.conv(x)), conv=…, bn=…)`.

    Tensors that are not parameters become buffers. Batch norms get random statistics.
    """

    def __init__(self, function: Callable[[Any, Any], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.function = function
        randomize_batchnorms(self)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


@torch.no_grad()
def randomize_batchnorms(model: nn.Module) -> None:
    """Give every batch norm statistics and parameters that are neither 0 nor 1."""
    for module in model.modules():
        if isinstance(module, (_BatchNorm, FrozenBatchNorm2d)):
            tensors = (module.running_mean, module.running_var, module.weight, module.bias)
            ranges = ((-1.0, 1.0), (0.5, 2.0), (0.5, 1.5), (-1.0, 1.0))
            for tensor, (low, high) in zip(tensors, ranges, strict=True):
                if tensor is not None:
                    tensor.uniform_(low, high)


def graph_text(gm: nn.Module) -> str:
    """Return `fxquant.text(gm)` with each run of blanks as one, so that it needs no columns."""
    return re.sub(" +", " ", fxquant.text(gm))


def short_text(gm: nn.Module) -> str:
    """Return `graph_text(gm)` with four digits of each number, and without the usual spec."""
    text = graph_text(gm).replace(" 8 bits minmax", "")
    return re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number[0]):.4g}", text)


def apply(each: PassBase, gm: fx.GraphModule) -> bool:
    """Run a pass, check the graph it leaves, and return whether it says that it changed it."""
    result = each(gm)
    assert result is not None
    assert result.graph_module is gm
    gm.graph.lint()
    return bool(result.modified)


def whole(model: nn.Module) -> fx.GraphModule:
    """Return `model`, which must be one graph."""
    assert isinstance(model, fx.GraphModule)
    return model


def last_call(function: Callable[[Any, Any], Any] | nn.Module) -> tuple[fx.GraphModule, fx.Node]:
    """Return the graph of a function or a module, and its last node but the output."""
    model = nn.Sequential(function) if isinstance(function, nn.Module) else Net(function)
    gm = fxquant.trace(model)
    return gm, list(gm.graph.nodes)[-2]


def outputs(model: nn.Module, x: Any) -> Any:
    """Return what `model` makes of `x`; of a float model, in eval mode."""
    model = model if isinstance(model, fx.GraphModule) else copy.deepcopy(model).eval()
    with torch.no_grad():
        return model(x.clone())


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return max |actual - expected| over max |expected|; shapes and dtypes must agree."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    error = (actual - expected).double().abs().max() / expected.double().abs().max()
    return error.item()


def node(gm: fx.GraphModule, name: str) -> fx.Node:
    """Return the node of that name."""
    found: list[fx.Node] = [each for each in gm.graph.nodes if each.name == name]
    assert len(found) == 1
    return found[0]


def refusals(gm: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Return what was refused, by node name."""
    known = {each.name: tuple(map(str, record(each).refused)) for each in gm.graph.nodes}
    return {name: reasons for name, reasons in known.items() if reasons}


def quantizer(
    scale: float = 0.05, zero_point: int = 100, grid: Grid = BYTE, **spec: Any
) -> FakeQuantize:
    """Return a fake-quantizer; `spec` are the fields of its `TensorSpec`."""
    affine = Affine(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), grid)
    return FakeQuantize(affine, TensorSpec(**spec), sqnr=40.0)


def simulated(model: nn.Module, x: Any, recipe: Recipe | None = None) -> fx.GraphModule:
    """Return `model` fake-quantized, at 8 bits if there is no recipe, with its ranges from `x`."""
    return whole(fxquant.quantize(model, [x], recipe or Recipe.minmax()))


def assert_same(actual: Any, expected: Any) -> None:
    """Check outputs of two forms of a quantized model, tensors or trees of them.

    They agree to float32 rounding: no integer before them differs.
    """
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def assert_equal(actual: Any, expected: Any) -> None:
    """Check that two trees of tensors and other values are the same, to the last bit."""
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other)
    else:
        assert actual == expected


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


class Several(nn.Module):
    """A model with several inputs and defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0, text: Any = "none") -> Any:
        return self.fc(x * scale) + self.fc(y)


def check_lowering(each: PassBase, gm: fx.GraphModule, x: Tensor) -> None:
    """Run a pass on integers, and check that outputs stay and that a second run finds nothing."""
    expected = outputs(gm, x)
    assert apply(each, gm)
    assert_same(outputs(gm, x), expected)
    text = graph_text(gm)
    assert not apply(each, gm)
    assert graph_text(gm) == text
