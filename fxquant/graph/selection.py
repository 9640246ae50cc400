"""Which calls of a graph a recipe speaks of."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import fx, nn

from fxquant.capture.given_models import why_opaque
from fxquant.capture.naming import node_name, target_name
from fxquant.capture.region import Region
from fxquant.errors import RecipeError
from fxquant.graph.operations import is_add, is_layer, is_product, module_of
from fxquant.graph.records import annotate, record, refuse
from fxquant.graph.submodules import why_not_changeable
from fxquant.modules.layers import LAYERS, layer_type
from fxquant.recipe.checks import nearest
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.rule import Rule
from fxquant.recipe.shown import as_code
from fxquant.recipe.spec import CallSpec


def call_name(gm: fx.GraphModule, node: fx.Node) -> str:
    """Return the name by which the caller knows the call: the module's, else the node's.

    In a region (`fxquant.capture.region`) it starts with the region's own name.
    """
    if node.op == "call_module":
        return target_name(gm, record(node).origin or str(node.target))
    return node_name(gm, node)


def select_calls(gm: fx.GraphModule, recipe: Recipe) -> dict[fx.Node, CallSpec]:
    """Return what `recipe` asks of each layer call, addition and product, in execution order.

    Products are those of two activations, if it asks for any.

    Raises:
        RecipeError: a rule matches none of them; for a region see `check_rules`.
    """
    if not isinstance(gm, Region):
        check_rules([gm], recipe)
    nodes = _selectable(gm, recipe)
    asked = {node: _asked(gm, node, recipe) for node in nodes}
    for node in _ends(gm, nodes):
        if not any(each.matches(call_name(gm, node), module_of(gm, node)) for each in recipe.rules):
            asked[node] = recipe.for_end(asked[node])
    return {node: _possible(gm, node, call) for node, call in asked.items()}


def _asked(gm: fx.GraphModule, node: fx.Node, recipe: Recipe) -> CallSpec:
    name = call_name(gm, node)
    if is_product(gm, node):
        return recipe.for_product(name)
    return recipe.for_call(name, module_of(gm, node))


def _ends(gm: fx.GraphModule, nodes: list[fx.Node]) -> list[fx.Node]:
    """Return the first layer and the last; of a region it is not known whether it is either."""
    layers = [] if isinstance(gm, Region) else [node for node in nodes if is_layer(gm, node)]
    return [*layers[:1], *layers[1:][-1:]]


def check_rules(graphs: Iterable[fx.GraphModule], recipe: Recipe) -> None:
    """Raise `RecipeError` if one of the rules matches no call in any of the graphs."""
    calls = [
        (call_name(gm, node), module_of(gm, node))
        for gm in graphs
        for node in _selectable(gm, recipe)
    ]
    for number, rule in enumerate(recipe.rules):
        if not any(rule.matches(name, module) for name, module in calls):
            raise RecipeError(
                f"rule {as_code(rule.match)} (#{number}) matches no call; {_near(rule, calls)}"
            )


def _selectable(gm: fx.GraphModule, recipe: Recipe) -> list[fx.Node]:
    kinds = [is_layer, is_add, *([is_product] if recipe.products else [])]
    return [node for node in gm.graph.nodes if any(is_one(gm, node) for is_one in kinds)]


def record_calls_with_weights_inside(gm: fx.GraphModule) -> None:
    """Record on each call that computes with weights of its own, unseen, that it stays in float.

    `nn.MultiheadAttention`, recurrent layers, the caller's leaf modules, and functions outside of
    PyTorch that take weights as arguments.
    """
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if module is not None and layer_type(module) is None and _has_matrices(module):
            reason = why_opaque(module) or why_not_changeable(module)
            whole = f"{type(module).__name__} is called as a whole"
            refuse(node, "left in float", reason or whole)
        elif node.op == "call_function" and _takes_matrices(gm, node):
            refuse(node, "left in float", f"{node.name} takes weights as arguments")


def _has_matrices(module: nn.Module) -> bool:
    inside = [layer for layer in module.modules() if layer_type(layer) is not None]
    if why_opaque(module) is not None:
        return any(parameter.dim() > 1 for parameter in module.parameters())
    return bool(inside) or isinstance(module, (nn.RNNBase, nn.RNNCellBase, *LAYERS))


def _takes_matrices(gm: fx.GraphModule, node: fx.Node) -> bool:
    if str(getattr(node.target, "__module__", None)).partition(".")[0] in ("torch", "_operator"):
        return False
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            owner, _, name = str(source.target).rpartition(".")
            value = getattr(gm.get_submodule(owner), name)
            if isinstance(value, nn.Parameter) and value.dim() >= 2:
                return True
    return False


def _possible(gm: fx.GraphModule, node: fx.Node, call: CallSpec) -> CallSpec:
    """Return `call`, or nothing where the layer cannot be quantized; record what stays in float."""
    module = module_of(gm, node)
    if module is None:
        return call
    if call == CallSpec(None, None) and not record(node).skipped:
        annotate(node, skipped=True)
    reason = why_not_changeable(module)
    if reason is None:
        return call
    refuse(node, "left in float", reason)
    return CallSpec(None, None)


def _near(rule: Rule, calls: list[tuple[str, nn.Module | None]]) -> str:
    """Return what a rule that matches none of the calls may have been meant to match."""
    if isinstance(rule.match, type):
        kinds = dict.fromkeys(type(module).__name__ for _, module in calls if module is not None)
        return f"layers are of the types: {', '.join(kinds)}"
    names = list(dict.fromkeys(name for name, _ in calls))
    inside = f"{rule.match}.*"
    if any(fnmatchcase(name, inside) for name in names):
        return f"a name matches as a whole: did you mean {inside!r}?"
    near = nearest(rule.match, names)
    if near:
        return f"did you mean {', '.join(near)}?"
    for wider in (f"*.{rule.match}", f"*.{rule.match}.*"):
        if any(fnmatchcase(name, wider) for name in names):
            return f"a name matches as a whole: did you mean {wider!r}?"
    starts = list(dict.fromkeys(name.split(".")[0] for name in names))
    return f"names start with: {', '.join(starts[:12])}"
