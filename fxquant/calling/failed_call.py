"""What an error of the caller's forward tells by its traceback: the module, and what it was given.

The frames of `nn.Module.__call__` hold the modules with their arguments, those of `fx.Interpreter`
the node. So nothing need be watched while all goes well.
"""

from __future__ import annotations

import linecache
import os
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.calling.description import described_layer
from fxquant.capture.naming import node_name, target_name
from fxquant.capture.recording.state import left_as_it_is
from fxquant.capture.region import Region
from fxquant.graph.operations import data_input, module_of
from fxquant.modules.own import as_own
from fxquant.numerics.containers import cloned, tensors_in

_CALL = nn.Module._call_impl.__code__
_NOT_THE_CALLERS = tuple(
    f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1])
)
_STANDARD_LIBRARY = f"{sysconfig.get_path('stdlib')}{os.sep}"


@dataclass(frozen=True)
class FailedCall:
    """A call of a model that raised an error."""

    error: Exception
    batch: Any
    """As the caller gave it."""
    where: str = ""
    """Which call: "batch 0", "example_inputs"."""
    models: tuple[nn.Module, ...] = ()
    """What was called, each inside of the one before it; the last one raised."""
    given: tuple[Any, ...] = ()
    """What the last one was called with."""
    path: str = ""
    """The name of that in the model."""
    node: str = ""
    """Of a graph that calls no module: the name of the node, and what it calls."""
    line: str = ""
    """Of the caller's own code, if the error comes from there: `net.py:33: return self.fc(x)`."""
    tensors: list[Tensor] = field(default_factory=list)
    """Those in the batch."""

    @property
    def model(self) -> nn.Module | None:
        """The model that holds all that was called; None if no module was called."""
        return self.models[0] if self.models else None

    @property
    def module(self) -> nn.Module | None:
        """The innermost module; None if none was called, or a node failed that calls none."""
        return self.models[-1] if self.models and not self.node else None

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors that the innermost module was called with."""
        return tensors_in(self.given)

    @property
    def is_deliberate(self) -> bool:
        """Whether the caller's own code raises the error, and so knows best what to say."""
        return any(word in self.line.split() for word in ("raise", "assert"))

    def is_of_batch(self, tensor: Tensor) -> bool:
        """Say whether a tensor has the shape of one in the batch, as what is made of it may."""
        return any(each.shape == tensor.shape for each in self.tensors)

    def what(self) -> str:
        """Return what raised the error: `conv1 (Conv2d 3→8)`."""
        place, _, _ = self.line.partition(": ")
        shown = place if self.is_deliberate else self.line  # what it raises is told anyway
        line = f"; {shown}" if shown else ""
        if self.node:
            return f"{self.node}{line}"
        if not self.models:
            return f"the call ({shown})" if shown else "the call"
        name = self.path or "the model's own forward"
        return f"{name} ({described_layer(self.models[-1])}{line})"


def failed_call(error: Exception, batch: Any, where: str) -> FailedCall:
    """Return what the traceback of `error` tells of a call with `batch`."""
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []
    node, line = "", ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        called = _call_in(frame)
        if called is not None and not (calls and calls[-1][0] is called[0]):
            calls.append(called)
            node = line = ""
        if frame.f_code.co_name == "run_node":
            node = _described_node(frame) or node
        elif _is_the_callers(frame.f_code.co_filename):
            line = _source(frame.f_code.co_filename, number or 0)
    if calls and not (node or line) and isinstance(calls[-1][0], fx.GraphModule):
        node = _failing_node(calls[-1][0], calls[-1][1], error)
    models = _nested([module for module, _ in calls])
    given = calls[-1][1] if calls else ()
    path = _path(models) if models else ""
    return FailedCall(error, batch, where, models, given, path, node, line, tensors_in(batch))


def _call_in(frame: FrameType) -> tuple[nn.Module, tuple[Any, ...]] | None:
    """Return the module that a frame calls, with its arguments; None if it calls none."""
    values = frame.f_locals
    if frame.f_code is _CALL:
        return values["self"], (*values.get("args", ()), *values.get("kwargs", {}).values())
    if frame.f_code.co_name == "__call__" and isinstance(values.get("obj"), fx.GraphModule):
        # fx cuts the traceback where the code that it has generated raises the error itself.
        return values["obj"], (*values.get("args", ()), *values.get("kwargs", {}).values())
    owner = values.get("self")
    if frame.f_code.co_name == "run_node" and isinstance(owner, fx.Interpreter):
        return owner.module, ()
    if frame.f_code.co_name == "forward" and isinstance(owner, nn.Module):  # not by a call of it
        return owner, ()
    return None


def _nested(called: list[nn.Module]) -> tuple[nn.Module, ...]:
    """Return the modules from the outermost one that holds the last to the last itself.

    A hook of a prepared model calls another one: the caller's, which it is compared with.
    """
    for number, module in enumerate(called):
        if any(each is called[-1] for each in module.modules()):
            return tuple(called[number:])
    return ()


def _path(models: tuple[nn.Module, ...]) -> str:
    """Return the name of the innermost of the modules in the caller's model."""
    region = next((each for each in reversed(models) if isinstance(each, Region)), None)
    holder = models[0] if region is None else region
    found = next(name for name, each in holder.named_modules() if each is models[-1])
    return found if region is None else target_name(region, found)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a model by their names in the caller's: regions keep parts apart."""
    regions = [each for each in model.modules() if isinstance(each, Region) and each is not model]
    for name, module in model.named_modules():
        region = next((each for each in regions if name.startswith(f"{each.path}.")), None)
        inside = "" if region is None else name.removeprefix(f"{region.path}.")
        yield (name if region is None else target_name(region, inside)), module


def _described_node(frame: FrameType) -> str:
    """Return what node a frame of an interpreter runs."""
    interpreter, node = frame.f_locals.get("self"), frame.f_locals.get("n")
    if not isinstance(interpreter, fx.Interpreter) or not isinstance(node, fx.Node):
        return ""
    return _in_words(interpreter.module, node)


def _in_words(gm: nn.Module, node: fx.Node) -> str:
    """Return the name of a node, and what it calls; "" where that is a module, which is named."""
    if node.op == "call_module" or not isinstance(gm, fx.GraphModule):
        return ""
    function = getattr(node.target, "__name__", str(node.target))
    name = node_name(gm, node)
    return name if name == function else f"{name} ({function})"


class _NodeFinder(fx.Interpreter):
    """Runs a graph again, past its observers, and keeps the node that raises."""

    extra_traceback = False
    failing: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.failing = n
        watched = data_input(n)
        if watched is not None and as_own(module_of(self.gm, n)).watches:
            return self.env[watched]
        return super().run_node(n)

    @property
    def gm(self) -> fx.GraphModule:
        assert isinstance(self.module, fx.GraphModule)
        return self.module


def _failing_node(gm: fx.GraphModule, given: tuple[Any, ...], error: Exception) -> str:
    """Return the node of a graph that raises: no reader knows the lines of generated code."""
    finder = _NodeFinder(gm)
    try:
        with torch.no_grad(), left_as_it_is(gm):
            finder.run(*cloned(given))
    except Exception as again:  # what is being explained, once more
        if type(again) is type(error) and finder.failing is not None:
            return _in_words(gm, finder.failing)
    return ""


def _is_the_callers(filename: str) -> bool:
    if filename.startswith(_STANDARD_LIBRARY):
        return "site-packages" in filename
    return not filename.startswith(("<", *_NOT_THE_CALLERS))


def _source(filename: str, number: int) -> str:
    source = linecache.getline(filename, number).strip()
    return f"{os.path.basename(filename)}:{number}: {source}" if source else ""
