"""The rows of a report: one for each quantized call, one for each region."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx, nn

from fxquant.capture.naming import path_of
from fxquant.capture.region import Region
from fxquant.graph.operations import (
    data_input,
    is_add,
    is_batchnorm,
    is_product,
    module_of,
    sources_of_values,
)
from fxquant.graph.records import Record, record
from fxquant.graph.selection import call_name
from fxquant.modules.figures import Figures, LearnedRounding
from fxquant.modules.layers import layer_type
from fxquant.modules.own import as_own


@dataclass(frozen=True)
class Row:
    """One call: how it is quantized, and what that loses."""

    name: str
    kind: str
    is_layer: bool
    """Whether it is a convolution or a linear layer, in float or not."""
    weights: str
    """Bits and range of the weight; empty if it is in float or there is none."""
    weight_scale: float
    """Mean over channels; NaN without a quantized weight."""
    weight_sqnr: float
    """Signal over quantization noise of the weight, in dB."""
    inputs: str
    """Bits and range of the quantizers on its inputs."""
    input_scale: float
    input_sqnr: float
    """Least of its inputs' on the calibration data, in dB."""
    output_sqnr: float
    """Of the call's output against the float model's, in dB; NaN unless it was measured."""
    rounding: LearnedRounding | None
    """What learning its rounding gave: steps, seconds, and the errors of both roundings."""
    absorbed: tuple[str, ...]
    """What was folded and fused into it: "folded bn1", "fused relu"."""
    remarks: tuple[str, ...]
    """What was refused, and why."""

    @property
    def notes(self) -> str:
        """Both, in one line."""
        return "; ".join([*self.absorbed, *self.remarks])

    @property
    def weakest(self) -> tuple[float, str] | None:
        """The least of its SQNR in dB, and of what: of its output, where that was measured."""
        if not math.isnan(self.output_sqnr):
            return self.output_sqnr, "output"
        sides = ((self.weight_sqnr, "weights"), (self.input_sqnr, "inputs"))
        return min((side for side in sides if not math.isnan(side[0])), default=None)


@dataclass(frozen=True)
class RegionRow:
    """One graph of a model that is not one graph."""

    path: str
    kind: str
    num_nodes: int
    num_layers: int
    """Calls of convolution and linear layers."""
    num_quantized: int
    """Those whose weight is quantized."""


def row_of_region(gm: Region) -> RegionRow:
    """Return the row of a region."""
    modules = [module_of(gm, node) for node in gm.graph.nodes]
    return RegionRow(
        gm.path,
        gm.original_type.__name__,
        len(modules),
        sum(_is_layer(module) for module in modules),
        sum(as_own(module).weight_figures() is not None for module in modules),
    )


def _module_name(gm: fx.GraphModule, node: fx.Node) -> str:
    """Return the name of the module that `node` calls, as the converted model holds it."""
    return ".".join(part for part in (path_of(gm), str(node.target)) if part)


def _is_layer(module: nn.Module | None) -> bool:
    return layer_type(module) is not None or as_own(module).weight_figures() is not None


def is_listed(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the report has a row for the call: a layer, or something that was refused."""
    module = module_of(gm, node)
    if _is_layer(module) or as_own(module).input_figures() or is_batchnorm(gm, node):
        return True
    computes = is_add(gm, node) or is_product(gm, node)
    return bool(record(node).refused) or (computes and bool(_quantizers(gm, node)))


def row_of_call(gm: fx.GraphModule, node: fx.Node, measured: dict[str, float]) -> Row:
    """Return the row of a call.

    Args:
        gm: the graph.
        node: the call.
        measured: the SQNR of outputs in dB, by name.
    """
    module = module_of(gm, node)
    weight = as_own(module).weight_figures() or Figures("")
    inputs = as_own(module).input_figures() or _quantizers(gm, node)
    fixed = [each for each in inputs if not math.isnan(each.scale)]
    return Row(
        name=call_name(gm, node),
        kind=_kind(node, module),
        is_layer=_is_layer(module),
        weights=weight.spec,
        weight_scale=weight.scale,
        weight_sqnr=weight.sqnr,
        inputs=", ".join(dict.fromkeys(each.spec for each in inputs)),
        input_scale=sum(each.scale for each in fixed) / len(fixed) if fixed else math.nan,
        input_sqnr=min((each.sqnr for each in fixed), default=math.nan),
        output_sqnr=measured.get(_module_name(gm, node), math.nan),
        rounding=as_own(module).rounding,
        absorbed=_absorbed(record(node)),
        remarks=_remarks(record(node)),
    )


def _kind(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return type(module).__name__.removeprefix("Quantized")
    return str(getattr(node.target, "__name__", node.target))


def _absorbed(known: Record) -> tuple[str, ...]:
    fused = [f"fused {known.relu}"] if known.relu else []
    return (*(f"folded {name}" for name in known.folded), *fused)


def _remarks(known: Record) -> tuple[str, ...]:
    left = ["left in float by the recipe"] if known.skipped else []
    return (*left, *map(str, known.refused))


def has_rounded_operands(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether all tensors that `node` computes with were rounded."""
    return all(_quantizer_of(gm, each) is not None for each in node.all_input_nodes)


def quantizers_before(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Return what rounds the tensors that `node` works on, looking past calls that keep values."""
    sources = [data_input(node)]
    if is_add(gm, node) or is_product(gm, node):
        sources = [*node.all_input_nodes]
    found = [_quantizer_of(gm, source) for source in sources]
    return [quantizer for quantizer in found if quantizer is not None]


def _quantizers(gm: fx.GraphModule, node: fx.Node) -> list[Figures]:
    return [
        figures
        for quantizer in quantizers_before(gm, node)
        for figures in as_own(module_of(gm, quantizer)).output_figures()
    ]


def _quantizer_of(gm: fx.GraphModule, source: fx.Node | None) -> fx.Node | None:
    while isinstance(source, fx.Node):
        if as_own(module_of(gm, source)).output_figures():
            return source
        is_behind = record(source).fused_into is not None  # a dynamic one is before its ReLU
        before = [data_input(source)] if is_behind else sources_of_values(gm, source)
        source = before[0] if before else None
    return None
