"""The integer program of an allocation of bits, for HiGHS.

Variables are an x for each option, 1 where it is taken, and, under a limit of bit operations, a y
for each pair of a weight's option and its input's: `fxquant.mixed_precision.allocation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.errors import RecipeError
from fxquant.mixed_precision.options import Option, Side
from fxquant.recipe.budget import Budget

_FLOAT_BITS = 32
_ROUNDING = 1e-9  # of sums in float64


@dataclass(frozen=True)
class Limit:
    """A limit of the budget: Σ costs · variables ≤ given · unit."""

    name: str
    given: float
    costs: list[float]
    """Of each variable."""
    unit: float = 1.0

    @property
    def value(self) -> float:
        """The bound on Σ costs · variables."""
        return self.given * self.unit

    def total(self, variables: Sequence[float]) -> float:
        """Return Σ costs · variables."""
        return _sum(self.costs, variables)

    def is_exceeded(self, variables: Sequence[float]) -> bool:
        """Say whether the sum is above the bound by more than float64 errs."""
        return self.total(variables) > self.value * (1 + _ROUNDING)


def _sum(costs: Sequence[float], variables: Sequence[float]) -> float:
    return sum(cost * variable for cost, variable in zip(costs, variables, strict=True))


class Program:
    """The variables, an x for each option and then a y for each pair, and what holds for them."""

    def __init__(self, choices: list[list[Option]], budget: Budget) -> None:
        self.options = [option for choice in choices for option in choice]
        self._pairs: list[tuple[int, int]] = []
        self._equations: list[tuple[dict[int, float], float]] = []  # Σ coefficient · variable
        numbers: list[range] = []
        for choice in choices:
            first = numbers[-1].stop if numbers else 0
            numbers.append(range(first, first + len(choice)))
            self._equations.append((dict.fromkeys(numbers[-1], 1.0), 1.0))
        self._inputs = {name: own for own in numbers for name in self.options[own[0]].readers}
        if budget.max_bit_operations is not None:
            for own in numbers:
                option = self.options[own[0]]
                if option.side == "weights" and option.name in self._inputs:
                    self._pair(own, self._inputs[option.name])
        self.limits = self._limits(budget)

    def _pair(self, weights: range, inputs: range) -> None:
        first = len(self.options) + len(self._pairs)
        self._pairs += [(weight, each) for weight in weights for each in inputs]
        variables = range(first, first + len(weights) * len(inputs))
        width = len(inputs)
        for row, weight in enumerate(weights):
            own = dict.fromkeys(variables[row * width : (row + 1) * width], 1.0)
            self._equations.append(({**own, weight: -1.0}, 0.0))
        for column, each in enumerate(inputs):
            own = dict.fromkeys(variables[column::width], 1.0)
            self._equations.append(({**own, each: -1.0}, 0.0))

    def _limits(self, budget: Budget) -> list[Limit]:
        limits = []
        for name, given in budget.limits.items():
            unit, pairs = 1.0, [0.0] * len(self._pairs)
            if name == "max_bytes":
                own: list[float] = [option.bytes for option in self.options]
            elif name == "average_bits":
                own = [option.num_weights * option.bits for option in self.options]
                unit = max(1, sum({each.name: each.num_weights for each in self._weights}.values()))
            elif name == "max_bit_operations":
                own = [self._operations_alone(option) for option in self.options]
                both = [(self.options[one], self.options[other]) for one, other in self._pairs]
                pairs = [one.multiply_accumulates * one.bits * each.bits for one, each in both]
            else:
                own = self._latencies(budget)
            limits.append(Limit(name, given, own + pairs, unit))
        return limits

    @property
    def _weights(self) -> list[Option]:
        return [option for option in self.options if option.side == "weights"]

    def _operations_alone(self, option: Option) -> float:
        """Return the bit operations of a layer whose input is in float."""
        if option.side == "activations" or option.name in self._inputs:
            return 0.0
        return option.multiply_accumulates * option.bits * _FLOAT_BITS

    def _latencies(self, budget: Budget) -> list[float]:
        strange = sorted(budget.latency.keys() - {option.name for option in self._weights})
        if strange:
            raise RecipeError(
                f"allocate: latency[{strange[0]!r}]: no such layer is quantized (of "
                f"{len(budget.latency)} names {len(strange)} are unknown)"
            )
        for option in self._weights:
            if option.bits not in budget.latency.get(option.name, ()):
                raise RecipeError(
                    f"allocate: latency[{option.name!r}][{option.bits}] is missing: give the time "
                    "of each quantized layer at each of its widths"
                )
        return [
            budget.latency[option.name][option.bits] if option.side == "weights" else 0.0
            for option in self.options
        ]

    def losses(self) -> list[float]:
        """Return what each variable adds to the loss, beyond the least of its choice."""
        least: dict[tuple[str, Side], float] = {}
        for option in self.options:
            key = option.name, option.side
            least[key] = min(option.loss, least.get(key, option.loss))
        own = [option.loss - least[option.name, option.side] for option in self.options]
        return own + [0.0] * len(self._pairs)

    def chosen(self, variables: Sequence[float]) -> tuple[Option, ...]:
        """Return the options whose variable is 1."""
        pairs = zip(self.options, variables, strict=False)  # behind the options come the pairs
        return tuple(option for option, variable in pairs if variable)

    def solve(self, costs: Sequence[float], limits: Sequence[Limit]) -> list[float] | None:
        """Return the variables of least Σ `costs` within `limits`; None if there are none.

        Costs, none of which is negative, may span many decades, and HiGHS stops at an absolute gap
        of 1e-6 between what it has and what might be. So they are scaled to a ceiling near the best
        sum, and a variable that alone costs more is 0. Where the ceiling is from: the relaxation,
        in which variables may be any share, is below the best sum by 0.1 % or so.
        """
        highest = sum(costs)
        relaxed = self._minimize(costs, limits, highest, whole=False)
        if relaxed is None:
            return None
        ceiling = 2 * _sum(costs, relaxed) or highest
        while True:
            found = self._minimize(costs, limits, ceiling)
            total = math.inf if found is None else _sum(costs, found)
            if total <= ceiling * (1 + _ROUNDING) or ceiling >= highest:
                return found
            ceiling = min(10 * ceiling, highest)

    def _minimize(
        self,
        costs: Sequence[float],
        limits: Sequence[Limit],
        ceiling: float,
        *,
        whole: bool = True,
    ) -> list[float] | None:
        """Return the variables of least Σ `costs`, each at most `ceiling`; None if there are none.

        `whole`: each is 0 or 1, else from 0 to 1.
        """
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        rows, columns, coefficients = zip(
            *[
                (row, variable, coefficient)
                for row, (terms, _) in enumerate(self._equations)
                for variable, coefficient in terms.items()
            ],
            strict=True,
        )
        shape = len(self._equations), len(costs)
        matrix = csr_array((coefficients, (rows, columns)), shape=shape)
        sums = [right for _, right in self._equations]
        constraints = [LinearConstraint(matrix, sums, sums)]
        for limit in limits:  # HiGHS lets a sum be larger than its bound by 1e-6
            row = 1e3 / limit.value * np.array([limit.costs])
            constraints.append(LinearConstraint(row, -np.inf, 1e3))
        scaled = np.array(costs) / (ceiling or 1.0)
        allowed = scaled <= 1 + _ROUNDING
        result: Any = milp(
            1e3 * np.where(allowed, scaled, 0.0),
            integrality=(np.arange(len(costs)) < len(self.options)) & whole,
            bounds=Bounds(0, allowed.astype(float)),
            constraints=constraints,
            options={"mip_rel_gap": 0},
        )
        if result.x is None:
            return None
        found: list[float] = (result.x.round() if whole else result.x.clip(0, 1)).tolist()
        return found
