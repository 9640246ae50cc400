"""Whether integers can compute what a model simulates, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fxquant.errors import LoweringError
from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.quantized_layer import QuantizedLayer


def require_integers(model: nn.Module, caller: str) -> None:
    """Raise if a model that `convert` returned computes what integers cannot express."""
    obstacles = list(_obstacles(model))
    if obstacles:
        raise LoweringError(f"{caller}: the model has no integer form: {'; '.join(obstacles)}")


def _obstacles(model: nn.Module) -> Iterator[str]:
    """Yield what of the model keeps it from integers as a whole, one sentence a kind."""
    modules = dict(model.named_modules())
    moments = [
        name
        for name, module in modules.items()
        if isinstance(module, QuantizedLayer) and module.weight_gain is not None
    ]
    if moments:
        yield (
            f"{_some(moments)}: corrected moments leave the integers' grid "
            "(bias_correction='weights'): choose bias_correction=True, which corrects the bias"
        )
    dynamic = [name for name, module in modules.items() if isinstance(module, DynamicQuantize)]
    if dynamic:
        yield (
            f"{_some(dynamic)}: ranges taken from each batch (dynamic=True): calibrate them instead"
        )
    wide = [
        name
        for name, module in modules.items()
        if isinstance(module, FakeQuantize) and module.spec.bits > 8
    ]
    if wide:
        yield f"{_some(wide)}: activations of 16 bits: choose 2 to 8"
    halves = {
        str(module.dtype_probe.dtype)
        for module in modules.values()
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
