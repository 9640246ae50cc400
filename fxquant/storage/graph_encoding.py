"""An fx graph as JSON, and back.

    [["placeholder", "x", "x", [], {}, {}],
     ["call_module", "fc", "layers.fc", [["node", 0]], {}, {"skipped": true}],
     ["output", "output", "output", [["node", 1]], {}, {}]]

The last item is what fxquant knows of the node (`fxquant.graph.records.Record`). Moments are not
stored: observers are made of them, and these are in place. Neither are annotations of types and
other metadata. fx turns a graph into source code and runs that, so whatever goes into it is checked
here: names are identifiers, targets exist, arguments are values that fx knows.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from fxquant.capture.recording.objects import filled
from fxquant.errors import StorageError
from fxquant.graph.records import Record, annotate, record
from fxquant.storage.allowed import Allowed
from fxquant.storage.fields import check_fields
from fxquant.storage.known_functions import is_harmless
from fxquant.storage.plain_values import Json, decode_plain, encode_plain, is_plain, is_plain_tree
from fxquant.stored_names import stored_name

_SEQUENCES = {"tuple": tuple, "list": list}


def encode_graph(
    graph: fx.Graph,
    name_of: Callable[[Any, str], str],
    encode: Callable[[Any, str], Json],
    path: str,
) -> Json:
    """Return a graph as JSON.

    Args:
        graph: of the module at `path`.
        name_of: gives the name of a function; its second argument says where that is.
        encode: gives the JSON of what a record holds; the same.
        path: for errors.
    """
    if type(graph._codegen) is not CodeGen:
        kind = type(graph._codegen).__name__
        raise StorageError(f"{path}: its graph takes or returns structures ({kind})")
    encoded, numbers = [], {node: number for number, node in enumerate(graph.nodes)}
    for node in numbers:
        where = f"{path}: node {node.name!r}"
        if node.target is filled:
            raise StorageError(f"{where} returns an object of a class that no file may name")
        target = node.target if isinstance(node.target, str) else name_of(node.target, where)
        args = [_encode(value, numbers, where) for value in node.args]
        kwargs = {key: _encode(value, numbers, where) for key, value in node.kwargs.items()}
        known = {name: encode(fact, where) for name, fact in _facts(node).items()}
        encoded.append([node.op, node.name, target, args, kwargs, known])
    return encoded


def _facts(node: fx.Node) -> dict[str, Any]:
    """Return what is known of a node, without what is known of none."""
    known, nothing = record(node), Record()
    names = [each.name for each in fields(Record) if each.name != "moments"]
    return {
        name: getattr(known, name)
        for name in names
        if getattr(known, name) != getattr(nothing, name)
    }


def _encode(value: Any, numbers: dict[fx.Node, int], where: str) -> Json:
    if isinstance(value, fx.Node):
        return ["node", numbers[value]]
    if is_plain(value):
        return encode_plain(value)
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
        return ["slice", *(_encode(each, numbers, where) for each in value)]
    for kind, sequence in _SEQUENCES.items():
        if isinstance(value, sequence) and not hasattr(value, "_fields"):
            return [kind, *(_encode(each, numbers, where) for each in value)]
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return ["dict", {key: _encode(each, numbers, where) for key, each in value.items()}]
    if isinstance(value, dict) and all(is_plain(key) for key in value):
        items = [(encode_plain(key), each) for key, each in value.items()]
        return ["items", *([key, _encode(each, numbers, where)] for key, each in items)]
    raise StorageError(f"{where} has an argument of type {type(value).__name__}: {value!r}")


def decode_graph(
    tree: Json, owner: nn.Module, allowed: Allowed, decode: Callable[[Json], Any]
) -> fx.Graph:
    """Return the graph.

    Args:
        tree: what `encode_graph` returned.
        owner: whose submodules and tensors the graph uses.
        allowed: which functions it may call.
        decode: the opposite of `encode`.

    Raises:
        StorageError: it does what no traced graph does.
    """
    graph, nodes = fx.Graph(), list[fx.Node]()
    for op, name, target, args, kwargs, known in tree:
        _require(_is_identifier(name) and name != "self", f"a node {name!r}")
        args = tuple(_decode(each, nodes) for each in args)
        kwargs = {key: _decode(each, nodes) for key, each in kwargs.items()}
        _require(all(map(_is_identifier, kwargs)), f"the keywords {list(kwargs)}")
        target = _target(op, target, owner, allowed)
        _require_harmless(target, args, kwargs, allowed)
        node = graph.create_node(op, target, args, kwargs, name)
        _require(node.name == name or all(each.name != name for each in nodes), f"two {name!r}")
        if node.name != name:
            node.name = name
        if known:
            facts = {key: decode(fact) for key, fact in known.items()}
            check_fields(Record, facts)
            annotate(node, **facts)
        nodes.append(node)
    return graph


def _decode(tree: Json, nodes: list[fx.Node]) -> Any:
    if is_plain_tree(tree):
        return decode_plain(tree)
    _require(isinstance(tree, list) and bool(tree), f"the argument {tree!r}")
    kind, *parts = tree
    if kind == "node":
        return nodes[parts[0]]
    if kind == "dict":
        return {key: _decode(each, nodes) for key, each in parts[0].items()}
    if kind == "items":
        return {decode_plain(key): _decode(each, nodes) for key, each in parts}
    _require(kind in ("slice", *_SEQUENCES), f"the argument {tree!r}")
    values = [_decode(each, nodes) for each in parts]
    return slice(*values) if kind == "slice" else _SEQUENCES[kind](values)


def _target(op: str, target: str, owner: nn.Module, allowed: Allowed) -> Any:
    """Return what a node calls or reads, checked."""
    if op == "call_function":
        return allowed.function_named(target)
    if op == "placeholder":
        _require(_is_identifier(target.removeprefix("*").removeprefix("*")), f"input {target!r}")
    elif op == "call_method":
        _require(allowed.is_method(target), f"a call of the method {target!r}")
    elif op in ("call_module", "get_attr"):
        _require(_exists(owner, target, op == "call_module"), f"{op} of {target!r}")
    else:
        _require(op == "output", f"a node that does {op!r}")
    return target


def _exists(owner: nn.Module, target: str, is_module: bool) -> bool:
    """Say whether `target` is the name of a submodule, or else of a value that is mere data."""
    *path, name = target.split(".")
    if any(not part.isprintable() or set(part) & set("\"'\\") for part in (*path, name)):
        return False
    module: nn.Module | None = owner
    for part in path:
        module = module._modules.get(part) if module is not None else None
    if module is None:
        return False
    if is_module:
        return module._modules.get(name) is not None
    if name in module._parameters or name in module._buffers:
        return True
    if stored_name(type(module)) is not None and name == "weight":
        return True  # what a layer's integers stand for
    return name in vars(module) and not name.startswith("_") and _is_data(vars(module)[name])


def _is_data(value: Any) -> bool:
    """Say whether a value of a module has no code that a graph could reach by it."""
    if isinstance(value, dict):
        return all(map(_is_data, (*value.keys(), *value.values())))
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return isinstance(value, Tensor) or is_plain(value)


def _require_harmless(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], allowed: Allowed
) -> None:
    """Raise where a builtin would read what is private, or call what it is given."""
    if target is getattr:
        name = args[1] if len(args) > 1 else None
        fine = isinstance(name, str) and allowed.is_attribute(name) and not kwargs
        _require(fine, f"a look at the attribute {name!r}")
    elif callable(target) and not is_harmless(target):
        _require("key" not in kwargs, f"{target.__name__}(key=…)")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise StorageError(f"its graph holds {what}, which no traced graph does")


def _is_identifier(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
