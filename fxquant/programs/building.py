"""Making a program: the graph runs once, node by node, and each node becomes steps, or none.

    quantize = kernels.quantize(x, 0.02, 114, 255)     require numbers; bind v0; quantize
    conv1 = self.conv1(quantize)                       conv1: brgconv
    permute = conv1.permute(0, 2, 3, 1)                –           a view, the same at every run
    layer_norm = F.layer_norm(permute, …)              v1 = layer_norm(…)

Results of primitives lie in the program's memory. What each primitive computes is compared with
what the graph's own node makes of the same values, and the whole program with the graph. A
primitive that is wrong is not used; a program that is wrong is not made. All that is no primitive
is called as the graph calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import (
    data_input,
    is_inplace,
    is_opaque,
    may_be_view,
    module_of,
    reads_values,
)
from fxquant.int8 import Int8Add, Int8Conv, Int8Layer, kernels
from fxquant.numerics import cloned, tensors_in
from fxquant.programs import layers, moves
from fxquant.programs.buffers import Buffers, is_dense, place_of
from fxquant.programs.guards import Guards
from fxquant.programs.kinds import Question, maker_of
from fxquant.programs.library import Refused
from fxquant.programs.lifetimes import Lifetimes
from fxquant.programs.primitives import SOURCE, Primitive, is_channels_last
from fxquant.programs.program import Program
from fxquant.programs.steps import (
    Bind,
    Call,
    Copy,
    Execute,
    Own,
    Release,
    RequireNumbers,
    Slot,
    Step,
    mapped,
    method,
)

_logger = logging.getLogger("fxquant")
_MOST_OFF = 1e-3  # share of a result's integers that may be one step off
_FLOAT_ERROR = 1e-5  # of the greatest value
_TOTAL_ERROR = 0.05  # norm, of results behind steps that are not equal bit for bit


class Unfit(Exception):
    """A graph, or its inputs, that no program computes."""


@dataclass(frozen=True)
class _Known:
    """What a node computes."""

    value: Any
    """Now, while the program is made."""
    slot: Slot | None
    """Where it is found at another run; None: it is the same object then."""
    has_fixed_shape: bool = True

    @property
    def in_step(self) -> Any:
        """How a step gets it."""
        return self.value if self.slot is None else self.slot


def build(gm: fx.GraphModule, arguments: Sequence[Any]) -> Program:
    """Return the program of a graph for arguments like these.

    Args:
        gm: a lowered graph, which ran before.
        arguments: of its placeholders, in their order.

    Raises:
        Unfit: there is none, or it would compute something else.
        Refused: oneDNN fails.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        given = [_plain(each) for each in arguments]
        expected = tensors_in(cloned(gm.forward(*cloned(given))))
        builder = _Builder(gm, given)
        program = builder.program()
        for _ in range(2):  # the second run finds what the first one left
            _require_equal(expected, tensors_in(program.run(given)), builder.is_exact)
    return program


def _plain(argument: Any) -> Any:
    """Return a copy that no mode of the caller's has marked."""
    if not isinstance(argument, Tensor):
        return argument
    copied = torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype)
    return copied.copy_(argument)


def _require_equal(expected: Sequence[Tensor], found: Sequence[Tensor], is_exact: bool) -> None:
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            raise Unfit("its results have other sizes or types")
        if torch.equal(one, other) or one.numel() == 0:
            continue
        error = (one.double() - other.double()).norm() / one.double().norm()
        if is_exact or not error < _TOTAL_ERROR:
            raise Unfit(f"its results differ by {error:.3g} of their norm")


class _Builder:
    """Walks over a graph's nodes; holds what they compute, and the steps so far."""

    def __init__(self, gm: fx.GraphModule, arguments: Sequence[Any]) -> None:
        self.gm, self.guards, self.buffers = gm, Guards(gm), Buffers()
        self.is_exact = True
        """Whether every primitive computes the same bits as the graph."""
        self._lifetimes = Lifetimes(gm.graph, self.buffers)
        self._steps: list[Step] = []
        self._known: dict[fx.Node, _Known] = {}
        self._copies: dict[fx.Node, _Known] = {}
        """Of what is read with channels last, and lies otherwise."""
        self._values: list[Any] = []
        self._inputs: list[Slot | None] = []
        self._arguments = iter(arguments)
        self._outside: set[int] = set()
        """Where memory of the arguments and of the graph's own tensors lies."""

    def program(self) -> Program:
        """Return the program."""
        *nodes, output = self.gm.graph.nodes
        for node in nodes:
            known = self._known[node] = self._visit(node)
            self._lifetimes.begin(node, known.value)
            dropped = [self._known[each].slot for each in self._lifetimes.end(node)]
            slots = [slot.number for slot in dropped if slot is not None]
            if slots:
                self._steps.append(Release(slots))
        result = mapped(output.args[0], self._result)
        count = len(self._values)
        return Program(self._steps, self._inputs, count, result, self.buffers, self.guards)

    def _visit(self, node: fx.Node) -> _Known:
        if node.op == "placeholder":
            return self._input()
        if node.op == "get_attr":
            return self._attribute(node)
        for make in (self._layer, self._between, self._constant):
            known = make(node)
            if known is not None:
                return known
        return self._call(node)

    def _input(self) -> _Known:
        value = next(self._arguments)
        slot = self._slot(value) if isinstance(value, Tensor) else None
        self._inputs.append(slot)
        self._outside.update(map(place_of, tensors_in(value)))
        return _Known(value, slot)

    def _attribute(self, node: fx.Node) -> _Known:
        self.guards.tensor(self.gm, str(node.target))
        value: Any = self.gm
        for name in str(node.target).split("."):
            value = getattr(value, name)
        self._outside.update(map(place_of, tensors_in(value)))
        return _Known(value, None)

    def _layer(self, node: fx.Node) -> _Known | None:
        """Return what a layer on integers computes, by the primitive that does it soonest."""
        layer = module_of(self.gm, node)
        if not isinstance(layer, Int8Layer) or node.kwargs:
            return None
        x, *others = (self._known[each] for each in node.all_input_nodes)
        given = mapped(tuple(node.args), lambda each: self._known[each].value)
        expected: Tensor = layer(*cloned(given))
        if isinstance(layer, Int8Conv) and not is_channels_last(x.value):
            x = self._channels_last(node.all_input_nodes[0])
        if layers.why_not(layer, x.value, expected) or not is_dense(expected):
            return None
        if len(node.args) == 1:
            y = self.buffers.like(expected)
            best = self._fastest(layer, x.value, y, None, expected)
        else:
            known = self._sum(layer, (others or [x])[0], expected)
            if known is None:
                return None
            y = known
            best = self._fastest(layer, x.value, y, y.clone(), expected)
        if best is None:
            raise Unfit(f"{node.name}: oneDNN's primitives are wrong")
        self.guards.layer(layer)
        self.guards.module(self.gm, str(node.target))
        self._append(node.name, best, {SOURCE: x})
        return _Known(y, None)

    def _sum(self, layer: Int8Layer, other: _Known, expected: Tensor) -> Tensor | None:
        """Return the memory that holds what a layer adds to, where its result is to be."""
        x: Tensor = other.value
        if (x.shape, x.dtype) != (expected.shape, expected.dtype):
            return None
        is_free = not layer.keep_other and self.buffers.holds(x)
        if is_free and x.stride() == expected.stride():
            return x
        y = self.buffers.like(expected)
        y.copy_(x)
        self._steps.append(Copy(other.in_step, y))
        return y

    def _fastest(
        self, layer: Int8Layer, x: Tensor, y: Tensor, addend: Tensor | None, expected: Tensor
    ) -> Primitive | None:
        """Return the fastest primitive that is right; it has run; None: none is right."""

        def run(primitive: Primitive) -> bool:
            if addend is not None:
                y.copy_(addend)
            primitive.run()
            return self._is_right(expected, y)

        right = [way for way in layers.ways(layer, x, y, addend is not None) if run(way)]
        if not right:
            return None
        best = layers.fastest(right)
        run(best)
        self.is_exact &= torch.equal(expected, y)
        return best

    def _between(self, node: fx.Node) -> _Known | None:
        """Return what a step between the layers computes, by a primitive."""
        make = maker_of(self.gm, node)
        if make is None:
            return None
        inputs = {each: self._known[each] for each in node.all_input_nodes}
        if isinstance(module_of(self.gm, node), Int8Add):
            for each, known in inputs.items():
                if known.value.dim() > 2 and not is_channels_last(known.value):
                    inputs[each] = self._channels_last(each)
        expected, values = self._run(node), {each: known.value for each, known in inputs.items()}
        try:
            made = make(Question(self.gm, node, values, self.buffers), expected)
        except Refused:
            made = None
        if made is None:
            return None
        made.primitive.run()
        if not self._is_right(expected, made.result, *values.values()):
            _logger.info("%s: oneDNN's primitive is wrong", node.name)
            self.buffers.release(place_of(made.result))
            return None
        self.is_exact &= torch.equal(expected, made.result)
        if node.op == "call_module":
            self.guards.no_hooks(self.guards.module(self.gm, str(node.target)))
        if node.target is kernels.quantize:
            self._steps += [RequireNumbers(known.in_step) for known in inputs.values()]
        reads = {operand: inputs[source] for operand, source in made.reads.items()}
        self._append(node.name, made.primitive, reads)
        return _Known(made.result, None)

    def _channels_last(self, node: fx.Node) -> _Known:
        """Return a copy of what a node computes, with channels last: one for all its users."""
        if node not in self._copies:
            x = self._known[node]
            y = self.buffers.like(x.value.movedim(1, -1).contiguous().movedim(-1, 1))
            primitive = moves.copying(x.value, y)
            primitive.run()
            self._append(f"{node.name}, channels last", primitive, {SOURCE: x})
            self._copies[node] = _Known(y, None)
            self._lifetimes.begin(node, y)
        return self._copies[node]

    def _append(self, name: str, primitive: Primitive, reads: dict[int, _Known]) -> None:
        """Add the steps that run a primitive; what it reads may lie elsewhere at each run."""
        for operand, known in reads.items():
            if known.slot is not None:
                self._steps.append(Bind(known.slot, primitive, operand, known.value))
        self._steps.append(Execute(name, primitive))

    def _is_right(self, expected: Tensor, found: Tensor, *inputs: Any) -> bool:
        """Say whether a result is right, up to a step, or of floats up to the order of a sum."""
        if torch.equal(expected, found):
            return True
        error = (expected.double() - found.double()).abs()
        if expected.dtype == torch.uint8:
            return bool(error.max() <= 1 and error.mean() <= _MOST_OFF)
        greatest = max(each.abs().max().item() for each in (expected, *inputs))
        return bool(error.max() <= _FLOAT_ERROR * greatest)

    def _constant(self, node: fx.Node) -> _Known | None:
        """Return what is the same at every run: sizes, what follows from them, views of memory."""
        inputs = [self._known[each] for each in node.all_input_nodes]
        if not inputs or is_opaque(node) or is_inplace(self.gm, node) or node.op == "call_module":
            return None
        if not all(known.has_fixed_shape for known in inputs):
            return None
        reads_no_values = not any(
            tensors_in(self._known[each].value) and reads_values(self.gm, node, each)
            for each in node.all_input_nodes
        )
        is_view = may_be_view(self.gm, node) and not any(known.slot for known in inputs)
        if not (reads_no_values or is_view):
            return None
        value = self._run(node)
        places = {place_of(each) for known in inputs for each in tensors_in(known.value)}
        is_same = all(place_of(each) in places for each in tensors_in(value))
        return _Known(value, None) if is_same and (is_view or not tensors_in(value)) else None

    def _call(self, node: fx.Node) -> _Known:
        """Return what the graph's own call returns."""
        changed: Sequence[fx.Node | None] = ()
        if is_opaque(node):
            changed = node.all_input_nodes
        elif is_inplace(self.gm, node):
            changed = [data_input(node)]
        for each in changed:
            values = tensors_in(self._known[each].value) if each is not None else []
            if any(place_of(tensor) in self._outside for tensor in values):
                raise Unfit(f"{node.name} may change what it is given")
        arguments, options = (
            mapped(each, lambda node: self._known[node].in_step)
            for each in (tuple(node.args), dict(node.kwargs))
        )
        slot = self._slot(None)
        step = Call(node.name, self._function(node), arguments, options, slot)
        step(self._values)
        self._steps.append(step)
        return _Known(self._values[slot.number], slot, has_fixed_shape=False)

    def _function(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self.guards.module(self.gm, str(node.target))
        if node.op == "call_method":
            return method(str(node.target))
        assert callable(node.target)
        return node.target

    def _run(self, node: fx.Node) -> Any:
        """Return what a node computes of the values that are known now."""
        arguments, options = (
            mapped(each, lambda node: self._known[node].value)
            for each in (tuple(node.args), dict(node.kwargs))
        )
        return self._function(node)(*arguments, **options)

    def _slot(self, value: Any) -> Slot:
        self._values.append(value)
        return Slot(len(self._values) - 1)

    def _result(self, node: fx.Node) -> Any:
        """Return how a run returns what a node computes."""
        known = self._known[node]
        tensors = tensors_in(known.value)
        if known.slot is None and any(place_of(each) in self._outside for each in tensors):
            raise Unfit(f"it returns its own {node.name}")
        if not any(self.buffers.holds(each) for each in tensors):
            return known.in_step
        if not isinstance(known.value, Tensor):
            raise Unfit(f"{node.name} is a container of what lies in the program's memory")
        return Own(known.in_step)
