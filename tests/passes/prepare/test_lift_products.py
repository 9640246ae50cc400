"""LiftProducts turns products with a matrix into calls of F.linear, or says why it does not."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxquant
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes import LiftFunctionals, LiftProducts
from tests.helpers import (
    Net,
    apply,
    graph_text,
    needs_int8,
    outputs,
    refusals,
    relative_error,
    whole,
)

Function = Callable[[Any, Any], Any]


def net(function: Function) -> Net:
    """Return a model with a matrix (in, out), one (out, in), a bias (out), and more axes."""
    return Net(
        function,
        w=nn.Parameter(torch.randn(5, 3)),
        v=nn.Parameter(torch.randn(3, 5)),
        b=nn.Parameter(torch.randn(3)),
        vector=nn.Parameter(torch.randn(5)),
        stack=nn.Parameter(torch.randn(2, 5, 3)),
        rows=nn.Parameter(torch.randn(4, 3)),
        whole=torch.ones(5, 3, dtype=torch.int64),
    )


LIFTED: dict[str, tuple[Function, tuple[int, ...]]] = {
    "@": (lambda m, x: x @ m.w, (2, 4, 5)),
    "@, of a vector": (lambda m, x: x @ m.w, (5,)),
    "torch.matmul": (lambda m, x: torch.matmul(x, m.w), (2, 4, 5)),
    "torch.matmul, keywords": (lambda m, x: torch.matmul(input=x, other=m.w), (4, 5)),
    "matmul": (lambda m, x: x.matmul(m.w), (2, 2, 4, 5)),
    "torch.mm": (lambda m, x: torch.mm(x, m.w), (4, 5)),
    "torch.mm, keywords": (lambda m, x: torch.mm(x, mat2=m.w), (4, 5)),
    "mm": (lambda m, x: x.mm(m.w), (4, 5)),
    "torch.addmm": (lambda m, x: torch.addmm(m.b, x, m.w), (4, 5)),
    "torch.addmm, keywords": (lambda m, x: torch.addmm(m.b, mat1=x, mat2=m.w, alpha=1), (4, 5)),
    "addmm": (lambda m, x: m.b.addmm(x, m.w), (4, 5)),
    "bnc,dc->bnd": (lambda m, x: torch.einsum("bnc,dc->bnd", x, m.v), (2, 4, 5)),
    "b n c, c d -> b n d": (lambda m, x: torch.einsum("b n c, c d -> b n d", x, m.w), (2, 4, 5)),
    "...c,dc->...d": (lambda m, x: torch.einsum("...c,dc->...d", x, m.v), (2, 4, 5)),
    "weight first": (lambda m, x: torch.einsum("dc,bc->bd", m.v, x), (4, 5)),
    "a list": (lambda m, x: torch.einsum("bc,cd->bd", [x, m.w]), (4, 5)),
    "no arrow": (lambda m, x: torch.einsum("ij,jk", x, m.w), (4, 5)),
    "no arrow, dots": (lambda m, x: torch.einsum("...j,jk", x, m.w), (2, 4, 5)),
}


@pytest.mark.parametrize(("function", "shape"), LIFTED.values(), ids=LIFTED)
def test_lifts_and_computes_the_same(function: Function, shape: tuple[int, ...]) -> None:
    model, x = net(function), torch.randn(shape)
    gm = fxquant.trace(model)
    assert apply(LiftProducts(), gm)
    assert relative_error(outputs(gm, x), outputs(model, x)) < 1e-6
    assert not apply(LiftProducts(), gm)
    assert apply(LiftFunctionals(), gm)
    assert [each.op for each in gm.graph.nodes] == ["placeholder", "call_module", "output"]
    assert relative_error(outputs(gm, x), outputs(model, x)) < 1e-6
    assert refusals(gm) == {}


def test_the_graph_has_the_turned_matrix_in_the_place_of_the_other() -> None:
    gm = fxquant.trace(net(lambda m, x: x @ m.w + x.exp() @ m.w))
    apply(LiftProducts(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        w_1 = self.w_1
        linear = F.linear(x, w_1, None)
        exp = x.exp()
        w_2 = self.w_1
        linear_1 = F.linear(exp, w_2, None)
        add = operator.add(linear, linear_1)
        return add
    """)
    assert {name: tuple(each.shape) for name, each in gm.named_parameters()} == {"w_1": (3, 5)}


REFUSED: dict[str, tuple[Function, tuple[int, ...], str]] = {
    "on the left": (lambda m, x: m.v @ x, (5, 2), "its weight stands before its input"),
    "a vector": (lambda m, x: x @ m.vector, (4, 5), "its weight is 1-D, torch.float32"),
    "a stack": (lambda m, x: torch.bmm(x, m.stack), (2, 4, 5), "its weight is 3-D, torch.float32"),
    "integers": (lambda m, x: x.long() @ m.whole, (4, 5), "its weight is 2-D, torch.int64"),
    "scaled": (
        lambda m, x: torch.addmm(m.b, x, m.w, alpha=2), (4, 5), "it scales its product or its bias"
    ),
    "a bias for each row": (
        lambda m, x: torch.addmm(m.rows, x, m.w), (4, 5), "its bias is no vector of parameters"
    ),
    "another axis": (
        lambda m, x: torch.einsum("bchw,dc->bdhw", x, m.v), (2, 5, 4, 4),
        "'bchw,dc->bdhw' is no product along the last axis",
    ),
    "a diagonal": (
        lambda m, x: torch.einsum("cc,dc->cd", x, m.v), (5, 5),
        "'cc,dc->cd' is no product along the last axis",
    ),
    "a sum": (
        lambda m, x: torch.einsum("bc,dc->b", x, m.v), (4, 5),
        "'bc,dc->b' is no product along the last axis",
    ),
    "three": (
        lambda m, x: torch.einsum("bc,dc,d->bd", x, m.v, m.b), (4, 5),
        "'bc,dc,d->bd' multiplies 3 tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("function", "shape", "reason"), REFUSED.values(), ids=REFUSED)
def test_says_why_a_product_is_no_layer(
    function: Function, shape: tuple[int, ...], reason: str
) -> None:
    model, x = net(function), torch.randn(shape)
    gm = fxquant.trace(model)
    assert not apply(LiftProducts(), gm)
    assert [reasons for reasons in refusals(gm).values()] == [(f"left in float: {reason}",)]
    assert torch.equal(outputs(gm, x), outputs(model, x))


def test_the_turned_matrix_lies_in_rows_as_it_does_when_loaded() -> None:
    gm = fxquant.trace(Net(lambda m, x: x @ m.w, w=nn.Parameter(torch.randn(4, 3))))
    assert apply(LiftProducts(), gm)
    assert all(each.is_contiguous() for each in gm.parameters())


@pytest.mark.parametrize(
    "function", [lambda m, x: x @ x.mT, lambda m, x: torch.einsum("bc,dc->bd", x, x.exp())]
)
def test_says_nothing_of_activations_that_are_multiplied(function: Function) -> None:
    gm = fxquant.trace(net(function))
    assert not apply(LiftProducts(), gm)
    assert refusals(gm) == {}


def products(m: Any, x: Any) -> Any:
    x = F.relu(torch.addmm(m.b, x, m.w))
    return torch.einsum("bc,dc->bd", x @ m.v, m.v / m.v.norm())


@needs_int8
def test_products_are_quantized_lowered_and_stored() -> None:
    model, x = net(products), torch.randn(8, 5)
    quantized = whole(fxquant.quantize(model, [x], "minmax"))
    layers = [each for each in quantized.modules() if isinstance(each, QuantizedLayer)]
    assert len(layers) == 3
    assert relative_error(outputs(quantized, x), outputs(model, x)) < 0.05
    lowered = fxquant.lower(quantized, x)
    torch.testing.assert_close(outputs(lowered, x), outputs(quantized, x), rtol=0, atol=1e-5)
