"""Trace one module into a graph, or say where, on which line and why it cannot be traced."""

from __future__ import annotations

import contextlib
import copy
import inspect
import linecache
import os
import traceback
from collections.abc import Iterator, Set
from typing import Any

from torch import fx, nn

from fxquant.errors import CaptureError
from fxquant.modules.own import OwnModule
from fxquant.modules.torchvision_names import FROZEN_BATCHNORM, defined_as
from fxquant.stored_names import stored_as

_REMEDIES = (  # a sign in the error's message, what it means, what helps
    (
        "cannot be iterated",
        "a loop over tensors",
        "index the tensor, or make the loop's length a constant",
    ),
    (
        "control flow",
        "a branch on a tensor or its shape",
        "decide it once, in __init__, or with torch.where",
    ),
    ("'len'", "the length of a tensor or a list", "make the length a constant"),
)


def trace_graph(
    model: nn.Module, leaves: Set[nn.Module] = frozenset(), concrete_args: Any = None
) -> fx.Graph:
    """Return the graph of `model` itself, whose targets are names in it.

    Args:
        model: not copied.
        leaves: modules in it to call as they are.
        concrete_args: as for `trace`.

    Raises:
        CaptureError: names the submodule and the line that cannot be traced.
    """
    tracer = _Tracer(leaves)
    concrete_args = (fixed_arguments(model) or None) if concrete_args is None else concrete_args
    try:
        with _left_as_it_is(model):
            graph = tracer.trace(model, concrete_args)
            targets = [str(node.target) for node in graph.find_nodes(op="get_attr")]
            constants = {name: getattr(model, name) for name in targets if "." not in name}
    except Exception as error:  # tracing runs the caller's code, which may raise anything
        raise _failure(tracer, model, error) from error
    for name, value in constants.items():  # some of them were made by the tracer
        if not hasattr(model, name):
            setattr(model, name, value)
    for name in concrete_args or {}:  # the tracer renames these arguments to mask_1
        for node in graph.find_nodes(op="placeholder"):
            if node.target == f"{name}_1":
                node.target = name
    _require_none_by_modules(model, graph)
    return graph


@stored_as("RequireNone")
class RequireNone(nn.Module):
    """Refuses a value for an argument that tracing fixed at None."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, value: Any) -> None:
        """Raise `CaptureError` if `value` is given."""
        if value is not None:
            raise CaptureError(
                f"traced with argument {self.name!r} fixed at None, but called with a "
                f"{type(value).__name__}"
            )


def _require_none_by_modules(model: nn.Module, graph: fx.Graph) -> None:
    """Put modules in the place of fx's own checks of arguments that are fixed at None.

    Those are functions that fx wraps: once such a graph was unpickled, nothing can be traced any
    more in that process (PyTorch 2.7 to 2.15).
    """
    for node in list(graph.nodes):
        if getattr(node.target, "__name__", "") != "_assert_is_none":
            continue
        argument = node.args[0]
        target = f"require_none_{argument.target}"
        setattr(model, target, RequireNone(str(argument.target)))
        with graph.inserting_before(node):
            graph.call_module(target, (argument,))
        graph.erase_node(node)


@contextlib.contextmanager
def _left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Undo what running the model does to its attributes.

    torchvision's MultiScaleRoIAlign keeps scales that it computed from its first input: in a trace
    that would be a proxy, which the next call would take for a number.
    """
    before = [(vars(module), _contents(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for attributes, contents in before:
            attributes.clear()
            for name, (value, inside) in contents.items():
                if isinstance(value, (dict, set)):
                    value.clear()
                    value.update(inside)
                elif isinstance(value, list):
                    value[:] = inside
                attributes[name] = value


def _contents(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return each attribute with a copy of what is in it, where it is a container."""
    return {
        name: (value, copy.copy(value) if isinstance(value, (dict, list, set)) else None)
        for name, value in attributes.items()
    }


class _Tracer(fx.Tracer):
    """Tracer that keeps known modules whole and remembers where it was when tracing failed.

    Unpickling a `GraphModule` makes its tracer anew, without arguments.
    """

    def __init__(self, leaves: Set[nn.Module] = frozenset()) -> None:
        super().__init__()
        self._leaves = leaves
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, OwnModule) or m in self._leaves:
            return True
        if defined_as(type(m).forward) == f"{FROZEN_BATCHNORM}.forward":
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:  # the innermost module comes first
                self.failed_in = self.path_of_module(m)
            raise


def fixed_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the arguments of `forward` that tracing fixes: their default is None or a bool."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.default is None or isinstance(parameter.default, bool)
    }


def _failure(tracer: _Tracer, model: nn.Module, error: Exception) -> CaptureError:
    """Return the error that says where tracing failed, on which line, why, and what helps."""
    path = tracer.failed_in
    owner = model if path is None else model.get_submodule(path)
    where = "the model's own forward" if path is None else f"submodule {path!r}"
    # Not extract_tb: PyTorch 2.7 traces functions with keyword-only arguments under code objects
    # that have no lines, and it fails on them.
    frames = [
        (frame.f_code.co_filename, line or 0)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if "/torch/" not in frame.f_code.co_filename and frame.f_code.co_filename[0] != "<"
    ]
    line = at = ""
    if len(frames) > 1:  # the first is `trace_graph` itself
        filename, number = frames[-1]
        source = linecache.getline(filename, number).strip()
        line = f"\n  {filename}:{number}: {source}"
        at = f" ({os.path.basename(filename)}:{number}: {source})"
    reason = str(error) or type(error).__name__
    obstacle, remedy = next(
        ((obstacle, remedy) for sign, obstacle, remedy in _REMEDIES if sign in reason),
        (reason.splitlines()[0], "rewrite the line without Python decisions on tensors"),
    )
    failure = CaptureError(
        f"{type(model).__name__} cannot be traced: it fails in {where} ({type(owner).__name__})"
        f"{line}\n  {type(error).__name__}: {reason}\n  Remedy: {remedy}; or keep the module "
        f"whole: trace(model, leaf_modules=({type(owner).__name__},)); or quantize a submodule."
    )
    failure.obstacle = f"{obstacle}{at}"
    return failure
