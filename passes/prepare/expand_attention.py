"""Write attention as the two products that it is, so that their operands can be quantized.

Before:  attention = F.scaled_dot_product_attention(q, k, v, mask)
After:   keys = k.transpose(-2, -1); scores = q @ keys
         weights = attention_weights_of(scores, q, mask); attention = weights @ v

It stands as it is where it drops weights at random, or where queries share heads of keys.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx
from torch.nn import functional as F

from fxquant.capture.attention.scores import attention_weights_of
from fxquant.graph.operation_table import argument
from fxquant.graph.records import refuse
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED

_OPERANDS = ("query", "key", "value")


@dataclass(frozen=True, eq=False)
class ExpandAttention(Pass):
    """Write `F.scaled_dot_product_attention` as two products, and the softmax between them."""

    starts_from = TRACED

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each call; refuse those that drop weights or share heads."""
        nodes = gm.graph.find_nodes(
            op="call_function", target=F.scaled_dot_product_attention, sort=True
        )
        return any([_expand(gm, node) for node in nodes])


def _expand(gm: fx.GraphModule, node: fx.Node) -> bool:
    dropout = argument(node, 4, "dropout_p", 0.0)
    shares_heads = node.kwargs.get("enable_gqa", False)
    if dropout != 0 or shares_heads is not False:
        asked = f"dropout_p={dropout}, enable_gqa={shares_heads}"
        refuse(node, "products left in float", asked)
        return False
    query, key, value = (argument(node, i, name) for i, name in enumerate(_OPERANDS))
    mask, is_causal = argument(node, 3, "attn_mask"), argument(node, 5, "is_causal", False)
    with gm.graph.inserting_before(node):
        keys = gm.graph.call_method("transpose", (key, -2, -1))
        scores = gm.graph.call_function(operator.matmul, (query, keys))
        options = (mask, is_causal, node.kwargs.get("scale"))
        weights = gm.graph.call_function(attention_weights_of, (scores, query, *options))
        product = gm.graph.call_function(operator.matmul, (weights, value))
    name, product.meta = node.name, dict(node.meta)
    node.replace_all_uses_with(product)
    gm.graph.erase_node(node)
    product.name = name
    return True
