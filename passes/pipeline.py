"""Passes, and lists of passes that are passes themselves."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxquant.capture.naming import find_regions
from fxquant.capture.recording.sources import forget_sources
from fxquant.errors import PassError, StorageError
from fxquant.graph.printing import text
from fxquant.modules.copies import copy_module
from fxquant.passes.starting_points import StartingPoint

_logger = logging.getLogger("fxquant")


class Pass(PassBase):
    """A transformation of a `GraphModule`, in place, that says whether it changed anything.

    A pass implements `run`, and where needed `requires` (raise if something must run first) and
    `ensures` (cheap invariants; raise where one is broken). Its options are the fields of a frozen
    dataclass declared with `eq=False`: PyTorch's PassManager compares passes by value, and would
    take two equal ones for a cycle.

    The graph's modules may belong to other models too: change them through
    `fxquant.graph.submodules.Submodules`, and give them new tensors, never write into theirs. A
    graph that was changed is linted.

    With the environment variable `FXQUANT_DUMP=DIR` every pass writes its graph to a file there.
    """

    starts_from: ClassVar[StartingPoint | None] = None
    """What a graph must hold for the pass to have any work; None: nothing in particular."""

    @abstractmethod
    def run(self, gm: fx.GraphModule) -> bool:
        """Transform `gm` in place; return whether anything changed."""

    def __call__(self, graph_module: fx.GraphModule) -> PassResult:
        """Run `requires`, the pass, and `ensures`; an error begins with the name of the pass."""
        if not isinstance(graph_module, fx.GraphModule):
            raise PassError(
                f"{type(self).__name__} works on a GraphModule, got {type(graph_module).__name__}: "
                "make one with fxquant.trace(model)"
            )
        try:
            result = super().__call__(graph_module)
            if result is None or result.graph_module is not graph_module:
                raise PassError("it returned another GraphModule: a pass works in place")
        except Exception as error:
            _put_in_front(type(self).__name__, error)
            raise
        return result

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Run the pass; check the graph, and regenerate the code, if it changed it."""
        name, start = type(self).__name__, self.starts_from
        modified = self.run(graph_module)
        if modified:
            graph_module.graph.lint()
            graph_module.recompile()
            forget_sources()
        elif start is not None and not start.is_in(graph_module):
            _logger.warning("%s: the graph has no %s: %s", name, start.what, start.remedy)
        _logger.info("%s: %s", name, "changed" if modified else "unchanged")
        _dump(graph_module, name)
        return PassResult(graph_module, modified)

    def __str__(self) -> str:
        return type(self).__name__


class Pipeline(PassBase):
    """Passes in a row, as one pass.

    >>> from fxquant.passes import DropIdentities, FoldBatchNorm
    >>> print(Pipeline(DropIdentities(), FoldBatchNorm()))
    DropIdentities → FoldBatchNorm
    """

    def __init__(self, *passes: PassBase) -> None:
        self.passes = passes

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Run the passes in order; modified if any of them changed something."""
        modified = False
        for each in self.passes:
            result = each(graph_module)
            assert result is not None, f"{each} returned no PassResult"
            graph_module, modified = result.graph_module, modified or result.modified
        return PassResult(graph_module, modified)

    def on_copy_of(self, model: nn.Module) -> nn.Module:
        """Return a copy of `model` whose graphs went through the passes, one after the other."""
        copied = copy_module(model)
        for gm in find_regions(copied).values():
            self(gm)
        return copied

    def __str__(self) -> str:
        return " → ".join(str(each) for each in self.passes)


def _put_in_front(name: str, error: Exception) -> None:
    """Let what `error` says begin with the pass's name, unless that of a pass is there already."""
    if not hasattr(error, "_names_a_pass"):
        first, *rest = error.args or ("",)
        error.args = (f"{name}: {first}", *rest) if isinstance(first, str) else error.args
        error._names_a_pass = True  # type: ignore[attr-defined]


def _dump(gm: fx.GraphModule, name: str) -> None:
    folder = os.environ.get("FXQUANT_DUMP")
    if folder:
        directory = Path(folder)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            number = len(list(directory.glob("*.txt")))
            (directory / f"{number:03d}_{name}.txt").write_text(text(gm))
        except OSError as error:
            raise StorageError(
                f"FXQUANT_DUMP={folder}: cannot be written to: {error}: name another folder, or "
                "unset it"
            ) from error
