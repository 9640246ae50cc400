"""How one tensor is quantized: pure data, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fxquant.errors import RecipeError
from fxquant.recipe.checks import ACTIVATION_BITS, check_types, is_number, known_fields
from fxquant.recipe.shown import short_repr
from fxquant.stored_names import stored_as

Range = Literal["minmax", "ema", "percentile", "mse", "aciq", "bn", "cross_entropy"]
Distribution = Literal["auto", "laplace", "gauss"]
Clip = Literal["report", "corrected", "weighted", "optimal"]


@stored_as("TensorSpec")
@known_fields
@dataclass(frozen=True, kw_only=True, repr=False)
class TensorSpec:
    """How one kind of tensor is quantized.

    >>> TensorSpec(bits=4).bits
    4
    >>> TensorSpec(bits=1)
    Traceback (most recent call last):
    fxquant.errors.RecipeError: bits=1: choose 2 to 8, or 16 for activations
    """

    bits: int = 8
    """How many: 2 to 8; activations may have 16."""
    symmetric: bool = False
    """Zero-point fixed at the integer 0 (Eqs. 6-8); unsigned where no value is negative."""
    signed: bool = False
    """Two's complement integers for activations without negative values too; weights always have
    them."""
    per_channel: bool = False
    """One scale per channel instead of one per tensor: of a weight's outputs, or of an activation
    that only convolutions and additions of feature maps work on. Integer kernels have no such
    activations: they are for simulation."""
    range: Range = "minmax"
    """How the clipping range is chosen: "minmax": all that was seen; "ema": its moving average;
    "percentile": all but a share; "mse": of least squared error; "aciq": of a distribution fitted;
    "bn": from batch norms, without data; "cross_entropy": of outputs (`Recipe.logits`). For weights
    "minmax", "percentile", "mse" and "aciq". See `fxquant.numerics.activation_ranges`."""
    percentile: float = 99.99
    """For `range="percentile"`: the share of values, in percent, that is not clipped."""
    momentum: float = 0.9
    """For `range="ema"`: what a new batch leaves of the old average, in (0, 1). Ranks of
    `torch.distributed` count one behind the other, as if their data were one sequence."""
    distribution: Distribution = "auto"
    """For `range="aciq"`: the assumed distribution, "laplace" or "gauss"; "auto" takes what errs
    less."""
    clip: Clip = "corrected"
    """For `range="aciq"`: the solution to use, "report", "corrected", "weighted" or "optimal": see
    `fxquant.numerics.aciq`."""
    dynamic: bool = False
    """For activations, `range="minmax"` or `"aciq"`: the range is computed from each batch at
    inference, and needs no calibration. For simulation, as in the report's own experiments."""
    bit_allocation: bool = False
    """For activations with `per_channel=True`: wide channels get more levels and narrow ones fewer,
    as many together as with `bits` everywhere (`fxquant.numerics.channel_bits`). For simulation."""
    clip_weight: float = 1.0
    """For weights and `range="mse"`: how much the squared error of a clipped value counts."""

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in ACTIVATION_BITS:
            raise RecipeError(f"bits={self.bits!r}: choose 2 to 8, or 16 for activations")
        percentile, weight, momentum = self.percentile, self.clip_weight, self.momentum
        if not (is_number(percentile) and 50 < percentile <= 100):
            raise RecipeError(f"percentile={percentile!r}: choose a value in (50, 100]")
        if not (is_number(weight) and weight > 0):
            raise RecipeError(f"clip_weight={weight!r}: choose a positive number")
        if not (is_number(momentum) and 0 < momentum < 1):
            raise RecipeError(f"momentum={momentum!r}: choose a value in (0, 1)")
        check_types(self, but=["bits"])

    def __repr__(self) -> str:
        return short_repr(self)

    def __str__(self) -> str:
        method = f"aciq/{self.clip}" if self.range == "aciq" else self.range
        return f"{self.bits} bits {method}"


WEIGHTS = TensorSpec(symmetric=True, per_channel=True)
"""What weights have in most recipes, and where a rule says nothing but their bits."""


def finer(*specs: TensorSpec) -> TensorSpec:
    """Return the spec of the most bits, the first of them: what reads one tensor gets the most."""
    return max(specs, key=lambda spec: spec.bits)


@dataclass(frozen=True)
class CallSpec:
    """What a recipe asks of one call, after its rules: None leaves that side in float."""

    weights: TensorSpec | None
    activations: TensorSpec | None


def check_sides(spec: CallSpec) -> None:
    """Raise `RecipeError` if a spec asks for what its side has not."""
    if spec.weights is not None and spec.weights.bits == 16:
        raise RecipeError("weights: bits=16: choose 2 to 8 (16 is for activations)")
    if spec.weights is not None and spec.weights.range in ("ema", "bn", "cross_entropy"):
        raise RecipeError(f"weights: range={spec.weights.range!r} is for activations")
    if spec.weights is not None and spec.weights.bit_allocation:
        raise RecipeError("weights: bit_allocation=True is for activations; see Recipe.mixed")
    if spec.weights is not None and spec.weights.dynamic:
        raise RecipeError("weights: dynamic=True: weights do not change from batch to batch")
    if spec.activations is not None:
        _check_activations(spec.activations)


def _check_activations(spec: TensorSpec) -> None:
    if spec.range == "cross_entropy":
        raise RecipeError(
            "activations: range='cross_entropy' is for the model's outputs: "
            "Recipe(logits=TensorSpec(range='cross_entropy'))"
        )
    if spec.per_channel and spec.range in ("percentile", "mse"):
        raise RecipeError(
            f"activations: per_channel=True with range={spec.range!r}: no histogram is kept for "
            "each channel; choose 'minmax', 'ema', 'aciq' or 'bn'"
        )
    if spec.bit_allocation and (not spec.per_channel or spec.dynamic or spec.symmetric):
        raise RecipeError(
            f"activations: bit_allocation=True with per_channel={spec.per_channel}, "
            f"dynamic={spec.dynamic}, symmetric={spec.symmetric}: it needs True, False, False"
        )
    if spec.bit_allocation and spec.bits > 8:
        raise RecipeError(f"activations: bit_allocation=True with bits={spec.bits}: choose 2 to 8")
    if spec.dynamic and (spec.range not in ("minmax", "aciq") or spec.clip == "optimal"):
        chosen = f"clip={spec.clip!r}" if spec.range == "aciq" else f"range={spec.range!r}"
        raise RecipeError(
            f"activations: dynamic=True with {chosen} would search at every batch; choose "
            "range='minmax', or 'aciq' with clip='report', 'corrected' or 'weighted'"
        )


def check_whole(name: str, spec: TensorSpec | None) -> None:
    """Raise `RecipeError` if `spec`, the recipe's `name`, is not one for tensors as a whole."""
    if not isinstance(spec, TensorSpec | None):
        raise RecipeError(f"{name}={spec!r}: give a TensorSpec or None")
    if spec is not None and (spec.dynamic or spec.per_channel or spec.range == "bn"):
        raise RecipeError(f"{name}: dynamic, per_channel and range='bn' are for activations")
