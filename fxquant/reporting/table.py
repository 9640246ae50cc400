"""What quantization did to a model, call by call, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from torch import nn

from fxquant.calling.arguments import Forward
from fxquant.capture.naming import Untraced
from fxquant.capture.recording.requirements import requirements
from fxquant.capture.region import Region
from fxquant.errors import CalibrationError
from fxquant.graph.journal import read_recipe, read_untraced
from fxquant.graph.states import require_graphs
from fxquant.modules.figures import LearnedRounding
from fxquant.reporting.coverage import Coverage, coverage_of
from fxquant.reporting.output_sqnr import measure_outputs
from fxquant.reporting.rows import RegionRow, Row, is_listed, row_of_call, row_of_region

_NOT_COUNTED = (
    "multiply-adds: not counted: the model was not run before it was converted (give prepare "
    "example_inputs, or calibrate it)"
)
_MAX_FIXED = 8


@dataclass(frozen=True)
class Report:
    """One row per quantized call, and per call that stayed in float for a reason."""

    rows: tuple[Row, ...]
    regions: tuple[RegionRow, ...] = ()
    """The graphs of a model that is not one graph, in the order of its submodules."""
    untraced: tuple[Untraced, ...] = ()
    """What of such a model stayed in Python, and so in float, and why."""
    coverage: Coverage | None = None
    """What share of the multiply-adds is quantized; None: they were not counted."""

    fixed: tuple[str, ...] = ()
    """What tracing decided by the example: calls in which it is another are refused."""

    @property
    def num_quantized(self) -> int:
        """The number of layers whose weight is quantized."""
        return sum(bool(row.weights) for row in self.rows)

    def __str__(self) -> str:
        measured = any(not math.isnan(row.output_sqnr) for row in self.rows)
        columns = ["call", "kind", "weights", "scale", "dB", "inputs", "scale", "dB"]
        learned = any(row.rounding is not None for row in self.rows)
        columns += (
            ["output dB"] * measured + ["learned", "method", "steps", "s"] * learned + ["notes"]
        )
        cells = [
            [
                row.name,
                row.kind,
                row.weights,
                _number(row.weight_scale, "{:.3g}"),
                _number(row.weight_sqnr, "{:.1f}"),
                row.inputs,
                _number(row.input_scale, "{:.3g}"),
                _number(row.input_sqnr, "{:.1f}"),
                *[_number(row.output_sqnr, "{:.1f}")] * measured,
                *_learned(row.rounding) * learned,
                row.notes,
            ]
            for row in self.rows
        ]
        head = str(self.coverage) if self.coverage is not None else _NOT_COUNTED
        tables = [head, tabulate(cells, columns, disable_numparse=True)]
        if self.regions:
            graphs = [list(vars(region).values()) for region in self.regions]
            tables.append(tabulate(graphs, ["region", "kind", "nodes", "layers", "quantized"]))
        if self.untraced:
            left = [[each.path or "(the model)", each.kind, each.reason] for each in self.untraced]
            tables.append(tabulate(left, ["in Python, in float", "kind", "because of"]))
        if self.fixed:
            tables.append(_shortened("fixed by the example: ", self.fixed))
        return "\n\n".join(tables)


def _shortened(head: str, items: tuple[str, ...]) -> str:
    more = [f"{len(items) - _MAX_FIXED} more"] if len(items) > _MAX_FIXED else []
    return head + "; ".join([*items[:_MAX_FIXED], *more])


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)


def _learned(rounding: LearnedRounding | None) -> list[str]:
    """Return the cells of "learned", "method", "steps" and "s"."""
    if rounding is None:
        return [""] * 4
    return [str(rounding), rounding.method, str(rounding.steps), f"{rounding.seconds:.1f}"]


def report(
    model: nn.Module,
    *,
    reference: nn.Module | None = None,
    batches: Iterable[Any] | None = None,
    forward: Forward | None = None,
) -> Report:
    """Return what quantization did to `model`, which `prepare`, `convert` or `lower` made.

    Args:
        model: a prepared, a converted or a lowered model; left as it is.
        reference: the float model, or the prepared one that `model` was converted from; left as it
            is. Copies of both are run on `batches`, and each layer's output is compared: what
            everything up to there has lost. Of a float model that is captured and folded anew, as
            `model` was. Layers of lowered models give integers, and are not compared.
        batches: inputs for that, as in `calibrate`; left as they are.
        forward: called as `forward(model, batch)` instead, for anything else.

    Raises:
        PassError: `model` is none of these; `reference` is no form of it, or another float model.
        CalibrationError: `reference` without `batches`, or they without it; no batch, or one of a
            type that is not understood.

    >>> import torch
    >>> from fxquant.api import quantize
    >>> _ = torch.manual_seed(0)
    >>> quantized = quantize(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), [torch.randn(16, 8)])
    >>> [(row.name, row.kind, row.weights, row.notes) for row in report(quantized).rows]
    [('0', 'Linear', '8 bits minmax', 'fused _1')]
    """
    graphs = require_graphs(model, "report", "give what prepare, convert or lower made")
    read_recipe(model)
    if (reference is None) != (batches is None):
        given, missing = ("batches", "reference")[:: 1 if reference is None else -1]
        raise CalibrationError(
            f"report: `{given}` without `{missing}`: give both, and outputs are compared, or none"
        )
    measured: dict[str, float] = {}
    if reference is not None and batches is not None:
        measured = measure_outputs(reference, model, batches, forward)
    rows = [
        row_of_call(gm, node, measured)
        for gm in graphs.values()
        for node in gm.graph.nodes
        if is_listed(gm, node)
    ]
    regions = [row_of_region(gm) for gm in graphs.values() if isinstance(gm, Region)]
    fixed = dict.fromkeys(each for gm in graphs.values() for each in requirements(gm.graph))
    untraced, coverage = read_untraced(model), coverage_of(model)
    return Report(tuple(rows), tuple(regions), untraced, coverage, tuple(fixed))
