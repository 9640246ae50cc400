"""Passes, functions as passes, and lists of passes that are passes themselves."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, ClassVar, TypeAlias

from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxquant.capture.naming import find_regions
from fxquant.capture.recording.sources import forget_sources
from fxquant.errors import PassError
from fxquant.modules.copies import copy_module
from fxquant.passes.dump import dump_graph
from fxquant.passes.functions import apply_function, name_of, why_no_pass
from fxquant.passes.starting_points import StartingPoint

_logger = logging.getLogger("fxquant")
_PLAIN = (bool, int, float, str, tuple)
AnyPass: TypeAlias = PassBase | Callable[[fx.GraphModule], Any]
"""A pass of fxquant or of PyTorch, or a function of a `GraphModule`: see `as_pass`."""


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

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # `dataclass`, which comes next, would write every field
            cls.__repr__ = Pass.__repr__  # type: ignore[method-assign]

    @abstractmethod
    def run(self, gm: fx.GraphModule) -> bool:
        """Transform `gm` in place; return whether anything changed."""

    def __call__(self, graph_module: fx.GraphModule) -> PassResult:
        """Run `requires`, the pass, and `ensures`; an error begins with the name of the pass."""
        if not isinstance(graph_module, fx.GraphModule):
            raise PassError(
                f"{self} works on a GraphModule, got {type(graph_module).__name__}: "
                "make one with fxquant.trace(model)"
            )
        try:
            result = super().__call__(graph_module)
            if result is None or result.graph_module is not graph_module:
                raise PassError("it returned another GraphModule: a pass works in place")
        except Exception as error:
            named = named_after(self, error)
            if named is error:
                raise
            raise named from error
        return result

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Run the pass; check the graph, and regenerate the code, if it changed it."""
        name, start = str(self), self.starts_from
        modified = self.run(graph_module)
        if modified:
            graph_module.graph.lint()
            graph_module.recompile()
            forget_sources()
        elif start is not None and not start.is_in(graph_module):
            _logger.warning("%s: the graph has no %s: %s", name, start.what, start.remedy)
        _logger.info("%s: %s", name, "changed" if modified else "unchanged")
        dump_graph(graph_module, name)
        return PassResult(graph_module, modified)

    def __str__(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        options: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        values = [(option, getattr(self, option.name)) for option in options if option.repr]
        shown = ", ".join(
            f"{option.name}={_shown(value)}"
            for option, value in values
            if not _is_default(option, value)
        )
        return f"{type(self).__name__}({shown})"


class FunctionPass(Pass):
    """A function of a `GraphModule`, as a pass of the same name; `as_pass` makes it.

    The function changes the graph in place, or returns another `GraphModule`, whose graph the given
    one takes over. Whether it changed anything is found out, where it does not say so
    (`fxquant.passes.functions`).
    """

    def __init__(self, function: Callable[[fx.GraphModule], Any]) -> None:
        self.function = function

    def run(self, gm: fx.GraphModule) -> bool:
        """Call the function; let `gm` be what comes of it."""
        return apply_function(self.function, gm)

    def __str__(self) -> str:
        return name_of(self.function)

    def __repr__(self) -> str:
        return str(self)


def as_pass(given: AnyPass) -> Pass | Pipeline:
    """Return `given`, if it is one of fxquant's passes; of any other, and of a function, one.

    Raises:
        PassError: it cannot be called with a `GraphModule`.

    >>> def drop_nothing(gm): ...
    >>> print(as_pass(drop_nothing))
    drop_nothing
    """
    if isinstance(given, (Pass, Pipeline)):
        return given
    reason = why_no_pass(given)
    if reason is not None:
        raise PassError(reason)
    return FunctionPass(given)


def as_passes(given: Iterable[AnyPass] | AnyPass) -> tuple[Pass | Pipeline, ...]:
    """Return `as_pass` of each; one alone goes for a list of one."""
    return tuple(map(as_pass, given if isinstance(given, Iterable) else [given]))


class Pipeline(PassBase):
    """Passes in a row, as one pass: of fxquant, of PyTorch, and functions of a `GraphModule`.

    >>> from fxquant.passes import DropIdentities, FoldBatchNorm
    >>> def my_function(gm: fx.GraphModule) -> None: ...
    >>> print(Pipeline(DropIdentities(), FoldBatchNorm(), my_function))
    DropIdentities → FoldBatchNorm → my_function
    """

    def __init__(self, *passes: AnyPass) -> None:
        self.passes = as_passes(passes)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Run the passes in order; modified if any of them changed something."""
        modified = False
        for each in self.passes:
            result = each(graph_module)
            assert result is not None, f"{each} returned no PassResult"
            modified = modified or result.modified
        return PassResult(graph_module, modified)

    def on_copy_of(self, model: nn.Module) -> nn.Module:
        """Return a copy of `model` whose graphs went through the passes, one after the other."""
        copied = copy_module(model)
        for gm in find_regions(copied).values():
            self(gm)
        return copied

    def __str__(self) -> str:
        return " → ".join(str(each) for each in self.passes)

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(map(repr, self.passes))})"


def named_after(name: object, error: Exception) -> Exception:
    """Return `error` with a pass's name in front of what it says, unless there is one already."""
    if hasattr(error, "_names_a_pass"):
        return error
    first, *rest = error.args or ("",)
    named = error
    if isinstance(first, str):
        error.args = (f"{name}: {first}", *rest)
    else:  # KeyError(node), OSError(2, …): what it says is not its to change
        named = PassError(f"{name}: {type(error).__name__}: {error}")
    named._names_a_pass = True  # type: ignore[attr-defined]
    return named


def _is_default(option: Field[Any], value: Any) -> bool:
    if option.default_factory is not MISSING:
        return bool(value == option.default_factory())
    return value is option.default or (isinstance(value, _PLAIN) and value == option.default)


def _shown(value: Any) -> str:
    """Return a short `repr`: of a graph, or of data, what it is."""
    if isinstance(value, fx.GraphModule):
        return f"<graph of {len(value.graph.nodes)} nodes>"
    if isinstance(value, (Sequence, Mapping)) and not isinstance(value, str):
        return f"<{type(value).__name__} of {len(value)}>"
    return repr(value)
