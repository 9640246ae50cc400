"""What a runtime computes on integers, and how it wants them: pure data, one record a runtime.

    Recipe.aciq(target="onnxruntime")
    Recipe.aciq(target=replace(TARGETS["x86"], name="mine", signed=True))

`fxquant.graph.placement` reads a target, and the ways out refuse a model that was quantized for
another. Operations go by the names of `fxquant.graph.operation_table`'s kinds; layers are "conv",
"conv_transpose" and "linear", averages "average_pool" over windows and "global_average".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from fxquant.errors import RecipeError
from fxquant.recipe.checks import (
    ACTIVATION_BITS,
    WEIGHT_BITS,
    check_bits,
    check_types,
    known_fields,
    nearest,
)
from fxquant.recipe.shown import short_repr
from fxquant.recipe.spec import CallSpec
from fxquant.stored_names import stored_as

Way: TypeAlias = Literal["lower", "to_qdq", "export_onnx"]
_WAYS: tuple[Way, ...] = get_args(Way)
_LAYERS = {
    "linear": nn.Linear,
    "conv_transpose": nn.modules.conv._ConvTransposeNd,
    "conv": nn.modules.conv._ConvNd,
}
_LISTS = (
    "activation_bits", "per_tensor_weights", "integer_operations", "quantized_results", "hands_on",
    "ways",
)  # fmt: skip
_MOVES = ("move", "select", "max_pool")
_CHOICES: dict[str, tuple[str, ...]] = {
    "ways": _WAYS,
    "per_tensor_weights": tuple(_LAYERS),
    "hands_on": (*_MOVES, "concat"),
}


@stored_as("Target")
@known_fields
@dataclass(frozen=True, kw_only=True, repr=False)
class Target:
    """What a runtime computes on integers, and how it wants its tensors.

    >>> Target(name="mine", signed=True).zero_points
    True
    """

    name: str
    """What errors call it."""
    signed: bool = False
    """Whether activations are int8; else uint8."""
    zero_points: bool = True
    """Whether activations may have one that is not 0."""
    activation_bits: tuple[int, ...] = (*range(2, 9), 16)
    """Numbers of bits that activations may have."""
    weight_zero_points: bool = True
    """Whether weights may have zero-points that are not 0."""
    per_tensor_weights: tuple[str, ...] = ()
    """Layers whose weights have one scale for all output channels."""
    integer_operations: tuple[str, ...] = ()
    """Operations, beside layers, that work on integers where all they read is quantized."""
    quantized_results: tuple[str, ...] = ()
    """Of layers and these, those that do so only if their result is quantized too, once, for all
    that read it; else a float reader reads the float value."""
    hands_on: tuple[str, ...] = ()
    """Calls that keep values and hand on the parameters of what they read: "move" (reshape,
    transpose, pad), "select" (slice, split), "max_pool", and "concat", whose operands then share
    one set. Of others the result is quantized."""
    quantizes_again: bool = True
    """Whether files quantize the results of calls that keep values once more, on the same grid: a
    runtime that looks for integers only between two neighbours finds them there."""
    adds_into_layers: bool = False
    """Whether a layer adds the other operand to its own result, which is then not quantized."""
    float_outputs: bool = False
    """Whether the model returns the float value of a layer, or of the activation behind one, that
    others read as integers; else it returns what they read."""
    end_bits: int | None = None
    """As `Recipe.end_bits`, where that asks for less."""
    ways: tuple[Way, ...] = _WAYS
    """Ways out that such a model may take; none: it is for simulation."""

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise RecipeError(f"Target(name={self.name!r}): give it a name")
        where = f"Target {self.name!r}: "
        check_types(self, where, but=["end_bits"])
        for name in _LISTS:
            given = getattr(self, name)
            if not isinstance(given, (tuple, list)):
                raise RecipeError(f"{where}{name}={given!r}: give a tuple")
            object.__setattr__(self, name, tuple(given))
        for bits in self.activation_bits:
            check_bits(f"{where}activation_bits", bits, ACTIVATION_BITS)
        for name in ("integer_operations", "quantized_results"):
            if not all(isinstance(each, str) for each in getattr(self, name)):
                raise RecipeError(f"{where}{name}={getattr(self, name)!r}: give names")
        for name, known in _CHOICES.items():
            unknown = [each for each in getattr(self, name) if each not in known]
            if unknown:
                raise RecipeError(f"{where}{name}={unknown}: choose of {', '.join(known)}")
        check_bits(f"{where}end_bits", self.end_bits, WEIGHT_BITS, none="for no more than others")

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"TARGETS[{self.name!r}]" if TARGETS.get(self.name) == self else short_repr(self)

    def asks_of(self, call: CallSpec, module: nn.Module | None = None) -> CallSpec:
        """Return `call`, what a recipe asks of the call of a module, in the runtime's integers."""
        weights, activations = call.weights, call.activations
        if weights is not None and not self.weight_zero_points:
            weights = replace(weights, symmetric=True)
        if weights is not None and layer_name(module) in self.per_tensor_weights:
            weights = replace(weights, per_channel=False)
        if activations is not None:
            self._check_bits(activations.bits)
            activations = replace(
                activations,
                signed=activations.signed or self.signed,
                symmetric=activations.symmetric or not self.zero_points,
            )
        return CallSpec(weights, activations)

    def _check_bits(self, bits: int) -> None:
        if bits not in self.activation_bits:
            possible = " or ".join(map(str, self.activation_bits))
            raise RecipeError(
                f"target {self.name!r}: activations of {bits} bits: it has kernels for {possible}"
            )

    @classmethod
    def named(cls, target: Any) -> Target:
        """Return the target of that name, or the target itself."""
        if isinstance(target, Target):
            return target
        if not isinstance(target, str) or target not in TARGETS:
            near = nearest(target, TARGETS) if isinstance(target, str) else []
            more = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(TARGETS)
            raise RecipeError(f"target={target!r}: choose one of {known}, or a Target{more}")
        return TARGETS[target]


def layer_name(module: nn.Module | None) -> str | None:
    """Return what targets call the layer: "conv", "conv_transpose" or "linear".

    >>> layer_name(nn.Conv1d(3, 8, 3))
    'conv'
    """
    return next((name for name, kind in _LAYERS.items() if isinstance(module, kind)), None)


_X86 = Target(
    name="x86",
    integer_operations=("add", "average_pool", "global_average"),
    hands_on=(*_MOVES, "concat"),
    adds_into_layers=True,
)

TARGETS = {
    each.name: each
    for each in (
        _X86,
        replace(
            _X86,
            name="openvino",
            quantizes_again=False,
            adds_into_layers=False,
            float_outputs=True,
            ways=("export_onnx", "to_qdq"),
        ),
        Target(
            name="onnxruntime",
            integer_operations=(
                *("add", "mul", "sigmoid", "leaky_relu", "softmax", "concat", "average_pool"),
                "global_average",
            ),
            quantized_results=(
                *("conv", "add", "mul", "sigmoid", "leaky_relu", "softmax", "concat"),
                *("average_pool", "global_average"),
            ),
            hands_on=_MOVES,
            float_outputs=True,
            ways=("export_onnx",),
        ),
        Target(
            name="tensorrt",
            signed=True,
            zero_points=False,
            weight_zero_points=False,
            per_tensor_weights=("conv_transpose",),
            integer_operations=("add", "average_pool", "global_average"),
            hands_on=_MOVES,
            adds_into_layers=True,
            ways=("export_onnx",),
        ),
        Target(
            name="executorch",
            signed=True,
            activation_bits=(8,),
            weight_zero_points=False,
            integer_operations=("add", "mul", "global_average"),
            quantized_results=(
                *("conv", "conv_transpose", "linear", "add", "mul", "global_average"),
            ),
            hands_on=(*_MOVES, "concat"),
            ways=("to_qdq",),
        ),
        Target(name="layers", end_bits=8, ways=()),
    )
}
"""The runtimes that are known, by name; "layers" is the placement of the literature (AdaRound,
BRECQ, QDrop): the inputs and weights of layers alone."""
