"""What to quantize, and how: pure data, checked when it is made.

A `Recipe` holds one `TensorSpec` for weights, one for activations, and a list of `Rule`s that
override them call by call. Nothing here touches a tensor or a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from fxquant.errors import RecipeError
from fxquant.recipe.budget import Budget
from fxquant.recipe.checks import (
    WEIGHT_BITS,
    check_bits,
    check_types,
    known_fields,
    nearest,
)
from fxquant.recipe.constructors import by_name, describe_constructors
from fxquant.recipe.document import from_document, to_document
from fxquant.recipe.nearest_start import nearest_call
from fxquant.recipe.options import BiasCorrection, LearningOptions, MixedOptions, RecipeOptions
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.recipe.rule import Rule, apply_rule
from fxquant.recipe.shown import as_code
from fxquant.recipe.spec import WEIGHTS, CallSpec, TensorSpec, check_sides, check_whole
from fxquant.recipe.starts import Match, as_rules, learned, rounded_to_nearest, within_budget
from fxquant.recipe.target import TARGETS, Target
from fxquant.stored_names import stored_as

if TYPE_CHECKING:
    from typing_extensions import Unpack


@stored_as("Recipe")
@known_fields
@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """What to quantize how. Start from `Recipe.aciq()`, `Recipe.adaround()` or `Recipe.minmax()`.

    >>> Recipe.aciq(weight_bits=4, skip=["fc"]).weights.bits
    4
    """

    weights: TensorSpec | None = WEIGHTS
    """How weights are quantized; None: not at all."""
    activations: TensorSpec | None = TensorSpec()
    """How what layers and additions read is quantized; None: not at all."""
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
    """Overrides for single calls; later ones win."""
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
        object.__setattr__(self, "rules", as_rules(self.rules))
        object.__setattr__(self, "target", Target.named(self.target))
        check_types(self, but=["end_bits"])
        for name, kind in _PARTS.items():
            if not isinstance(getattr(self, name), kind | None):
                hint = ", or use Recipe.aciq(…)" if kind is TensorSpec else ""
                raise RecipeError(
                    f"{name}={getattr(self, name)!r}: give a {kind.__name__} or None{hint}"
                )
        if self.weights is None:
            self._check_without_weights()
        if self.bias_correction == "weights" and self.reconstruction is not None:
            raise RecipeError(
                "bias_correction='weights' changes what a reconstruction learned: choose one"
            )
        check_bits("end_bits", self.end_bits, WEIGHT_BITS, none="for no more than the others")
        own = CallSpec(self.weights, self.activations)
        check_sides(self.target.asks_of(own))
        for number, rule in enumerate(self.rules):
            try:
                check_sides(self.target.asks_of(apply_rule(rule, own, own)))
            except RecipeError as error:
                raise RecipeError(f"rule {as_code(rule.match)} (#{number}): {error}") from None
        check_whole("logits", self.logits)
        check_whole("products", self.products)
        check_sides(self.for_product(""))

    def __repr__(self) -> str:
        return nearest_call(self)

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
    @by_name(RecipeOptions)
    def minmax(
        cls,
        *,
        weight_bits: int | None = 8,
        activation_bits: int | None = 8,
        skip: Match | Iterable[Match] = (),
        rules: Rule | Iterable[Rule] = (),
        **options: Unpack[RecipeOptions],
    ) -> Recipe:
        """Return a recipe that clips nothing: the range of every tensor is all that was seen."""
        given = {"skip": skip, "rules": rules, **options}
        return cls(**rounded_to_nearest(weight_bits, activation_bits, TensorSpec(), given))

    @classmethod
    @by_name(RecipeOptions)
    def aciq(
        cls,
        *,
        weight_bits: int | None = 8,
        activation_bits: int | None = 8,
        skip: Match | Iterable[Match] = (),
        rules: Rule | Iterable[Rule] = (),
        **options: Unpack[RecipeOptions],
    ) -> Recipe:
        """Return the report's first system: ACIQ on activations, min-max weights, corrected biases.

        >>> Recipe.aciq(activation_clip="report").activations.clip
        'report'
        """
        given = {"skip": skip, "rules": rules, "bias_correction": True, **options}
        aciq = TensorSpec(range="aciq")
        return cls(**rounded_to_nearest(weight_bits, activation_bits, aciq, given))

    @classmethod
    @by_name(LearningOptions)
    def adaround(
        cls,
        *,
        weight_bits: int = 4,
        activation_bits: int | None = 8,
        skip: Match | Iterable[Match] = (),
        rules: Rule | Iterable[Rule] = (),
        **options: Unpack[LearningOptions],
    ) -> Recipe:
        """Return the report's second system: weights rounded by AdaRound, ranges of least error.

        With activations of less than 6 bits the first layer and the last have 8 (`end_bits=None`:
        as many as the others), and unless something else is asked for, whole blocks are learned,
        freely (`blocks=False`: layers): their integers make up for the activations' rounding.

        >>> Recipe.adaround(activation_bits=4).reconstruction.blocks
        True
        """
        return cls(
            **learned(weight_bits, activation_bits, {"skip": skip, "rules": rules, **options})
        )

    @classmethod
    @by_name(MixedOptions)
    def mixed(
        cls,
        *,
        activation_bits: int | None = 8,
        skip: Match | Iterable[Match] = (),
        rules: Rule | Iterable[Rule] = (),
        **options: Unpack[MixedOptions],
    ) -> Recipe:
        """Return `adaround`'s recipe with bits allocated within a budget, layer by layer.

        At least one limit is given, as `max_bytes=200_000`, `average_bits=3` or `max_drop=0.5`;
        needs scipy: `pip install fxquant[mixed]`.

        >>> Recipe.mixed(average_bits=3).budget.average_bits
        3
        """
        return cls(**within_budget(activation_bits, {"skip": skip, "rules": rules, **options}))

    @classmethod
    def named(cls, name: str) -> Recipe:
        """Return a recipe by name: "aciq" or "minmax" at 8/8 bits, "adaround" at 4/8."""
        makers: dict[str, Callable[[], Recipe]] = {
            "aciq": cls.aciq,
            "minmax": cls.minmax,
            "adaround": cls.adaround,
        }
        if not isinstance(name, str):
            raise RecipeError(f"recipe {name!r}: give one of the names {', '.join(makers)}")
        if name in makers:
            return makers[name]()
        if name == "mixed":
            raise RecipeError("recipe 'mixed' needs a limit: Recipe.mixed(max_bytes=200_000)")
        near = nearest(name, makers)
        more = f"; did you mean {near[0]!r}?" if near else ""
        if any(character.isdigit() for character in name):
            more = "; bits are options: Recipe.aciq(weight_bits=4, activation_bits=8)"
        raise RecipeError(f"recipe {name!r}: choose one of {', '.join(makers)}, or a Recipe{more}")

    @classmethod
    def from_json(cls, text: str, *, custom: Iterable[type[nn.Module]] = ()) -> Recipe:
        """Return the recipe that a document of `to_json` describes.

        No code of the document's runs. Of module types it may name PyTorch's and torchvision's.

        Args:
            text: the document itself, not its path.
            custom: your own module types that its rules may name.

        Raises:
            RecipeError: the text is no document of a recipe, has unknown fields, or was written by
                a later version.

        >>> Recipe.from_json('{"fxquant_recipe": 1, "rules": [{"match": "fc", "skip": true}]}')
        Recipe.minmax(skip=['fc'])
        """
        return from_document(text, cls, custom)

    def to_json(self) -> str:
        """Return the recipe as a document: what differs from `Recipe()`, field by field.

        >>> print(Recipe.minmax(skip=[nn.Linear], end_bits=8).to_json())
        {
          "fxquant_recipe": 1,
          "rules": [
            {
              "type": "torch.nn.Linear",
              "skip": true
            }
          ],
          "end_bits": 8
        }
        """
        return to_document(self)

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


_PARTS: dict[str, type] = {
    "weights": TensorSpec,
    "activations": TensorSpec,
    "reconstruction": Reconstruction,
    "budget": Budget,
}


describe_constructors(
    {
        "minmax": Recipe.minmax(),
        "aciq": Recipe.aciq(),
        "adaround": Recipe.adaround(),
        "mixed": Recipe.mixed(average_bits=4),
    }
)
