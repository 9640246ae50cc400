"""What quantization did to a model, call by call, as a table."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn

from fxquant.dynamic import DynamicQuantize
from fxquant.errors import PassError
from fxquant.fakequant import FakeQuantize, LearnedRounding, QuantizedLayer
from fxquant.inputs import arguments_of, stop_keeping_inputs
from fxquant.int8 import Int8Add, Int8Layer, Int8Module
from fxquant.layers import layer_type
from fxquant.meta import Record, Untraced, read_recipe, read_untraced, record
from fxquant.operations import (
    concat_inputs,
    data_input,
    is_add,
    is_batchnorm,
    keeps_values,
    module_of,
)
from fxquant.passes import DropObservers
from fxquant.region import Region, find_regions, path_of
from fxquant.selection import call_name


@dataclass(frozen=True)
class Row:
    """One call: how it is quantized, and what that loses."""

    name: str
    kind: str
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
    notes: str
    """What was folded or fused into it, what was refused and why."""


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


@dataclass(frozen=True)
class Report:
    """One row per quantized call, and per call that stayed in float for a reason."""

    rows: tuple[Row, ...]
    regions: tuple[RegionRow, ...] = ()
    """The graphs of a model that is not one graph, in the order of its submodules."""
    untraced: tuple[Untraced, ...] = ()
    """What of such a model stayed in Python, and so in float, and why."""

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
        tables = [tabulate(cells, columns, disable_numparse=True)]
        if self.regions:
            graphs = [list(vars(region).values()) for region in self.regions]
            tables.append(tabulate(graphs, ["region", "kind", "nodes", "layers", "quantized"]))
        if self.untraced:
            left = [[each.path or "(the model)", each.kind, each.reason] for each in self.untraced]
            tables.append(tabulate(left, ["in Python, in float", "kind", "because of"]))
        return "\n\n".join(tables)


def _region_row(gm: Region) -> RegionRow:
    modules = [module_of(gm, node) for node in gm.graph.nodes]
    return RegionRow(
        gm.path,
        gm.original_type.__name__,
        len(modules),
        sum(_is_layer(module) for module in modules),
        sum(isinstance(module, (QuantizedLayer, Int8Layer)) for module in modules),
    )


def _module_name(gm: fx.GraphModule, node: fx.Node) -> str:
    """Return the name of the module that `node` calls, as the converted model holds it."""
    return ".".join(part for part in (path_of(gm), str(node.target)) if part)


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
) -> Report:
    """Return what quantization did to `model`, which `prepare`, `convert` or `lower` made.

    Args:
        model: a prepared, a converted or a lowered model.
        reference: the prepared model that `model` was converted from. With `batches`, both are run
            and each call's output is compared: what everything up to there has lost.
        batches: inputs for that, as in `calibrate`.

    >>> from fxquant.api import quantize
    >>> _ = torch.manual_seed(0)
    >>> quantized = quantize(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), [torch.randn(16, 8)])
    >>> [(row.name, row.kind, row.weights, row.notes) for row in report(quantized).rows]
    [('0', 'Linear', '8 bits minmax', 'fused _1')]
    """
    graphs = find_regions(model)
    if not graphs:
        raise PassError(f"report: got a {type(model).__name__}: give what prepare or convert made")
    read_recipe(model)
    measured: dict[str, float] = {}
    if reference is not None and batches is not None:
        measured = measure_outputs(reference, model, batches)
    rows = [
        _row(gm, node, measured)
        for gm in graphs.values()
        for node in gm.graph.nodes
        if _is_listed(gm, node)
    ]
    regions = [_region_row(gm) for gm in graphs.values() if isinstance(gm, Region)]
    return Report(tuple(rows), tuple(regions), read_untraced(model))


def _is_layer(module: nn.Module | None) -> bool:
    return layer_type(module) is not None or isinstance(module, Int8Layer)


def _is_listed(gm: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(gm, node)
    if _is_layer(module) or isinstance(module, Int8Add) or is_batchnorm(gm, node):
        return True
    return bool(record(node).refused) or (is_add(gm, node) and bool(_quantizers(gm, node)))


def _row(gm: fx.GraphModule, node: fx.Node, measured: dict[str, float]) -> Row:
    module = module_of(gm, node)
    quantizers = _quantizers(gm, node)
    weight = module if isinstance(module, (QuantizedLayer, Int8Layer)) else None
    specs = list(dict.fromkeys(str(quantizer.spec) for quantizer in quantizers))
    fixed = [quantizer for quantizer in quantizers if isinstance(quantizer, FakeQuantize)]
    scales = [quantizer.scale.mean().item() for quantizer in fixed]
    if isinstance(module, Int8Module):
        maps = [each for each in (module.input, module.other) if each is not None]
        specs = list(dict.fromkeys(f"0 to {each.grid.quant_max}" for each in maps))
        scales = [each.scale for each in maps]
    return Row(
        name=call_name(gm, node),
        kind=_kind(node, module),
        weights=str(weight.weight_spec) if weight is not None else "",
        weight_scale=weight.weight_scale.mean().item() if weight is not None else math.nan,
        weight_sqnr=weight.weight_sqnr if weight is not None else math.nan,
        inputs=", ".join(specs),
        input_scale=sum(scales) / len(scales) if scales else math.nan,
        input_sqnr=min((quantizer.sqnr for quantizer in fixed), default=math.nan),
        output_sqnr=measured.get(_module_name(gm, node), math.nan),
        rounding=weight.rounding if weight is not None else None,
        notes="; ".join(_notes(record(node))),
    )


def _kind(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return type(module).__name__.removeprefix("Quantized")
    return str(getattr(node.target, "__name__", node.target))


def _notes(known: Record) -> list[str]:
    notes = [f"folded {name}" for name in known.folded]
    if known.relu:
        notes.append(f"fused {known.relu}")
    if known.skipped:
        notes.append("left in float by the recipe")
    return notes + list(known.refused)


def _quantizers(gm: fx.GraphModule, node: fx.Node) -> list[FakeQuantize | DynamicQuantize]:
    """Return the quantizers of the tensors that `node` works on, past calls that keep values."""
    sources = list(node.args) if is_add(gm, node) else [data_input(node)]
    found: list[FakeQuantize | DynamicQuantize] = []
    for source in sources:
        while isinstance(source, fx.Node):
            module = module_of(gm, source)
            if isinstance(module, (FakeQuantize, DynamicQuantize)):
                found.append(module)
                break
            concatenated = concat_inputs(source)
            is_behind = record(source).fused_into is not None  # a dynamic one is before its ReLU
            if not concatenated and not is_behind and not keeps_values(gm, source):
                break
            source = concatenated[0] if concatenated else data_input(source)
    return found


def measure_outputs(
    reference: nn.Module, model: nn.Module, batches: Iterable[Any]
) -> dict[str, float]:
    """Return the SQNR of each layer module's output in `model` against `reference`'s, in dB.

    Layers are paired by name; a module called several times counts over all its calls.
    """
    reference = copy.deepcopy(reference)  # its observers have seen enough
    stop_keeping_inputs(reference)
    for gm in find_regions(reference).values():
        DropObservers()(gm)
    names = [name for name, module in model.named_modules() if layer_type(module) is not None]
    power = dict.fromkeys(names, 0.0)
    noise = dict.fromkeys(names, 0.0)
    wanted: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda _module, _args, output: wanted.setdefault(name, []).append(
            output.clone()  # a ReLU in place behind the layer would change it
        )

    def compare(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            expected = wanted[name].pop(0).to(torch.float64)
            power[name] += expected.square().sum().item()
            noise[name] += (output.to(torch.float64) - expected).square().sum().item()

        return hook

    handles = [reference.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    handles += [model.get_submodule(name).register_forward_hook(compare(name)) for name in names]
    try:
        with torch.no_grad():
            for number, batch in enumerate(batches):
                reference(*arguments_of(reference, batch, f"batch {number}"))
                model(*arguments_of(model, batch, f"batch {number}"))
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: math.inf
        if noise[name] == 0
        else 10 * math.log10(max(power[name], 1e-300) / noise[name])
        for name in names
        if power[name] > 0 or noise[name] > 0
    }
