"""The options that recipes are made with, each by name and type: what an editor completes.

They are the fields of `TensorSpec` (for activations), `Recipe`, `Reconstruction` and `Budget`,
which explain them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from fxquant.recipe.budget import Budget
from fxquant.recipe.reconstruction import Method, Reconstruction
from fxquant.recipe.spec import Clip, Distribution, Range, TensorSpec
from fxquant.recipe.target import Target

BiasCorrection = bool | Literal["weights"]


class ActivationOptions(TypedDict, total=False):
    """Fields of the activations' `TensorSpec`."""

    symmetric: bool
    signed: bool
    per_channel: bool
    range: Range
    percentile: float
    momentum: float
    distribution: Distribution
    clip: Clip
    dynamic: bool
    bit_allocation: bool
    clip_weight: float


class RecipeOptions(ActivationOptions, total=False):
    """Those, and fields of `Recipe`."""

    equalization: bool
    smoothing: bool
    bias_correction: BiasCorrection
    reconstruction: Reconstruction | None
    batchnorm_tuning: bool
    budget: Budget | None
    logits: TensorSpec | None
    products: TensorSpec | None
    end_bits: int | None
    target: Target | str


class LearningOptions(RecipeOptions, total=False):
    """Those, and fields of `Reconstruction`."""

    method: Method
    parallel: bool
    blocks: bool
    drop: float
    activation_learning_rate: float
    samples: int
    steps: int
    rows: int
    pool_rows: int
    learning_rate: float
    regularization: float
    warm_start: float
    beta: tuple[float, float]
    held_out: float
    batch_size: int
    max_bytes: int | None
    bfloat16: bool
    seed: int


class MixedOptions(LearningOptions, total=False):
    """Those, and fields of `Budget`; `max_bytes` is the budget's."""

    weight_bits: int | tuple[int, ...]
    average_bits: float | None
    max_bit_operations: float | None
    max_latency: float | None
    max_drop: float | None
    latency: Mapping[str, Mapping[int, float]]
