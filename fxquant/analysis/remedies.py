"""What could be done about the loss, as changes of a recipe; each is tried, and not guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fxquant.analysis.variants import quantizes_activations, quantizes_weights
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.recipe.rule import Rule

_CLIPS = ("mse", "cross_entropy", "bn")


@dataclass(frozen=True)
class Change:
    """A change of a recipe."""

    title: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe, with their new values."""
    rules: tuple[Rule, ...] = ()
    """To put behind the recipe's own."""
    more_bytes: int = 0
    """Of weights, packed."""

    def applied_to(self, recipe: Recipe) -> Recipe:
        """Return the changed recipe."""
        return replace(recipe, **{**self.fields}, rules=(*recipe.rules, *self.rules))


@dataclass(frozen=True)
class Remedy:
    """A change that was tried, and what it won on data that was set aside."""

    change: Change
    points: float | None
    """What it won, in points; None: there are none."""
    decibels: float | None
    """By how many dB the outputs came closer to the float model's."""
    recipe: Recipe
    """The caller's recipe, changed."""

    def order(self, margin: float) -> tuple[float, float]:
        """Return what remedies are compared by: points as far as they tell, then dB."""
        points = self.points or 0.0
        return (round(points / margin) if margin else points), (self.decibels or 0.0)

    def helps(self, margin: float) -> bool:
        """Say whether it won anything: dB, or points by more than two standard errors.

        Args:
            margin: the standard error of points; 0: they are exact, as those of a metric are.
        """
        is_told = not margin or (self.points or 0.0) > 2 * margin
        is_closer = self.decibels is None or self.decibels > 0
        return self.order(margin) > (0.0, 0.0) and (is_closer or is_told)


def together(changes: list[Change]) -> Change:
    """Return several changes as one; of a field the last that names it counts."""
    fields: dict[str, Any] = {}
    for each in changes:
        fields |= each.fields
    rules = tuple(dict.fromkeys(rule for each in changes for rule in each.rules))
    more = sum(each.more_bytes for each in changes)
    return Change("; ".join(each.title for each in changes), fields, rules, more)


def possible_changes(recipe: Recipe, fewest_bits: int) -> Iterator[Change]:
    """Yield what a recipe may do besides more bits, the quickest first.

    Args:
        recipe: without learning.
        fewest_bits: of all weights that it rounds.
    """
    weights, activations = quantizes_weights(recipe), quantizes_activations(recipe)
    spec = recipe.activations
    if spec is not None and spec.range not in _CLIPS and not (spec.dynamic or spec.per_channel):
        clipped = replace(spec, range="mse")
        yield Change("activations clipped where that errs least", {"activations": clipped})
    if recipe.weights is not None and recipe.weights.range == "minmax" and fewest_bits < 8:
        clipped = replace(recipe.weights, range="mse")
        yield Change("weights clipped where that errs least", {"weights": clipped})
    if weights and not recipe.bias_correction:
        yield Change("biases corrected", {"bias_correction": True})
    if weights and not recipe.batchnorm_tuning:
        yield Change("batch norms tuned", {"batchnorm_tuning": True})
    if not recipe.equalization:
        yield Change("channels equalized", {"equalization": True})
    if activations and not recipe.smoothing:
        yield Change("inputs smoothed", {"smoothing": True})
    if recipe.weights is not None and fewest_bits < 8:
        learned: dict[str, Any] = {
            "reconstruction": Reconstruction(method="gram"),
            "bias_correction": False,
        }
        if recipe.weights.range == "minmax":
            learned["weights"] = replace(recipe.weights, range="mse", clip_weight=2.0)
        yield Change("roundings learned on Gram matrices", learned)


def next_steps(recipe: Recipe, fewest_bits: int) -> list[str]:
    """Return what may help too and takes too long to try here."""
    if fewest_bits >= 8 and (recipe.activations is None or recipe.activations.bits >= 8):
        return []
    bits = f"weight_bits={recipe.weights.bits if recipe.weights else None}"
    steps = [f"Recipe.adaround({bits}): roundings learned layer by layer"]
    if recipe.activations is not None and recipe.activations.bits < 8:
        steps.append("blocks=True: of whole blocks, with the activations' rounding")
    if recipe.weights is not None:
        steps.append("Recipe.mixed(average_bits=…): as many bits, where they count")
    return steps if recipe.weights is not None else []
