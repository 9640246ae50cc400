"""How many axes each result has, as far as the graph alone tells.

Needed where two calls work on different axes: a linear layer on the last, batch norm on the second.
Known from what calibration saw, from `ShapeProp`'s `tensor_meta`, or from what a call does.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from fxquant.graph.operation_table import argument
from fxquant.graph.operations import data_input, module_of, operation_of
from fxquant.modules.own import as_own


def known_ranks(gm: fx.GraphModule) -> dict[fx.Node, int]:
    """Return the number of axes, batch included, of each node's result where it is known."""
    ranks: dict[fx.Node, int] = {}
    for node in gm.graph.nodes:
        rank = _rank(gm, node, ranks)
        if rank is not None:
            ranks[node] = rank
    return ranks


def _rank(gm: fx.GraphModule, node: fx.Node, ranks: dict[fx.Node, int]) -> int | None:
    meta = node.meta.get("tensor_meta")
    shape = getattr(meta, "shape", None)
    if shape is not None:
        return len(shape)
    module = module_of(gm, node)
    seen_rank = as_own(module).seen_rank
    if seen_rank is not None:
        return seen_rank
    if _flattens_to_rows(node, module):
        return 2
    # Broadcasting gives the greater rank, if both are known.
    if operation_of(gm, node).kind == "add":
        operands = [ranks.get(operand) for operand in node.all_input_nodes]
        return None if None in operands else max(rank for rank in operands if rank is not None)
    source = data_input(node)
    return ranks.get(source) if source is not None and _keeps_rank(gm, node, module) else None


def _flattens_to_rows(node: fx.Node, module: nn.Module | None) -> bool:
    """Say whether the call makes (batch, values) of anything."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target in (torch.flatten, "flatten"):
        return (argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)) == (1, -1)
    if node.target in ("view", "reshape", torch.reshape):
        sizes = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = tuple(sizes[0])
        return len(sizes) == 2
    return False


def _keeps_rank(gm: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.Dropout) or as_own(module).watches:
        return True
    if type(module).__module__ == "torch.nn.modules.activation":
        return not isinstance(module, nn.MultiheadAttention)
    return operation_of(gm, node).kind in ("layer", "batchnorm", "relu")
