"""Making a program: the graph runs once, node by node, and each node becomes steps, or none.

    quantize = kernels.quantize(x, 0.02, 114, 255)     require numbers; bind v0; quantize
    conv1 = self.conv1(quantize)                       conv1: brgconv
    permute = conv1.permute(0, 2, 3, 1)                –           a view, the same at every run
    mul = conv1 * gate                                 mul: 1 operators of PyTorch
    layer_norm = F.layer_norm(permute, …)              v1 = layer_norm(…)

Results of primitives lie in the program's memory. A layer's primitive is compared with float32 on
random integers of its sizes, once in a process; all others with what the graph's own node makes of
the same values, each time. One that is wrong is not used. What a node reads must still be what was
computed, and the second run must be as the first. All that is no primitive is called as the graph
calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.graph import (
    data_input,
    is_inplace,
    is_opaque,
    may_be_view,
    module_of,
    reads_values,
)
from fxquant.int8 import Int8Layer, Int8Module, kernels
from fxquant.numerics import cloned, items_of, tensors_in
from fxquant.programs import layers, moves
from fxquant.programs.bounds import Bounds
from fxquant.programs.buffers import Buffers, Lifetimes, place_of
from fxquant.programs.guards import Guards
from fxquant.programs.kinds import Made, Maker, Question, maker_of
from fxquant.programs.library import Refused
from fxquant.programs.primitives import SOURCE, Primitive, is_channels_last
from fxquant.programs.program import Program
from fxquant.programs.recording import Unrecordable, record
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
    Unexpected,
    Write,
    fill,
    filled,
    mapped,
    method,
)

_logger = logging.getLogger("fxquant")
_KNOWN_PACKAGES = ("torch.", "fxquant.", "torchvision.ops.")
_HOLD_NOTHING = (
    *(type(None), bool, int, float, complex, str, bytes, type, range),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.finfo, torch.iinfo),
)
_CHOSEN: dict[Any, str] = {}
"""Which way was fastest for a layer of some sizes, of those that are right on this machine."""


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


def build(gm: fx.GraphModule, arguments: Sequence[Any], *, records: bool = True) -> Program:
    """Return the program of a graph for arguments like these.

    Args:
        gm: a lowered graph.
        arguments: of its placeholders, in their order.
        records: let PyTorch's operators write into the program's memory, where no gradient flows.

    Raises:
        Unfit: there is none, or it computes something else at its second run.
        Refused: oneDNN fails.
    """
    for node in gm.graph.nodes:
        if is_opaque(node) or _is_foreign(module_of(gm, node)):
            raise Unfit(f"{node.name} is code of the model's own, which may count its calls")
    random = torch.get_rng_state()
    with torch.inference_mode(mode=False), torch.no_grad():
        given = [_plain(each) for each in arguments]
        builder = _Builder(gm, given, records)
        program = builder.program()
        found = program.run(given)  # with what the first run left in the memory
        is_same = all(map(_have_same_bits, tensors_in(found), builder.results))
    if not torch.equal(random, torch.get_rng_state()):
        torch.set_rng_state(random)
        raise Unfit("it draws random numbers")
    if not is_same:
        raise Unfit("its second run differs from its first one")
    return program


def _is_foreign(module: nn.Module | None) -> bool:
    return module is not None and not type(module).__module__.startswith(_KNOWN_PACKAGES)


def _shows_its_tensors(value: Any) -> bool:
    """Say whether a value is a tensor, holds nothing, or is a container of such ones."""
    items = items_of(value)
    if items is None:
        return isinstance(value, (Tensor, *_HOLD_NOTHING))
    return all(map(_shows_its_tensors, items.values()))


def _may_change(module: nn.Module | None) -> bool:
    """Say whether a call may do something else next time: hooks, or a graph, which is code."""
    parts = () if module is None else module.modules()
    return any(
        each._forward_hooks or each._forward_pre_hooks or isinstance(each, fx.GraphModule)
        for each in parts
    )


def _plain(argument: Any) -> Any:
    """Return a copy that no mode of the caller's has marked."""
    if not isinstance(argument, Tensor):
        return argument
    if any(stride == 0 for stride in argument.stride()):
        raise Unfit("an argument has several values in one place")
    copied = torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype)
    return copied.copy_(argument)


def _have_same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors hold the same, NaN included."""
    return torch.equal(a, b) or bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())


class _Builder:
    """Walks over a graph's nodes; holds what they compute, and the steps so far."""

    def __init__(self, gm: fx.GraphModule, arguments: Sequence[Any], records: bool) -> None:
        self.gm, self.guards, self.buffers = gm, Guards(gm), Buffers()
        self.results: list[Tensor] = []
        """What the graph returns for these arguments."""
        self._snapshots: dict[fx.Node, list[Tensor]] = {}
        """What was computed, to see that nothing overwrites it before it is read."""
        self._overwrites = False
        """Whether the node at hand does, as its graph wants."""
        self._lifetimes, self._bounds = Lifetimes(gm.graph, self.buffers), Bounds(gm)
        self._steps: list[Step] = []
        self._known: dict[fx.Node, _Known] = {}
        self._copies: dict[fx.Node, _Known] = {}
        """Of what is read with channels last, and lies otherwise."""
        self._values: list[Any] = []
        self._inputs: list[Slot | None] = []
        self._arguments = iter(arguments)
        self._records = records
        self._outside: set[int] = set()
        """Where memory of the arguments and of the graph's own tensors lies."""

    def program(self) -> Program:
        """Return the program."""
        *nodes, output = self.gm.graph.nodes
        for node in nodes:
            self._require_unchanged(node)
            known = self._known[node] = self._visit(node)
            self._bounds.visit(node, known.value)
            self._lifetimes.begin(node, known.value)
            self._snapshots[node] = []
            for each in self._snapshots if self._overwrites else [node]:
                self._snapshots[each] = cloned(tensors_in(self._known[each].value))
            self._overwrites = False
            dropped = []
            for each in self._lifetimes.end(node):
                del self._snapshots[each]
                slot = self._known[each].slot
                if slot is not None:
                    dropped.append(slot.number)
            if dropped:
                self._steps.append(Release(dropped))
        self._require_unchanged(output)
        result = mapped(output.args[0], self._result)
        self.results = tensors_in(cloned(filled(result, self._values)))
        count = len(self._values)
        return Program(self._steps, self._inputs, count, result, self.buffers, self.guards)

    def _require_unchanged(self, node: fx.Node) -> None:
        """See that what a node reads is what was computed: that its memory was nobody else's."""
        for each in node.all_input_nodes:
            now = tensors_in(self._known[each].value)
            if not all(map(_have_same_bits, now, self._snapshots[each])):
                raise Unfit(f"{each.name} was overwritten before {node.name} read it")

    def _visit(self, node: fx.Node) -> _Known:
        if node.op == "placeholder":
            return self._input()
        if node.op == "get_attr":
            return self._attribute(node)
        for make in (self._layer, self._between, self._constant, self._recorded):
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
        adds = len(node.args) == 2
        x, other = (self._known[each] for each in (node.args * 2)[:2])  # type: ignore[index]
        shape = layers.result_shape(layer, x.value)
        kind = (shape, torch.uint8)
        if shape is None or (adds and (other.value.shape, other.value.dtype) != kind):
            return None
        if not layers.is_laid_out(layer, x.value):
            x = self._laid_out(node.all_input_nodes[0], layer)
        y = self._sum(layer, other, shape) if adds else self._result_of(layer, shape)
        addend = y.clone()
        best = self._fastest(layer, x.value, y, adds)
        y.copy_(addend)
        if best is None:
            raise Unfit(f"{node.name}: oneDNN's kernels are wrong")
        best.run()
        self.guards.layer(layer)
        self.guards.module(self.gm, str(node.target))
        self._append(node.name, best, {SOURCE: x})
        return _Known(y, None)

    def _result_of(self, layer: Int8Layer, shape: tuple[int, ...]) -> Tensor:
        """Return memory for a layer's result."""
        blank = torch.empty(shape, dtype=layer.result.dtype, device="meta")
        return self.buffers.like(layers.laid_out(layer, blank))

    def _sum(self, layer: Int8Layer, other: _Known, shape: tuple[int, ...]) -> Tensor:
        """Return the memory that holds what a layer adds to, where its result is to be."""
        x: Tensor = other.value
        if not layer.keep_other and self.buffers.holds(x) and is_channels_last(x):
            self._overwrites = True
            return x
        y = self._result_of(layer, shape)
        y.copy_(x)
        self._steps.append(Copy(other.in_step, y))
        return y

    def _fastest(self, layer: Int8Layer, x: Tensor, y: Tensor, adds: bool) -> Primitive | None:
        """Return the fastest primitive that is right, or None."""
        key, ways = layers.key_of(layer, x, adds), layers.ways(layer, x, y, adds)
        known = _CHOSEN.get(key) or layers.kept_way(layer, x)
        tried = sorted(ways, key=lambda name: name != known)  # what is known first
        right = []
        for name in tried:
            way = ways[name]()
            if key not in _CHOSEN and layer.verify:
                wrong = layers.why_wrong(way, layer, x, y, adds)
                if wrong is not None:
                    _logger.warning("%s as a %s: %s: not used", key, name, wrong)
                    continue
            right.append((name, way))
            if name == known:
                break
        if not right:
            return None
        name, best = layers.fastest(right)
        _CHOSEN[key] = name
        layers.keep_way(layer, x, name)
        return best

    def _between(self, node: fx.Node) -> _Known | None:
        """Return what a step between the layers computes, by a primitive."""
        make, module = maker_of(self.gm, node), module_of(self.gm, node)
        if make is None or _may_change(module):
            return None
        inputs = {each: self._known[each] for each in node.all_input_nodes}
        expected, values = self._run(node), {each: known.value for each, known in inputs.items()}
        before = self.buffers.used()
        made = self._made(make, Question(self.gm, node, values, self.buffers), expected)
        for place in self.buffers.used() - before:
            if made is None or place != place_of(made.result):
                self.buffers.release(place)
        if made is None:
            return None
        if module is not None:
            self.guards.module(self.gm, str(node.target))
            self.guards.contents(module)
            if isinstance(module, Int8Module):
                self.guards.numbers(module)
        if node.target is kernels.quantize:
            self._require_numbers(inputs)
        if made.filled is not None:
            mask, memory = made.filled
            self._steps.append(Copy(inputs[mask].in_step, memory, fill))
        for primitive in made.primitives:
            reads = {
                operand: inputs[source]
                for reader, operand, source in made.reads
                if reader is primitive
            }
            self._append(node.name, primitive, reads)
        return _Known(made.result, None)

    def _require_numbers(self, inputs: dict[fx.Node, _Known]) -> None:
        """See at each run that there is no NaN, unless there can be none."""
        for node, known in inputs.items():
            if self._bounds.are_numbers(node) and self.guards.values(self._bounds.tensors):
                continue
            self._steps.append(RequireNumbers(known.in_step, known.value))
            self._bounds.require(node, RequireNumbers.GREATEST)

    def _made(self, make: Maker, question: Question, expected: Tensor) -> Made | None:
        """Return what a maker makes, if oneDNN has a fast kernel for it, and that is right."""
        try:
            made = make(question, expected)
            if made is None or any(each.is_slow for each in made.primitives):
                return None
            if made.tolerance and not self._records:
                return None
            made.run(question.values)
        except (Refused, Unexpected):
            return None
        if not self._is_right(expected, made.result, made.tolerance):
            _logger.warning("%s: oneDNN's primitive is wrong: not used", question.node.name)
            return None
        ways = (lambda: made.run(question.values), lambda: self._run(question.node))
        own, pytorchs = (layers.soonest(each) if made.tolerance else 0.0 for each in ways)
        return made if own <= pytorchs else None

    def _laid_out(self, node: fx.Node, layer: Int8Layer) -> _Known:
        """Return a copy of what a node computes in a layer's layout: one for all its users."""
        if node not in self._copies:
            x = self._known[node]
            y = self.buffers.like(layers.laid_out(layer, x.value))
            primitive = moves.copying(x.value, y)
            primitive.run()
            self._append(f"{node.name}, laid out", primitive, {SOURCE: x})
            self._copies[node] = _Known(y, None)
            self._lifetimes.begin(node, y)
        return self._copies[node]

    def _append(self, name: str, primitive: Primitive, reads: dict[int, _Known]) -> None:
        """Add the steps that run a primitive; what it reads may lie elsewhere at each run."""
        for operand, known in reads.items():
            if known.slot is not None:
                self._steps.append(Bind(known.slot, primitive, operand, known.value))
        self._steps.append(Execute(name, primitive))

    def _is_right(self, expected: Tensor, found: Tensor, tolerance: float) -> bool:
        """Say whether a result has the bits of the graph's own node, or is as near as allowed."""
        if not tolerance:
            return torch.equal(expected, found)
        error, greatest = (expected - found).abs().max().item(), expected.abs().max().item()
        return error <= tolerance * greatest

    def _constant(self, node: fx.Node) -> _Known | None:
        """Return what is the same at every run: sizes, what follows from them, views of memory."""
        inputs = [self._known[each] for each in node.all_input_nodes]
        if not inputs or is_inplace(self.gm, node) or node.op == "call_module":
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

    def _recorded(self, node: fx.Node) -> _Known | None:
        """Return what PyTorch's operators write into the memory, if what they read lies still."""
        inputs = [self._known[each] for each in node.all_input_nodes]
        module = module_of(self.gm, node)
        if not self._records or not inputs or any(known.slot for known in inputs):
            return None
        if is_inplace(self.gm, node) or isinstance(module, Int8Module) or _may_change(module):
            return None
        expected, before = self._run(node), self.buffers.used()
        try:
            result, calls = record(lambda: self._run(node), self.buffers)
        except Unrecordable:
            result, calls = None, []
        read = {place_of(each) for known in inputs for each in tensors_in(known.value)}
        is_right = (
            isinstance(result, Tensor)
            and (self.buffers.holds(result) or place_of(result) in read)
            and _have_same_bits(expected, result)
        )
        for place in self.buffers.used() - before:
            if not is_right or place != place_of(result):
                self.buffers.release(place)
        if not is_right:
            return None
        if module is not None:
            self.guards.module(self.gm, str(node.target))
            self.guards.contents(module)
        if calls:
            self._steps.append(Write(node.name, calls))
        return _Known(result, None)

    def _call(self, node: fx.Node) -> _Known:
        """Return what the graph's own call returns."""
        changed = data_input(node)
        if changed is not None and is_inplace(self.gm, node):
            self._overwrites = True
            self._bounds.forget()
            values = tensors_in(self._known[changed].value)
            if any(place_of(tensor) in self._outside for tensor in values):
                raise Unfit(f"{node.name} changes what it is given")
        arguments, options = (
            mapped(each, lambda node: self._known[node].in_step)
            for each in (tuple(node.args), dict(node.kwargs))
        )
        slot = self._slot(None)
        step = Call(node.name, self._function(node), arguments, options, slot)
        step(self._values)
        self._steps.append(step)
        value = self._values[slot.number]
        if not _shows_its_tensors(value):
            raise Unfit(f"{node.name} returns a {type(value).__name__}, which may hold tensors")
        return _Known(value, slot, has_fixed_shape=False)

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
        return Own(known.in_step)
