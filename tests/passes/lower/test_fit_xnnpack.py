"""FitXnnpack writes what XNNPACK computes as the graph says, with the same values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import LoweringError, Recipe
from fxquant.deploy.integer_form import require_quantized_results
from fxquant.passes import FitXnnpack, RepeatQuantizers, ToQdq
from tests.helpers import Net, apply, graph_text, outputs, whole

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **{"padding": 1, **options})


def standard(model: nn.Module, weight_bits: int = 8) -> fx.GraphModule:
    """Return the model in standard operators, as `FitXnnpack` gets it."""
    recipe = Recipe.minmax(weight_bits=weight_bits, target="executorch")
    gm = whole(fxquant.quantize(model, [X], recipe, progress=False))
    apply(RepeatQuantizers(), gm)
    apply(ToQdq(), gm)
    return gm


def fit(gm: fx.GraphModule) -> str:
    """Let the pass run; return the graph's text."""
    expected = outputs(gm, X)
    assert apply(FitXnnpack(), gm)
    assert torch.equal(outputs(gm, X), expected)
    assert not apply(FitXnnpack(), gm)
    require_quantized_results(gm)
    return graph_text(gm)


def test_each_reader_has_a_dequantize_operator_of_its_own() -> None:
    gm = standard(Net(lambda m, x: m.b(y := m.a(x)) + y.sigmoid(), a=conv(), b=conv()))
    assert max(len(node.users) for node in gm.graph.find_nodes(
        op="call_function", target=DEQUANTIZE)) == 2  # fmt: skip
    fit(gm)
    assert all(
        len(node.users) == 1 for node in gm.graph.find_nodes(op="call_function", target=DEQUANTIZE)
    )


def test_each_call_of_a_layer_has_a_bias_of_its_own() -> None:
    gm = standard(Net(lambda m, x: m.a(m.a(x).relu()), a=conv()))
    assert graph_text(gm).count("a_bias") == 3  # read once, for two calls
    text = fit(gm)
    assert text.count("= self.a.bias") == 1
    assert text.count("= self.constants.") == 1
    assert "= self.a.weight_integers" in text
    assert not apply(FitXnnpack(), standard(Net(lambda m, x: m.a(m.a(x)), a=conv(bias=False))))


def test_weights_of_few_bits_are_said_to_have_eight() -> None:
    gm = standard(nn.Sequential(conv()), weight_bits=4)
    assert ", -8, 7, torch.int8)" in graph_text(gm)
    assert ", 0, -128, 127, torch.int8)" in fit(gm)


@pytest.mark.parametrize(
    ("clamp", "name"),
    [
        (lambda x: x.clamp(0, 0.5), "F.hardtanh(a, 0.0, 0.5)"),
        (lambda x: x.clamp_(0, 0.5), "F.hardtanh(a, 0.0, 0.5)"),
        (lambda x: torch.clip(x, min=0, max=0.5), "F.hardtanh(a, 0.0, 0.5)"),
        (lambda x: x.clamp(min=0), "F.relu(a)"),
    ],
)
def test_clamps_are_named_as_relu_or_hardtanh(clamp: Callable[..., Any], name: str) -> None:
    assert name in fit(standard(Net(lambda m, x: clamp(m.a(x)), a=conv())))


def test_a_padding_that_is_not_zeros_is_quantized_again() -> None:
    gm = standard(nn.Sequential(conv(padding_mode="reflect")))
    padded = "pad = F.pad(dequantize_per_tensor_default, (1, 1, 1, 1), 'reflect')"
    assert padded in graph_text(gm)
    assert "quantize_per_tensor.default(pad, " in fit(gm)


def test_a_layer_whose_result_is_not_quantized_at_once_is_refused() -> None:
    recipe = Recipe.minmax()
    model = Net(lambda m, x: m.b(F.gelu(m.a(x))), a=conv(), b=conv())
    gm = whole(fxquant.quantize(model, [X], recipe, progress=False))
    apply(ToQdq(), gm)
    with pytest.raises(LoweringError, match=r"^to_qdq: the results of 'a', 'b' are not quantized"):
        require_quantized_results(gm)


def test_what_is_changed_in_place_is_changed_for_all_that_read_it() -> None:
    def call(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        y[:, 0] = 0
        return m.b(y)  # type: ignore[no-any-return]

    gm = standard(Net(call, a=conv(), b=conv()))
    expected = outputs(gm, X)
    apply(FitXnnpack(), gm)
    assert torch.equal(outputs(gm, X), expected)


def test_a_clamp_in_place_is_seen_by_all_that_read_its_operand() -> None:
    def call(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        y.clamp_(0, 6)
        return m.b(y) + y.sigmoid()  # type: ignore[no-any-return]

    model = Net(call, a=conv(), b=conv())
    quantized = fxquant.quantize(model, [X], Recipe.minmax(target="executorch"), progress=False)
    assert torch.equal(outputs(fxquant.to_qdq(quantized), X), outputs(quantized, X))
