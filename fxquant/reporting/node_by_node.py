"""Two forms of one model, node by node: where they differ, by how much, and which node begins it.

Each node of the second model is looked at twice: in its place, behind all that already differs, and
alone, given what the first model computes before it. Of a lowered graph that counts in steps of its
integers; a value that lies half-way between two integers may go either way, since sums in float32
depend on their order, and then is one step off.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.calling.arguments import Forward, call_on_batch
from fxquant.capture.naming import find_regions, node_name
from fxquant.graph.operations import module_of
from fxquant.graph.records import record, value_of
from fxquant.int8 import kernels
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import AffineNumbers
from fxquant.numerics.containers import cloned, tensors_in
from fxquant.reporting.comparison import Comparison, Difference, NodeComparison
from fxquant.reporting.float_form import first_of, graphs_of_both
from fxquant.streaming.running import interpreted


def compare(
    a: nn.Module, b: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None
) -> Comparison:
    """Return how far each node of `b` is from the node of `a` whose value it computes.

    Args:
        a: what `convert` returned, or `prepare`, or `to_qdq`, or the float model; left as it is.
        b: what `lower` made of it, or any other form of the same model; left as it is.
        batches: inputs, as in `calibrate`; left as they are. Only a copy of `a` is run on them,
            each graph of `b` is given what that of `a` is called with.
        forward: called as `forward(a, batch)` instead, for anything else.

    Raises:
        PassError: the two are not forms of one model.
        CalibrationError: no batch, or a batch of a type that is not understood.

    >>> from fxquant.api import quantize
    >>> from fxquant.deploy.lowering import lower
    >>> quantized = quantize(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), [torch.ones(16, 8)])
    >>> compare(quantized, lower(quantized), [torch.ones(2, 8)]).first_departure is None
    True
    """
    first, remaining = first_of(batches, b, forward, "compare")
    with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as stack:
        a, b = graphs_of_both(a, b, first, forward, "compare")
        graphs, others = find_regions(a), find_regions(b)
        comparers = {path: _Comparer(others[path], graphs[path]) for path in graphs}
        for path, gm in graphs.items():
            stack.enter_context(interpreted(gm, _Recorder(gm, comparers[path])))
        for number, batch in enumerate(remaining):
            call_on_batch(a, batch, f"batch {number}", forward)
    return Comparison(tuple(row for each in comparers.values() for row in each.rows.values()))


class _Values:
    """What each node's result was when it was computed, and after each change of it in place.

    Args:
        gm: the graph whose nodes run.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._times = {node.name: time for time, node in enumerate(gm.graph.nodes)}
        self._read_at = {
            node.name: [self._times[user.name] for user in node.users] for node in gm.graph.nodes
        }
        self._copies: dict[str, list[tuple[int, Any]]] = {}
        self._versions: dict[str, list[int]] = {}

    def note(self, node: fx.Node, results: Mapping[fx.Node, Any]) -> None:
        """Copy those of `results` that are new, or another than before `node` ran."""
        for each, result in results.items():
            versions = _versions(result)
            if self._versions.get(each.name) != versions:
                self._versions[each.name] = versions
                copies = self._copies.setdefault(each.name, [])
                copies.append((self._times[node.name], cloned(result)))

    def __contains__(self, name: str) -> bool:
        return name in self._copies

    def computed(self, name: str) -> Any:
        """Return what the node's result was when it had run."""
        return self._copies[name][0][1]

    def time(self, name: str) -> int:
        """Return when the node runs, as a number of nodes."""
        return self._times[name]

    def read(self, name: str, time: int) -> Any:
        """Return what the last one read that did so until `time`."""
        read_at = max((each for each in self._read_at[name] if each <= time), default=time)
        copies = [copy for changed_at, copy in self._copies[name] if changed_at < read_at]
        return copies[-1] if copies else self.computed(name)

    def clear(self) -> None:
        """Forget all results."""
        self._copies.clear()
        self._versions.clear()


def _versions(value: Any) -> list[int]:
    """Return how often each tensor in a nest was changed in place."""
    return [0 if each.is_inference() else each._version for each in tensors_in(value)]


class _Recorder(fx.Interpreter):
    """Runs a graph of the first model; hands its inputs and all its results to the comparer."""

    def __init__(self, gm: fx.GraphModule, comparer: _Comparer) -> None:
        super().__init__(gm)
        self._comparer = comparer
        self._values = _Values(gm)

    def run(self, *args: Any, **options: Any) -> Any:
        inputs = cloned(args)
        self._values.clear()
        result = super().run(*args, **options)
        self._comparer.compare(inputs, self._values)
        self._values.clear()
        return result

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self._values.note(n, {**self.env, n: result})
        return result


class _Comparer(fx.Interpreter):
    """Runs a graph of the second model beside the results of the first."""

    _values: _Values

    def __init__(self, gm: fx.GraphModule, reference: fx.GraphModule) -> None:
        super().__init__(gm)
        known = {node.name for node in reference.graph.nodes}
        self._gm = gm
        self._alone: dict[fx.Node, Any] = {}
        self._names: dict[fx.Node, str] = {}
        """Of each node whose value the first model computes: that of the node there."""
        self._reached = self._reads_at = 0
        """When the first model runs the last node that both have; when it reads what this reads."""
        self.rows: dict[fx.Node, NodeComparison] = {}
        for node in gm.graph.nodes:
            name = value_of(node)
            if name in known:
                self._names[node] = name
                if node.op not in ("placeholder", "output", "get_attr"):
                    facts = (node_name(gm, node), name, _kind(gm, node), _step(gm, node))
                    self.rows[node] = NodeComparison(*facts)
            elif node.target == "contiguous" and node.args[0] in self._names:
                self._names[node] = self._names[node.args[0]]

    def compare(self, inputs: tuple[Any, ...], values: _Values) -> None:
        """Run the graph on `inputs`; `values` are the first model's results."""
        self._values, self._reached = values, 0
        self.run(*inputs)
        self._alone.clear()

    def run_node(self, n: fx.Node) -> Any:
        row = self.rows.get(n)
        if row is not None:
            self._reached = self._reads_at = self._values.time(self._names[n])
        else:  # a step on the way, next to the node before it
            self._reads_at = self._reached + 1
        if n.op not in ("placeholder", "output"):
            args, kwargs = fx.node.map_arg((n.args, n.kwargs), self._wanted)
            alone = getattr(self, n.op)(n.target, args, kwargs)
            if row is not None:
                self._count(row.alone, n, alone)
            else:  # a step on the way to what the first model computes
                self._alone[n] = alone
        result = super().run_node(n)
        if row is not None:
            self._count(row.in_place, n, result)
        return result

    def _wanted(self, node: fx.Node) -> Any:
        """Return what `node` should have computed: as the first model did, or from there."""
        name = self._names.get(node)
        if name is not None and name in self._values:
            wanted = self._values.read(name, self._reads_at)
        else:
            wanted = self._alone.get(node, self.env.get(node))
        known = record(node).integers
        if known is not None and isinstance(wanted, Tensor) and wanted.is_floating_point():
            return kernels.quantize(wanted, known.scale, known.zero_point, known.grid.quant_max)
        return cloned(wanted)

    def _count(self, difference: Difference, node: fx.Node, found: Any) -> None:
        wanted, known = self._values.computed(self._names[node]), record(node).integers
        if not (isinstance(found, Tensor) and isinstance(wanted, Tensor)):
            return
        if known is not None and found.dtype is torch.uint8:
            found = kernels.dequantize(found, known.scale, known.zero_point)
        if found.shape == wanted.shape and wanted.is_floating_point():
            step = self.rows[node].step
            difference.add(wanted, found, 1.0 if math.isnan(step) else step)


def _kind(gm: fx.GraphModule, node: fx.Node) -> str:
    module = module_of(gm, node)
    if module is not None:
        return type(module).__name__
    return str(getattr(node.target, "__name__", node.target))


def _step(gm: fx.GraphModule, node: fx.Node) -> float:
    """Return the scale of the node's integers, NaN where its result is in float."""
    known: AffineNumbers | None = record(node).integers
    module = module_of(gm, node)
    if known is None and isinstance(module, FakeQuantize) and module.axis is None:
        known = module.affine.numbers()
    return math.nan if known is None else known.scale
