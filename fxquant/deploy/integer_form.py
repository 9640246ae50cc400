"""Whether integers can compute what a model simulates, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fxquant.errors import LoweringError
from fxquant.modules.own import own_modules
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.recipe.target import TARGETS, Target, Way


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
