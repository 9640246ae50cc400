"""How roundings are learned: pure data, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from fxquant.errors import RecipeError
from fxquant.recipe.checks import check_types, is_number, known_fields
from fxquant.recipe.shown import short_repr
from fxquant.stored_names import stored_as

Method = Literal["adaround", "adaquant", "gram"]


@stored_as("Reconstruction")
@known_fields
@dataclass(frozen=True, kw_only=True, repr=False)
class Reconstruction:
    """Options of `fxquant.passes.ReconstructRounding` and `fxquant.passes.ReconstructBlocks`.

    The defaults were chosen by measurement: `python -m benchmarks.rounding.adaround_options`.

    >>> Reconstruction(steps=200).steps
    200
    >>> Reconstruction(steps=0)
    Traceback (most recent call last):
    fxquant.errors.RecipeError: Reconstruction: steps=0: give an integer of at least 1
    """

    method: Method = "adaround"
    """"adaround" learns which way each weight rounds; "adaquant" weights, scales and biases, freely
    (`fxquant.rounding.methods.adaquant`); "gram" solves for integers, scales and biases on the
    inputs' Gram matrix, in no steps at all (`fxquant.rounding.methods.gram`)."""
    parallel: bool = False
    """Learn from the float network's inputs, not from those that the layers in front of it, once
    quantized, give."""
    blocks: bool = False
    """Reconstruct the output of whole residual blocks, not of layers, and learn the activations'
    scales with the roundings, or, by "adaquant", with integers, scales and biases
    (`fxquant.passes.ReconstructBlocks`)."""
    drop: float = 0.5
    """For blocks: the share of activations left in float in each step, drawn anew (QDrop)."""
    activation_learning_rate: float = 4e-5
    """For blocks: of Adam, on the activations' scales; relative to the scale."""
    samples: int = 1024
    """Calibration samples that are kept and used, on each rank."""
    steps: int = 1000
    """Steps of Adam for each layer, or block."""
    rows: int = 128
    """Output positions in a step, of all ranks together."""
    pool_rows: int = 32768
    """Output positions that are drawn for a layer, of all ranks together; steps take turns with
    them."""
    learning_rate: float = 0.1
    """Of Adam, on V."""
    regularization: float = 0.3
    """λ of Eq. (18) in 1,000 steps or more, in units that do not depend on scales: see
    `fxquant.rounding.methods.adaround`. In fewer steps it weighs more, λ · 1000 / steps."""
    warm_start: float = 0.2
    """The share of the steps, from the first, that goes without the regulariser."""
    beta: tuple[float, float] = (8.0, 2.0)
    """β of Eq. (21) behind the warm start and at the end; linear in between, in even numbers."""
    held_out: float = 0.125
    """The share of the samples that is not learned from: it judges the result."""
    batch_size: int = 64
    """Samples that run through the graphs at a time."""
    max_bytes: int | None = 4 << 30
    """Of the intermediate values in memory; what exceeds it lies in memory-mapped files. None: all
    in memory. It changes no result."""
    bfloat16: bool = True
    """Multiply large matrices in bfloat16 where the machine has instructions for it."""
    seed: int = 0
    """Of the drawn positions; PyTorch's own generators are left as they are."""

    def __post_init__(self) -> None:
        for name in ("samples", "steps", "rows", "pool_rows", "batch_size", "max_bytes"):
            value = getattr(self, name)
            if name == "max_bytes" and value is None:
                continue
            holds = type(value) is int and value >= 1
            _require(holds, self, name, "an integer of at least 1")
        check_types(self, "Reconstruction: ")
        if self.blocks and (self.parallel or self.method == "gram"):
            raise RecipeError(
                f"Reconstruction: blocks=True with method={self.method!r}, parallel={self.parallel}"
                ": blocks are learned by 'adaround' or 'adaquant', one behind the other"
            )
        _require(0 <= self.drop < 1, self, "drop", "a share in [0, 1)")
        _require(
            self.activation_learning_rate >= 0,
            self,
            "activation_learning_rate",
            "0 or a positive number",
        )
        _require(self.learning_rate > 0, self, "learning_rate", "a positive number")
        _require(self.regularization >= 0, self, "regularization", "0 or a positive number")
        _require(0 <= self.warm_start <= 1, self, "warm_start", "a share in [0, 1]")
        _require(0 < self.held_out < 1, self, "held_out", "a share in (0, 1)")
        are_two = isinstance(self.beta, (tuple, list)) and len(self.beta) == 2
        holds = are_two and all(is_number(each) and each >= 1 for each in self.beta)
        _require(holds, self, "beta", "two numbers of at least 1")
        object.__setattr__(self, "beta", tuple(self.beta))

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def start(self) -> Reconstruction | None:
        """How layers are learned before blocks go on from them; None: not at all.

        Blocks whose integers are free start from what the Gram matrix gives, in a fraction of their
        time; which way each weight rounds is learned from the float weights.
        """
        if not self.blocks or self.method != "adaquant":
            return None
        return replace(self, method="gram", blocks=False)

    def generator(self, number: int) -> torch.Generator:
        """Return what layer, or block, `number` draws with, whatever the others draw."""
        return torch.Generator().manual_seed(hash((self.seed, number)) % (1 << 63))


def _require(holds: bool, options: Reconstruction, name: str, what: str) -> None:
    if not holds:
        raise RecipeError(f"Reconstruction: {name}={getattr(options, name)!r}: give {what}")
