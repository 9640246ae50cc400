"""Budgets and options: every error with its values, and what they count."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from fxquant.errors import RecipeError
from fxquant.mixed_precision.options import Option
from fxquant.recipe.budget import Budget


def options(**values: Any) -> dict[str, Any]:
    """Return arguments that mypy would refuse, as a user may pass them."""
    return values


POSITIVE = "give a positive number"
WIDTHS = "give a tuple of widths, each 2 to 8"
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: Budget(),
        "Budget: no limit: give at least one of max_bytes, average_bits, max_bit_operations, "
        "max_latency, max_drop",
    ),
    (lambda: Budget(max_bytes=0), f"Budget: max_bytes=0: {POSITIVE}"),
    (lambda: Budget(max_bytes=True), f"Budget: max_bytes=True: {POSITIVE}"),
    (lambda: Budget(average_bits=-3), f"Budget: average_bits=-3: {POSITIVE}"),
    (lambda: Budget(average_bits=float("nan")), f"Budget: average_bits=nan: {POSITIVE}"),
    (lambda: Budget(**options(average_bits="3")), f"Budget: average_bits='3': {POSITIVE}"),
    (
        lambda: Budget(max_bit_operations=float("inf")),
        f"Budget: max_bit_operations=inf: {POSITIVE}",
    ),
    (
        lambda: Budget(max_latency=1.0),
        "Budget: max_latency without latency: give both or neither",
    ),
    (
        lambda: Budget(max_bytes=9, latency={"fc": {2: 1.0}}),
        "Budget: latency without max_latency: give both or neither",
    ),
    (
        lambda: Budget(max_latency=1.0, latency={"fc": {2: -1.0}}),
        f"Budget: latency['fc'][2]=-1.0: {POSITIVE}",
    ),
    (lambda: Budget(max_bytes=9, weight_bits=()), f"Budget: weight_bits=(): {WIDTHS}"),
    (lambda: Budget(max_bytes=9, weight_bits=(2, 9)), f"Budget: weight_bits=(2, 9): {WIDTHS}"),
    (lambda: Budget(max_bytes=9, weight_bits=(4, 16)), f"Budget: weight_bits=(4, 16): {WIDTHS}"),
    (lambda: Budget(max_bytes=9, **options(weight_bits=4)), f"Budget: weight_bits=4: {WIDTHS}"),
    (
        lambda: Budget(max_bytes=9, activation_bits=(4, 12)),
        f"Budget: activation_bits=(4, 12): {WIDTHS}, or 16",
    ),
    (
        lambda: Option(name="fc", side="weights", bits=3, loss=-1.0),
        "Option('fc', weights, 3 bits): loss=-1.0: give 0 or a positive number",
    ),
    (
        lambda: Option(name="fc", side="activations", bits=4, loss=float("nan")),
        "Option('fc', activations, 4 bits): loss=nan: give 0 or a positive number",
    ),
]


@pytest.mark.parametrize(("make", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_an_error_prints_the_values_and_what_to_give(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert str(caught.value) == message


def test_widths_are_kept_in_order_and_once() -> None:
    budget = Budget(max_bytes=9, weight_bits=(8, 2, 8), activation_bits=(16, 4))
    assert budget.weight_bits == (2, 8)
    assert budget.activation_bits == (4, 16)


def test_only_the_limits_that_are_given_hold() -> None:
    assert Budget(max_bytes=9, average_bits=3).limits == {"max_bytes": 9, "average_bits": 3}


def test_a_budget_is_frozen_hashable_and_picklable() -> None:
    budget = Budget(max_latency=1.0, latency={"fc": {2: 0.5}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.max_latency = 2.0  # type: ignore[misc]
    for other in (copy.deepcopy(budget), pickle.loads(pickle.dumps(budget))):
        assert other == budget
        assert hash(other) == hash(budget)


def test_a_budget_keeps_latencies_of_its_own() -> None:
    latency = {"fc": {2: 0.5}}
    budget = Budget(max_latency=1.0, latency=latency)
    latency["fc"][2] = 7.0
    assert budget.latency["fc"][2] == 0.5


@pytest.mark.parametrize(("num_weights", "bits", "expected"), [(8, 3, 3), (5, 3, 2), (0, 4, 0)])
def test_an_option_takes_its_packed_bytes(num_weights: int, bits: int, expected: int) -> None:
    option = Option(name="fc", side="weights", bits=bits, loss=0.0, num_weights=num_weights)
    assert option.bytes == expected
