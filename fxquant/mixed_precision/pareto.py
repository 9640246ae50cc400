"""What bytes buy: the least loss within each of several budgets, beside one width for all layers.

options = measure_sensitivities(prepared, batches, Budget(average_bits=4))
curve = frontier(options, steps=9)
print(curve)
curve.plot("frontier.png")
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fxquant.display.figures import Figure, Point, Points
from fxquant.display.shown import Shown
from fxquant.display.table import Column, Table
from fxquant.errors import RecipeError
from fxquant.mixed_precision.allocation import Allocation, allocate
from fxquant.mixed_precision.options import Option
from fxquant.recipe.budget import Budget

_COLUMNS = (
    Column("weights", "weights"),
    Column("average_bits", "bits a weight", "{:.2f}"),
    Column("bytes", "bytes", "{:,}"),
    Column("loss", "loss", "{:.4g}", is_bar=True),
    Column("counts", "layers × bits", folds=True),
)


@dataclass(frozen=True, repr=False)
class Frontier(Shown):
    """Allocations within several budgets, and the uniform ones of the same options."""

    mixed: tuple[Allocation, ...]
    """Each once, in the order of the budgets that it is the first for."""
    uniform: dict[int, Allocation]
    """By bits: that width for all weights that have a choice; activations at their best."""

    def named(self) -> list[tuple[str, Allocation]]:
        """Return each allocation once, by bytes: "mixed", or "all 4" if it is a uniform one."""
        names = {each: "mixed" for each in self.mixed}
        names |= {each: f"all {bits}" for bits, each in self.uniform.items()}
        return sorted(((name, each) for each, name in names.items()), key=lambda row: row[1].bytes)

    def heads(self) -> list[str]:
        """Return between which sizes it goes."""
        sizes = [each.bytes for _, each in self.named()]
        return [f"the least loss within {min(sizes):,} to {max(sizes):,} bytes of weights"]

    def tables(self) -> list[Table]:
        """Return a row for each allocation, the smallest first."""
        rows = tuple(
            (kind, each.average_bits, each.bytes, each.loss, _counts(each))
            for kind, each in self.named()
        )
        return [Table(_COLUMNS, rows)]

    def figures(self) -> list[Figure]:
        """Return the loss of each allocation against its size."""
        kinds = [(f"mixed, {each.average_bits:.2f} bits", each) for each in self.mixed]
        kinds += [(f"all {bits}", each) for bits, each in self.uniform.items()]
        kinds.sort(key=lambda each: each[1].bytes)
        points = tuple(
            Point(kind, each.bytes / 1e3, each.loss, f"{_counts(each)}; loss {each.loss:.4g}")
            for kind, each in kinds
        )
        return [Points("What bytes buy", "kB of weights", "loss", points)]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of loss against bytes; the file's ending says in which format.

        Raises:
            RecipeError: matplotlib is missing.
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise RecipeError("plot: matplotlib is not installed: pip install fxquant[plot]")
        from matplotlib import figure as drawing  # not pyplot, which looks for a screen

        figure = drawing.Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        curves = (("mixed", "o-", self.mixed), ("uniform", "s--", self.uniform.values()))
        for label, style, allocations in curves:
            known = sorted(allocations, key=lambda each: each.bytes)
            sizes, losses = [each.bytes / 1e3 for each in known], [each.loss for each in known]
            axes.plot(sizes, losses, style, label=label)
        for bits, each in self.uniform.items():
            place = (each.bytes / 1e3, each.loss)
            axes.annotate(f"{bits} bits", place, textcoords="offset points", xytext=(6, 4))
        axes.set(xlabel="kB of weights", ylabel="squared change of the outputs", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(Path(path))


def _counts(allocation: Allocation) -> str:
    """Return how many layers have each width: "3×2, 16×4"."""
    bits = [option.bits for option in allocation.chosen if option.side == "weights"]
    return ", ".join(f"{bits.count(each)}×{each}" for each in sorted(set(bits)))


def frontier(
    options: Sequence[Option], budgets: Iterable[Budget] | None = None, *, steps: int = 9
) -> Frontier:
    """Return the allocation of least loss within each budget, and the uniform ones.

    Args:
        options: from `fxquant.mixed_precision.sensitivity.measure_sensitivities`.
        budgets: None: `steps` of them, of average bits, evenly from the narrowest weights to the
            widest.
        steps: see there.

    >>> options = [
    ...     Option(name=name, side="weights", bits=bits, loss=size / bits, num_weights=size)
    ...     for name, size in (("a", 100), ("b", 300))
    ...     for bits in (2, 4)
    ... ]
    >>> [each.bytes for each in frontier(options, steps=3).mixed]
    [100, 125, 200]
    """
    choices: dict[tuple[str, str], list[Option]] = {}
    for option in options:
        choices.setdefault((option.name, option.side), []).append(option)
    known = list(choices.values())
    mixed = (allocate(options, each) for each in budgets or _evenly(known, steps))
    return Frontier(
        tuple(dict.fromkeys(mixed)), {bits: _uniform(known, bits) for bits in _common_widths(known)}
    )


def _evenly(choices: Sequence[Sequence[Option]], steps: int) -> list[Budget]:
    if steps < 2:
        raise RecipeError(f"frontier: steps={steps}: give at least 2")
    weights = [choice for choice in choices if choice[0].side == "weights"]
    low, high = (
        Allocation(tuple(choose(choice, key=lambda each: each.bits) for choice in weights))
        for choose in (min, max)
    )
    widths = tuple({option.bits for choice in weights for option in choice})
    step = (high.average_bits - low.average_bits) / (steps - 1)
    return [
        Budget(average_bits=low.average_bits + number * step, weight_bits=widths)
        for number in range(steps)
    ]


def _has_choice(choice: Sequence[Option]) -> bool:
    return choice[0].side == "weights" and not choice[0].fixed


def _common_widths(choices: Sequence[Sequence[Option]]) -> list[int]:
    """Return the widths that all weights with a choice have."""
    widths = [{option.bits for option in each} for each in choices if _has_choice(each)]
    return sorted(set.intersection(*widths)) if widths else []


def _uniform(choices: Sequence[Sequence[Option]], bits: int) -> Allocation:
    """Return that width for all weights with a choice, and of all else what loses least."""
    admitted = [
        [option for option in choice if option.bits == bits or not _has_choice(choice)]
        for choice in choices
    ]
    return Allocation(tuple(min(each, key=lambda option: option.loss) for each in admitted))
