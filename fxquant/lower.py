"""The fake-quantized model on int8 kernels, and in PyTorch's standard operators."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxquant.dynamic import DynamicQuantize
from fxquant.errors import LoweringError
from fxquant.examples import example_arguments
from fxquant.fakequant import FakeQuantize, QuantizedLayer
from fxquant.int8 import Int8Layer
from fxquant.kernels import why_unavailable
from fxquant.meta import record, write_journals
from fxquant.passes import (
    LowerAdditions,
    LowerAverages,
    LowerLayers,
    ReuseOperands,
    SinkDequantize,
    SplitQuantizers,
    ToQdq,
)
from fxquant.pipeline import Pipeline
from fxquant.region import find_regions
from fxquant.states import require_converted

_BACKENDS = ("x86",)


def lower(quantized: nn.Module, example_inputs: Any = None, *, backend: str = "x86") -> nn.Module:
    """Return `quantized` on int8 kernels: the same values, integers from layer to layer.

    What has no integer form stays in float between `dequantize` and `quantize`; `report` lists each
    layer that stayed, and why. Any batch size goes.

    Args:
        quantized: what `convert` returned; left as it is.
        example_inputs: optional: one batch (a tensor, a tuple of arguments, or a dict of keywords),
            to run once, which packs the weights for the kernels.
        backend: "x86": oneDNN's kernels, for processors with VNNI.

    Raises:
        LoweringError: the model has no integer form, or this machine no kernels for it.
        PassError: `quantized` did not come from `convert`.

    >>> from fxquant.api import quantize
    >>> from fxquant.text import text
    >>> quantized = quantize(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), [torch.ones(16, 8)])
    >>> [type(module).__name__ for module in lower(quantized).modules()][1:2]
    ['Int8Linear']
    """
    if backend not in _BACKENDS:
        raise LoweringError(f"lower: backend {backend!r}: choose one of {', '.join(_BACKENDS)}")
    recipe = require_converted(quantized, "lower")
    require_integers(quantized, "lower")
    missing = why_unavailable()
    if missing is not None:
        raise LoweringError(
            f"lower: no int8 kernels here: {missing}; the graph of fxquant.to_qdq(quantized) runs "
            "everywhere"
        )
    lowered = copy.deepcopy(quantized)
    for gm in find_regions(lowered).values():
        Pipeline(
            SplitQuantizers(),
            SinkDequantize(),
            LowerLayers(),
            LowerAdditions(),
            LowerAverages(),
            ReuseOperands(),
        )(gm)
    if not any(isinstance(module, Int8Layer) for module in lowered.modules()):
        raise LoweringError(f"lower: no layer can work on integers: {'; '.join(_reasons(lowered))}")
    write_journals(lowered, recipe)
    if example_inputs is not None:
        with torch.no_grad():
            lowered(*example_arguments(lowered, example_inputs))
    return lowered


def to_qdq(quantized: nn.Module) -> nn.Module:
    """Return `quantized` in PyTorch's standard quantize and dequantize operators.

    That is what `torch.export` hands to inductor, ExecuTorch and ONNX. The values are the same, and
    so is the size: weights are int8 tensors, which the graph turns into floating point.

    Args:
        quantized: what `convert` returned; left as it is.

    Raises:
        LoweringError: the model has no integer form.
        PassError: `quantized` did not come from `convert`.
    """
    recipe = require_converted(quantized, "to_qdq")
    require_integers(quantized, "to_qdq")
    exposed = copy.deepcopy(quantized)
    for gm in find_regions(exposed).values():
        ToQdq()(gm)
    write_journals(exposed, recipe)
    return exposed


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


def _reasons(model: nn.Module) -> list[str]:
    """Return why nothing was lowered, each reason once."""
    refused = [
        reason
        for gm in find_regions(model).values()
        for node in gm.graph.nodes
        for reason in record(node).refused
        if reason.startswith("not lowered")
    ]
    return list(dict.fromkeys(refused))
