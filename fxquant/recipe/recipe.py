"""What to quantize, and how: pure data, checked when it is made.

A `Recipe` holds one `TensorSpec` for weights, one for activations, and a list of `Rule`s that
override them call by call. Nothing here touches a tensor or a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from fxquant.errors import RecipeError
from fxquant.recipe.budget import Budget
from fxquant.recipe.options import BiasCorrection, LearningOptions, MixedOptions, RecipeOptions
from fxquant.recipe.reconstruction import OPTIONS, Reconstruction
from fxquant.recipe.rule import Rule, apply_rule
from fxquant.recipe.spec import WEIGHTS, CallSpec, TensorSpec, check_sides, check_whole
from fxquant.recipe.target import TARGETS, Target
from fxquant.stored_names import stored_as

if TYPE_CHECKING:
    from typing_extensions import Unpack


@stored_as("Recipe")
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to quantize how. Start from `Recipe.aciq()`, `Recipe.adaround()` or `Recipe.minmax()`.

    >>> Recipe.aciq(weight_bits=4, skip=["fc"]).weights.bits
    4
    """

    weights: TensorSpec | None = WEIGHTS
    activations: TensorSpec | None = TensorSpec()
    equalization: bool = False
    """Give the channels between two layers the same range in both (`fxquant.passes.EqualizeLayers`,
    `AbsorbBiases`), before anything else: for weights and activations of one scale."""
    smoothing: bool = False
    """Bring the channels of a linear layer's input to one range, by a scale and a shift that its
    weight takes back (`fxquant.passes.SmoothInputs`): for transformers, whose activations have a
    few wide channels."""
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
    layer costs on the calibration data (`fxquant.mixed_precision.allocation`). None: as the specs
    say."""
    rules: tuple[Rule, ...] = ()
    end_bits: int | None = None
    """At least so many bits for the first layer and the last, unless a rule names them; None: no
    more than for the others. Of models in regions it is not known which they are."""
    target: Target = TARGETS["x86"]
    """The runtime that the model is for (`fxquant.Target`), or its name."""
    logits: TensorSpec | None = None
    """How the model's outputs are quantized; None: not at all, for clipping them costs points.
    `range="cross_entropy"` is made for them."""
    products: TensorSpec | None = None
    """How both operands of a product of two activations are quantized, as attention's queries,
    keys, weights and values are; None: not at all. `range="mse"` gives softmax's results, most of
    them near 0, finer steps than `range="minmax"`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        object.__setattr__(self, "target", Target.named(self.target))
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise RecipeError(f"rules: {rule!r} is a {type(rule).__name__}, not a Rule")
        if not isinstance(self.weights, TensorSpec | None):
            raise RecipeError(f"weights={self.weights!r}: give a TensorSpec, or use Recipe.aciq(…)")
        if self.weights is None:
            self._check_without_weights()
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
        for name in ("equalization", "smoothing", "batchnorm_tuning"):
            if type(getattr(self, name)) is not bool:
                raise RecipeError(f"{name}={getattr(self, name)!r}: choose True or False")
        if self.bias_correction == "weights" and self.reconstruction is not None:
            raise RecipeError(
                "bias_correction='weights' changes what a reconstruction learned: choose one"
            )
        if self.end_bits is not None and self.end_bits not in range(2, 9):
            raise RecipeError(f"end_bits={self.end_bits!r}: choose 2 to 8, or None")
        own = CallSpec(self.weights, self.activations)
        for spec in (own, *[apply_rule(rule, own, own) for rule in self.rules]):
            check_sides(self.target.asks_of(spec))
        check_whole("logits", self.logits)
        check_whole("products", self.products)
        check_sides(self.for_product(""))

    def _check_without_weights(self) -> None:
        """Raise if something is asked of weights that stay in float, or nothing of anything."""
        for name in ("reconstruction", "budget"):
            if getattr(self, name) is not None:
                raise RecipeError(f"{name}: it is for weights, which stay in float (None)")
        if self.bias_correction == "weights":
            raise RecipeError("bias_correction='weights': the weights stay in float (None)")
        rules = [rule for rule in self.rules if not rule.skip]
        if self.activations is None and not any(rule.weights or rule.activations for rule in rules):
            raise RecipeError("weights and activations both stay in float: nothing to quantize")

    @classmethod
    def minmax(
        cls,
        *,
        weight_bits: int | None = 8,
        activation_bits: int | None = 8,
        skip: str | type[nn.Module] | Iterable[str | type[nn.Module]] = (),
        rules: Iterable[Rule] = (),
        **options: Unpack[RecipeOptions],
    ) -> Recipe:
        """Return a recipe that clips nothing: the range of every tensor is all that was seen."""
        return _recipe(
            _weights(weight_bits),
            activation_bits and TensorSpec(bits=activation_bits),
            skip,
            rules,
            {**options},
        )

    @classmethod
    def aciq(
        cls,
        *,
        weight_bits: int | None = 8,
        activation_bits: int | None = 8,
        skip: str | type[nn.Module] | Iterable[str | type[nn.Module]] = (),
        rules: Iterable[Rule] = (),
        **options: Unpack[RecipeOptions],
    ) -> Recipe:
        """Return the report's first system: ACIQ on activations, min-max weights, corrected biases.

        `options` are fields of `Recipe` (`bias_correction=False`) or of the activations'
        `TensorSpec` (`clip="report"`).
        """
        options.setdefault("bias_correction", True)
        return _recipe(
            _weights(weight_bits),
            activation_bits and TensorSpec(bits=activation_bits, range="aciq"),
            skip,
            rules,
            {**options},
        )

    @classmethod
    def adaround(
        cls,
        *,
        weight_bits: int = 4,
        activation_bits: int | None = 8,
        skip: str | type[nn.Module] | Iterable[str | type[nn.Module]] = (),
        rules: Iterable[Rule] = (),
        **options: Unpack[LearningOptions],
    ) -> Recipe:
        """Return the report's second system: weights rounded by AdaRound, ranges of least error.

        `options` are fields of `Recipe`, of the activations' `TensorSpec` (`range="aciq"`), or of
        `Reconstruction` (`steps=2000`).

        With activations of less than 6 bits the first layer and the last have 8 (`end_bits=None`:
        as many as the others), and unless something else is asked for, whole blocks are learned,
        freely (`blocks=False`: layers): their integers make up for the activations' rounding.

        >>> Recipe.adaround(activation_bits=4).reconstruction.blocks
        True
        """
        given: dict[str, Any] = {**options}
        if activation_bits is not None and 0 < activation_bits < _FEW_BITS:
            given.setdefault("end_bits", 8)
            if not given.keys() & _DECIDES_BLOCKS:
                given |= {name: given.get(name, value) for name, value in FREE_BLOCKS.items()}
        chosen = {key: given.pop(key) for key in OPTIONS & given.keys()}
        if chosen or "reconstruction" not in given:
            given["reconstruction"] = Reconstruction(**chosen)
        return _recipe(
            # Learning makes up for errors of rounding, not for those of clipping, so these count
            # double (benchmarks/rounding/adaround_options.py).
            TensorSpec(
                bits=weight_bits, symmetric=True, per_channel=True, range="mse", clip_weight=2.0
            ),
            activation_bits and TensorSpec(bits=activation_bits, range="mse"),
            skip,
            rules,
            given,
        )

    @classmethod
    def mixed(
        cls,
        *,
        activation_bits: int | None = 8,
        skip: str | type[nn.Module] | Iterable[str | type[nn.Module]] = (),
        rules: Iterable[Rule] = (),
        **options: Unpack[MixedOptions],
    ) -> Recipe:
        """Return `adaround`'s recipe with bits allocated within a budget, layer by layer.

        `options` are fields of `fxquant.Budget` (`max_bytes=200_000`, `average_bits=3`,
        `max_drop=0.5`), and those of `adaround`.

        >>> Recipe.mixed(average_bits=3).budget.average_bits
        3
        """
        given: dict[str, Any] = {**options}
        limits = {each.name: given.pop(each.name) for each in fields(Budget) if each.name in given}
        return cls.adaround(
            activation_bits=activation_bits,
            skip=skip,
            rules=rules,
            budget=Budget(**limits),
            **given,
        )

    @classmethod
    def named(cls, name: str) -> Recipe:
        """Return a recipe by name: "aciq" or "minmax" at 8/8 bits, "adaround" at 4/8."""
        makers: dict[str, Callable[[], Recipe]] = {
            "aciq": cls.aciq,
            "minmax": cls.minmax,
            "adaround": cls.adaround,
        }
        if not isinstance(name, str) or name not in makers:
            shown = repr(name) if isinstance(name, str) else f"of type {type(name).__name__}"
            raise RecipeError(f"recipe {shown}: choose one of {', '.join(makers)}, or a Recipe")
        return makers[name]()

    @property
    def needs_data(self) -> bool:
        """Whether `convert` works on calibration samples, which are kept for it."""
        learned = self.reconstruction is not None or self.budget is not None
        return learned or self.batchnorm_tuning or self.smoothing

    @property
    def data(self) -> Reconstruction:
        """How many samples are kept, and how they are run: of the reconstruction, if any."""
        return self.reconstruction or Reconstruction()

    def for_call(self, name: str, module: nn.Module | None) -> CallSpec:
        """Return what is asked of the call `name` after all rules, in the target's integers."""
        own = spec = CallSpec(self.weights, self.activations)
        for rule in self.rules:
            if rule.matches(name, module):
                spec = apply_rule(rule, spec, own)
        return self.target.asks_of(spec, module)

    def for_product(self, name: str) -> CallSpec:
        """Return what is asked of the product `name` of two activations, after all rules."""
        own = spec = CallSpec(None, self.products)
        for rule in self.rules:
            if rule.matches(name, None):
                spec = apply_rule(rule, spec, own)
        return self.target.asks_of(CallSpec(None, spec.activations))

    def for_end(self, call: CallSpec) -> CallSpec:
        """Return `call`, what is asked of the first layer or the last, with its least bits."""
        least = max(self.end_bits or 0, self.target.end_bits or 0)
        sides = [
            each and replace(each, bits=max(each.bits, least))
            for each in (call.weights, call.activations)
        ]
        return CallSpec(*sides)

    def for_outputs(self) -> TensorSpec | None:
        """Return what is asked of the model's outputs, in the target's integers."""
        return self.target.asks_of(CallSpec(None, self.logits)).activations


_FEW_BITS = 6
FREE_BLOCKS: dict[str, Any] = {
    "blocks": True, "method": "adaquant", "steps": 300, "activation_learning_rate": 3e-3
}  # fmt: skip
"""What `Recipe.adaround` takes by itself where activations have few bits."""
_DECIDES_BLOCKS = {"blocks", "method", "parallel", "reconstruction", "budget"}


def _weights(bits: int | None) -> TensorSpec | None:
    return None if bits is None else replace(WEIGHTS, bits=bits)


_OPTIONS = {
    "bias_correction",
    "reconstruction",
    "logits",
    "products",
    "equalization",
    "smoothing",
    "batchnorm_tuning",
    "budget",
    "end_bits",
    "target",
}


def _recipe(
    weights: TensorSpec | None,
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
