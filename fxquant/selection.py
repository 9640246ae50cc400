"""Which calls of a graph a recipe speaks of."""

from __future__ import annotations

import difflib

from torch import fx

from fxquant.errors import RecipeError
from fxquant.graph import why_not_changeable
from fxquant.meta import annotate, record, refuse
from fxquant.operations import is_add, is_layer, module_of
from fxquant.recipe import CallSpec, Recipe


def call_name(gm: fx.GraphModule, node: fx.Node) -> str:
    """Return the name by which the caller knows the call: the module's, else the node's."""
    if node.op == "call_module":
        return record(node).origin or str(node.target)
    return node.name


def select_calls(gm: fx.GraphModule, recipe: Recipe) -> dict[fx.Node, CallSpec]:
    """Return what `recipe` asks of each layer call and each addition, in execution order.

    Raises:
        RecipeError: a rule matches none of them.
    """
    nodes = [node for node in gm.graph.nodes if is_layer(gm, node) or is_add(gm, node)]
    names = {node: call_name(gm, node) for node in nodes}
    for number, rule in enumerate(recipe.rules):
        if not any(rule.matches(names[node], module_of(gm, node)) for node in nodes):
            raise RecipeError(
                f"rule {_shown(rule.match)} (#{number}) matches no call; {_near(rule.match, names)}"
            )
    return {
        node: _possible(gm, node, recipe.for_call(names[node], module_of(gm, node)))
        for node in nodes
    }


def _possible(gm: fx.GraphModule, node: fx.Node, call: CallSpec) -> CallSpec:
    """Return `call`, or nothing where the layer cannot be quantized; record what stays in float."""
    module = module_of(gm, node)
    if module is None:
        return call
    if call.weights is None and not record(node).skipped:
        annotate(node, skipped=True)
    reason = why_not_changeable(module)
    if reason is None:
        return call
    refuse(node, f"left in float: {reason}")
    return CallSpec(None, None)


def _shown(match: object) -> str:
    return match.__name__ if isinstance(match, type) else repr(match)


def _near(match: object, names: dict[fx.Node, str]) -> str:
    near = difflib.get_close_matches(str(match), list(dict.fromkeys(names.values())), n=3)
    if near:
        return f"did you mean {', '.join(near)}?"
    starts = list(dict.fromkeys(name.split(".")[0] for name in names.values()))
    return f"names start with: {', '.join(starts[:12])}"
