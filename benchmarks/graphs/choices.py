"""Small numbers that decide what is drawn: from a seed, or given; and fewer and smaller ones.

    choices = Choices.of_seed(7)
    while choices.next_step():
        choices.pick(("relu", "tanh"))     # recorded in choices.steps
    shrink(choices.steps, fails)           # the least list that still fails

There is a list of numbers for each step of what is drawn, so that a step can be left out and the
others draw what they drew. A number that is missing is 0, which stands for the plainest choice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
Steps = list[list[int]]
_BOUND = 1 << 30


class Choices:
    """Numbers that are drawn from a generator, or read from a list, and recorded.

    Args:
        given: the numbers of each step.
        generator: draws those that are not given; None: they are 0.
        num_steps: how many steps there are, if more than are given.
    """

    def __init__(
        self,
        given: Sequence[Sequence[int]] = (),
        generator: random.Random | None = None,
        num_steps: int = 0,
    ) -> None:
        self._given, self._generator = given, generator
        self._num_steps = max(num_steps, len(given))
        self._place = 0
        self.steps: Steps = []
        """What was asked for so far, each number below its bound."""

    @classmethod
    def of_seed(cls, seed: int, most_steps: int) -> Choices:
        """Return choices of 4 to `most_steps` steps, the same for the same seed."""
        generator = random.Random(seed)
        return cls(generator=generator, num_steps=generator.randint(4, most_steps))

    def next_step(self) -> bool:
        """Go to the next step; say whether there is one."""
        if len(self.steps) >= self._num_steps:
            return False
        self.steps.append([])
        self._place = 0
        return True

    def below(self, bound: int) -> int:
        """Return a number from 0 to `bound` - 1."""
        number = self._number() % bound
        self.steps[-1].append(number)
        self._place += 1
        return number

    def _number(self) -> int:
        step = len(self.steps) - 1
        if step < len(self._given) and self._place < len(self._given[step]):
            return self._given[step][self._place]
        return self._generator.randrange(_BOUND) if self._generator is not None else 0

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options, the first being the plainest."""
        return options[self.below(len(options))]

    def one_in(self, number: int) -> bool:
        """Return True once in so many times."""
        return self.below(number) == number - 1


def shrink(
    steps: Steps, fails: Callable[[Steps], bool], fixed: int = 0, most_tries: int = 400
) -> Steps:
    """Return the least of what still fails: no step of it can be left out, no number be smaller.

    Args:
        steps: what fails.
        fails: says whether other numbers do.
        fixed: so many steps in front are never left out.
        most_tries: what was found then is returned.
    """
    tries = 0
    while True:
        for smaller in _smaller(steps, fixed):
            if tries == most_tries:
                return steps
            tries += 1
            if fails(smaller):
                steps = smaller
                break
        else:
            return steps


def _smaller(steps: Steps, fixed: int) -> Iterator[Steps]:
    """Yield what is left without some steps, and with smaller numbers in one: the boldest first."""
    length = len(steps) - fixed
    while length > 0:
        for start in reversed(range(fixed, len(steps) - length + 1)):
            yield [*steps[:start], *steps[start + length :]]
        length //= 2
    for place, step in enumerate(steps):
        if any(step):
            yield [*steps[:place], [], *steps[place + 1 :]]
    for place, step in enumerate(steps):
        for at, number in enumerate(step):
            for less in sorted({0, number // 2, number - 1} - {number, -1}):
                yield [*steps[:place], [*step[:at], less, *step[at + 1 :]], *steps[place + 1 :]]
