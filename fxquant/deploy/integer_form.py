"""Whether integers can compute what a model simulates, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from fxquant.capture.naming import find_regions
from fxquant.errors import LoweringError
from fxquant.graph.chains import Chain
from fxquant.graph.operations import relu_bounds
from fxquant.modules.own import own_modules
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.recipe.target import TARGETS, Target, Way

_QUANTIZE, _DEQUANTIZE = "quantized_decomposed.quantize", "quantized_decomposed.dequantize"


def require_integers(model: nn.Module, caller: str) -> None:
    """Raise if a model that `convert` returned computes what integers cannot express."""
    obstacles = list(_obstacles(model))
    if obstacles:
        raise LoweringError(f"{caller}: the model has no integer form: {'; '.join(obstacles)}")


def require_target(target: Target, way: Way, asked: Target | str | None = None) -> None:
    """Raise if a model that was quantized for `target` is not for this way out.

    Args:
        target: of the recipe.
        way: which is asked for.
        asked: a target that the caller named.
    """
    others = [each.name for each in TARGETS.values() if way in each.ways]
    if asked is not None and Target.named(asked) != target:
        wanted = f"target {str(asked)!r} is asked for"
    elif way not in target.ways:
        wanted = f"it is for {' and '.join(map(repr, others))}"
    else:
        return
    raise LoweringError(
        f"{way}: the model was quantized for target {target.name!r}, and {wanted}: quantize it "
        f"again, with Recipe(target={str(asked or others[0])!r})"
    )


def require_quantized_results(standard: nn.Module) -> None:
    """Raise if a layer on integers gives a tensor that is not quantized at once, for all readers.

    XNNPACK's partitioner does not take such a layer, but marks what it reads as taken, and its
    results are wrong by hundreds of steps without a word (ExecuTorch 1.5).

    Args:
        standard: in PyTorch's standard operators.
    """
    names = [
        layer.name
        for gm in find_regions(standard).values()
        for layer in gm.graph.nodes
        if _works_on_integers(layer) and not _is_quantized_at_once(gm, layer)
    ]
    if names:
        raise LoweringError(
            f"to_qdq: the results of {_some(names)} are not quantized, and would be wrong in "
            "XNNPACK: leave these layers in float, with Recipe(skip=[…])"
        )


def _works_on_integers(layer: fx.Node) -> bool:
    """Say whether it is a function of a dequantized input and a dequantized parameter."""
    if layer.op != "call_function" or len(layer.all_input_nodes) < 2:
        return False
    x, weight = layer.all_input_nodes[:2]
    is_parameter = weight.op == "call_function" and weight.all_input_nodes[0].op == "get_attr"
    return is_parameter and all(_DEQUANTIZE in str(each.target) for each in (x, weight))


def _is_quantized_at_once(gm: fx.GraphModule, layer: fx.Node) -> bool:
    chain = Chain.behind(gm, layer).take(relu_bounds)
    return chain.next is not None and _QUANTIZE in str(chain.next.target)


def _obstacles(model: nn.Module) -> Iterator[str]:
    """Yield what of the model keeps it from integers as a whole, one sentence a kind."""
    reasons: dict[str, list[str]] = {}
    for name, module in own_modules(model):
        reason = module.why_no_integers()
        if reason is not None:
            reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield f"{_some(names)}: {reason}"
    halves = {
        str(module.dtype_probe.dtype)
        for module in model.modules()
        if isinstance(module, QuantizedLayer) and module.dtype_probe.dtype is not torch.float32
    }
    if halves:
        yield f"its layers return {', '.join(sorted(halves))}: call .float() on the model first"
    devices = {str(tensor.device) for tensor in model.buffers()} - {"cpu"}
    if devices:
        yield f"it is on {', '.join(sorted(devices))}: move it with .cpu()"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(repr(name) for name in names[:2]) + more
