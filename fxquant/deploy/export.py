"""The fake-quantized model as an ONNX file."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant.calling.examples import example_arguments
from fxquant.calling.explanation import explained
from fxquant.capture.naming import find_regions
from fxquant.deploy.call_names import FreeAxes, named_inputs
from fxquant.deploy.exported_program import Refused, translate_program
from fxquant.deploy.integer_form import require_integers, require_target
from fxquant.deploy.onnx_file import change_graph, staged, write_model
from fxquant.deploy.onnx_graph import (
    drop_notes,
    keep_in_float,
    name_batch,
    name_inputs,
    pack_weights,
    split_biases,
)
from fxquant.deploy.onnx_operators import average_globally, widen_biases
from fxquant.deploy.tensorrt_rules.checker import require_rules
from fxquant.deploy.tracing.call import translate_call
from fxquant.deploy.tracing.graph import describe_lengths, fix_lengths, gather_constants
from fxquant.deploy.verification import verify_file
from fxquant.errors import LoweringError, StorageError, kind_of
from fxquant.graph.states import require_converted
from fxquant.modules.copies import copy_module
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import Grid
from fxquant.numerics.containers import cloned
from fxquant.passes.lower.clamp_floats import ClampFloats
from fxquant.passes.lower.clamp_integers import ClampIntegers
from fxquant.passes.lower.repeat_quantizers import RepeatQuantizers
from fxquant.passes.lower.to_qdq import ToQdq
from fxquant.passes.pipeline import Pipeline
from fxquant.recipe.target import Target

if TYPE_CHECKING:
    from onnx import ModelProto

_LEAST_OPSET = 18
_INT4_OPSET = 21


def export_onnx(
    quantized: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    int4: bool = False,
    target: Target | str | None = None,
    verify: bool = True,
) -> None:
    """Write `quantized` as an ONNX file with QuantizeLinear and DequantizeLinear nodes.

    The file computes what `quantized` does. A runtime runs in int8 what the recipe's target says of
    it. Of what was quantized for "x86" OpenVINO runs nearly all; onnxruntime leaves in float the
    convolutions that feed an addition, SiLU or Hardswish, transposed ones, and what reads a scale
    for each channel. onnxruntime rounds biases to int32, which moves a result by one step now and
    then, and wants 1.28 for asymmetric weights per channel. What was quantized for TensorRT keeps
    to its rules (`fxquant.deploy.tensorrt_rules`), or is refused.

    Inputs are named as the model's arguments are; outputs "output", "output_0", …, or by their keys
    in a dict: of a detector "images_0", …, and "output_0_boxes", ….

    A graph goes by `torch.export`. What that refuses, and a model in regions, detectors among them,
    is exported by tracing a call (`fxquant.deploy.tracing`): what Python decides on values of the
    inputs is refused, on their sizes fixes them. A list of images, (channels, height, width), is a
    batch of fixed length; their sizes are free where `verify` proves that others work.

    Args:
        quantized: what `convert` returned; left as it is.
        path: of the file. It is written as a whole, or not at all. Tensors of more than 2 GB lie in
            another one, `path` with ".data" behind.
        example_inputs: one batch, as `fxquant.prepare` takes it.
        opset: version of ONNX's operators, 18 or later, traced to 21; None: the exporter's choice.
        dynamic_batch: let the first axis be of any length, of all inputs that are as long there as
            the first one.
        int4: store weights of up to 4 bits in half a byte, not a byte; needs opset 21, which is
            then the default.
        target: which runtime the file is for; None: the one that the model was quantized for.
        verify: where onnxruntime is installed, run the file on the example, its optimizations off,
            and compare all outputs with the model's: less than 30 dB is an error, or, where the
            model is as far from itself under a noise of 80 dB, a warning. A traced file is run on a
            longer and a shorter batch, and on images of other sizes, too.

    Raises:
        LoweringError: the model was quantized for another runtime or has no integer form, PyTorch's
            exporter or TensorRT cannot take it, the file computes something else, or a package is
            missing: `pip install fxquant[onnx]`.
        CalibrationError: the model raises an error on `example_inputs`, which is the cause.
        StorageError: the file cannot be written.
        PassError: `quantized` did not come from `convert`.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise StorageError(
            f"export_onnx: path is {kind_of(path)}: give the path of the file, then example_inputs"
        )
    recipe = require_converted(quantized, "export_onnx")
    require_target(recipe.target, "export_onnx", target)
    require_integers(quantized, "export_onnx")
    _require_packages()
    if opset is None and int4:
        opset = _INT4_OPSET
    _check_opset(opset, _INT4_OPSET if int4 else _LEAST_OPSET)
    simulation = copy_module(quantized).eval()
    arguments = cloned(example_arguments(simulation, example_inputs))
    with torch.no_grad(), explained("export_onnx: example_inputs", example_inputs):
        simulation(*cloned(arguments))
    exposed = _in_standard_operators(simulation, recipe.target)
    model, axes = _translate(exposed, arguments, opset, dynamic_batch)
    if recipe.target.zero_points:
        split_biases(model)
        widen_biases(model)
        average_globally(model)
        keep_in_float(model)
    if int4:
        pack_weights(model)
    drop_notes(model)
    if recipe.target.name == "tensorrt":
        require_rules(model, "export_onnx")
    try:
        with staged(Path(path)) as written:
            write_model(model, written)
            proven = verify_file(written, simulation, arguments, axes) if verify else frozenset()
            inputs = named_inputs(simulation, arguments)
            fixed = {name: inputs[name].shape for name in axes.sizes - proven}
            if fixed:
                change_graph(written, lambda model: fix_lengths(model, fixed))
    except OSError as error:
        raise StorageError(f"export_onnx: {path}: cannot be written: {error}") from error


def _require_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise LoweringError(
            f"export_onnx: {' and '.join(missing)} not installed: pip install fxquant[onnx]"
        )


def _check_opset(opset: int | None, least: int) -> None:
    if opset is not None and opset < least:
        reason = "is the first with INT4" if least == _INT4_OPSET else "is PyTorch's least"
        raise LoweringError(f"export_onnx: opset={opset}: choose {least}, which {reason}, or more")


def _in_standard_operators(quantized: nn.Module, target: Target) -> nn.Module:
    """Return a copy in the operators that have a counterpart in ONNX."""
    # Without zero-points a ReLU is no end of the integers' type: it stays in front of them.
    clamp = ClampIntegers() if target.zero_points else ClampFloats()
    exposed = copy_module(quantized).eval()
    _use_one_type(exposed)
    for gm in find_regions(exposed).values():
        again = [RepeatQuantizers()] if target.quantizes_again else []
        # onnxruntime takes scales of each channel for one scale, and then refuses the model.
        Pipeline(*again, ToQdq(per_channel=False), clamp)(gm)
    return exposed


def _use_one_type(model: nn.Module) -> None:
    """Move signed grids to start at 0 if there are others: kernels take one type in and out."""
    quantizers = [module for module in model.modules() if isinstance(module, FakeQuantize)]
    if all(quantizer.grid.quant_min < 0 for quantizer in quantizers):
        return
    for quantizer in quantizers:
        quantizer.zero_point = quantizer.zero_point - quantizer.grid.quant_min
        quantizer.grid = Grid(0, quantizer.grid.steps)


def _translate(
    model: nn.Module, arguments: tuple[Any, ...], opset: int | None, dynamic_batch: bool
) -> tuple[ModelProto, FreeAxes]:
    """Return the ONNX model, and the axes whose freedom only running it can prove."""
    refused = ""
    if isinstance(model, fx.GraphModule):
        try:
            translated = translate_program(model, arguments, dynamic_batch, opset)
        except Refused as error:
            refused = f"torch.export cannot take the model: {error}; nor can tracing: "
        else:
            name_batch(translated)
            name_inputs(translated, named_inputs(model, arguments).keys())
            return translated, FreeAxes()
    try:
        traced, axes = translate_call(model, arguments, dynamic_batch, opset)
    except LoweringError as error:
        raise LoweringError(f"export_onnx: {refused}{error}") from error
    gather_constants(traced)
    describe_lengths(traced)
    return traced, axes
