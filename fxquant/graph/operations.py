"""What a node of an FX graph computes: the passes ask here and never look at targets themselves."""

from __future__ import annotations

from typing import cast

from torch import fx, nn

from fxquant.graph.operation_table import BATCHNORM, LAYER, OPERATIONS, OTHER, Call, Operation
from fxquant.modules.batchnorm import BatchNorm, is_batchnorm_module
from fxquant.modules.layers import Layer, as_layer, layer_type
from fxquant.modules.overrides import why_overridden
from fxquant.modules.own import OwnModule
from fxquant.modules.torchvision_names import defined_as


def operation_of(gm: fx.GraphModule, node: fx.Node) -> Operation:
    """Return what `node` computes: of a module with hooks, or a forward of its own, nothing known.

    >>> gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 2), nn.ReLU6()))
    >>> [operation_of(gm, node).kind for node in gm.graph.nodes]
    ['other', 'layer', 'relu', 'other']
    >>> operation_of(gm, gm.graph.find_nodes(op="call_module", target="1")[0]).bounds
    (0.0, 6.0)
    """
    module = module_of(gm, node)
    if module is None and node.op not in ("call_function", "call_method"):
        return OTHER
    if is_overridden(module):
        return OTHER
    spelling = node.target if module is None else type(module)
    row = OPERATIONS.get(spelling) or _layer(module) or OPERATIONS.get(defined_as(spelling), OTHER)
    return row if isinstance(row, Operation) else row(Call(node, module))


def _layer(module: nn.Module | None) -> Operation | None:
    if layer_type(module) is not None:
        return LAYER
    return BATCHNORM if is_batchnorm_module(module) else None


def is_overridden(module: nn.Module | None) -> bool:
    """Say whether the caller's hooks, or a forward of its own, change what `module` computes.

    Of fxquant's own modules they are thought to look on only.
    """
    if module is None or isinstance(module, OwnModule):
        return False
    return why_overridden(module) is not None


def module_of(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that `node` calls, or None if it calls none."""
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else None


def layer_of(gm: fx.GraphModule, node: fx.Node) -> Layer:
    """Return the layer that `node`, a call of one, calls."""
    return as_layer(module_of(gm, node))


def batchnorm_of(gm: fx.GraphModule, node: fx.Node) -> BatchNorm:
    """Return the batch norm that `node`, a call of one, calls."""
    module = module_of(gm, node)
    assert is_batchnorm_module(module), type(module)
    return cast(BatchNorm, module)


def data_input(node: fx.Node) -> fx.Node | None:
    """Return the node whose tensor the call works on: its first argument."""
    first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("x"))
    return first if isinstance(first, fx.Node) else None


def source_of(node: fx.Node) -> fx.Node:
    """Return the node whose tensor `node`, a call of a tensor, works on."""
    source = data_input(node)
    assert source is not None, f"{node.name} works on no node's result"
    return source


def sources_of_values(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the nodes of which `node` takes all its values; none if it computes new ones."""
    operation, source = operation_of(gm, node), data_input(node)
    if operation.concatenated is not None:
        return operation.concatenated
    return (source,) if source is not None and operation.keeps_values else ()


def reads_values(gm: fx.GraphModule, reader: fx.Node, node: fx.Node) -> bool:
    """Say whether `reader`, a user of `node`, sees its values, not its shape or type alone.

    >>> gm = fx.symbolic_trace(lambda x: x.relu().reshape(x.shape[0], -1))
    >>> x = next(iter(gm.graph.nodes))
    >>> {user.name: reads_values(gm, user, x) for user in x.users}
    {'relu': True, 'getattr_1': False}
    """
    operation = operation_of(gm, reader)
    if operation.kind in ("rank", "shape", "type"):
        return False
    if operation.kind == "blank":
        return data_input(reader) is not node
    return operation.shape_of is not node or data_input(reader) is node


def readers(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Return the users of `node` that see its values; what asks for its shape alone is none."""
    return [user for user in node.users if reads_values(gm, user, node)]


def is_layer(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node calls a convolution or linear module.

    One with hooks too: whether it may be changed is `why_not_changeable`'s to say.
    """
    return layer_type(module_of(gm, node)) is not None


def is_batchnorm(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node calls a batch-norm module, frozen or not; one with hooks too."""
    return is_batchnorm_module(module_of(gm, node))


def is_add(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node adds two nodes' results, neither scaled."""
    return operation_of(gm, node).kind == "add"


def is_product(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node multiplies matrices that are computed, as attention does."""
    return operation_of(gm, node).kind == "product"


def relu_bounds(gm: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """Return (0, ∞) for a ReLU, (0, 6) for a ReLU6, (0, max) for a clamp; else None."""
    return operation_of(gm, node).bounds
