"""Remedies are changes of a recipe that it does not have already."""

from fxquant import Recipe, Rule
from fxquant.analysis.remedies import Change, Remedy, next_steps, possible_changes, together


def titles(recipe: Recipe, bits: int) -> list[str]:
    return [each.title for each in possible_changes(recipe, bits)]


def test_what_a_recipe_does_already_is_not_proposed() -> None:
    few = Recipe.minmax(weight_bits=4, activation_bits=4)
    assert titles(few, 4) == [
        "activations clipped where that errs least", "weights clipped where that errs least",
        "biases corrected", "batch norms tuned", "channels equalized", "inputs smoothed",
        "roundings learned on Gram matrices",
    ]  # fmt: skip
    done = Recipe.aciq(
        activation_range="mse", batchnorm_tuning=True, equalization=True, smoothing=True
    )
    assert titles(done, 8) == []


def test_weights_in_float_have_nothing_that_is_for_weights() -> None:
    found = titles(Recipe.minmax(weight_bits=None, activation_bits=4), 8)
    assert found == [
        "activations clipped where that errs least",
        "channels equalized",
        "inputs smoothed",
    ]


def test_every_change_makes_a_recipe() -> None:
    for recipe in (Recipe.aciq(weight_bits=3), Recipe.minmax(weight_bits=3, activation_bits=None)):
        for change in possible_changes(recipe, 3):
            assert change.applied_to(recipe) != recipe


def test_changes_together_have_all_rules_once_and_the_sum_of_bytes() -> None:
    rule = Rule("fc", weights=8)
    one = Change("one", {"smoothing": True}, (rule,), 10)
    both = together([one, Change("other", {"equalization": True}, (rule,), 5)])
    assert (both.title, both.rules, both.more_bytes) == ("one; other", (rule,), 15)
    recipe = both.applied_to(Recipe.minmax(rules=[Rule("a", weights=4)]))
    assert recipe.smoothing
    assert recipe.equalization
    assert recipe.rules[1:] == (rule,)


def test_points_within_the_margin_leave_it_to_decibels() -> None:
    recipe, change = Recipe.minmax(), Change("x")
    few, many = Remedy(change, 1.0, 5.0, recipe), Remedy(change, 1.4, 1.0, recipe)
    assert few.order(3.0) > many.order(3.0)
    assert few.order(0.0) < many.order(0.0)


def test_slow_steps_are_named_where_bits_are_few() -> None:
    assert next_steps(Recipe.minmax(), 8) == []
    assert len(next_steps(Recipe.minmax(weight_bits=4), 4)) == 2
    assert len(next_steps(Recipe.minmax(activation_bits=4), 8)) == 3
    assert next_steps(Recipe.minmax(weight_bits=None, activation_bits=4), 8) == []


def test_points_within_chance_are_no_help_where_outputs_are_no_closer() -> None:
    def remedy(points: float | None, decibels: float | None) -> Remedy:
        return Remedy(Change("more"), points, decibels, Recipe.aciq())

    assert remedy(3.0, 0.1).helps(margin=3.0)
    assert remedy(0.0, 2.0).helps(margin=3.0)
    assert not remedy(3.0, -1.5).helps(margin=3.0)
    assert remedy(7.0, -0.5).helps(margin=3.0)
    assert not remedy(-7.0, 2.0).helps(margin=3.0)
    assert remedy(0.2, -0.5).helps(margin=0.0)
    assert remedy(0.2, None).helps(margin=0.0)
    assert not remedy(None, -0.1).helps(margin=0.0)
