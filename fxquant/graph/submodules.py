"""The modules that a graph calls, changed so that no other model sees the change.

    submodules = Submodules(gm)
    layer = submodules.separate([conv_1, conv_2])    # a copy, which these two calls alone use
    submodules.put("quantizers.x", quantizer)
    submodules.drop_unused({"bn1"})

A graph shares its modules with the model that it was traced from, and with graphs made of it. So a
module is copied before it is changed, and so is each module on the way to it. The tensors stay
shared: a pass gives a copy new ones, and writes to none.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from fxquant.graph.records import annotate, record
from fxquant.modules.overrides import why_overridden


def users_by_module(gm: fx.GraphModule) -> dict[nn.Module, list[fx.Node]]:
    """Return the nodes that use each module, in execution order.

    They call it, or a module that holds it, or read one of its attributes. By module, not by name:
    one module may stand under two names.
    """
    users: dict[nn.Module, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            for module in gm.get_submodule(str(node.target)).modules():
                users.setdefault(module, []).append(node)
        elif node.op == "get_attr":
            owner = gm.get_submodule(str(node.target).rpartition(".")[0])
            users.setdefault(owner, []).append(node)
    return users


def free_name(gm: nn.Module, name: str) -> str:
    """Return `name`, with a number behind it if the module has something of that name.

    Of what is missing on the way a plain module will be made: that has methods, as `to`.
    """
    holder_name, _, last = name.rpartition(".")
    holder = _find(gm, holder_name) if holder_name else gm
    holder = nn.Module() if holder is None else holder
    candidate, number = last, 0
    while hasattr(holder, candidate):
        number += 1
        candidate = f"{last}_{number}"
    return f"{holder_name}.{candidate}" if holder_name else candidate


def _find(gm: nn.Module, path: str) -> Any:
    """Return what is at `path`, None if there is nothing."""
    found: Any = gm
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def free_place(gm: fx.GraphModule, path: str) -> str:
    """Return `path`, or one beside it that is free, and outside of the modules that nodes call.

    Passes replace these as a whole.
    """
    called = {str(node.target) for node in gm.graph.find_nodes(op="call_module")}
    for holder in sorted(_holders_of(path) & called, key=len):
        return free_name(gm, f"{holder}_{path.removeprefix(f'{holder}.').replace('.', '_')}")
    return free_name(gm, path)


def attribute_of(gm: fx.GraphModule, node: fx.Node) -> Any:
    """Return what `node`, which reads an attribute, reads."""
    owner, _, name = str(node.target).rpartition(".")
    return getattr(gm.get_submodule(owner), name)


def own_all(gm: fx.GraphModule, *kinds: type[nn.Module]) -> None:
    """See that `gm` alone holds the modules of these types that it calls, and their buffers."""
    submodules = Submodules(gm)
    for path in dict.fromkeys(str(each.target) for each in gm.graph.find_nodes(op="call_module")):
        if isinstance(gm.get_submodule(path), kinds):
            buffers = submodules.own(path)._buffers
            for name, value in buffers.items():
                buffers[name] = None if value is None else value.clone()


def why_not_changeable(module: nn.Module) -> str | None:
    """Return why a layer's parameters cannot be replaced, or None if they can."""
    if is_parametrized(module):
        return f"its {type(module).__name__} computes its parameters (torch.nn.utils.parametrize)"
    override = why_overridden(module)
    if override is not None:
        return f"its {type(module).__name__} has {override}, which may use its parameters"
    return None


class Submodules:
    """The modules of one graph, for one run of a pass.

    Args:
        gm: whose modules are replaced, never changed.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._mine: set[nn.Module] = {gm}
        """What no other model holds: made or copied here."""
        self.users = users_by_module(gm)

    def own(self, path: str) -> Any:
        """Return the module at `path`, as one that may be changed: a copy in its place.

        It takes the place under all names that nodes know the module by.
        """
        module = self._gm.get_submodule(path)
        if module in self._mine:
            return module
        copied = _copy_sharing_tensors(module)
        users = self.users.pop(module, [])
        for name in {path, *(str(user.target) for user in users if user.op == "call_module")}:
            if self._gm.get_submodule(name) is module:
                self.put(name, copied)
        self.users[copied] = users
        return copied

    def separate(self, nodes: list[fx.Node]) -> Any:
        """Return the module which all of `nodes` call, as one that no other node uses.

        If others use it, `nodes` get it under a new name.
        """
        path = str(nodes[0].target)
        module = self._gm.get_submodule(path)
        mine = set(nodes)
        others = [user for user in self.users[module] if user not in mine]
        if not others:
            return self.own(path)
        copied = _copy_sharing_tensors(module)
        name = free_name(self._gm, path)
        self.put(name, copied)
        self.users[module], self.users[copied] = others, nodes
        for node in nodes:
            annotate(node, origin=record(node).origin or str(node.target))
            node.target = name
        return copied

    def put(self, path: str, module: nn.Module) -> None:
        """Put `module` at `path`; what holds it is made where it is missing."""
        holder, name = self._holder(path)
        holder.add_module(name, module)
        self._mine.add(module)

    def drop_unused(self, paths: Iterable[str]) -> None:
        """Delete those of the modules at `paths` that no node calls any more, whole or in part."""
        called: set[str] = set()
        used: set[str] = set()  # what nodes name, and all that it is inside of
        for node in self._gm.graph.nodes:
            path = str(node.target) if node.op in ("call_module", "get_attr") else ""
            if node.op == "call_module":
                called.add(path)
            while path and path not in used:
                used.add(path)
                path = path.rpartition(".")[0]
        for path in set(paths) - used:
            if _find(self._gm, path) is not None and called.isdisjoint(_holders_of(path)):
                holder, name = self._holder(path)
                del holder._modules[name]

    def put_tensor(self, path: str, tensor: Tensor) -> None:
        """Put a parameter or, if it is none, a buffer at `path`."""
        holder, name = self._holder(path)
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(name, tensor)
        else:
            holder.register_buffer(name, tensor)

    def erase_unread(self, nodes: Iterable[fx.Node]) -> None:
        """Erase those of `nodes` that no node uses, and attributes that none of the graph reads.

        Attributes of modules that are called stay.
        """
        graph, wanted, erased = self._gm.graph, set(nodes), set()
        for node in reversed(graph.nodes):
            if node in wanted and not node.users:
                graph.erase_node(node)
                erased.update([str(node.target)] if node.op == "get_attr" else [])
        read = {str(node.target) for node in graph.find_nodes(op="get_attr")}
        called = {str(node.target) for node in graph.find_nodes(op="call_module")}
        for path in erased - read:
            if called.isdisjoint(_holders_of(path)):
                holder, name = self._holder(path)
                delattr(holder, name)

    def _holder(self, path: str) -> tuple[nn.Module, str]:
        """Return the module that holds what is at `path`, which may be changed, and its name."""
        *parts, name = path.split(".")
        holder: nn.Module = self._gm
        for part in parts:
            inner = holder._modules.get(part)
            if inner is None:
                inner = nn.Module()
                holder.add_module(part, inner)
                self._mine.add(inner)
            elif inner not in self._mine:
                copied = _copy_sharing_tensors(inner)
                self.users[copied] = self.users.pop(inner, [])
                holder._modules[part] = inner = copied
                self._mine.add(inner)
            holder = inner
        return holder, name


def _holders_of(path: str) -> set[str]:
    """Return the paths of all modules that the one at `path` is inside of."""
    parts = path.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def _copy_sharing_tensors(module: nn.Module) -> nn.Module:
    """Return a module of the same type that holds the same tensors and modules."""
    copied = type(module).__new__(type(module))
    for name, value in vars(module).items():  # not through __init__, which would draw weights
        own = copy.copy(value) if isinstance(value, (dict, list, set)) else value
        vars(copied)[name] = own
    return copied
