"""The options that recipes are made with, each by name and type: what an editor completes.

They are the fields of `Recipe`, `Reconstruction` and `Budget`, which explain them, and those of its
two `TensorSpec`s, by names that say whose they are: `weight_range` is `weights.range`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from fxquant.recipe.budget import Budget
from fxquant.recipe.reconstruction import Method, Reconstruction
from fxquant.recipe.spec import Clip, Distribution, Range, TensorSpec
from fxquant.recipe.target import Target

BiasCorrection = bool | Literal["weights"]


class SpecOptions(TypedDict, total=False):
    """Fields of the weights' `TensorSpec`, and of the activations', those that each side has."""

    weight_symmetric: bool
    weight_per_channel: bool
    weight_range: Range
    weight_percentile: float
    weight_distribution: Distribution
    weight_clip: Clip
    weight_clip_weight: float
    activation_symmetric: bool
    activation_signed: bool
    activation_per_channel: bool
    activation_range: Range
    activation_percentile: float
    activation_momentum: float
    activation_distribution: Distribution
    activation_clip: Clip
    activation_dynamic: bool
    activation_bit_allocation: bool


class RecipeOptions(SpecOptions, total=False):
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

    weight_bits: tuple[int, ...]
    average_bits: float | None
    max_bit_operations: float | None
    max_latency: float | None
    max_drop: float | None
    latency: Mapping[str, Mapping[int, float]]
