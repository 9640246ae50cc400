"""Numbers that the calls of a graph hold, as part of its state dict.

    quantize = kernels.quantize(x, 0.02, 114, 255)
    conv = self.conv(quantize)                      # Int8Conv

    "fxquant.quantize.scale": 0.02, "fxquant.quantize.zero_point": 114, …

Scales and zero-points of activations are plain numbers, in arguments of calls and in modules: so
kernels get them without a look into a tensor, and `torch.export` as constants. The state dict has
them by node and argument, as float64 and int64 of shape (). Loading writes them into the graph. A
state holds a digest of all else in its graph, too: one of another graph is refused before anything
is loaded.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from fxquant.capture.attributes import KEY
from fxquant.errors import LoweringError
from fxquant.modules.own import as_own

Numbers = dict[str, float | int]
_Function = TypeVar("_Function", bound=Callable[..., Any])
_FORM = "form"
_POSITIONS: dict[Any, dict[str, int]] = {}
"""Function or operator → the places of its arguments that are numbers of a state, by name."""
Runner = Callable[[fx.GraphModule, tuple[Any, ...], dict[str, Any]], Any]
_RUNNERS: list[Runner] = []
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def holds_numbers(*names: str) -> Callable[[_Function], _Function]:
    """Mark a function or an operator whose arguments of these names belong to a graph's state."""

    def mark(function: _Function) -> _Function:
        schema = getattr(function, "_schema", None)
        arguments = schema.arguments if schema else inspect.signature(function).parameters.values()
        places = {each.name: place for place, each in enumerate(arguments)}
        _POSITIONS[function] = {name: places[name] for name in names}
        return function

    return mark


def runs_graphs(runner: Runner) -> Runner:
    """Let `runner` compute what a `GraphState` is called for, sooner than its graph does.

    It gets the graph, the arguments and the options of each call, and returns the result, or
    `NotImplemented` where the graph is to compute it.
    """
    _RUNNERS.append(runner)
    return runner


class GraphState(nn.Module):
    """What a `GraphModule` derives from whose state dict holds the numbers of its calls."""

    graph: fx.Graph
    _code: str

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return what the graph computes."""
        if torch.compiler.is_compiling():
            # What Dynamo read it compares at each call: it traces a graph anew that was recompiled.
            assert self._code is not None
            return super().__call__(*arguments, **options)
        for runner in _RUNNERS:
            result = runner(self, arguments, options)  # type: ignore[arg-type]
            if result is not NotImplemented:
                return result
        return super().__call__(*arguments, **options)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update((f"{prefix}{KEY}.{name}", each) for name, each in _state_of(self))

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        *rest: Any,
    ) -> None:
        own, start = dict(_state_of(self)), f"{prefix}{KEY}."
        if own:
            given = [key for key in state_dict if key.startswith(start)]
            state = {key.removeprefix(start): state_dict.pop(key) for key in given}
            _require_same_form(own, state, prefix)
            if state:
                _take_in(self, state)
            else:
                missing_keys.extend(start + name for name in own)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *rest
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        dtype = fn(torch.empty(1)).dtype
        if dtype is not torch.float32 and any(True for _ in _state_of(self)):
            raise LoweringError(
                f"a model of integers has torch.float32 between them and cannot be {dtype}: cast "
                "its inputs and results instead, or what fxquant.convert returned. Parts in Python "
                "that were cast by now come back with .float()"
            )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class StatefulGraph(GraphState, fx.GraphModule):
    """A whole model, as one graph. Made by `with_state`."""

    def __reduce__(self) -> tuple[Any, ...]:
        restore, arguments = super().__reduce__()
        return _restore, (restore, arguments)


def with_state(gm: nn.Module) -> nn.Module:
    """Let the state dict of `gm` hold the numbers of its calls, if it is one graph; return it."""
    if isinstance(gm, fx.GraphModule) and not isinstance(gm, GraphState):
        type(gm).__bases__ = (StatefulGraph,)  # the class of a `GraphModule` is its own
    return gm


def _restore(restore: Callable[..., nn.Module], arguments: Any) -> nn.Module:
    """Return the graph that was pickled."""
    return with_state(restore(*arguments))


def _state_of(gm: GraphState) -> Iterator[tuple[str, Tensor]]:
    """Yield the numbers by name, and then the digest of all else; nothing where there are none."""
    journal: Any = gm._modules.get(KEY)
    if journal is not None:
        journal.put_back(gm)  # the names of the nodes, and what is known of them
    form, is_empty = hashlib.sha256(), True
    for node in gm.graph.nodes:
        for name, number in _numbers(gm, node).items():
            kind, is_empty = torch.int64 if isinstance(number, int) else torch.float64, False
            yield f"{node.name}.{name}", torch.tensor(number, dtype=kind)
        form.update(_form(gm, node).encode())
    if not is_empty:
        yield _FORM, torch.tensor(list(form.digest()[:8]), dtype=torch.uint8)


def _numbers(gm: nn.Module, node: fx.Node) -> Numbers:
    """Return the numbers that a call holds, and those of the integers that it returns."""
    places = _POSITIONS.get(node.target, {}) if node.op == "call_function" else {}
    numbers: Numbers = {name: node.args[place] for name, place in places.items()}  # type: ignore[misc]
    if node.op == "call_module":
        numbers |= as_own(gm.get_submodule(str(node.target))).numbers()
    integers = getattr(node.meta.get(KEY), "integers", None)
    if integers is not None:
        numbers |= {"scale": integers.scale, "zero_point": integers.zero_point}
    return numbers


def _form(gm: nn.Module, node: fx.Node) -> str:
    """Return all of a node but its numbers, as text."""
    places = _POSITIONS.get(node.target, {}).values() if node.op == "call_function" else ()
    args = [None if place in places else each for place, each in enumerate(node.args)]
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    module = gm.get_submodule(target) if node.op == "call_module" else None
    facts = (node.op, node.name, target, args, node.kwargs, as_own(module).form())
    return _ADDRESS.sub("", repr(facts))


def _require_same_form(own: dict[str, Tensor], state: dict[str, Tensor], prefix: str) -> None:
    """Raise if a state has numbers, but those of another graph, or such as no graph has."""
    wrong = ""
    if state and own.keys() != state.keys():
        more, fewer = sorted(state.keys() - own.keys()), sorted(own.keys() - state.keys())
        wrong = f"it has no {fewer[0]!r}" if fewer else f"the model has no {more[0]!r}"
    elif state and not torch.equal(own[_FORM], state[_FORM]):
        wrong = "its calls are others, or of other bits"
    for name, each in state.items():
        if not wrong and name != _FORM and not _is_number(name, each):
            wrong = f"{name!r} is {each}"
    if wrong:
        where = f"{prefix[:-1]}: " if prefix else ""
        raise LoweringError(
            f"load_state_dict: {where}the state is not of such a graph: {wrong}. Which scales are "
            "shared, and what is added in integers, depends on recipe and calibration: load the "
            "state into the converted model and lower that, or keep models with fxquant.save"
        )


def _is_number(name: str, value: Any) -> bool:
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_meta:
        return False
    number = value.item()
    if name.endswith("zero_point"):
        return int(number) == number if math.isfinite(number) else False
    return 0 < number < math.inf


def _take_in(gm: GraphState, state: dict[str, Tensor]) -> None:
    """Write the numbers of a state into the graph, its modules and what is known of its nodes."""
    for node in gm.graph.nodes:
        known = _numbers(gm, node)
        given: Numbers = {
            name: type(number)(state[f"{node.name}.{name}"].item())
            for name, number in known.items()
        }
        if node.op == "call_function":
            args = list(node.args)
            for name, place in _POSITIONS.get(node.target, {}).items():
                args[place] = given[name]
            node.args = tuple(args)
        elif node.op == "call_module" and given:
            as_own(gm.get_submodule(str(node.target))).take_numbers(given)
        record = node.meta.get(KEY)
        if getattr(record, "integers", None) is not None:
            numbers = {name: given[name] for name in ("scale", "zero_point")}
            node.meta[KEY] = replace(record, integers=replace(record.integers, **numbers))
    journal: Any = gm._modules.get(KEY)
    if journal is not None:
        journal.write(gm)
    gm.recompile()  # type: ignore[operator]
