"""Verbs on FX graphs that the passes share: find, judge, name, copy, delete."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from fxquant.errors import PassError
from fxquant.graph.operations import source_of
from fxquant.graph.records import annotate, record


def why_not_changeable(module: nn.Module) -> str | None:
    """Return why a layer's parameters cannot be replaced, or None if they can."""
    if module._forward_hooks or module._forward_pre_hooks:
        return f"its {type(module).__name__} has forward hooks, which may use its parameters"
    return None


def users_by_module(gm: fx.GraphModule) -> dict[nn.Module, list[fx.Node]]:
    """Return the nodes that call each module or read one of its attributes, in execution order.

    By module, not by name: one module may stand under two names.
    """
    users: dict[nn.Module, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            path = str(node.target)
            owner = path if node.op == "call_module" else path.rpartition(".")[0]
            users.setdefault(gm.get_submodule(owner), []).append(node)
    return users


def free_name(gm: nn.Module, name: str) -> str:
    """Return `name`, with a number behind it if the module has something of that name."""
    candidate, number = name, 0
    while _has(gm, candidate):
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _has(gm: nn.Module, path: str) -> bool:
    owner: Any = gm
    for part in path.split("."):
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


def separate_calls(
    gm: fx.GraphModule, nodes: list[fx.Node], users: dict[nn.Module, list[fx.Node]]
) -> None:
    """See that the module which all of `nodes` call is used by no other node.

    If it is, `nodes` get a copy of it, and `users` (`users_by_module`) is brought up to date.
    """
    target = str(nodes[0].target)
    module = gm.get_submodule(target)
    mine = set(nodes)
    others = [user for user in users[module] if user not in mine]
    name = target
    if others:
        name = free_name(gm, target)
        copied = copy.deepcopy(module)
        gm.add_submodule(name, copied)
        users[module], users[copied] = others, nodes
    for node in nodes:
        if node.target != name:
            annotate(node, origin=record(node).origin or str(node.target))
            node.target = name


def delete_unused(gm: fx.GraphModule, targets: set[str]) -> None:
    """Delete those submodules among `targets` that no node calls any more."""
    used: set[str] = set()  # what nodes name, and all that it is inside of
    for node in gm.graph.nodes:
        path = str(node.target) if node.op in ("call_module", "get_attr") else ""
        while path and path not in used:
            used.add(path)
            path = path.rpartition(".")[0]
    for target in targets - used:
        gm.delete_submodule(target)


def require_same_nodes(where: str, reference: fx.GraphModule, nodes: Iterable[fx.Node]) -> None:
    """Raise `PassError` if `reference` has no node of one of these names."""
    names = {node.name for node in reference.graph.nodes}
    for node in nodes:
        if node.name not in names:
            raise PassError(
                f"{where}: the reference has no node {node.name!r}: give a copy made before "
                "QuantizeWeights"
            )


def take_out(node: fx.Node) -> None:
    """Erase `node` and let its users take what it works on."""
    node.replace_all_uses_with(source_of(node))
    node.graph.erase_node(node)


def insert_after(node: fx.Node) -> Any:
    """Return the context in which new nodes land behind `node`, and behind all placeholders."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node.graph.inserting_after(node)
