"""What mixed precision chooses among: one width of one layer's weights, or of activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fxquant.errors import RecipeError

Side = Literal["weights", "activations"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One width for the weights of a layer, or for the activations that some calls read.

    `fxquant.mixed_precision.sensitivity.measure_sensitivities` makes them from a model and data.

    >>> Option(name="fc", side="weights", bits=3, loss=0.5, num_weights=650).bytes
    244
    """

    name: str
    """The call, as rules know it; of activations: the first one that reads them."""
    side: Side
    bits: int
    loss: float
    """How much it changes the model's outputs: the squared change of all of them, a sample."""
    num_weights: int = 0
    multiply_accumulates: int = 0
    """Of the layer, a sample, over all of its calls."""
    readers: tuple[str, ...] = ()
    """Of activations: all calls whose rules decide over them, and so must agree."""
    fixed: bool = False
    """The recipe asks for this width itself: there is no other choice, and no rule to write."""

    def __post_init__(self) -> None:
        if not 0 <= self.loss < math.inf:
            raise RecipeError(
                f"Option({self.name!r}, {self.side}, {self.bits} bits): loss={self.loss}: give 0 "
                "or a positive number"
            )

    @property
    def bytes(self) -> int:
        """What the integers of the weights take where they are stored packed; no scales."""
        return -(-self.num_weights * self.bits // 8)
