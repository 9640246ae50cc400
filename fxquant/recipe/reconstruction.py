"""How roundings are learned: pure data, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch

from fxquant.errors import RecipeError
from fxquant.stored_names import stored_as

Method = Literal["adaround", "adaquant", "gram"]
_LISTED = ", ".join(get_args(Method))


@stored_as("Reconstruction")
@dataclass(frozen=True, kw_only=True)
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
    (`fxquant.rounding.adaquant`); "gram" solves for integers and biases on the inputs' Gram matrix,
    in no steps at all (`fxquant.rounding.gram`)."""
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
    """Output positions in a step."""
    pool_rows: int = 32768
    """Output positions that are drawn for a layer; steps take turns with them."""
    learning_rate: float = 0.1
    """Of Adam, on V."""
    regularization: float = 0.3
    """λ of Eq. (18), in units that do not depend on scales (`fxquant.rounding.adaround`)."""
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
            if type(value) is not int or value < 1:
                raise RecipeError(
                    f"Reconstruction: {name}={value!r}: give an integer of at least 1"
                )
        _require(self.method in get_args(Method), self, "method", f"one of {_LISTED}")
        for name in ("parallel", "blocks"):
            _require(type(getattr(self, name)) is bool, self, name, "True or False")
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
        beta = tuple(self.beta)
        object.__setattr__(self, "beta", beta)
        _require(len(beta) == 2 and min(beta) >= 1, self, "beta", "two numbers of at least 1")
        _require(type(self.seed) is int, self, "seed", "an integer")

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


OPTIONS = frozenset(each.name for each in fields(Reconstruction))


def _require(holds: bool, options: Reconstruction, name: str, what: str) -> None:
    if not holds:
        raise RecipeError(f"Reconstruction: {name}={getattr(options, name)!r}: give {what}")
