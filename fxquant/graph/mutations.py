"""Which calls change a tensor in place, and who sees the change.

`relu_`, `a += b`, `ReLU(inplace=True)` and `x[0] = y` change their first argument. Where values are
kept beyond the call, they are computed on a copy, and what comes later reads the call's result
instead of the changed tensor. Changes through a view of a tensor are not followed there; what they
reach is known.

A function that fx does not look into (`fx.wrap`) may do so too. One whose result nobody reads is
called for just that. Of any other, integers take no chances.
"""

from __future__ import annotations

import copy
import inspect
import operator
from types import FunctionType
from typing import Any

from torch import fx, nn

from fxquant.graph.operations import (
    data_input,
    is_overridden,
    module_of,
    operation_of,
    readers,
    reads_values,
)
from fxquant.numerics.containers import cloned

_OPERATORS = (
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.iand,
    operator.ior,
    operator.ixor,
)

_VIEWS = {
    "T", "mT", "H", "mH", "data", "real", "imag", "t", "adjoint", "swapdims", "movedim",
    "moveaxis", "select", "diagonal", "unfold", "as_strided", "detach", "to", "type", "type_as",
    "float", "cpu", "cuda", "ravel", "tensor_split", "hsplit", "vsplit", "dsplit", "broadcast_to",
    "view_as_real", "view_as_complex", "squeeze_",
}  # fmt: skip
"""Calls and attributes whose result may share memory, beside the operations that move values."""

_KNOWN_PACKAGES = ("torch.", "fxquant.", "torchvision.ops.", "math", "operator")


def is_inplace(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the call changes its first argument in place."""
    module = module_of(gm, node)
    if module is not None:
        return getattr(module, "inplace", False) is True
    if node.op == "call_method":
        return _has_inplace_name(str(node.target))
    if node.op != "call_function":
        return False
    if node.target in _OPERATORS or _returns_nothing(node):
        return True
    return _has_inplace_name(getattr(node.target, "__name__", "")) or _asks_for_it(node)


def _returns_nothing(node: fx.Node) -> bool:
    """Say whether the call changes its first argument, and its result is not that."""
    return node.target is operator.setitem or (is_opaque(node) and not node.users)


def is_opaque(node: fx.Node) -> bool:
    """Say whether the call is of a function of which only its source tells what it does."""
    package = getattr(node.target, "__module__", None) or ""
    is_known = package.startswith(_KNOWN_PACKAGES) or package == "torch"
    return isinstance(node.target, FunctionType) and not is_known


def _has_inplace_name(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _asks_for_it(node: fx.Node) -> bool:
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is True
    try:
        parameters = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # functions written in C tell no signature, and have no flag
        return False
    if "inplace" not in parameters:
        return False
    position = parameters.index("inplace")
    return len(node.args) > position and node.args[position] is True


def run_out_of_place(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
    """Return what the in-place call `function` makes of a copy of its first argument."""
    if isinstance(function, nn.Module):
        function = copy.copy(function)
        function.inplace = False
        return function(*args, **kwargs)
    if args:
        args = (cloned(args[0]), *args[1:])
    elif "input" in kwargs:
        kwargs = {**kwargs, "input": cloned(kwargs["input"])}
    result = function(*args, **kwargs)
    return args[0] if _returns_nothing(node) else result


def read_instead(gm: fx.GraphModule) -> dict[fx.Node, dict[fx.Node, fx.Node]]:
    """Return for each node that reads a tensor changed in place what it is to read instead."""
    return _follow(gm)[0]


def not_followed(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Return the nodes whose values are not right where they are kept, with the change they miss.

    `read_instead` follows a tensor, not what else lies in its memory: where `x.relu_()` is called,
    not `x[0]` of before; where `x[0].relu_()` is called, not `x`.
    """
    return _follow(gm)[1]


def _follow(
    gm: fx.GraphModule,
) -> tuple[dict[fx.Node, dict[fx.Node, fx.Node]], dict[fx.Node, fx.Node]]:
    latest: dict[fx.Node, fx.Node] = {}
    found: dict[fx.Node, dict[fx.Node, fx.Node]] = {}
    outdated: dict[fx.Node, fx.Node] = {}  # from here on
    missed: dict[fx.Node, fx.Node] = {}
    made: set[fx.Node] = set()
    for node in gm.graph.nodes:
        replaced = {each: latest[each] for each in node.all_input_nodes if each in latest}
        if replaced:
            found[node] = replaced
        for each in node.all_input_nodes:
            read = replaced.get(each, each)
            if read in outdated and reads_values(gm, node, each):
                missed[node] = outdated[node] = outdated[read]
        source = data_input(node)
        if source is not None and is_inplace(gm, node):
            base = latest.get(source, source)
            latest.update({each: node for each in (source, base)})
            latest.update({each: node for each, last in latest.items() if last is base})
            others = (each for each in _aliases(gm, source) & made if latest.get(each) is not node)
            outdated.update(dict.fromkeys(others, node))
        made.add(node)
    return found, missed


def changed_while_read(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Return the nodes whose result is changed in place and read later, with what changes it last.

    Any view of a result may be what is changed, and any may be what is read, results of calls that
    changed it before among them: `x.mul_(2).sub_(1)` changes x twice.
    """
    position = {node: number for number, node in enumerate(gm.graph.nodes)}
    found: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        changed = (view for each in _may_be_changed(gm, node) for view in _aliases(gm, each))
        views = {view for view in changed if position[view] < position[node]}
        seen_by = {user for view in views for user in readers(gm, view)}
        if any(position[reader] > position[node] for reader in seen_by):
            found.update({view: node for view in views})
    return found


def _may_be_changed(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose result the call may change in place."""
    if is_opaque(node):
        return [each for each in node.all_input_nodes if not _is_size(gm, each)]
    source = data_input(node)
    return [source] if source is not None and is_inplace(gm, node) else []


def _is_size(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node's result is a shape, or an item of one."""
    source: fx.Node | None = node
    while source is not None and source.target is operator.getitem:
        source = data_input(source)
    return source is not None and operation_of(gm, source).kind in ("rank", "shape")


def _aliases(gm: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """Return all that may share memory with `node`: views, and results of changes in place."""
    found: set[fx.Node] = set()
    waiting: list[fx.Node | None] = [node]
    while waiting:
        alias = waiting.pop()
        if alias is None or alias in found:
            continue
        found.add(alias)
        if may_be_view(gm, alias) or is_inplace(gm, alias):
            waiting.append(data_input(alias))
        for user in alias.users:
            is_it = data_input(user) is alias and is_inplace(gm, user)
            waiting += [user] if is_it or may_be_view(gm, user) else []
    return found


def views_of(gm: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """Return all nodes that may share memory with `node`, itself included."""
    base, source = node, data_input(node)
    while source is not None and may_be_view(gm, base):
        base, source = source, data_input(source)
    views, unseen = {base}, [base]
    while unseen:
        new = [user for user in unseen.pop().users if user not in views and may_be_view(gm, user)]
        views.update(new)
        unseen += new
    return views


def may_be_view(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node's result may share memory with its input, unless it changes that."""
    if node.target is operator.getitem or _name(node) in _VIEWS:
        return True
    moves = operation_of(gm, node).moves_only or is_overridden(module_of(gm, node))
    return moves and not is_inplace(gm, node)


def _name(node: fx.Node) -> str:
    """Return the name of what is called, or of the attribute that is read."""
    if node.target is getattr:
        return str(node.args[1])
    return str(getattr(node.target, "__name__", node.target))
