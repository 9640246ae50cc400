"""The fake-quantized model as an ONNX file."""

from __future__ import annotations

import copy
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxquant.calibration.examples import example_arguments
from fxquant.capture.naming import find_regions
from fxquant.deploy.exported_program import export_program, first_line_of, output_names_of
from fxquant.deploy.integer_form import require_integers, require_target
from fxquant.deploy.onnx_graph import (
    drop_notes,
    keep_in_float,
    name_batch,
    pack_weights,
    split_biases,
)
from fxquant.deploy.onnx_operators import average_globally, widen_biases
from fxquant.deploy.tensorrt_rules.checker import require_rules
from fxquant.errors import LoweringError, StorageError
from fxquant.graph.states import require_converted
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import Grid
from fxquant.passes.lower.clamp_floats import ClampFloats
from fxquant.passes.lower.clamp_integers import ClampIntegers
from fxquant.passes.lower.repeat_quantizers import RepeatQuantizers
from fxquant.passes.lower.to_qdq import ToQdq
from fxquant.passes.pipeline import Pipeline
from fxquant.recipe.target import Target
from fxquant.streaming.whole_files import write_whole

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
) -> None:
    """Write `quantized` as an ONNX file with QuantizeLinear and DequantizeLinear nodes.

    The file computes what `quantized` does. OpenVINO runs nearly all of it in int8; onnxruntime,
    from 1.23 on, linear layers, and convolutions whose result is quantized, behind a ReLU or not.
    In float stay convolutions that feed an addition, SiLU or Hardswish, transposed convolutions,
    and what reads a scale for each channel. onnxruntime rounds biases to int32, which moves a
    result by one step now and then, and wants 1.28 for asymmetric weights per channel. What was
    quantized for TensorRT keeps to its rules (`fxquant.deploy.tensorrt_rules`), or is refused.

    Inputs are named as the model's arguments are; outputs "output", "output_0", …, or by their keys
    in a dict. A region of a larger model is a model: `export_onnx(detector.backbone, …)`.

    Args:
        quantized: what `convert` returned; left as it is.
        path: of the file. It is written as a whole, or not at all.
        example_inputs: one batch, as `fxquant.prepare` takes it.
        opset: version of ONNX's operators, 18 or later; None: the exporter's own choice.
        dynamic_batch: let the first axis be of any length, of all inputs that are as long there as
            the first one.
        int4: store weights of up to 4 bits in half a byte, not a byte; needs opset 21, which is
            then the default.
        target: which runtime the file is for; None: the one that the model was quantized for.

    Raises:
        LoweringError: the model was quantized for another runtime or has no integer form, PyTorch's
            exporter or TensorRT cannot take it, or a package is missing: `pip install
            fxquant[onnx]`.
        StorageError: the file cannot be written.
        PassError: `quantized` did not come from `convert`.
    """
    recipe = require_converted(quantized, "export_onnx")
    require_target(recipe.target, "export_onnx", target)
    require_integers(quantized, "export_onnx")
    _require_packages()
    if opset is None and int4:
        opset = _INT4_OPSET
    _check_opset(opset, _INT4_OPSET if int4 else _LEAST_OPSET)
    exposed = _in_standard_operators(quantized, recipe.target)
    model = _export(exposed, example_arguments(exposed, example_inputs), opset, dynamic_batch)
    if recipe.target.zero_points:
        split_biases(model)
        widen_biases(model)
        average_globally(model)
        keep_in_float(model)
    if int4:
        pack_weights(model)
    name_batch(model)
    drop_notes(model)
    if recipe.target.name == "tensorrt":
        require_rules(model, "export_onnx")
    _write(model, Path(path))


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
    exposed = copy.deepcopy(quantized).eval()
    _use_one_type(exposed)
    for gm in find_regions(exposed).values():
        # onnxruntime takes scales of each channel for one scale, and then refuses the model.
        Pipeline(RepeatQuantizers(), ToQdq(per_channel=False), clamp)(gm)
    return exposed


def _use_one_type(model: nn.Module) -> None:
    """Move signed grids to start at 0 if there are others: kernels take one type in and out."""
    quantizers = [module for module in model.modules() if isinstance(module, FakeQuantize)]
    if all(quantizer.grid.quant_min < 0 for quantizer in quantizers):
        return
    for quantizer in quantizers:
        quantizer.zero_point = quantizer.zero_point - quantizer.grid.quant_min
        quantizer.grid = Grid(0, quantizer.grid.steps)


def _export(
    model: nn.Module, arguments: tuple[Any, ...], opset: int | None, dynamic_batch: bool
) -> ModelProto:
    with torch.no_grad():
        names = output_names_of(model, model(*arguments))
        program = export_program(model, arguments, dynamic_batch)
        try:
            translated = torch.onnx.export(
                program,
                dynamo=True,
                optimize=True,
                verbose=False,
                opset_version=opset,
                output_names=names,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = first_line_of(error.__cause__ or error)
            raise LoweringError(f"export_onnx: no counterpart in ONNX: {reason}") from error
    assert translated is not None
    exported: ModelProto = translated.model_proto
    found = next(each.version for each in exported.opset_import if not each.domain)
    if opset not in (None, found):
        raise LoweringError(f"export_onnx: opset={opset}: the exporter wrote {found} instead")
    return exported


def _write(model: ModelProto, path: Path) -> None:
    """Check a model and write it to a file."""
    from onnx.checker import check_model

    check_model(model)
    try:
        write_whole(path, lambda file: file.write(model.SerializeToString()))
    except OSError as error:
        raise StorageError(f"export_onnx: {path}: cannot be written: {error}") from error
