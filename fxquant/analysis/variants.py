"""Recipes made from the one that is studied: a side in float, other widths, learning off.

    weights_only(recipe)                    # activations stay in float
    with_rules(recipe, rules)               # these calls have other widths

Pure data in, pure data out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fxquant.recipe.recipe import Recipe
from fxquant.recipe.rule import Rule
from fxquant.recipe.spec import TensorSpec


def without_learning(recipe: Recipe) -> Recipe:
    """Return `recipe` with weights rounded to nearest, at the widths of its specs."""
    return replace(recipe, reconstruction=None, budget=None)


def quantizes_weights(recipe: Recipe) -> bool:
    """Say whether the recipe, or one of its rules, rounds weights."""
    return recipe.weights is not None or any(_asks(rule.weights) for rule in recipe.rules)


def quantizes_activations(recipe: Recipe) -> bool:
    """Say whether the recipe, one of its rules, or what it says of products rounds activations."""
    by_rule = any(_asks(rule.activations) for rule in recipe.rules)
    return recipe.activations is not None or by_rule or bool(recipe.products or recipe.logits)


def weights_only(recipe: Recipe) -> Recipe:
    """Return `recipe` with all activations in float."""
    rules = tuple(replace(rule, activations="inherit") for rule in recipe.rules)
    return replace(recipe, activations=None, products=None, logits=None, rules=rules)


def activations_only(recipe: Recipe) -> Recipe:
    """Return `recipe` with all weights in float, and so without what makes up for rounded ones."""
    rules = tuple(replace(rule, weights="inherit") for rule in recipe.rules)
    plain = replace(without_learning(recipe), bias_correction=False, batchnorm_tuning=False)
    return replace(plain, weights=None, rules=rules)


def with_weight_bits(recipe: Recipe, bits: int) -> Recipe:
    """Return `recipe` with weights of `bits` in all layers that it quantizes.

    >>> with_weight_bits(Recipe.minmax(weight_bits=4, rules=[Rule("fc", weights=8)]), 6).rules
    (Rule('fc', weights=6),)
    """
    rules = tuple(_of_bits(rule, bits) for rule in recipe.rules)
    least = recipe.end_bits and min(recipe.end_bits, bits)
    weights = recipe.weights and replace(recipe.weights, bits=bits)
    return replace(recipe, weights=weights, rules=rules, end_bits=least)


def with_rules(recipe: Recipe, rules: Iterable[Rule]) -> Recipe:
    """Return `recipe` with `rules` behind its own."""
    return replace(recipe, rules=(*recipe.rules, *rules))


def _asks(by: object) -> bool:
    return by is not None and by != "inherit"


def _of_bits(rule: Rule, bits: int) -> Rule:
    """Return the rule with weights of `bits`, if it says anything of them."""
    if not _asks(rule.weights):
        return rule
    spec = rule.weights
    return replace(rule, weights=replace(spec, bits=bits) if isinstance(spec, TensorSpec) else bits)
