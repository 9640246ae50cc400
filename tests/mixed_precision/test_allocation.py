"""Allocations are the best ones within their limits, by comparison with slow, obvious searches."""

import importlib.util
import itertools
import random
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.errors import RecipeError
from fxquant.mixed_precision.allocation import Allocation, allocate
from fxquant.mixed_precision.options import Option
from fxquant.recipe.budget import Budget
from fxquant.recipe.recipe import Recipe

WIDTHS = (2, 3, 4, 8)


def weights(
    name: str, losses: dict[int, float], num_weights: int = 100, **more: Any
) -> list[Option]:
    return [
        Option(name=name, side="weights", bits=bits, loss=loss, num_weights=num_weights, **more)
        for bits, loss in losses.items()
    ]


def activations(readers: Iterable[str], losses: dict[int, float], **more: Any) -> list[Option]:
    names = tuple(readers)
    return [
        Option(name=names[0], side="activations", bits=bits, loss=loss, readers=names, **more)
        for bits, loss in losses.items()
    ]


def drawn(seed: int, decades: float = 4.0) -> list[Option]:
    """Return four layers of four widths; two of them read one activation, one reads none."""
    draw = random.Random(seed)
    options = []
    for name in "abcd":
        scale = 10 ** draw.uniform(-decades, decades)
        losses = {bits: scale * draw.uniform(0.5, 2) * 4.0**-bits for bits in WIDTHS}
        size, macs = draw.randrange(10, 1000), draw.randrange(10, 1000)
        options += weights(name, losses, size, multiply_accumulates=macs)
    for readers in ("ab", "c"):
        scale = 10 ** draw.uniform(-decades, decades)
        options += activations(readers, {bits: scale * 4.0**-bits for bits in (4, 8)})
    return options


def every_allocation(options: list[Option]) -> list[Allocation]:
    choices: dict[tuple[str, str], list[Option]] = {}
    for option in options:
        choices.setdefault((option.name, option.side), []).append(option)
    return [Allocation(chosen) for chosen in itertools.product(*choices.values())]


def bits_of(allocation: Allocation) -> list[int]:
    return [sides["weights"] for sides in allocation.bits.values() if "weights" in sides]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.0, 1.0), which=st.integers(0, 3))
def test_no_allocation_within_the_limits_loses_less(seed: int, share: float, which: int) -> None:
    options = drawn(seed)
    known = every_allocation(options)
    least, most = min(each.bytes for each in known), max(each.bytes for each in known)
    max_bytes = int(least + share * (most - least))
    operations = sorted(each.bit_operations for each in known)
    max_bit_operations = operations[int((0.1 + 0.9 * share) * (len(operations) - 1))]
    average = 2 + 6 * share
    limits: Any = [
        {"max_bytes": max_bytes},
        {"max_bit_operations": max_bit_operations},
        {"average_bits": average},
        {"max_bytes": max_bytes, "max_bit_operations": max_bit_operations, "average_bits": average},
    ][which]
    within = [
        each
        for each in known
        if all(
            {
                "max_bytes": each.bytes,
                "max_bit_operations": each.bit_operations,
                "average_bits": each.average_bits,
            }[name]
            <= limit * (1 + 1e-9)
            for name, limit in limits.items()
        )
    ]
    found = allocate(options, Budget(**limits, activation_bits=(4, 8)))
    assert found in within
    assert found.loss == pytest.approx(min(each.loss for each in within), rel=1e-6)


def test_losses_far_below_the_largest_count_too() -> None:
    options = weights("large", {2: 1e6, 4: 1e5}, 10) + weights("a", {2: 4e-9, 4: 1e-9}, 10)
    options += weights("b", {2: 5e-9, 4: 1e-9}, 10)
    found = allocate(options, Budget(average_bits=10 / 3))
    assert found.bits == {"large": {"weights": 4}, "a": {"weights": 2}, "b": {"weights": 4}}


def test_a_large_network_is_solved_to_the_optimum_of_dynamic_programming() -> None:
    draw = random.Random(0)
    widths = (2, 3, 4, 5, 6, 8)
    options, sizes, losses = [], [], []
    for number in range(200):
        size = 8 * draw.randrange(1, 40)
        scale = size * 10 ** draw.uniform(-3, 3)
        own = {bits: scale * 4.0**-bits * draw.uniform(0.7, 1.4) for bits in widths}
        options += weights(f"layer{number}", own, size)
        sizes.append(size)
        losses.append(own)
    max_bytes = sum(sizes) * 3 // 8
    least = np.zeros(max_bytes + 1)  # the least loss of the layers so far within so many bytes
    for size, own in zip(sizes, losses, strict=True):
        tried = np.full((len(own), len(least)), np.inf)
        for row, (bits, loss) in enumerate(own.items()):
            cost = size * bits // 8
            tried[row, cost:] = least[: len(least) - cost] + loss
        least = tried.min(axis=0)
    found = allocate(options, Budget(max_bytes=max_bytes))
    assert found.bytes <= max_bytes
    assert found.loss == pytest.approx(least[-1], rel=1e-6)


def test_a_limit_holds_to_the_byte_for_a_hundred_megabytes() -> None:
    options = weights("a", {4: 2.0, 8: 0.0}, 10**8) + weights("b", {4: 1.0, 8: 0.0}, 10**8 - 8)
    needed = 10**8 + (10**8 - 8) // 2
    assert bits_of(allocate(options, Budget(max_bytes=needed))) == [8, 4]
    assert bits_of(allocate(options, Budget(max_bytes=needed - 1))) == [4, 8]


def test_latencies_are_looked_up_by_layer_and_width() -> None:
    options = weights("a", {2: 4.0, 4: 1.0}) + weights("b", {2: 5.0, 4: 1.0})
    latency = {"a": {2: 1.0, 4: 1.5}, "b": {2: 2.0, 4: 3.0}}
    found = allocate(options, Budget(max_latency=3.5, latency=latency))
    assert bits_of(found) == [4, 2]
    found = allocate(options, Budget(max_latency=4.0, latency=latency))
    assert bits_of(found) == [2, 4]


def test_calls_that_read_one_activation_get_one_width_of_it() -> None:
    options = weights("a", {4: 1.0}, multiply_accumulates=10)
    options += weights("b", {4: 1.0}, multiply_accumulates=20)
    options += activations(["a", "b", "add"], {4: 3.0, 8: 1.0})
    found = allocate(options, Budget(max_bit_operations=30 * 4 * 8 - 1, activation_bits=(4, 8)))
    assert {name: sides["activations"] for name, sides in found.bits.items()} == {
        "a": 4,
        "b": 4,
        "add": 4,
    }
    assert found.bit_operations == 30 * 4 * 4


def test_an_input_in_float_counts_32_bits() -> None:
    options = weights("a", {2: 2.0, 4: 1.0}, multiply_accumulates=10)
    assert allocate(options, Budget(max_bit_operations=10 * 4 * 32)).bit_operations == 1280
    assert allocate(options, Budget(max_bit_operations=10 * 4 * 32 - 1)).bit_operations == 640


def test_widths_that_the_budget_does_not_name_are_left_out_unless_fixed() -> None:
    options = weights("a", {2: 9.0, 3: 4.0, 4: 1.0}) + weights("b", {8: 0.1}, fixed=True)
    found = allocate(options, Budget(average_bits=8, weight_bits=(2, 3)))
    assert bits_of(found) == [3, 8]


def test_rules_name_each_call_alone_and_leave_fixed_ones_out() -> None:
    chosen = [
        *weights("stages[0].conv*", {3: 1.0}),
        *weights("stem", {8: 0.1}, fixed=True),
        *activations(["stages[0].conv*", "add"], {4: 1.0}),
    ]
    rules = Allocation(tuple(chosen)).rules()
    assert [(rule.match, rule.weights, rule.activations) for rule in rules] == [
        ("stages[[]0].conv[*]", 3, 4),
        ("add", "inherit", 4),
    ]
    assert fnmatchcase("stages[0].conv*", str(rules[0].match))
    assert not fnmatchcase("stages0.conv1", str(rules[0].match))


def test_rules_change_the_width_alone_in_any_recipe() -> None:
    found = Allocation(tuple(weights("conv", {3: 1.0})))
    for recipe in (Recipe.adaround(rules=found.rules()), Recipe.minmax(rules=found.rules())):
        spec = recipe.for_call("conv", None).weights
        assert spec is not None
        assert recipe.weights is not None
        assert (spec.bits, spec.range) == (3, recipe.weights.range)


def test_prints_a_row_for_each_choice() -> None:
    chosen = weights("conv", {3: 3.0}, 80, multiply_accumulates=1000)
    chosen += weights("fc", {4: 0.5}, 20, multiply_accumulates=20)
    chosen += activations(["conv", "add"], {8: 0.5})
    assert str(Allocation(tuple(chosen))) == (
        "3.2 bits a weight, 40 bytes, 2.656e+04 bit operations a sample, loss 4\n"
        "\n"
        "call      weights    activations    % of loss    bytes  and those of\n"
        "------  ---------  -------------  -----------  -------  --------------\n"
        "conv            3                        75.0       30\n"
        "fc              4                        12.5       10\n"
        "conv                           8         12.5           add"
    )


def everywhere(losses: dict[int, float], **more: Any) -> list[Option]:
    return weights("a", losses, 1000, **more) + weights("b", losses, 3000, **more)


LOSSES = {2: 4.0, 3: 2.0}
ADVICE = "raise the limit, or let the budget name narrower widths"
LATENCY = {"a": {2: 5.0, 3: 1.0}, "b": {2: 1.0, 3: 1.0}}
IMPOSSIBLE: list[tuple[list[Option], Budget, str]] = [
    (
        everywhere(LOSSES),
        Budget(max_bytes=999),
        "allocate: max_bytes=999: the least that any allocation needs is 1,000 bytes, with 2 bits "
        f"everywhere: {ADVICE}",
    ),
    (
        weights("a", LOSSES, 1000) + weights("b", {8: 0.1}, 3000, fixed=True),
        Budget(average_bits=4),
        "allocate: average_bits=4: the least that any allocation needs is 6.5 bits a weight, with "
        f"weights of 2 to 8 bits: {ADVICE}",
    ),
    (
        everywhere(LOSSES, multiply_accumulates=50) + activations("ab", {4: 2.0, 8: 1.0}),
        Budget(average_bits=9, max_bit_operations=799, activation_bits=(4, 8)),
        "allocate: max_bit_operations=799: the least that any allocation needs is 800 bit "
        f"operations, with 2 bits everywhere: {ADVICE}",
    ),
    (
        everywhere(LOSSES),
        Budget(max_bytes=1000, max_latency=2.0, latency=LATENCY),
        "allocate: max_latency=2.0: the least that any allocation needs within max_bytes is 6 "
        f"seconds, with 2 bits everywhere: {ADVICE}",
    ),
]


@pytest.mark.parametrize(
    ("options", "budget", "message"), IMPOSSIBLE, ids=[message for _, _, message in IMPOSSIBLE]
)
def test_a_limit_that_cannot_be_met_says_what_is_needed(
    options: list[Option], budget: Budget, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        allocate(options, budget)
    assert str(caught.value) == message


def test_what_is_said_to_be_needed_is_enough() -> None:
    options = everywhere(LOSSES, multiply_accumulates=50) + activations("ab", {4: 2.0, 8: 1.0})
    budget = Budget(max_bytes=1000, max_bit_operations=800, activation_bits=(4, 8))
    assert bits_of(allocate(options, budget)) == [2, 2]


ERRORS: list[tuple[list[Option], Budget, str]] = [
    (
        [],
        Budget(max_bytes=9),
        "allocate: `options` is empty: give what measure_sensitivities returned",
    ),
    (
        everywhere(LOSSES),
        Budget(max_bytes=9, weight_bits=(5, 6)),
        "allocate: weight_bits=(5, 6): of 'a' only 2, 3 bits were measured",
    ),
    (
        everywhere(LOSSES),
        Budget(max_latency=9.0, latency={"a": {2: 1.0}}),
        "allocate: latency['a'][3] is missing: give the time of each quantized layer at each of "
        "its widths",
    ),
    (
        everywhere(LOSSES),
        Budget(max_latency=9.0, latency={**LATENCY, "fc": {2: 1.0}}),
        "allocate: latency['fc']: no such layer is quantized (of 3 names 1 are unknown)",
    ),
]


@pytest.mark.parametrize(
    ("options", "budget", "message"), ERRORS, ids=[message for _, _, message in ERRORS]
)
def test_an_error_prints_the_values(options: list[Option], budget: Budget, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        allocate(options, budget)
    assert str(caught.value) == message


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"scipy is not installed: pip install fxquant\[mixed\]"):
        allocate(everywhere(LOSSES), Budget(average_bits=3))
