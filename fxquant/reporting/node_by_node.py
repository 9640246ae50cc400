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

from fxquant.calibration.arguments import arguments_of
from fxquant.capture.naming import find_regions, node_name
from fxquant.errors import PassError
from fxquant.graph.journal import read_recipe
from fxquant.graph.operations import module_of
from fxquant.graph.records import record, value_of
from fxquant.int8 import kernels
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import AffineNumbers
from fxquant.numerics.containers import cloned
from fxquant.reporting.comparison import Comparison, Difference, NodeComparison
from fxquant.streaming.running import interpreted


def compare(a: nn.Module, b: nn.Module, batches: Iterable[Any]) -> Comparison:
    """Return how far each node of `b` is from the node of `a` whose value it computes.

    Args:
        a: what `convert` returned, or `prepare`, or `to_qdq`.
        b: what `lower` made of it, or any other form of the same model.
        batches: inputs, as in `calibrate`. Only `a` is run on them; each graph of `b` is given what
            that of `a` is called with.

    Raises:
        PassError: the two are not forms of one model.

    >>> from fxquant.api import quantize
    >>> from fxquant.deploy.lowering import lower
    >>> quantized = quantize(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), [torch.ones(16, 8)])
    >>> compare(quantized, lower(quantized), [torch.ones(2, 8)]).first_departure is None
    True
    """
    graphs, others = find_regions(a), find_regions(b)
    if not graphs or graphs.keys() != others.keys():
        raise PassError(
            f"compare: {type(a).__name__} has the graphs {_names(graphs)}, {type(b).__name__} "
            f"{_names(others)}: give two forms of one model"
        )
    for model in (a, b):
        read_recipe(model)
    comparers = {path: _Comparer(others[path], graphs[path]) for path in graphs}
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for path, gm in graphs.items():
            stack.enter_context(interpreted(gm, _Recorder(gm, comparers[path])))
        for number, batch in enumerate(batches):
            a(*arguments_of(a, batch, f"batch {number}"))
    return Comparison(tuple(row for each in comparers.values() for row in each.rows.values()))


def _names(graphs: Mapping[str, fx.GraphModule]) -> str:
    return ", ".join(repr(path) for path in graphs) or "none"


class _Recorder(fx.Interpreter):
    """Runs a graph of the first model; hands its inputs and all its results to the comparer."""

    def __init__(self, gm: fx.GraphModule, comparer: _Comparer) -> None:
        super().__init__(gm)
        self._comparer = comparer
        self._values: dict[str, Any] = {}

    def run(self, *args: Any, **options: Any) -> Any:
        inputs = cloned(args)
        self._values.clear()
        result = super().run(*args, **options)
        self._comparer.compare(inputs, self._values)
        self._values.clear()
        return result

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self._values[n.name] = cloned(result)  # later nodes may write to it
        return result


class _Comparer(fx.Interpreter):
    """Runs a graph of the second model beside the results of the first."""

    def __init__(self, gm: fx.GraphModule, reference: fx.GraphModule) -> None:
        super().__init__(gm)
        names = {node.name for node in reference.graph.nodes}
        self._gm = gm
        self._values: dict[str, Any] = {}
        self._alone: dict[fx.Node, Any] = {}
        self.rows: dict[fx.Node, NodeComparison] = {}
        for node in gm.graph.nodes:
            if value_of(node) in names and node.op not in ("placeholder", "output", "get_attr"):
                known = (node_name(gm, node), value_of(node), _kind(gm, node))
                self.rows[node] = NodeComparison(*known, _step(gm, node))

    def compare(self, inputs: tuple[Any, ...], values: dict[str, Any]) -> None:
        """Run the graph on `inputs`; `values` are the first model's results, by node."""
        self._values = values
        self.run(*inputs)
        self._alone.clear()

    def run_node(self, n: fx.Node) -> Any:
        row = self.rows.get(n)
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
        known_alone = self._alone.get(node, self.env.get(node))
        wanted = self._values.get(value_of(node), known_alone)
        known = record(node).integers
        if known is not None and isinstance(wanted, Tensor) and wanted.is_floating_point():
            return kernels.quantize(wanted, known.scale, known.zero_point, known.grid.quant_max)
        return cloned(wanted)

    def _count(self, difference: Difference, node: fx.Node, found: Any) -> None:
        wanted, known = self._values[value_of(node)], record(node).integers
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
