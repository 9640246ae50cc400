"""Passes of the caller's own, in front of `prepare`'s or behind calibration, and their checks.

    run_in_front(passes, graphs, examples)          # of fxquant.prepare(model, passes=[…])
    run_behind(passes, graphs, recipe)              # of fxquant.convert(prepared, passes=[…])

A pass may make another function of the graph: what follows must compute what the pass made. But
what others rely on stays: the inputs of a graph, the shapes that Python around a region gets, and,
behind calibration, that each tensor to be quantized is one that an observer has seen. An error
begins with the name of the pass.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxquant.calibration.counted_call import GIVEN
from fxquant.calibration.observed import find_observers
from fxquant.calling.examples import Example
from fxquant.capture.naming import path_of
from fxquant.capture.recording.state import left_as_it_is
from fxquant.capture.region import Region
from fxquant.errors import PassError
from fxquant.modules.copies import copy_module
from fxquant.modules.own import as_own
from fxquant.numerics.containers import cloned, tensors_in
from fxquant.numerics.decibels import sqnr
from fxquant.passes.convert.drop_observers import DropObservers
from fxquant.passes.functions import forget_fusions
from fxquant.passes.pipeline import Pass, Pipeline, named_after
from fxquant.passes.prepare.insert_observers import InsertObservers
from fxquant.recipe.recipe import Recipe
from fxquant.streaming.running import positional

_logger = logging.getLogger("fxquant")
_SAME = 20.0  # dB by which a tensor may differ from what its observer saw
Passes: TypeAlias = Sequence[Pass | Pipeline]


def run_in_front(
    passes: Passes, graphs: Iterable[fx.GraphModule], examples: Sequence[Example]
) -> None:
    """Run passes on float graphs, in place.

    Args:
        passes: each runs on all graphs before the next does.
        graphs: of one model.
        examples: of calls of them, if there are any: then the graphs run behind each pass.

    Raises:
        PassError: names the pass: the inputs are others now, the graph does not run, or a region
            returns other shapes.
    """
    calls = {
        example.gm: positional(example.gm, example.args, example.kwargs) for example in examples
    }
    checked = [
        _Checked(gm, calls.get(gm), frees_outputs=not isinstance(gm, Region)) for gm in graphs
    ]
    for each in _one_by_one(passes):
        for check in checked:
            check.run(each)


def run_behind(passes: Passes, graphs: Iterable[fx.GraphModule], recipe: Recipe) -> None:
    """Run passes on calibrated graphs, in place, observers and what they saw in them.

    The graphs run behind each pass, on random inputs of the shapes that are known from calibration.

    Args:
        passes: each runs on all graphs before the next does.
        graphs: of one model.
        recipe: which tensors are to be observed.

    Raises:
        PassError: names the pass: as `run_in_front`; or a tensor that is to be quantized has no
            observer, or has another shape than its observer saw.
    """
    checked = [_Checked(gm, _random_inputs(gm), recipe=recipe) for gm in graphs]
    for each in _one_by_one(passes):
        stale = [name for check in checked for name in check.run(each)]
        if stale:
            _logger.warning(
                "%s: %d tensors changed whose observers saw what was there before (%s): if that "
                "matters, let the pass change the observers too, or give it to prepare(passes=[…])",
                each,
                len(stale),
                ", ".join(stale[:3]) + (", …" if len(stale) > 3 else ""),
            )


def _one_by_one(passes: Passes) -> Iterator[Pass]:
    for each in passes:
        if isinstance(each, Pipeline):
            yield from _one_by_one(each.passes)
        else:
            yield each


@dataclass
class _Checked:
    """A graph on which passes run, and what is known of it as it is now."""

    gm: fx.GraphModule
    inputs: list[Any] | None
    """What to run it on; None: nothing is known."""
    recipe: Recipe | None = None
    """Of a graph with observers."""
    frees_outputs: bool = False
    """Whether a pass may change the shapes of what the graph returns."""
    facts: _Facts = field(init=False)

    def __post_init__(self) -> None:
        self.facts = self._look()
        if isinstance(self.facts.seen, _Failure):  # not the inputs that it wants
            self.inputs, self.facts.seen = None, None

    def run(self, each: Pass) -> list[str]:
        """Run a pass; return the names of tensors that are far from what their observers saw."""
        before = self.facts
        each(self.gm)
        forget_fusions(self.gm)
        try:
            self.facts = self._look()
            return self._compare(before, self.facts)
        except PassError as error:
            raise named_after(each, error) from error.__cause__

    def _look(self) -> _Facts:
        names = [str(node.target) for node in self.gm.graph.find_nodes(op="placeholder")]
        unwatched = set() if self.recipe is None else _unwatched(self.gm, self.recipe)
        return _Facts(names, unwatched, None if self.inputs is None else _run(self.gm, self.inputs))

    def _compare(self, before: _Facts, after: _Facts) -> list[str]:
        where = f"{path_of(self.gm)}: " if path_of(self.gm) else ""
        if after.inputs != before.inputs:
            raise PassError(
                f"{where}the graph takes {_listed(after.inputs)} now, and took "
                f"{_listed(before.inputs)}: its callers give the same as before"
            )
        lost = sorted(after.unwatched - before.unwatched)
        if lost:
            raise PassError(
                f"{where}no observer has seen {_listed(lost)}, to be quantized there: keep the "
                "observers, or give the pass to prepare(model, passes=[…]), which observes what it "
                "makes"
            )
        if isinstance(after.seen, _Failure):
            shapes = ", ".join(_shape(each) for each in self.inputs or ())
            raise PassError(
                f"{where}behind it the graph fails on {shapes}: {after.seen.what}"
            ) from after.seen.error
        if after.seen is None or not isinstance(before.seen, _Seen):
            return []
        outputs = _shape(before.seen.output), _shape(after.seen.output)
        if outputs[0] != outputs[1] and not self.frees_outputs:
            raise PassError(
                f"{where}the graph returns {outputs[1]} now, and returned {outputs[0]}: its "
                "callers take the same as before"
            )
        return list(self._stale(before.seen, after.seen, where))

    def _stale(self, before: _Seen, after: _Seen, where: str) -> Iterator[str]:
        for target, (name, value, state) in after.watched.items():
            _, old, old_state = before.watched.get(target, (name, value, state))
            if value.shape != old.shape:
                raise PassError(
                    f"{where}{name} has the shape {_shape(value)} now, and its observer saw "
                    f"{_shape(old)}: give what changes shapes to prepare(model, passes=[…])"
                )
            if value.is_floating_point() and state == old_state and sqnr(old, value) < _SAME:
                yield f"{where}{name}"


@dataclass
class _Facts:
    """What others rely on of a graph."""

    inputs: list[str]
    unwatched: set[str]
    """Names of what is to be quantized, and has no observer."""
    seen: _Seen | _Failure | None
    """What came of running it."""


@dataclass
class _Seen:
    output: Any
    watched: dict[str, tuple[str, Tensor, Any]]
    """By the observer's target: what it watches, the value of that, and its own state."""


@dataclass
class _Failure:
    what: str
    error: Exception


class _Observing(fx.Interpreter):
    """Runs a graph past its observers, and keeps what they would have seen."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.watched: dict[str, tuple[str, Tensor, Any]] = {}
        self.node = ""
        """The name of the one that runs."""

    def run_node(self, n: fx.Node) -> Any:
        self.node = n.name
        if n.op != "call_module" or not as_own(self.fetch_attr(str(n.target))).watches:
            return super().run_node(n)
        observer, (watched, *_) = as_own(self.fetch_attr(str(n.target))), n.args
        value = self.env[watched]  # type: ignore[index]
        if isinstance(value, Tensor):
            state = {name: each.tolist() for name, each in observer.named_buffers()}
            name = getattr(watched, "name", str(watched))
            self.watched[str(n.target)] = (name, value.clone(), state)
        return value


def _run(gm: fx.GraphModule, inputs: Sequence[Any]) -> _Seen | _Failure:
    observing = _Observing(gm)
    with torch.no_grad(), left_as_it_is(gm), torch.random.fork_rng(()):
        torch.manual_seed(0)
        try:
            output = observing.run(*cloned(tuple(inputs)))
        except Exception as error:  # of the caller's pass: anything
            said = str(error).partition("\n")[0]
            return _Failure(f"{observing.node}: {type(error).__name__}: {said}", error)
    return _Seen(cloned(output), observing.watched)


def _random_inputs(gm: fx.GraphModule) -> list[Any] | None:
    """Return inputs of the shapes and types that calibration met; None if they are not known."""
    generator, inputs = torch.Generator().manual_seed(0), []
    for node in gm.graph.find_nodes(op="placeholder"):
        meta = node.meta.get("tensor_meta", node.meta.get(GIVEN))
        if meta is not None and meta.dtype.is_floating_point:
            inputs.append(torch.randn(meta.shape, generator=generator).to(meta.dtype))
        elif meta is not None:
            inputs.append(torch.zeros(meta.shape, dtype=meta.dtype))
        elif node.args:
            inputs.append(node.args[0])
        else:
            return None
    device = next((each.device for each in gm.parameters()), torch.device("cpu"))
    return [each.to(device) if isinstance(each, Tensor) else each for each in inputs]


def _unwatched(gm: fx.GraphModule, recipe: Recipe) -> set[str]:
    """Return the names of the tensors that `recipe` quantizes and no observer of `gm` watches."""
    anew = copy_module(gm, {id(each): each for each in gm.parameters()})
    DropObservers().run(anew)
    anew.delete_all_unused_submodules()  # observers that a pass took out of the graph alone
    InsertObservers(recipe).run(anew)
    there = {watched.name for _, watched, _ in find_observers(gm)}
    return {watched.name for _, watched, _ in find_observers(anew)} - there


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"({', '.join(map(str, value.shape))})"
    shapes = ", ".join(map(_shape, tensors_in(value)))
    return f"a {type(value).__name__} of {shapes or 'no tensor'}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
