"""The graph as text: one line a node, what fxquant knows of it behind a `#`.

Only names and numbers of the graph are printed, no object's `repr`, so that the text is the same
under every version of PyTorch and can be compared in tests.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxquant.graph.journal import read_recipe
from fxquant.graph.records import record
from fxquant.graph.states import require_graphs
from fxquant.modules.own import as_own

_NAMESPACES: tuple[tuple[Any, str], ...] = ((operator, "operator"), (torch, "torch"), (F, "F"))
_COMMENT_COLUMN = 56


@dataclass(frozen=True)
class NodeText:
    """One node as text."""

    node: fx.Node
    statement: str
    module: str
    """What the printed graph says of the module that is called; "" where none is."""


def node_texts(gm: fx.GraphModule) -> Iterator[NodeText]:
    """Yield the nodes of a graph as text, in order, without what was folded, fused or refused."""
    for node in gm.graph.nodes:
        is_call = node.op == "call_module"
        module = _module_facts(gm.get_submodule(str(node.target))) if is_call else ""
        yield NodeText(node, _statement(node), module)


class GraphText(str):
    """A graph's text, which a notebook shows line by line."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f'<pre style="overflow-x:auto">{escape(self)}</pre>'


def text(model: nn.Module) -> GraphText:
    """Return the graph of `model` as text; of a model with regions, theirs, by name.

    Raises:
        PassError: it has no graph.

    >>> from fxquant.capture.tracing import trace
    >>> print(text(trace(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))))
    input_1 = input()
    _0 = self.0(input_1)                                    # Linear
    _1 = self.1(_0)                                         # ReLU
    return _1
    """
    remedy = "text(fxquant.trace(model)) prints that of a float model"
    graphs = require_graphs(model, "text", remedy)
    read_recipe(model)
    if isinstance(model, fx.GraphModule):
        return GraphText("\n".join(_line(model, node) for node in model.graph.nodes))
    parts = [
        "\n".join([f"{path}:", *(_line(gm, node) for node in gm.graph.nodes)])
        for path, gm in graphs.items()
    ]
    return GraphText("\n\n".join(parts))


def _line(gm: fx.GraphModule, node: fx.Node) -> str:
    statement = _statement(node)
    comment = " · ".join(_facts(gm, node))
    return f"{statement:<{_COMMENT_COLUMN - 1}} # {comment}" if comment else statement


def _statement(node: fx.Node) -> str:
    if node.op == "placeholder":
        default = f" = {_value(node.args[0])}" if node.args else ""
        return f"{node.name} = input(){default}"
    if node.op == "get_attr":
        return f"{node.name} = self.{node.target}"
    if node.op == "output":
        return f"return {_value(node.args[0])}"
    arguments = [_value(value) for value in node.args]
    arguments += [f"{key}={_value(value)}" for key, value in node.kwargs.items()]
    if node.op == "call_method":
        owner = arguments.pop(0)
        return f"{node.name} = {owner}.{node.target}({', '.join(arguments)})"
    callee = f"self.{node.target}" if node.op == "call_module" else _function_name(node.target)
    return f"{node.name} = {callee}({', '.join(arguments)})"


def _function_name(function: Any) -> str:
    name = getattr(function, "__name__", str(function))
    for namespace, prefix in _NAMESPACES:
        if getattr(namespace, name, None) is function:
            return f"{prefix}.{name}"
    return f"{str(getattr(function, '__module__', '')).rpartition('.')[2]}.{name}".lstrip(".")


def _value(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_value(item) for item in value)
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return ":".join("" if part is None else _value(part) for part in parts[:2]) + (
            "" if value.step is None else f":{_value(value.step)}"
        )
    return "..." if value is Ellipsis else repr(value)


def _facts(gm: fx.GraphModule, node: fx.Node) -> list[str]:
    facts = []
    if node.op == "call_module":
        facts.append(_module_facts(gm.get_submodule(str(node.target))))
    known = record(node)
    if known.folded:
        facts.append(f"folded: {', '.join(known.folded)}")
    if known.relu:
        facts.append(f"fused: {known.relu}")
    if known.fused_into:
        facts.append(f"fused into {known.fused_into}")
    facts += [f"refused: {refusal}" for refusal in known.refused]
    return facts


def _module_facts(module: nn.Module) -> str:
    kind = type(module).__name__
    return f"{kind} {as_own(module).facts()}".rstrip()
