"""What to quantize, and how: pure data, checked when it is made.

A `Recipe` holds one `TensorSpec` for weights, one for activations, and a list of `Rule`s that
override them call by call. Nothing here touches a tensor or a graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from fxquant.budget import Budget
from fxquant.errors import RecipeError
from fxquant.reconstruction import OPTIONS, Reconstruction

Range = Literal["minmax", "ema", "percentile", "mse", "aciq", "bn", "cross_entropy"]
Distribution = Literal["auto", "laplace", "gauss"]
Clip = Literal["report", "corrected", "weighted", "optimal"]
Inherit = Literal["inherit"]
BiasCorrection = bool | Literal["weights"]

_CHOICES = {
    "range": ("minmax", "ema", "percentile", "mse", "aciq", "bn", "cross_entropy"),
    "distribution": ("auto", "laplace", "gauss"),
    "clip": ("report", "corrected", "weighted", "optimal"),
}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """How one kind of tensor is quantized.

    >>> TensorSpec(bits=4).bits
    4
    >>> TensorSpec(bits=1)
    Traceback (most recent call last):
    fxquant.errors.RecipeError: bits=1: choose 2 to 8, or 16 for activations
    """

    bits: int = 8
    symmetric: bool = False
    """Zero-point fixed at the integer 0 (Eqs. 6-8); unsigned where no value is negative."""
    per_channel: bool = False
    """One scale per channel instead of one per tensor: of a weight's outputs, or of an activation
    that only convolutions and additions of feature maps work on. Integer kernels have no such
    activations: they are for simulation."""
    range: Range = "minmax"
    """How the clipping range is chosen: see `fxquant.ranges`."""
    percentile: float = 99.99
    """For `range="percentile"`: the share of values, in percent, that is not clipped."""
    momentum: float = 0.9
    """For `range="ema"`: what a new batch leaves of the old average, in (0, 1)."""
    distribution: Distribution = "auto"
    """For `range="aciq"`: the assumed distribution; `"auto"` takes what errs less."""
    clip: Clip = "corrected"
    """For `range="aciq"`: the solution to use: see `fxquant.aciq`."""
    dynamic: bool = False
    """For activations, `range="minmax"` or `"aciq"`: the range is computed from each batch at
    inference, and needs no calibration. For simulation, as in the report's own experiments."""
    bit_allocation: bool = False
    """For activations with `per_channel=True`: wide channels get more levels and narrow ones fewer,
    as many together as with `bits` everywhere (`fxquant.channel_bits`). For simulation."""
    clip_weight: float = 1.0
    """For weights and `range="mse"`: how much the squared error of a clipped value counts."""

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (*range(2, 9), 16):
            raise RecipeError(f"bits={self.bits!r}: choose 2 to 8, or 16 for activations")
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise RecipeError(
                    f"{field}={getattr(self, field)!r}: choose one of {', '.join(choices)}"
                )
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"percentile={self.percentile}: choose a value in (50, 100]")
        if not self.clip_weight > 0:
            raise RecipeError(f"clip_weight={self.clip_weight}: choose a positive number")
        if not 0 < self.momentum < 1:
            raise RecipeError(f"momentum={self.momentum}: choose a value in (0, 1)")

    def __str__(self) -> str:
        method = f"aciq/{self.clip}" if self.range == "aciq" else self.range
        return f"{self.bits} bits {method}"


@dataclass(frozen=True)
class Rule:
    """An override for the calls whose qualified name or module type matches.

    `match` is a glob on the name (`"layer4.*"`, `"fc"`) or a module type (`nn.Linear`). A number in
    place of a spec changes the bits alone; `None` leaves that side in float. Later rules win.

    >>> Rule("layer4.*", weights=4).match
    'layer4.*'
    """

    match: str | type[nn.Module]
    skip: bool = False
    weights: TensorSpec | int | Inherit | None = "inherit"
    activations: TensorSpec | int | Inherit | None = "inherit"

    def __post_init__(self) -> None:
        is_type = isinstance(self.match, type) and issubclass(self.match, nn.Module)
        if not (is_type or (isinstance(self.match, str) and self.match)):
            raise RecipeError(f"Rule({self.match!r}): give a glob on names or a module type")
        for side in ("weights", "activations"):
            _override(None, getattr(self, side), None, f"Rule({self.match!r}).{side}")

    def matches(self, name: str, module: nn.Module | None) -> bool:
        """Say whether the rule covers the call `name`, which runs `module` (None: a function)."""
        if isinstance(self.match, str):
            return fnmatchcase(name, self.match)
        return isinstance(module, self.match)


@dataclass(frozen=True)
class CallSpec:
    """What a recipe asks of one call, after its rules: None leaves that side in float."""

    weights: TensorSpec | None
    activations: TensorSpec | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to quantize how. Start from `Recipe.aciq()`, `Recipe.adaround()` or `Recipe.minmax()`.

    >>> Recipe.aciq(weight_bits=4, skip=["fc"]).weights.bits
    4
    """

    weights: TensorSpec = TensorSpec(symmetric=True, per_channel=True)
    activations: TensorSpec | None = TensorSpec()
    equalization: bool = False
    """Give the channels between two layers the same range in both (`fxquant.passes.EqualizeLayers`,
    `AbsorbBiases`), before anything else: for weights and activations of one scale."""
    bias_correction: BiasCorrection = False
    """True: correct each layer's output mean through its bias (`fxquant.passes.CorrectBias`).
    "weights": give each channel of the weight its mean and norm back, as in the report's I.F
    (`fxquant.passes.CorrectWeights`); that leaves the integers' grid, and is for simulation."""
    reconstruction: Reconstruction | None = None
    """How roundings are learned (`fxquant.passes.ReconstructRounding`); None: to nearest."""
    batchnorm_tuning: bool = False
    """Give each quantized channel the float network's mean and deviation, on the calibration data
    (`fxquant.passes.TuneBatchNorm`)."""
    budget: Budget | None = None
    """What all layers together may cost: `convert` allocates bits within it, by what rounding each
    layer costs on the calibration data (`fxquant.allocation`). None: as the specs say."""
    rules: tuple[Rule, ...] = ()
    logits: TensorSpec | None = None
    """How the model's outputs are quantized; None: not at all, for clipping them costs points.
    `range="cross_entropy"` is made for them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise RecipeError(f"rules: {rule!r} is a {type(rule).__name__}, not a Rule")
        if not isinstance(self.weights, TensorSpec):
            raise RecipeError(f"weights={self.weights!r}: give a TensorSpec, or use Recipe.aciq(…)")
        if not isinstance(self.activations, TensorSpec | None):
            raise RecipeError(f"activations={self.activations!r}: give a TensorSpec or None")
        if not isinstance(self.reconstruction, Reconstruction | None):
            raise RecipeError(f"reconstruction={self.reconstruction!r}: give a Reconstruction")
        if self.bias_correction not in (True, False, "weights"):
            raise RecipeError(
                f"bias_correction={self.bias_correction!r}: choose True, False or 'weights'"
            )
        if not isinstance(self.budget, Budget | None):
            raise RecipeError(f"budget={self.budget!r}: give a Budget")
        for name in ("equalization", "batchnorm_tuning"):
            if type(getattr(self, name)) is not bool:
                raise RecipeError(f"{name}={getattr(self, name)!r}: choose True or False")
        if self.bias_correction == "weights" and self.reconstruction is not None:
            raise RecipeError(
                "bias_correction='weights' changes what a reconstruction learned: choose one"
            )
        own = CallSpec(self.weights, self.activations)
        for spec in (own, *[_apply(rule, own, own) for rule in self.rules]):
            _check_sides(spec)
        _check_logits(self.logits)

    @classmethod
    def minmax(
        cls,
        *,
        weight_bits: int = 8,
        activation_bits: int | None = 8,
        skip: str | type[nn.Module] | Iterable[str | type[nn.Module]] = (),
        rules: Iterable[Rule] = (),
        **options: Any,
    ) -> Recipe:
        """Return a recipe that clips nothing: the range of every tensor is all that was seen."""
        return _recipe(
            TensorSpec(bits=weight_bits, symmetric=True, per_channel=True),
            activation_bits and TensorSpec(bits=activation_bits),
            skip,
            rules,
            options,
        )

    @classmethod
    def aciq(
        cls,
        *,
        weight_bits: int = 8,
        activation_bits: int | None = 8,
        skip: str | type[nn.Module] | Iterable[str | type[nn.Module]] = (),
        rules: Iterable[Rule] = (),
        **options: Any,
    ) -> Recipe:
        """Return the report's first system: ACIQ on activations, min-max weights, corrected biases.

        `options` are fields of `Recipe` (`bias_correction=False`) or of the activations'
        `TensorSpec` (`clip="report"`).
        """
        options.setdefault("bias_correction", True)
        return _recipe(
            TensorSpec(bits=weight_bits, symmetric=True, per_channel=True),
            activation_bits and TensorSpec(bits=activation_bits, range="aciq"),
            skip,
            rules,
            options,
        )

    @classmethod
    def adaround(
        cls,
        *,
        weight_bits: int = 4,
        activation_bits: int | None = 8,
        skip: str | type[nn.Module] | Iterable[str | type[nn.Module]] = (),
        rules: Iterable[Rule] = (),
        **options: Any,
    ) -> Recipe:
        """Return the report's second system: weights rounded by AdaRound, ranges of least error.

        `options` are fields of `Recipe`, of the activations' `TensorSpec` (`range="aciq"`), or of
        `Reconstruction` (`steps=2000`).
        """
        chosen = {key: options.pop(key) for key in OPTIONS & options.keys()}
        if chosen or "reconstruction" not in options:
            options["reconstruction"] = Reconstruction(**chosen)
        return _recipe(
            # Learning makes up for errors of rounding, not for those of clipping, so these count
            # double (benchmarks/adaround_options.py).
            TensorSpec(
                bits=weight_bits, symmetric=True, per_channel=True, range="mse", clip_weight=2.0
            ),
            activation_bits and TensorSpec(bits=activation_bits, range="mse"),
            skip,
            rules,
            options,
        )

    @classmethod
    def mixed(
        cls,
        *,
        activation_bits: int | None = 8,
        skip: str | type[nn.Module] | Iterable[str | type[nn.Module]] = (),
        rules: Iterable[Rule] = (),
        **options: Any,
    ) -> Recipe:
        """Return `adaround`'s recipe with bits allocated within a budget, layer by layer.

        `options` are fields of `fxquant.Budget` (`max_bytes=200_000`, `average_bits=3`,
        `max_drop=0.5`), and those of `adaround`.

        >>> Recipe.mixed(average_bits=3).budget.average_bits
        3
        """
        limits = {field.name: options.pop(field.name) for field in fields(Budget)
                  if field.name in options}  # fmt: skip
        return cls.adaround(
            activation_bits=activation_bits,
            skip=skip,
            rules=rules,
            budget=Budget(**limits),
            **options,
        )

    @classmethod
    def named(cls, name: str) -> Recipe:
        """Return a recipe by name: "aciq" or "minmax" at 8/8 bits, "adaround" at 4/8."""
        makers = {"aciq": cls.aciq, "minmax": cls.minmax, "adaround": cls.adaround}
        if not isinstance(name, str) or name not in makers:
            shown = repr(name) if isinstance(name, str) else f"of type {type(name).__name__}"
            raise RecipeError(f"recipe {shown}: choose one of {', '.join(makers)}, or a Recipe")
        return makers[name]()

    @property
    def needs_data(self) -> bool:
        """Whether `convert` works on calibration samples, which are kept for it."""
        return self.reconstruction is not None or self.batchnorm_tuning or self.budget is not None

    @property
    def data(self) -> Reconstruction:
        """How many samples are kept, and how they are run: of the reconstruction, if any."""
        return self.reconstruction or Reconstruction()

    def for_call(self, name: str, module: nn.Module | None) -> CallSpec:
        """Return what is asked of the call `name` after all rules."""
        own = spec = CallSpec(self.weights, self.activations)
        for rule in self.rules:
            if rule.matches(name, module):
                spec = _apply(rule, spec, own)
        return spec


_OPTIONS = {
    "bias_correction",
    "reconstruction",
    "logits",
    "equalization",
    "batchnorm_tuning",
    "budget",
}


def _recipe(
    weights: TensorSpec,
    activations: TensorSpec | Literal[0] | None,
    skip: str | type[nn.Module] | Iterable[str | type[nn.Module]],
    rules: Iterable[Rule],
    options: dict[str, Any],
) -> Recipe:
    if activations == 0:
        raise RecipeError("activation_bits=0: choose 2 to 8 or 16, or None for weights only")
    if isinstance(skip, (str, type)):
        skip = (skip,)
    for_activations = {f.name for f in fields(TensorSpec)} - {"bits"}
    spec_options = {key: options.pop(key) for key in for_activations & options.keys()}
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise RecipeError(f"unknown options: {', '.join(sorted(unknown))}")
    if activations is None and spec_options:
        raise RecipeError(
            f"{', '.join(sorted(spec_options))}: activations stay in float (activation_bits=None)"
        )
    if activations is not None:
        activations = replace(activations, **spec_options)
    skips = tuple(Rule(match, skip=True) for match in skip)
    return Recipe(
        weights=weights, activations=activations, rules=(*tuple(rules), *skips), **options
    )


def _apply(rule: Rule, spec: CallSpec, own: CallSpec) -> CallSpec:
    """Return `spec` as changed by the rule; a number brings back the recipe's `own` spec."""
    if rule.skip:
        return CallSpec(None, None)
    where = f"Rule({rule.match!r})"
    return CallSpec(
        _override(spec.weights, rule.weights, own.weights, f"{where}.weights"),
        _override(spec.activations, rule.activations, own.activations, f"{where}.activations"),
    )


def _override(
    spec: TensorSpec | None,
    by: TensorSpec | int | Inherit | None,
    own: TensorSpec | None,
    where: str,
) -> TensorSpec | None:
    if by == "inherit":
        return spec
    if by is None or isinstance(by, TensorSpec):
        return by
    if isinstance(by, int):
        return replace(spec or own or TensorSpec(), bits=by)
    raise RecipeError(f"{where}={by!r}: give a TensorSpec, a number of bits, None or 'inherit'")


def _check_sides(spec: CallSpec) -> None:
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


def _check_logits(spec: TensorSpec | None) -> None:
    if not isinstance(spec, TensorSpec | None):
        raise RecipeError(f"logits={spec!r}: give a TensorSpec or None")
    if spec is not None and (spec.dynamic or spec.per_channel or spec.range == "bn"):
        raise RecipeError("logits: dynamic, per_channel and range='bn' are for activations")
