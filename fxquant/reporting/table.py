"""What quantization did to a model, call by call, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fxquant.calling.arguments import Forward
from fxquant.capture.naming import Untraced
from fxquant.capture.recording.requirements import requirements
from fxquant.capture.region import Region
from fxquant.display.figures import Figure, Histogram
from fxquant.display.shown import Listed
from fxquant.display.table import Column, Table, Value
from fxquant.errors import CalibrationError
from fxquant.graph.journal import read_recipe, read_untraced
from fxquant.graph.states import require_graphs
from fxquant.reporting.coverage import Coverage, coverage_of
from fxquant.reporting.drawn.page import figures_of_models, figures_of_rows
from fxquant.reporting.float_form import first_of
from fxquant.reporting.output_sqnr import measure_outputs
from fxquant.reporting.rows import RegionRow, Row, is_listed, row_of_call, row_of_region
from fxquant.reporting.sizes import Sizes, sizes_of

_NOT_COUNTED = (
    "multiply-adds: not counted: the model was not run before it was converted (give prepare "
    "example_inputs, or calibrate it)"
)
_MAX_FIXED = 8
_NUM_WEAKEST = 5
_COLUMNS = (
    Column("name", "call", folds=True),
    Column("kind", "kind", spared=3),
    Column("weights", "weights", folds=True, usual=True),
    Column("weight_scale", "w scale", "{:.3g}", spared=5),
    Column("weight_db", "w dB", "{:.1f}", is_bar=True),
    Column("inputs", "inputs", folds=True, usual=True),
    Column("input_scale", "in scale", "{:.3g}", spared=5),
    Column("input_db", "in dB", "{:.1f}", is_bar=True),
    Column("output_db", "out dB", "{:.1f}", is_bar=True),
    Column("learned", "learned"),
    Column("method", "method", usual=True),
    Column("steps", "steps", spared=2),
    Column("seconds", "s", "{:.1f}", spared=1),
    Column("absorbed", "absorbed", folds=True, spared=4),
    Column("notes", "notes", folds=True),
)


@dataclass(frozen=True, repr=False)
class Report(Listed):
    """One row per quantized call, and per call that stayed in float for a reason."""

    rows: tuple[Row, ...]
    summary: tuple[str, ...] = ()
    """Of all rows, in sentences."""
    regions: tuple[RegionRow, ...] = ()
    """The graphs of a model that is not one graph, in the order of its submodules."""
    untraced: tuple[Untraced, ...] = ()
    """What of such a model stayed in Python, and so in float, and why."""
    coverage: Coverage | None = None
    """What share of the multiply-adds is quantized; None: they were not counted."""
    sizes: Sizes | None = None
    """What the parameters take."""

    fixed: tuple[str, ...] = ()
    """What tracing decided by the example: calls in which it is another are refused."""
    drawn: tuple[Figure, ...] = field(default=(), repr=False)
    """Histograms and graphs, for `to_html`."""

    @property
    def num_quantized(self) -> int:
        """The number of layers whose weight is quantized."""
        return sum(bool(row.weights) for row in self.rows)

    def heads(self) -> list[str]:
        """Return the summary: layers, multiply-adds, folds, bytes, the weakest calls."""
        return list(self.summary)

    def badness(self) -> Sequence[float | None]:
        """Return the least dB of each row, negative: of its output, if that was measured."""
        return [None if row.weakest is None else -row.weakest[0] for row in self.rows]

    def tables(self) -> list[Table]:
        """Return a row for each call, what is left in float, graphs, what stayed in Python."""
        tables = [Table(_COLUMNS, tuple(map(_cells, self.rows)))]
        if self.coverage is not None:
            tables.append(self.coverage.table())
        if self.regions:
            columns = ("region", "kind", "nodes", "layers", "quantized")
            regions = tuple(tuple(vars(region).values()) for region in self.regions)
            tables.append(Table(tuple(Column(each, each) for each in columns), regions))
        if self.untraced:
            rows = tuple(
                (each.path or "(the model)", each.kind, each.reason) for each in self.untraced
            )
            columns_left = (
                Column("name", "in Python, in float", folds=True),
                Column("kind", "kind", folds=True),
                Column("reason", "because of", folds=True),
            )
            tables.append(Table(columns_left, rows))
        return tables

    def figures(self) -> list[Figure]:
        """Return key numbers, shares, what each call loses, histograms of these calls, graphs."""
        names = {row.name for row in self.rows}
        of_rows = [
            each for each in self.drawn if not isinstance(each, Histogram) or each.name in names
        ]
        return [*figures_of_rows(self.rows, self.coverage, self.sizes), *of_rows]


def _cells(row: Row) -> tuple[Value, ...]:
    rounding = row.rounding
    return (
        row.name,
        row.kind,
        row.weights or None,
        row.weight_scale,
        row.weight_sqnr,
        row.inputs or None,
        row.input_scale,
        row.input_sqnr,
        row.output_sqnr,
        None if rounding is None else str(rounding),
        None if rounding is None else rounding.method,
        None if rounding is None else rounding.steps,
        None if rounding is None else rounding.seconds,
        "; ".join(row.absorbed) or None,
        "; ".join(row.remarks) or None,
    )


def _summary(report: Report) -> tuple[str, ...]:
    """Return what is to be said of all rows."""
    num_layers = sum(row.is_layer for row in report.rows)
    said = [f"{report.num_quantized} of {num_layers} layers quantized"]
    said.append(str(report.coverage) if report.coverage is not None else _NOT_COUNTED)
    folded = sum(each.startswith("folded") for row in report.rows for each in row.absorbed)
    fused = sum(each.startswith("fused") for row in report.rows for each in row.absorbed)
    refused = sum(bool(row.remarks) for row in report.rows)
    counts = {"folded": folded, "activations fused": fused, "calls with a refusal": refused}
    known = [f"{number} {what}" for what, number in counts.items() if number]
    said += ["; ".join(known)] * bool(known)
    if report.sizes is not None:
        said.append(str(report.sizes))
    by_db = sorted(
        (row.weakest[0], row.name, row.weakest[1]) for row in report.rows if row.weakest is not None
    )
    if by_db:
        weakest = [f"{name} {db:.1f} dB ({of})" for db, name, of in by_db[:_NUM_WEAKEST]]
        said.append(f"weakest: {', '.join(weakest)}")
    if report.fixed:
        more = len(report.fixed) - _MAX_FIXED
        shown = [*report.fixed[:_MAX_FIXED], *([f"{more} more"] if more > 0 else [])]
        said.append(f"fixed by the example: {'; '.join(shown)}")
    return tuple(said)


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
    first = None
    if reference is not None and batches is not None:
        first, batches = first_of(batches, model, forward, "report")
        measured = measure_outputs(reference, model, batches, forward)
    rows = [
        row_of_call(gm, node, measured)
        for gm in graphs.values()
        for node in gm.graph.nodes
        if is_listed(gm, node)
    ]
    regions = [row_of_region(gm) for gm in graphs.values() if isinstance(gm, Region)]
    fixed = dict.fromkeys(each for gm in graphs.values() for each in requirements(gm.graph))
    report = Report(
        tuple(rows),
        regions=tuple(regions),
        untraced=read_untraced(model),
        coverage=coverage_of(model),
        sizes=sizes_of(model),
        fixed=tuple(fixed),
        drawn=figures_of_models(model, reference, first, forward),
    )
    return replace(report, summary=_summary(report))
