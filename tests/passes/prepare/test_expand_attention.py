"""ExpandAttention writes attention as two products, which compute the same."""

from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe
from fxquant.graph.records import record
from fxquant.passes import ExpandAttention
from fxquant.recipe import TensorSpec
from tests.helpers import Net, apply, graph_text, node, outputs

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 2, 3, 7, 8, generator=GENERATOR)
BLIND = torch.ones(5, 7, dtype=torch.bool).index_fill(0, torch.tensor([1]), False)
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "bool, with a query that may look at nothing": {"attn_mask": BLIND},
    "float": {"attn_mask": torch.randn(2, 1, 5, 7, generator=GENERATOR)},
    "float, with a query that may look at nothing": {
        "attn_mask": torch.zeros(5, 7).masked_fill(~BLIND, float("-inf"))
    },
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.5},
    "no dropout": {"dropout_p": 0.0},
}


@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_two_products_take_its_place(options: dict[str, Any]) -> None:
    model = Net(
        lambda m, x: F.scaled_dot_product_attention(x[0, ..., :5, :], x[1], x[2], **options)
    )
    gm = fxquant.trace(model)
    assert apply(ExpandAttention(), gm)
    torch.testing.assert_close(outputs(gm, X), outputs(model, X))
    assert not apply(ExpandAttention(), gm)


def test_the_graph_reads_as_the_formula() -> None:
    model = Net(lambda m, x: F.scaled_dot_product_attention(x, m.k, m.v(x), scale=1.0))
    model.k, model.v = nn.Parameter(torch.ones(8, 8)), nn.Linear(8, 8)
    gm = fxquant.trace(model)
    ExpandAttention()(gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        k = self.k
        v = self.v(x) # Linear
        transpose = k.transpose(-2, -1)
        matmul = operator.matmul(x, transpose)
        attention_weights_of = scores.attention_weights_of(matmul, x, None, False, 1.0)
        scaled_dot_product_attention = operator.matmul(attention_weights_of, v)
        return scaled_dot_product_attention
    """)


@pytest.mark.parametrize("options", [{"dropout_p": 0.1}, {"enable_gqa": True}])
def test_what_drops_weights_or_shares_heads_stays(options: dict[str, Any]) -> None:
    gm = fxquant.trace(Net(lambda m, q: F.scaled_dot_product_attention(q, q, q, **options)))
    assert not apply(ExpandAttention(), gm)
    (refusal,) = record(node(gm, "scaled_dot_product_attention")).refused
    (name,) = options
    assert refusal.step == "products left in float"
    assert name in refusal.reason


def test_it_runs_where_products_are_quantized() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval()
    for products in (None, TensorSpec()):
        prepared = fxquant.prepare(model, Recipe.minmax(products=products))
        assert isinstance(prepared, fx.GraphModule)
        attention = prepared.graph.find_nodes(
            op="call_function", target=F.scaled_dot_product_attention
        )
        assert len(attention) == (products is None)
