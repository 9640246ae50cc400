"""What share of a model's multiply-adds runs in quantized layers, and what is left.

Recurrent layers and the products of attention count like any other; so does what runs in Python,
outside of the graphs. The counts are those of the call that `fxquant.calibration.counted_call` saw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import fx, nn

from fxquant.capture.naming import Untraced, find_regions
from fxquant.display.table import Column, Table
from fxquant.graph.journal import read_python_multiply_adds, read_untraced
from fxquant.graph.operations import is_product, module_of
from fxquant.graph.records import record
from fxquant.modules.layers import is_functional_layer, layer_type
from fxquant.modules.own import Stage, as_own, own_modules
from fxquant.reporting.rows import has_rounded_operands, row_of_call

_MOST_ROWS = 8
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class LeftInFloat:
    """What multiplies and adds in floating point."""

    name: str
    """Of the call; of what runs in Python that of the module."""
    kind: str
    share: float
    """Of all multiply-adds."""
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Where a model's multiply-adds run; all shares are of all of them."""

    multiply_adds: float
    """A sample."""
    quantized: float
    """In layers with a quantized weight, and products of two rounded activations."""
    products: float
    """In the latter."""
    weights_only: float
    """In those of them whose input is in float."""
    int8: float | None
    """In layers on integer kernels; None: the model is not lowered."""
    left: tuple[LeftInFloat, ...]
    """What is not in int8, of a model that is not lowered what is not quantized; greatest first. Of
    a model that is not converted none."""

    def __str__(self) -> str:
        also = " and products" if self.products else ""
        shares = f"{percent(self.quantized)} in quantized layers{also}"
        if self.weights_only:
            shares += f" ({percent(self.weights_only)} with inputs in float)"
        if self.int8 is not None:
            shares += f", {percent(self.int8)} in int8"
        if not (self.quantized or self.left):
            shares = "none is quantized before convert"
        return f"multiply-adds: {_short(self.multiply_adds)} a sample; {shares}"

    def table(self) -> Table:
        """Return what is left in float: the greatest shares, then all others as one."""
        shown, rest = self.left[:_MOST_ROWS], self.left[_MOST_ROWS:]
        rows = [(each.name, each.kind, each.share, each.reason) for each in shown]
        if rest:
            rows.append((f"{len(rest)} more", "", sum(each.share for each in rest), ""))
        return Table(_COLUMNS, tuple(rows))


def percent(share: float) -> str:
    """Return a share as it may be read: rounded down, so that only all is 100 %.

    >>> percent(1.0), percent(0.99999), percent(0.00001)
    ('100 %', '99.99 %', '< 0.01 %')
    """
    if 0 < share < 1e-4:
        return "< 0.01 %"
    return f"{math.floor(share * 1e4 + 1e-6) / 100:g} %"


def _short(number: float) -> str:
    size, prefix = next((each for each in _PREFIXES if number >= each[0]), (1.0, ""))
    return f"{number / size:.3g} {prefix}".rstrip()


_COLUMNS = (
    Column("name", "left in float", folds=True),
    Column("kind", "kind", folds=True),
    Column("share", "share", percent),
    Column("reason", "because of", folds=True),
)


@dataclass(frozen=True)
class _Part:
    """The multiply-adds of one call, or of one module in Python."""

    name: str
    kind: str
    multiply_adds: float
    reason: str
    is_quantized: bool = False
    has_float_input: bool = False
    is_int8: bool = False
    is_product: bool = False


def coverage_of(model: nn.Module) -> Coverage | None:
    """Return where the multiply-adds of `model` run; None if they were not counted."""
    untraced = read_untraced(model)
    parts = [
        part
        for gm in find_regions(model).values()
        for node in gm.graph.nodes
        if (part := _part_of_node(gm, node, untraced)) is not None
    ]
    parts += _parts_in_python(model, untraced)
    total = sum(part.multiply_adds for part in parts)
    if total == 0:
        return None

    def share(wanted: list[_Part]) -> float:
        return sum(part.multiply_adds for part in wanted) / total

    stages: set[Stage | None] = {module.stage for _, module in own_modules(model)}
    quantized = [part for part in parts if part.is_quantized]
    is_lowered, is_converted = "lowered" in stages, bool(quantized) or "converted" in stages
    left = [part for part in parts if not (part.is_int8 if is_lowered else part.is_quantized)]
    return Coverage(
        multiply_adds=total,
        quantized=share(quantized),
        products=share([part for part in quantized if part.is_product]),
        weights_only=share([part for part in quantized if part.has_float_input]),
        int8=share([part for part in parts if part.is_int8]) if is_lowered else None,
        left=_joined(left, total) if is_converted else (),
    )


def _joined(parts: list[_Part], total: float) -> tuple[LeftInFloat, ...]:
    """Return the parts, calls of one layer as one, greatest first."""
    joined: dict[tuple[str, str], LeftInFloat] = {}
    for part in parts:
        key, share = (part.name, part.reason), part.multiply_adds / total
        known = joined.get(key, LeftInFloat(part.name, part.kind, 0.0, part.reason))
        joined[key] = replace(known, share=known.share + share)
    return tuple(sorted(joined.values(), key=lambda each: -each.share))


def _part_of_node(
    gm: fx.GraphModule, node: fx.Node, untraced: tuple[Untraced, ...]
) -> _Part | None:
    known = record(node)
    if not known.multiply_adds:
        return None
    row, module = row_of_call(gm, node, {}), module_of(gm, node)
    is_rounded = is_product(gm, node) and has_rounded_operands(gm, node)
    is_quantized = bool(row.weights) or is_rounded or _is_on_dequantized(node)
    refusals = [
        each.reason if each.step == "left in float" else str(each)
        for each in known.refused
        if each.step in ("left in float", "not lowered")
    ]
    asked = [each.reason for each in untraced if each.path == row.name]
    reason = "; ".join(asked or refusals)
    if not reason and row.inputs and not row.weights and layer_type(module) is not None:
        reason = "its weight in float, by the recipe"
    reason = reason or _why_not_quantized(gm, node, row.name, untraced)
    return _Part(
        row.name,
        row.kind,
        known.multiply_adds,
        reason,
        is_quantized=is_quantized,
        has_float_input=bool(row.weights) and not row.inputs,
        is_int8=as_own(module).stage == "lowered",
        is_product=is_rounded,
    )


def _why_not_quantized(
    gm: fx.GraphModule,
    node: fx.Node,
    name: str,
    untraced: tuple[Untraced, ...],
) -> str:
    module = module_of(gm, node)
    if record(node).skipped:
        return "left in float by the recipe"
    if layer_type(module) is not None:
        return _reason_around(name, untraced) or "left in float"
    if module is not None:
        return f"{type(module).__name__} is called as a whole"
    return "a product of activations"


def _is_on_dequantized(node: fx.Node) -> bool:
    """Say whether a function works on a weight of integers: in the graph of `to_qdq`."""
    if not is_functional_layer(node) or len(node.args) < 2:
        return False
    source = node.args[1]
    while isinstance(source, fx.Node) and source.all_input_nodes:
        source = source.all_input_nodes[0]
    return isinstance(source, fx.Node) and str(source.target).endswith(".weight_integers")


def _parts_in_python(model: nn.Module, untraced: tuple[Untraced, ...]) -> Iterator[_Part]:
    for name, multiply_adds in read_python_multiply_adds(model).items():
        kind = type(model.get_submodule(name)).__name__
        reason = f"in Python: {_reason_around(name, untraced)}".removesuffix(": ")
        yield _Part(name or "(the model)", kind, multiply_adds, reason)


def _reason_around(name: str, untraced: tuple[Untraced, ...]) -> str:
    """Return why the innermost that holds `name` stayed in Python; "" if none does."""
    around = [each for each in untraced if each.path in ("", name) or _is_inside(name, each.path)]
    return max(around, key=lambda each: len(each.path)).reason if around else ""


def _is_inside(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")
