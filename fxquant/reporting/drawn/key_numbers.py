"""Key numbers of a report, and shares of a whole: multiply-adds, bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fxquant.display.figures import Share, Shares, Stack, Tile, Tiles
from fxquant.reporting.coverage import Coverage, percent
from fxquant.reporting.rows import Row
from fxquant.reporting.sizes import Sizes, short_bytes


def drawn_tiles(rows: Sequence[Row], coverage: Coverage | None, sizes: Sizes | None) -> Tiles:
    """Return what is quantized, what it takes, and the weakest call."""
    return Tiles(tuple(_tiles(rows, coverage, sizes)))


def drawn_shares(coverage: Coverage | None, sizes: Sizes | None) -> Iterator[Shares]:
    """Yield where multiply-adds run, and bytes before and after, as far as they are known."""
    if coverage is not None and (coverage.quantized or coverage.left):
        shares = tuple(_covered(coverage))
        yield Shares("Multiply-adds", (Stack("", shares),), "Where a sample's are computed.")
    if sizes is not None and sizes.before != sizes.after:
        before = Share("in float", sizes.before, short_bytes(sizes.before), "rest")
        after = Share("packed", sizes.after, short_bytes(sizes.after))
        stacks = Stack("before", (before,)), Stack("after", (after,))
        yield Shares("Bytes of parameters", stacks, "Integers are packed to their bits in files.")


def _tiles(rows: Sequence[Row], coverage: Coverage | None, sizes: Sizes | None) -> Iterator[Tile]:
    num_quantized = sum(bool(row.weights) for row in rows)
    yield Tile("Layers quantized", f"{num_quantized} of {sum(row.is_layer for row in rows)}")
    if coverage is not None:
        note = "" if coverage.int8 is None else f"{percent(coverage.int8)} in int8"
        yield Tile("Multiply-adds quantized", percent(coverage.quantized), note)
    if sizes is not None and sizes.before != sizes.after:
        share = 100 * sizes.after / max(sizes.before, 1)
        note = f"{share:.3g} % of {short_bytes(sizes.before)}"
        yield Tile("Parameters, packed", short_bytes(sizes.after), note)
    known = [(*row.weakest, row.name) for row in rows if row.weakest is not None]
    if known:
        decibels, side, name = min(known)
        yield Tile("Weakest", f"{decibels:.1f} dB", f"{name}, {side}")
    refused = sum(bool(row.remarks) for row in rows)
    if refused:
        yield Tile("Calls with a refusal", str(refused), "why: under notes")


def _covered(coverage: Coverage) -> Iterator[Share]:
    if coverage.int8 is not None:
        yield Share("in int8", coverage.int8, percent(coverage.int8))
        rest = max(0.0, coverage.quantized - coverage.int8)
        yield Share("quantized, in float kernels", rest, percent(rest), "second")
    else:
        whole = coverage.quantized - coverage.weights_only
        yield Share("weights and inputs quantized", whole, percent(whole))
        yield Share(
            "weights alone", coverage.weights_only, percent(coverage.weights_only), "second"
        )
    left = max(0.0, 1.0 - coverage.quantized)
    yield Share("in float", left, percent(left), "rest")
