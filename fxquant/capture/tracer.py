"""Trace one module into a graph, or say where, on which line and why it cannot be traced."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import traceback
from collections.abc import Callable, Iterable, Set
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from fxquant.capture.attention.decomposition import decomposed_root
from fxquant.capture.example import Call
from fxquant.capture.given_models import compiled_functions_as_written
from fxquant.capture.recording.recorder import Recorder
from fxquant.capture.recording.sources import forget_sources
from fxquant.capture.recording.state import State, changes_on
from fxquant.errors import CaptureError

_NOT_THE_CALLERS = tuple(
    f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1])
)
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
    (
        "its forward leaves",
        "attributes that code around it may read",
        "return what is in them",
    ),
    (
        "state",
        "state that a call leaves to the next",
        "give it as an argument, and return it",
    ),
    ("'len'", "the length of a tensor or a list", "make the length a constant"),
)


def trace_graph(
    model: nn.Module,
    leaves: Set[nn.Module] = frozenset(),
    concrete_args: dict[str, Any] | None = None,
    call: Call | None = None,
    is_region: bool = False,
) -> fx.Graph:
    """Return the graph of `model` itself, whose targets are names in it.

    Args:
        model: not copied.
        leaves: modules in it to call as they are.
        concrete_args: as for `trace`.
        call: what it is called with in an example; None: nothing is known of values.
        is_region: whether Python code is around it. That runs the hooks of `model` itself, which
            are not in the graph, and may read what the forward leaves in attributes.

    Raises:
        CaptureError: names the submodule and the line that cannot be traced.
    """
    forget_sources()
    fixed = fixed_arguments(model) if concrete_args is None and call is None else concrete_args
    try:
        return _trace(model, partial(Recorder, leaves, fixed, call, not is_region), is_region)
    except CaptureError:
        if call is not None:
            with contextlib.suppress(CaptureError):  # the error that knows values says more
                return trace_graph(model, leaves, concrete_args, None, is_region)
        raise


def _trace(model: nn.Module, new_recorder: Callable[[], Recorder], is_region: bool) -> fx.Graph:
    """Trace `model`, and leave it as it is but for constants that the graph reads."""
    recorder, state = new_recorder(), State(model)
    try:
        with decomposed_root(model), compiled_functions_as_written(), torch.no_grad():
            graph = recorder.trace(model)
            written = state.written(recorder.made)
            if all(map(_is_made_of_constants, written.values())):
                written = {}
            if written and is_region:
                raise TraceError(f"its forward leaves {_names(written)}, which others may read")
            if written:
                graph = _traced_again(model, graph, (recorder, new_recorder()), state)
            targets = [str(node.target) for node in graph.find_nodes(op="get_attr")]
            constants = {name: getattr(model, name) for name in targets if "." not in name}
    except Exception as error:  # tracing runs the caller's code, which may raise anything
        if isinstance(error, CaptureError) and error.obstacle:  # it says where and why
            raise
        raise _failure(recorder, model, error) from error
    finally:
        state.restore()
    for name, value in constants.items():  # some of them were made by the recorder
        if not hasattr(model, name):
            setattr(model, name, value)
    return graph


def _is_made_of_constants(value: Any) -> bool:
    """Say whether what a forward left is made of parameters: the next call would find the same."""
    items = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(each, fx.Proxy) and not _reads_input(each.node) for each in items)


def _reads_input(node: fx.Node) -> bool:
    seen, left = set(), [node]
    while left:
        each = left.pop()
        if each.op == "placeholder":
            return True
        if each not in seen:
            seen.add(each)
            left += each.all_input_nodes
    return False


def _traced_again(
    model: nn.Module, graph: fx.Graph, recorders: tuple[Recorder, Recorder], state: State
) -> fx.Graph:
    """Trace a model that left something behind as its next call would find it.

    Raises:
        TraceError: that call does something else, or leaves something else.
    """
    first, second = recorders
    written = state.written(first.made)
    for name in first.made:
        delattr(model, name)
    try:
        again = second.trace(model)
    except Exception as error:
        raise TraceError(f"its forward keeps state in {_names(written)}") from error
    is_same = again.python_code("self").src == graph.python_code("self").src
    changed = list(changes_on(written, state.written(second.made)))
    if changed or not is_same:
        raise TraceError(f"its forward keeps state in {_names(written)}")
    return again


def _names(written: Iterable[str]) -> str:
    return ", ".join(f"self.{name}" for name in written)


def fixed_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the arguments of `forward` that tracing fixes: their default is None or a bool."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.default is None or isinstance(parameter.default, bool)
    }


def _failure(recorder: Recorder, model: nn.Module, error: Exception) -> CaptureError:
    """Return the error that says where tracing failed, on which line, why, and what helps."""
    path = recorder.failed_in
    owner = model if path is None else model.get_submodule(path)
    where = "the model's own forward" if path is None else f"submodule {path!r}"
    # Not extract_tb: PyTorch 2.7 traces functions with keyword-only arguments under code objects
    # that have no lines, and it fails on them.
    frames = [
        (frame.f_code.co_filename, line or 0)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(("<", *_NOT_THE_CALLERS))
    ]
    line = at = ""
    if frames:
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
