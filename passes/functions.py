"""Functions as passes: what one returns is taken over, and what it changed is found out.

    def use_hardswish(gm):                       # in place, as a pass of fxquant does
        for node in gm.graph.nodes: …

    def fuse(gm): return fx.experimental.optimization.fuse(gm)     # another module
    lambda gm: fx.replace_pattern(gm, pattern, replacement)        # a list of what was replaced

Before:  gm (graph A); function(gm) → other (graph B)
After:   gm (graph B, with the modules and tensors that B names)   # whoever holds gm sees it
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxquant.errors import PassError
from fxquant.graph.operations import data_input, module_of, relu_bounds
from fxquant.graph.records import annotate, record
from fxquant.graph.submodules import Submodules
from fxquant.modules.own import as_own

_TO_RETURN = "return None, whether it changed the graph, the GraphModule, or a PassResult"


def name_of(function: Callable[..., Any]) -> str:
    """Return what a function is called in lists, errors and files.

    >>> name_of(functools.partial(print, end=""))
    'print'
    """
    if isinstance(function, functools.partial):
        return name_of(function.func)
    name = getattr(function, "__name__", type(function).__name__)
    code = getattr(function, "__code__", None)
    if name == "<lambda>" and code is not None:
        return f"lambda ({Path(code.co_filename).name}:{code.co_firstlineno})"
    return str(name)


def why_no_pass(candidate: Any) -> str | None:
    """Return why something cannot be called with a graph to change it, and what to give instead."""
    if isinstance(candidate, type):
        name = candidate.__name__
        if issubclass(candidate, fx.Interpreter):
            return f"{name} is a class: give lambda gm: {name}(gm).transform()"
        return f"{name} is a class: give an instance, {name}(…)"
    if isinstance(candidate, nn.Module):
        return f"a {type(candidate).__name__} is a module, no pass: call the pass, or the Pipeline"
    if isinstance(candidate, fx.Interpreter):
        name = type(candidate).__name__
        return f"a {name} has one graph of its own: give lambda gm: {name}(gm).transform()"
    if isinstance(candidate, (list, tuple)):
        return f"a {type(candidate).__name__} is no pass: give its items one by one, Pipeline(*…)"
    if not callable(candidate):
        return (
            f"{candidate!r} is no pass: give an instance of fxquant.Pass, or a function of a "
            "GraphModule"
        )
    return None


def apply_function(function: Callable[[fx.GraphModule], Any], gm: fx.GraphModule) -> bool:
    """Call `function` with `gm`, and let `gm` be what comes of it; return whether it changed.

    Whatever the function says, a change is one: of the graph, of a module, or of a tensor.

    Args:
        function: changes `gm`, or returns another `GraphModule`, by itself or in a `PassResult`;
            or says whether it changed something, or how often, or lists what.
        gm: takes over the graph of another module that is returned, with what that graph names.

    Raises:
        PassError: the function returns something else.
    """
    before = _State(gm)
    result = function(gm)
    modified = False
    if isinstance(result, PassResult):
        result, modified = result.graph_module, bool(result.modified)
    if isinstance(result, fx.GraphModule):
        if result is not gm:
            _take_over(gm, result)
    elif isinstance(result, (bool, int, list)):
        modified = modified or bool(result)
    elif result is not None:
        raise PassError(f"it returned {_in_words(result)}")
    forget_fusions(gm)
    return modified or not before.is_that_of(gm)


def forget_fusions(gm: fx.GraphModule) -> None:
    """Drop from the records of `gm` each ReLU that is none any more, or stands behind another call.

    `MarkFusedRelu` records them; who changes a graph by hand knows nothing of that.
    """
    fused = set()
    for node in gm.graph.nodes:
        known = record(node)
        if known.fused_into is None:
            continue
        source = data_input(node)
        while source is not None and as_own(module_of(gm, source)).watches:
            source = data_input(source)
        is_there = source is not None and source.name == known.fused_into
        if is_there and relu_bounds(gm, node) == known.clamp:
            fused.add(node.name)
        else:
            annotate(node, fused_into=None, clamp=None)
    for node in gm.graph.nodes:
        if record(node).relu is not None and record(node).relu not in fused:
            annotate(node, relu=None, clamp=None)


def _in_words(result: Any) -> str:
    kind = type(result).__name__
    if isinstance(result, fx.Graph):
        return "a Graph: return fx.GraphModule(gm, graph)"
    if isinstance(result, fx.Transformer):
        return f"a {kind}: return its .transform()"
    if isinstance(result, PassBase):
        return f"the pass {kind}: call it, with the GraphModule"
    return f"a {kind}: {_TO_RETURN}"


class _State:
    """What a graph is made of, to be compared with what it is made of later."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._code = gm.graph.python_code("self").src
        self._modules = dict(gm.named_modules(remove_duplicate=False))
        tensors = [*gm.named_parameters(remove_duplicate=False), *gm.named_buffers()]
        # An inference tensor keeps no version, and cannot be written to in a usual context.
        self._tensors = {
            name: (tensor, None if tensor.is_inference() else tensor._version)
            for name, tensor in tensors
        }

    def is_that_of(self, gm: fx.GraphModule) -> bool:
        now = _State(gm)
        return (
            now._code == self._code
            and _same_objects(now._modules, self._modules)
            and now._tensors.keys() == self._tensors.keys()
            and all(
                tensor is now._tensors[name][0] and version == now._tensors[name][1]
                for name, (tensor, version) in self._tensors.items()
            )
        )


def _same_objects(some: dict[str, nn.Module], others: dict[str, nn.Module]) -> bool:
    return some.keys() == others.keys() and all(some[name] is others[name] for name in some)


def _take_over(gm: fx.GraphModule, other: fx.GraphModule) -> None:
    """Let `gm` have the graph of `other`, with the modules and tensors that it names.

    What is known of nodes goes on with those of the same name that do the same: `fx.Transformer`
    and tracing anew forget it.
    """
    known = {(node.name, node.op, str(node.target)): node for node in gm.graph.nodes}
    old = [str(node.target) for node in gm.graph.find_nodes(op="call_module")]
    graph = copy.deepcopy(other.graph)  # `other` stays a module of its own
    submodules = Submodules(gm)
    named = [node for node in graph.nodes if node.op in ("call_module", "get_attr")]
    for path in dict.fromkeys(str(node.target) for node in named):
        value = functools.reduce(getattr, path.split("."), other)
        if _find(gm, path) is not value:
            _put(submodules, gm, path, value)
    for node in graph.nodes:
        same = known.get((node.name, node.op, str(node.target)))
        if same is not None:
            node.meta = {**same.meta, **node.meta}
            node.type = node.type or same.type
    gm.graph = graph
    submodules.drop_unused(old)


def _find(gm: fx.GraphModule, path: str) -> Any:
    found: Any = gm
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _put(submodules: Submodules, gm: fx.GraphModule, path: str, value: Any) -> None:
    if isinstance(value, nn.Module):
        submodules.put(path, value)
    elif isinstance(value, Tensor):
        submodules.put_tensor(path, value)
    else:
        holder, _, name = path.rpartition(".")
        setattr(gm.get_submodule(holder), name, value)
