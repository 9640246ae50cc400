"""How many axes each result has, as far as the graph alone tells.

Needed where two calls work on different axes: a linear layer on the last, batch norm on the second.
Known from what calibration saw, from `ShapeProp`'s `tensor_meta`, or from what a call does.
"""

from __future__ import annotations

from torch import fx, nn

from fxquant.graph.operation_table import Operation
from fxquant.graph.operations import data_input, is_overridden, module_of, operation_of
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
    operation = operation_of(gm, node)
    if operation.makes_rows:
        return 2
    if operation.kind == "add":  # broadcasting gives the greater rank, if both are known
        operands = [ranks.get(operand) for operand in node.all_input_nodes]
        return None if None in operands else max(rank for rank in operands if rank is not None)
    source = data_input(node)
    if is_overridden(module):
        return None
    return ranks.get(source) if source is not None and _keeps_rank(operation, module) else None


def axis_before(operation: Operation, axis: int, rank: int | None) -> int | None:
    """Return which axis of its input a call makes `axis` of its result of.

    None where it is made of several, or of values; or where the rank decides and is not known.

    Args:
        operation: of the call.
        axis: counted from the front.
        rank: of the input.

    >>> flatten = Operation(moved_axes=("flatten", (0, 1)))
    >>> axis_before(flatten, 1, None), axis_before(flatten, 0, None)
    (2, None)
    """
    if operation.moved_axes is None:
        return None
    how, axes = operation.moved_axes
    if how == "flatten" and axis < axes[0]:  # whatever the rank
        return axis
    if how == "permute":
        axes = axes[axis : axis + 1]  # none where it has fewer
    if any(each < 0 for each in axes):
        if rank is None:
            return None
        axes = tuple(each % rank for each in axes)
    if how == "permute":
        return axes[0] if axes else None
    first, second = axes
    if how == "transpose":
        return {first: second, second: first}.get(axis, axis)
    if first == axis < second:
        return None
    return axis if axis <= first else axis + second - first


def _keeps_rank(operation: Operation, module: nn.Module | None) -> bool:
    if isinstance(module, nn.Dropout) or as_own(module).watches:
        return True
    if type(module).__module__ == "torch.nn.modules.activation":
        return not isinstance(module, nn.MultiheadAttention)
    return operation.kind in ("layer", "batchnorm", "relu")
