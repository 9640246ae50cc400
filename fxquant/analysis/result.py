"""What `fxquant.analyze` returns."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fxquant.analysis.distributions import Distribution
from fxquant.analysis.judge import Score, margin_of
from fxquant.analysis.outliers import Outlier
from fxquant.analysis.plotting import draw
from fxquant.analysis.ranking import TensorCost, rules_for
from fxquant.analysis.remedies import Remedy
from fxquant.display.figures import Bar, Bars, Figure, Histogram, Tile, Tiles
from fxquant.display.shown import Listed
from fxquant.display.table import Column, Table
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.rule import Rule

Part = Literal["weights", "activations", "both"]
_NAMED = 3  # of the costliest, in the summary


@dataclass(frozen=True)
class Effort:
    """What an analysis ran on, and how long."""

    num_samples: int
    """Of all data."""
    num_judged: int
    """Of them, what models are judged by."""
    is_held_out: bool
    """Whether calibration saw none of these."""
    num_ranked: int
    """Samples that ran with gradients, for the ranking."""
    num_decisions: int | None
    """That points are a share of; None: they are of something else."""
    seconds: float
    forwards: float
    """The processor's time, in runs of the float model over all data."""


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(Listed):
    """What a recipe costs, where that comes from, and what helps.

    Its rows are the weights and activations that the recipe rounds, the costliest first.
    """

    costs: tuple[TensorCost, ...]
    remedies: tuple[Remedy, ...]
    """Changes that were tried and helped, the best first."""
    outliers: tuple[Outlier, ...]
    recipe: Recipe
    """The one that was studied, with learning off."""
    scores: Mapping[Part, Score]
    """With weights, activations or both rounded; no entry where the recipe rounds one side only."""
    float_score: Score
    is_metric: bool
    """Whether points are the caller's; else percent of the float model's decisions."""
    effort: Effort
    explained: float | None
    """The sum of all shares over the change that they are shares of: near 1 if they are to be
    trusted; None: outputs cannot be compared."""
    in_vain: tuple[Remedy, ...] = ()
    """Changes that were tried and did not help."""
    next_steps: tuple[str, ...] = ()
    """What may help too, and takes too long to try."""
    learning_off: str = ""
    """What the caller's recipe learns and this one does not; empty: nothing."""
    distributions: tuple[Distribution, ...] = ()
    total_bytes: int = 0
    """Of all rounded weights, packed."""
    every: tuple[TensorCost, ...] = field(default=())
    """All costs, where `costs` are chosen ones."""

    def row_field(self) -> str:
        """Return the name of the field that holds the rows."""
        return "costs"

    def badness(self) -> Sequence[float | None]:
        """Return how near each tensor is to the costliest."""
        return [-each.place for each in self.costs]

    def rules(self, top: int = 3) -> tuple[Rule, ...]:
        """Return rules that give the `top` costliest tensors more bits, to put into a recipe."""
        return rules_for(self._first(top), self.every, self.recipe)

    def _first(self, top: int) -> list[TensorCost]:
        return sorted(self.costs, key=lambda each: each.place)[:top]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of the costliest tensors and the remedies; the ending says the format.

        Raises:
            FxquantError: matplotlib is missing.
        """
        draw(path, self.costs, self.remedies, "points" if self._has_points else "dB")

    @property
    def _has_points(self) -> bool:
        return self.float_score.points is not None

    def heads(self) -> list[str]:
        """Return the summary: which side costs how much, and how that was found."""
        said = [self._sides()]
        if self.costs and self.costs[0].wins is not None:
            first = self._first(_NAMED)
            share = sum(each.share or 0.0 for each in first)
            names = ", ".join(each.label for each in first)
            said.append(f"Costliest: {names}; {share:.0f} % of the change of the outputs.")
        if self.learning_off:
            said.append(self.learning_off)
        if self.in_vain:
            tried = "; ".join(each.change.title for each in self.in_vain)
            said.append(f"Tried, no help: {tried}.")
        if self.next_steps:
            said.append(f"Not tried, slow: {'; '.join(self.next_steps)}.")
        said.append(self._how())
        return said

    def _sides(self) -> str:
        both = self.scores["both"]
        parts = [
            f"{part} alone {self._cost(self.scores[part])}"
            for part in ("weights", "activations")
            if part in self.scores
        ]
        rounded = f"Rounding costs {self._cost(both, is_first=True)}"
        return f"{rounded}: {', '.join(parts)}." if parts else f"{rounded}."

    def _cost(self, score: Score, *, is_first: bool = False) -> str:
        cost, left = self._lost(score), score.decibels
        in_points = "" if cost is None else f"{cost:.1f} points"
        if left is None:
            return in_points
        shown = "no change" if left == math.inf else f"{left:.1f} dB"
        if is_first:
            shown += " of the outputs left"
            return f"{in_points}, {shown}" if in_points else shown
        return f"{in_points} ({shown})" if in_points else shown

    def _lost(self, score: Score) -> float | None:
        if score.points is None or self.float_score.points is None:
            return None
        return self.float_score.points - score.points

    def _how(self) -> str:
        effort = self.effort
        points = "the metric's" if self.is_metric else "percent of the float model's decisions"
        said = f"Points are {points}, on " if self._has_points else "Judged on "
        held_out = "set aside" if effort.is_held_out else "also calibrated on"
        said += f"{effort.num_judged} of {effort.num_samples} samples, {held_out}"
        kept = self.scores["both"].points
        if effort.num_decisions and kept is not None:
            margin = margin_of(kept, effort.num_decisions)
            said += f" (give or take {margin:.1f})"
        return f"{said}; ranked by {effort.num_ranked}, with gradients, in {effort.seconds:.0f} s."

    def tables(self) -> list[Table]:
        """Return the ranked tensors, the remedies, the outliers."""
        return [self._ranked(), self._remedies(), self._outliers()]

    def figures(self) -> list[Figure]:
        """Return key numbers, what tensors cost, and histograms of those in the table."""
        both = self.scores["both"]
        tiles = [
            Tile("lost", f"{cost:.1f} points") for cost in [self._lost(both)] if cost is not None
        ]
        if both.decibels is not None:
            tiles.append(Tile("left of the outputs", f"{both.decibels:.1f} dB"))
        shares = {(each.name, each.side): each.share for each in self.costs}
        names = [each.name for each in self.distributions] + [name for name, _ in shares]
        bars = tuple(
            Bar(name, (shares.get((name, "weights")), shares.get((name, "activations"))))
            for name in dict.fromkeys(names)
            if {(name, "weights"), (name, "activations")} & shares.keys()
        )
        note = "of the change of the outputs that all roundings make together"
        cost = Bars("What each tensor costs", ("weights", "inputs"), bars, "{:.1f} %", note)
        shown = {(each.name, each.side) for each in self.costs}
        histograms = [
            Histogram(
                each.name,
                "weights" if each.side == "weights" else "inputs",
                each.edges,
                each.counts,
                each.low,
                each.high,
                each.bits,
                rounded=each.rounded,
            )
            for each in self.distributions
            if (each.name, each.side) in shown
        ]
        return [Tiles(tuple(tiles)), cost, *histograms]

    def _ranked(self) -> Table:
        columns = (
            Column("name", "call"),
            Column("side", "side"),
            Column("bits", "bits", usual=True),
            Column("own_db", "own dB", "{:.1f}", spared=2),
            Column("alone_db", "alone dB", "{:.1f}", spared=1),
            Column("share", "share %", "{:.1f}", is_bar=True),
            Column("more_bits", "to"),
            Column("wins_db", "would win", "{:.2f}"),
            Column("won_db", "won dB", "{:+.2f}"),
            Column("won_points", "points", "{:+.1f}"),
            Column("more_bytes", "bytes", "{:+,}", spared=2),
        )
        rows = tuple(
            (
                each.name,
                "weights" if each.side == "weights" else "input",
                each.bits,
                each.own,
                each.alone,
                each.share,
                "float" if each.more_bits is None else f"{each.more_bits} bits",
                each.wins,
                None if each.measured is None else each.measured.decibels,
                None if each.measured is None else each.measured.points,
                each.more_bytes,
            )
            for each in self.costs
        )
        return Table(columns, rows)

    def _remedies(self) -> Table:
        columns = (
            Column("remedy", "remedy", folds=True),
            Column("won_points", "points", "{:+.1f}", is_bar=True),
            Column("won_db", "dB", "{:+.1f}"),
            Column("more_bytes", "bytes", "{:+,}", spared=1),
            Column("more_percent", "% bytes", "{:+.1f}"),
        )
        total = self.total_bytes
        rows = tuple(
            (
                each.change.title,
                each.points,
                each.decibels,
                each.change.more_bytes,
                100 * each.change.more_bytes / total if total else None,
            )
            for each in self.remedies
        )
        return Table(columns, rows, "remedies, each tried")

    def _outliers(self) -> Table:
        columns = (
            Column("name", "call"),
            Column("side", "side"),
            Column("what", "what stands out", folds=True),
            Column("times", "times", "{:.0f}"),
            Column("advice", "what helps", folds=True),
        )
        rows = tuple(
            (
                each.name,
                "weights" if each.side == "weights" else "input",
                each.what,
                each.times,
                each.advice,
            )
            for each in self.outliers
        )
        return Table(columns, rows, "outliers")
