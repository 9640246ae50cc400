"""The float graph and the quantized one, streamed side by side, unit by unit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor, fx

from fxquant.calling.batching import Batches
from fxquant.errors import CalibrationError, PassError
from fxquant.graph.operations import module_of, source_of
from fxquant.modules.own import as_own
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.rounding.subgraphs import Call, Subgraph
from fxquant.streaming.identity import identity_of
from fxquant.streaming.long_runs import Run
from fxquant.streaming.running import Arguments
from fxquant.streaming.stream import Stream
from fxquant.streaming.value_store import ValueStore

_Unit = TypeVar("_Unit")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a pass learns from, and how: the fields of every pass that learns."""

    reference: fx.GraphModule
    """The float model: the same graph before quantization, without observers."""
    batches: Sequence[Arguments]
    """The arguments of each call, on any device."""
    options: Reconstruction = field(default_factory=Reconstruction)
    how: Run = field(default_factory=Run)
    """Where what is finished is kept, and whether a bar is shown."""
    reference_batches: Sequence[Arguments] | None = None
    """What the reference is called with, where something in front of the graph is quantized, so
    that `batches` differ; None: the same."""

    def require(self, nodes: Iterable[fx.Node]) -> None:
        """Raise where there is no data, or the reference lacks one of the quantized `nodes`."""
        if len(self.batches) == 0:
            raise CalibrationError("`batches` is empty: give at least one")
        counterparts = Counterparts(self.reference)
        for node in nodes:
            counterparts.of(node)


class Counterparts:
    """Which nodes of the float graph compute what those of the quantized one do, in float.

    They have the same names, but for copies of calls, which read float values where the call reads
    integers (`fxquant.passes.KeepFloats`): theirs is the same call of the same things.
    """

    def __init__(self, reference: fx.GraphModule) -> None:
        self._named = {node.name: node for node in reference.graph.nodes}

    def of(self, node: fx.Node) -> fx.Node:
        """Return the counterpart; raise `PassError` if there is none."""
        found = self._find(node)
        if found is None:
            raise PassError(
                f"the reference has no node {node.name!r}: give a copy made before QuantizeWeights"
            )
        return found

    def _find(self, node: fx.Node) -> fx.Node | None:
        named, gm = self._named.get(node.name), node.graph.owning_module
        if named is not None or gm is None:
            return named
        if as_own(module_of(gm, node)).rounds:
            return self._find(source_of(node))
        sources = {each: self._find(each) for each in node.all_input_nodes}
        wanted = fx.node.map_arg((node.args, node.kwargs), sources.__getitem__)
        for source in filter(None, sources.values()):
            for user in source.users:
                if user.target == node.target and (user.args, user.kwargs) == wanted:
                    return user
        return None


class SideBySide(ABC, Generic[_Unit]):
    """Both graphs on the same data, each node of each run once for each batch.

    Args:
        lesson: the float graph, whose nodes have the same names, and the data of both.
        gm: the quantized graph.
        units: in the order in which data or `skip` will be asked for.
        store: for the values of both.
    """

    def __init__(
        self, lesson: Lesson, gm: fx.GraphModule, units: Sequence[_Unit], store: ValueStore
    ) -> None:
        self.lesson, self.gm = lesson, gm
        floats = lesson.reference_batches
        self._counterparts = Counterparts(lesson.reference)
        self._sizes = Batches(lesson.batches).sizes
        self._quantized = Stream(gm, lesson.batches, store)
        self._float = Stream(lesson.reference, lesson.batches if floats is None else floats, store)
        for unit in units:
            self._quantized.demand(self._inputs(unit))
            self._float.demand(self._float_nodes(unit))

    def skip(self, unit: _Unit) -> None:
        """Go past a unit that is finished."""
        self._quantized.skip(*self._inputs(unit))
        self._float.skip(*self._float_nodes(unit))

    def identity(self) -> dict[str, str]:
        """Return digests of all that the result depends on, before anything is learned."""
        lesson = self.lesson
        data = [each for each in (lesson.batches, lesson.reference_batches) if each is not None]
        return identity_of(self.gm, lesson.reference, lesson.options, data)

    @abstractmethod
    def _inputs(self, unit: _Unit) -> list[fx.Node]:
        """Return the nodes of the quantized graph whose values the unit learns from."""

    @abstractmethod
    def _float_nodes(self, unit: _Unit) -> list[fx.Node]:
        """Return those of the float graph."""


class LayersSideBySide(SideBySide[Subgraph]):
    """Inputs and targets of layers, in rows."""

    def num_samples(self, subgraph: Subgraph) -> int:
        """Return how many samples the layer sees, over all its calls."""
        return sum(self._sizes) * len(subgraph.calls)

    def rows(self, subgraph: Subgraph) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the layer's quantized input and its float target, of every batch and call."""
        quantized = self._quantized.values(*self._inputs(subgraph))
        floats = self._float.values(*self._float_nodes(subgraph))
        for inputs, wanted in zip(quantized, floats, strict=True):
            targets, stand_ins = wanted[: len(subgraph.calls)], wanted[len(subgraph.calls) :]
            yield from zip((*inputs, *stand_ins), targets, strict=True)

    def _inputs(self, subgraph: Subgraph) -> list[fx.Node]:
        final, _ = _split(subgraph)
        return [self._quantized.inputs(call.node)[0] for call in final]

    def _float_nodes(self, subgraph: Subgraph) -> list[fx.Node]:
        """Return all targets, then the inputs of those calls whose quantized ones come too late."""
        final, ahead = _split(subgraph)
        targets = [self._counterparts.of(call.output) for call in (*final, *ahead)]
        stand_ins = [self._float.inputs(self._counterparts.of(call.node))[0] for call in ahead]
        return targets + stand_ins


def _split(subgraph: Subgraph) -> tuple[list[Call], list[Call]]:
    """Return the calls whose input is final when the layer's turn comes, and the others."""
    final = [call for call in subgraph.calls if call.node not in subgraph.ahead]
    return final, [call for call in subgraph.calls if call.node in subgraph.ahead]
