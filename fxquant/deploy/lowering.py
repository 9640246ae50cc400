"""The fake-quantized model on int8 kernels, and in PyTorch's standard operators."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from fxquant.calling.examples import example_arguments
from fxquant.calling.explanation import explained
from fxquant.capture.graph_state import with_state
from fxquant.capture.naming import find_regions
from fxquant.deploy.integer_form import (
    require_integers,
    require_quantized_results,
    require_target,
)
from fxquant.errors import LoweringError
from fxquant.graph.journal import write_journals
from fxquant.graph.records import record, refusals_of, tell_refusals
from fxquant.graph.states import require_converted
from fxquant.int8.modules import Int8Layer
from fxquant.int8.onednn import why_unavailable
from fxquant.numerics.containers import cloned
from fxquant.passes.lower.fit_xnnpack import FitXnnpack
from fxquant.passes.lower.lower_additions import LowerAdditions
from fxquant.passes.lower.lower_averages import LowerAverages
from fxquant.passes.lower.lower_layers import LowerLayers
from fxquant.passes.lower.repeat_quantizers import RepeatQuantizers
from fxquant.passes.lower.requantize_integers import RequantizeIntegers
from fxquant.passes.lower.reuse_operands import ReuseOperands
from fxquant.passes.lower.sink_clamps import SinkClamps
from fxquant.passes.lower.sink_dequantize import SinkDequantize
from fxquant.passes.lower.split_quantizers import SplitQuantizers
from fxquant.passes.lower.to_qdq import ToQdq
from fxquant.passes.pipeline import Pipeline
from fxquant.programs import why_unavailable as why_no_programs

_BACKENDS = ("x86",)
_logger = logging.getLogger("fxquant")


def lower(
    quantized: nn.Module,
    example_inputs: Any = None,
    *,
    backend: str = "x86",
    verify: bool = True,
) -> nn.Module:
    """Return `quantized` on int8 kernels: the same values, integers from layer to layer.

    What has no integer form stays in float between `dequantize` and `quantize`; `report` lists each
    layer that stayed, and why. Any batch size goes.

    Args:
        quantized: what `convert` returned; left as it is.
        example_inputs: optional: one batch, as `fxquant.prepare` takes it, to run once, which packs
            the weights for the kernels, and makes the program for inputs of its sizes.
        backend: "x86": oneDNN's kernels, for processors with VNNI.
        verify: check each kernel once on this machine, at the sizes that calibration met and at
            each new one: two calls of random integers must agree with each other and with float32.
            A layer whose kernel is wrong stays in the simulation, at a new size it is computed in
            float32; a warning says so. It takes a few milliseconds a layer.

    Raises:
        LoweringError: the model has no integer form, or this machine no kernels for it.
        CalibrationError: the model raises an error on `example_inputs`, which is the cause.
        PassError: `quantized` did not come from `convert`.

    >>> from fxquant.api import quantize
    >>> from fxquant.graph.printing import text
    >>> quantized = quantize(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), [torch.ones(16, 8)])
    >>> [type(module).__name__ for module in lower(quantized).modules()][1:2]
    ['Int8Linear']
    """
    if backend not in _BACKENDS:
        raise LoweringError(f"lower: backend {backend!r}: choose one of {', '.join(_BACKENDS)}")
    recipe = require_converted(quantized, "lower")
    require_target(recipe.target, "lower")
    require_integers(quantized, "lower")
    missing = why_unavailable()
    if missing is not None:
        raise LoweringError(
            f"lower: no int8 kernels here: {missing}; the graph of fxquant.to_qdq(quantized) runs "
            "everywhere"
        )
    lowered = Pipeline(
        SplitQuantizers(),
        SinkClamps(),
        SinkDequantize(),
        LowerLayers(verify=verify),
        LowerAdditions(),
        LowerAverages(),
        RequantizeIntegers(),
        ReuseOperands(),
    ).on_copy_of(quantized)
    if not any(isinstance(module, Int8Layer) for module in lowered.modules()):
        why = _refusals(lowered) or "all weights are in float"
        raise LoweringError(f"lower: no layer can work on integers: {why}")
    with_state(lowered)
    write_journals(lowered, recipe)
    _tell_refusals("lower", quantized, lowered)
    if example_inputs is not None:
        arguments = cloned(example_arguments(lowered, example_inputs))
        with torch.no_grad(), explained("lower: example_inputs", example_inputs):
            lowered(*arguments)
    no_programs = why_no_programs()
    if no_programs is not None:
        _logger.info(
            "lower: the graph runs call by call, for there are no programs: %s", no_programs
        )
    return lowered


def to_qdq(quantized: nn.Module) -> nn.Module:
    """Return `quantized` in PyTorch's standard quantize and dequantize operators.

    That is what `torch.export` hands to inductor, ExecuTorch and ONNX. The values are the same, and
    so is the size: weights are int8 tensors, which the graph turns into floating point. Quantized
    for the target "executorch", a model goes into a .pte file whose layers XNNPACK runs in
    integers (ExecuTorch 1.5):

        import executorch.kernels.quantized
        from executorch.exir import to_edge_transform_and_lower
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        program = torch.export.export(fxquant.to_qdq(quantized), (example,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        lowered.to_executorch().save("model.pte")

    Args:
        quantized: what `convert` returned; left as it is.

    Raises:
        LoweringError: the model has no integer form, or a layer's result is not quantized where the
            target's runtime would compute it wrongly.
        PassError: `quantized` did not come from `convert`.
    """
    recipe = require_converted(quantized, "to_qdq")
    require_target(recipe.target, "to_qdq")
    require_integers(quantized, "to_qdq")
    if recipe.target.quantized_results:
        exposed = Pipeline(RepeatQuantizers(), ToQdq(), FitXnnpack()).on_copy_of(quantized)
        require_quantized_results(exposed)
    else:
        exposed = Pipeline(ToQdq()).on_copy_of(quantized)
    with_state(exposed)
    write_journals(exposed, recipe)
    _tell_refusals("to_qdq", quantized, exposed)
    return exposed


def _tell_refusals(caller: str, quantized: nn.Module, made: nn.Module) -> None:
    known = refusals_of(find_regions(quantized).values())
    tell_refusals(caller, find_regions(made).values(), known)


def _refusals(model: nn.Module) -> str:
    """Return why nothing was lowered, each reason once."""
    refused = [
        str(refusal)
        for gm in find_regions(model).values()
        for node in gm.graph.nodes
        for refusal in record(node).refused
        if refusal.step == "not lowered"
    ]
    return "; ".join(dict.fromkeys(refused))
