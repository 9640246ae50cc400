"""Compute once what a graph computes from parameters alone, and put a parameter in its place.

Before:  w = self.conv.weight; mean = w.mean((1, 2, 3)); sub = w - mean; y = F.conv2d(x, sub)
After:   weight = self.conv.weight; y = F.conv2d(x, weight)         # the standardized one

So layers can be made of weights that are standardized, biases put together, tables of positions.
Buffers and constants count as parameters; sizes of the input do not. Left as they are: random
numbers, what the graph writes into, a device or a type that is asked for, which may change yet,
and what would be much larger than all that it is made of.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxquant.graph.mutations import is_inplace, run_out_of_place, views_of
from fxquant.graph.operations import data_input, is_overridden, module_of, operation_of
from fxquant.graph.records import refuse
from fxquant.graph.submodules import Submodules, attribute_of, free_place
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED

_TORCHS = ("torch", "_operator", "math", "builtins")
_NUMBERS = (bool, int, float)


@dataclass(frozen=True, eq=False)
class FoldConstants(Pass):
    """Compute once what a graph computes from parameters alone."""

    starts_from = TRACED

    max_values: int = 2**22
    """No parameter is made that has more values, and more than all that it is made of."""

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each such result that something else reads; refuse those that are too large."""
        with torch.no_grad():
            values = _Values(gm)
        folded = {node: values.sources(node) for node in self._choose(values)}
        submodules = Submodules(gm)
        parameters = []
        for node, sources in folded.items():
            value = values.known[node]
            if not isinstance(value, Tensor):
                _write_out(node, value)
                continue
            with gm.graph.inserting_before(node):  # under a name that is known when all is erased
                read = gm.graph.create_node("get_attr", "", name=node.name)
            read.meta.update(node.meta)
            node.replace_all_uses_with(read)
            parameters.append((read, _kept(value, sources, gm), _name(node, value, sources, gm)))
        behind = [each for node in folded for each in values.behind(node)]
        submodules.erase_unread([*folded, *behind])
        for read, tensor, name in parameters:
            read.target = free_place(gm, name)
            submodules.put_tensor(read.target, tensor)
            read._rename(read.target.replace(".", "_"))
        return bool(folded)

    def _choose(self, values: _Values) -> list[fx.Node]:
        """Return the nodes that others read, of those that can be replaced."""
        chosen = []
        for node in reversed(list(values.known)):  # what is not replaced leaves it to what it reads
            if node.op == "get_attr" or all(user in values.known for user in node.users):
                continue
            reason = self._why_not(node, values)
            if reason is None:
                chosen.append(node)
                continue
            if reason:
                refuse(node, "not computed once", reason)
            del values.known[node]
        return chosen[::-1]

    def _why_not(self, node: fx.Node, values: _Values) -> str | None:
        """Return why a result is not kept, "" where that goes without saying."""
        value, sources = values.known[node], values.sources(node)
        if not sources:
            return ""
        if not isinstance(value, Tensor):
            is_plain = isinstance(value, (*_NUMBERS, torch.Size))
            return None if is_plain else ""
        size = sum(values.known[each].numel() for each in sources)
        if value.numel() > max(self.max_values, size):
            return f"it has {value.numel()} values, and is made of {size}"
        return None


class _Values:
    """What a graph computes from parameters alone: `known`, in execution order."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        written: set[fx.Node] = set()
        while True:  # what is written into may have been read before
            self.known: dict[fx.Node, Any] = {}
            found = self._compute(written)
            if found <= written:
                return
            written |= found

    def behind(self, node: fx.Node) -> set[fx.Node]:
        """Return the nodes that `node` is computed from."""
        found: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            new = [each for each in waiting.pop().all_input_nodes if each not in found]
            found.update(new)
            waiting += new
        return found

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Return the reads of parameters that `node` is computed from, in execution order."""
        behind = self.behind(node)
        return [each for each in self.known if each in behind and each.op == "get_attr"]

    def _compute(self, written: set[fx.Node]) -> set[fx.Node]:
        """Fill `known` without the nodes in `written`; return those that are written into."""
        found: set[fx.Node] = set()
        for node in self._gm.graph.nodes:
            source = data_input(node)
            is_changed = source is not None and is_inplace(self._gm, node)
            if source is not None and is_changed and not self._is_own(source, node):
                found |= self._sharing(source)
            elif node not in written and _is_computable(self._gm, node):
                self._run(node, is_changed)
        return found

    def _is_own(self, source: fx.Node, writer: fx.Node) -> bool:
        """Say whether nobody sees that `writer` changes what `source` computed."""
        is_computed = source in self.known and source.op != "get_attr"
        return is_computed and len(source.users) == 1 and self._sharing(source) == {source}

    def _sharing(self, source: fx.Node) -> set[fx.Node]:
        """Return the nodes that may hold the memory of `source`."""
        memory = _memory(self.known.get(source))
        same = {each for each, value in self.known.items() if _memory(value) == memory}
        return views_of(self._gm, source) | (same if memory else {source})

    def _run(self, node: fx.Node, is_inplace: bool) -> None:
        """Compute `node`, if all that it reads is known and no chance is in it."""
        gm, inputs = self._gm, node.all_input_nodes
        if node.op == "get_attr":
            value = attribute_of(gm, node)
            if isinstance(value, Tensor):
                self.known[node] = value.detach()
            return
        if any(each not in self.known for each in inputs):
            return
        args: Any = fx.node.map_arg(node.args, self.known.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, self.known.__getitem__)
        function: Any = module_of(gm, node) or node.target
        if node.op == "call_method":
            function = getattr(type(args[0]), str(node.target))
        try:
            with _WithoutChance():  # type: ignore[no-untyped-call]
                if is_inplace:
                    self.known[node] = run_out_of_place(node, function, args, kwargs)
                else:
                    self.known[node] = function(*args, **kwargs)
        except _ByChance:
            return


def _is_computable(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether `node` computes the same each time, as far as its spelling tells."""
    if node.op == "get_attr":
        return True
    module = module_of(gm, node)
    if module is not None:
        is_torchs = type(module).__module__.startswith("torch.nn.modules.")
        return is_torchs and not module.training and not is_overridden(module)
    if node.op == "call_method":
        return operation_of(gm, node).kind not in ("rank", "type") and bool(node.all_input_nodes)
    if node.op != "call_function" or node.is_impure():
        return False
    is_torchs = str(getattr(node.target, "__module__", None)).partition(".")[0] in _TORCHS
    return is_torchs and operation_of(gm, node).kind not in ("rank", "type")


class _ByChance(Exception):
    """A random number was asked for."""


class _WithoutChance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses to draw random numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise _ByChance
        return func(*args, **(kwargs or {}))


def _memory(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else None


def _write_out(node: fx.Node, value: Any) -> None:
    """Let the users of `node` read the plain `value` instead."""
    value = tuple(value) if isinstance(value, torch.Size) else value

    def written(each: fx.Node) -> Any:
        return value if each is node else each

    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, written)
        user.kwargs = fx.node.map_arg(user.kwargs, written)


def _kept(value: Tensor, sources: Iterable[fx.Node], gm: fx.GraphModule) -> Tensor:
    """Return `value` as a parameter, or as a buffer where it is made of no parameter."""
    value = value.clone() if 0 in value.stride() else value.detach()
    attributes = [attribute_of(gm, each) for each in sources]
    learned = [each for each in attributes if isinstance(each, nn.Parameter)]
    if not learned or not value.is_floating_point():
        return value
    return nn.Parameter(value, requires_grad=any(each.requires_grad for each in learned))


def _name(node: fx.Node, value: Tensor, sources: list[fx.Node], gm: fx.GraphModule) -> str:
    """Return the name of what it is made of, if that is one or one of its shape; else a new one."""
    alike = [each for each in sources if attribute_of(gm, each).shape == value.shape]
    if len(sources) == 1 or len(alike) == 1:
        return str((alike or sources)[0].target)
    owner = str(sources[0].target).rpartition(".")[0]
    function = getattr(node.target, "__name__", str(node.target).rpartition(".")[2])
    return f"{owner}.{function}".lstrip(".")
