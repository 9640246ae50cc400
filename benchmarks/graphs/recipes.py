"""Recipes drawn by choices, as Python code."""

from __future__ import annotations

from benchmarks.graphs.choices import Choices

_RANGES = (
    "", "", "range='percentile', percentile=99.9", "range='mse'", "range='ema'", "range='bn'",
    "range='aciq', clip='report'", "range='aciq', clip='weighted', distribution='laplace'",
    "range='aciq', clip='optimal'", "symmetric=True", "signed=True", "per_channel=True",
    "per_channel=True, bit_allocation=True", "dynamic=True",
)  # fmt: skip
_WEIGHTS = (
    "symmetric=True", "", "per_channel=True", "symmetric=True, per_channel=True, range='mse'",
    "range='percentile', percentile=99", "range='aciq', per_channel=True, symmetric=True",
)  # fmt: skip
_RULES = (
    "Rule('*', activations=8)", "Rule('*', weights=4)", "Rule('{layer}*', activations=None)",
    "Rule('{layer}*', skip=True)", "Rule('{layer}*', weights=TensorSpec(bits=5))",
    "Rule('*', activations=TensorSpec(bits=8, symmetric=True))",
)  # fmt: skip
_PRODUCTS = ("range='mse'", "", "range='percentile', percentile=99.9")
_TARGETS = ("openvino", "onnxruntime", "tensorrt", "executorch", "layers")
_LEARNED = (
    "adaround", "gram", "adaquant", "blocks", "parallel",
)  # fmt: skip


def draw_recipe(choices: Choices) -> str:
    """Return the expression of a recipe: half of them of 8 bits, for x86."""
    way = choices.pick(("minmax", "aciq", "minmax", "aciq", "aciq", "weights", "learned"))
    options = []
    target = choices.pick((*[""] * 9, *_TARGETS))
    weights: int | None
    activations: int | None
    weights, activations = choices.pick((8, 8, 8, None)), 8
    if choices.one_in(2):
        weights = choices.pick((8, 4, 2, 3, 5, 6, 7))
        activations = choices.pick((8, 4, 6, 2, 3, 5, 7, 16, None))
    if target == "executorch":
        activations = 8
    if way == "learned":
        method = choices.pick(_LEARNED)
        learned = {"blocks": "blocks=True", "parallel": "parallel=True"}
        options = [f"weight_bits={weights or 4}", f"activation_bits={activations}", "steps=4"]
        options += [learned.get(method, f"method={method!r}"), "rows=16", "samples=8"]
        name = "adaround"
    elif way == "weights":
        spec = choices.pick(_WEIGHTS)
        weights = weights or 8
        bits = f"bits={weights}" + (f", {spec}" if spec else "")
        kept = f"TensorSpec(bits={activations})" if activations else "None"
        options, name = [f"weights=TensorSpec({bits})", f"activations={kept}"], ""
    else:
        options, name = [f"weight_bits={weights}", f"activation_bits={activations}"], way
        more = choices.pick(_RANGES)
        fits = activations in range(9) and (way == "minmax" or "range" not in more)
        fits = fits and ("bit_allocation" not in more or target != "tensorrt")  # symmetric
        options += [f"activation_{each}" for each in more.split(", ")] if more and fits else []
    if choices.one_in(6):
        options.append("equalization=True")
    correction = choices.pick(("", "", "", "True", "False", "'weights'"))
    is_possible = correction != "'weights'" or (way != "learned" and weights is not None)
    options += [f"bias_correction={correction}"] if correction and is_possible else []
    options += ["batchnorm_tuning=True"] if choices.one_in(10) else []
    options += [f"target={target!r}"] if target else []
    options += _rules(choices)
    if choices.one_in(8):
        options.append(f"products=TensorSpec({choices.pick(_PRODUCTS)})")
    return f"Recipe{'.' if name else ''}{name}({', '.join(options)})"


def _rules(choices: Choices) -> list[str]:
    """Return a rule for all calls, or for the layer whose name stands for "{layer}"."""
    if not choices.one_in(8):
        return []
    rule = choices.pick(_RULES)
    return [f"rules=[{rule}]"]
