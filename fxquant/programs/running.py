"""Which calls of a lowered graph its programs answer.

A program is made for one kind of inputs: their sizes, layouts and types, and the number of threads.
The first call of a kind makes it. The graph runs where somebody watches or changes what a call
does: hooks, tracing, autocast, modes of PyTorch.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as hooks_of_all

from fxquant.capture import CallNotes, runs_graphs
from fxquant.int8 import Int8Layer, Int8Module
from fxquant.programs.building import Unfit, build
from fxquant.programs.library import Refused, why_unavailable
from fxquant.programs.program import Program
from fxquant.programs.steps import Unexpected

_logger = logging.getLogger("fxquant")
_MOST_PROGRAMS = 4  # of a graph, each with memory of its own
_MOST_MADE = 16  # of a graph: where inputs differ at each call, its calls are the graph's
_CONSTANTS = (type(None), bool, int, float, str)
_Kind = tuple[Any, ...]


class Programs:
    """The programs of one graph."""

    def __init__(self, gm: fx.GraphModule) -> None:
        placeholders = gm.graph.find_nodes(op="placeholder")
        self._names = [str(node.target) for node in placeholders]
        self._defaults = {str(node.target): node.args[0] for node in placeholders if node.args}
        self._made: OrderedDict[_Kind, Program] = OrderedDict()
        self._refused: set[_Kind] = set()
        """Kinds that no program computes, at most as many as are made."""
        self._num_made = 0
        self._lock = Lock()

    def arguments(self, given: tuple[Any, ...], options: dict[str, Any]) -> Sequence[Any] | None:
        """Return a call's arguments in the order of the placeholders; None if they do not fit."""
        if len(given) == len(self._names) and not options:
            return given
        rest = {**self._defaults, **options}
        missing = self._names[len(given) :]
        if len(given) > len(self._names) or not options.keys() <= set(missing):
            return None
        return (*given, *(rest[name] for name in missing)) if rest.keys() >= set(missing) else None

    def run(self, gm: fx.GraphModule, arguments: Sequence[Any]) -> Any:
        """Return the result of a call, or `NotImplemented`."""
        kind = _kind_of(gm, arguments)
        if kind is None:
            return NotImplemented
        program = self._made.get(kind)
        if program is not None and not program.is_valid():
            self._made.clear()
            self._refused.clear()
            self._num_made = 0
            program = None
        if program is None:
            program = self._make(gm, kind, arguments)
        if program is None:
            return NotImplemented
        try:
            return program.run(arguments)
        except Unexpected:
            return NotImplemented

    def make(self, gm: fx.GraphModule, arguments: Sequence[Any]) -> Program | None:
        """Return the program for arguments like these, made now; None: there is none."""
        kind = _kind_of(gm, arguments)
        return None if kind is None else self._make(gm, kind, arguments)

    def _make(self, gm: fx.GraphModule, kind: _Kind, arguments: Sequence[Any]) -> Program | None:
        if kind in self._refused or self._num_made >= _MOST_MADE or _has_watched_layers(gm):
            return None
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._num_made += 1
            program = build(gm, arguments, records=not _wants_gradients(gm))
        except (Unfit, Unexpected, Refused) as reason:
            _logger.info("%s runs as a graph: %s", type(gm).__name__, reason)
            self._refused.add(kind)
            return None
        finally:
            self._lock.release()
        self._made[kind] = program
        while len(self._made) > _MOST_PROGRAMS:
            self._made.popitem(last=False)
        return program


def _wants_gradients(gm: fx.GraphModule) -> bool:
    """Say whether PyTorch notes what it computes, for a parameter that is in float still."""
    return torch.is_grad_enabled() and any(each.requires_grad for each in gm.parameters())


def _kind_of(gm: fx.GraphModule, arguments: Sequence[Any]) -> _Kind | None:
    """Return what of a call decides which program computes it; None: none does."""
    kind: list[Any] = [torch.get_num_threads(), _wants_gradients(gm)]
    for each in arguments:
        if type(each) is Tensor:
            if not each.is_cpu or each.requires_grad or each.layout is not torch.strided:
                return None
            if each.is_neg() or each.is_conj():
                return None
            kind += (each.shape, each.stride(), each.dtype)
        elif type(each) in _CONSTANTS and each == each:
            kind += (type(each), each)
        else:
            return None
    return tuple(kind)


_PROGRAMS: dict[int, tuple[weakref.ref[fx.GraphModule], Programs | None]] = {}
"""Number of a graph → the graph, and its programs, or None for one that is not lowered."""


def programs_of(gm: fx.GraphModule) -> Programs | None:
    """Return a graph's programs; None of one that works on no integers, or where there are none."""
    number = id(gm)
    known = _PROGRAMS.get(number)
    if known is None or known[0]() is not gm:
        is_lowered = any(isinstance(each, Int8Layer) for each in gm.modules())
        found = Programs(gm) if is_lowered and why_unavailable() is None else None
        known = _PROGRAMS[number] = weakref.ref(gm, lambda _: _PROGRAMS.pop(number, None)), found
    return known[1]


@runs_graphs
def run(gm: fx.GraphModule, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return what a program of the graph computes, or `NotImplemented`."""
    programs = programs_of(gm)
    if programs is None or _is_watched(gm):
        return NotImplemented
    for note in gm._forward_pre_hooks.values():
        note(gm, given, options)
    arguments = programs.arguments(given, options)
    return NotImplemented if arguments is None else programs.run(gm, arguments)


def _has_watched_layers(gm: fx.GraphModule) -> bool:
    """Say whether hooks look at a layer that a primitive would compute."""
    layers = (each for each in gm.modules() if isinstance(each, Int8Module))
    return any(each._forward_hooks or each._forward_pre_hooks for each in layers)


def _is_note(hook: object) -> bool:
    """Say whether a hook is a region's own, which looks at its arguments."""
    return isinstance(getattr(hook, "__self__", None), CallNotes)


def _is_watched(gm: nn.Module) -> bool:
    """Say whether a call does more than to compute, or is traced."""
    return bool(
        gm._forward_hooks
        or any(not _is_note(hook) for hook in gm._forward_pre_hooks.values())
        or hooks_of_all._global_forward_hooks
        or hooks_of_all._global_forward_pre_hooks
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_tracing()
        or torch.is_autocast_enabled("cpu")
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
