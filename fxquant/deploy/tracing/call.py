"""From a model to ONNX by tracing one call, for what `torch.export` cannot take: detectors.

PyTorch's exporter by TorchScript runs the model once and writes down what tensors go through;
torchvision's detectors were written for it. What Python decides meanwhile is fixed in the file.
Decisions on values of the inputs are refused, on sizes they fix these: see `PythonDecisions`.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.capture.naming import find_regions
from fxquant.capture.recording.requirements import require
from fxquant.deploy.call_names import FreeAxes, free_axes, named_inputs, named_outputs, of_two
from fxquant.deploy.exported_program import first_line_of
from fxquant.deploy.quiet import quiet_exporter
from fxquant.deploy.tracing.decisions import PythonDecisions
from fxquant.deploy.tracing.graph import fix_lengths
from fxquant.deploy.tracing.symbolics import quantization_known
from fxquant.errors import LoweringError, StorageError
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.containers import map_leaves

if TYPE_CHECKING:
    from onnx import ModelProto

_FIRST_OPSET, _LAST_OPSET = 18, 21
_LAST_WRITTEN = 20  # by PyTorch; opset 21 has more types for its operators, and else the same
FIX_BATCH = "dynamic_batch=False fixes the length of the batch, which may help"


def translate_call(
    model: nn.Module, arguments: tuple[Any, ...], dynamic_batch: bool, opset: int | None
) -> tuple[ModelProto, FreeAxes]:
    """Return the ONNX model of one call of `model`, and which axes are free in it.

    Args:
        model: in PyTorch's standard operators, in eval mode; changed in place.
        arguments: what it is called with.
        dynamic_batch: let the first axis vary, of all inputs that are as long there as the first.
        opset: version of ONNX's operators, 18 to 21; None: 18.

    Raises:
        LoweringError: it cannot be traced, an operator has no counterpart in ONNX, or Python
            decides on what depends on values of the inputs.
        StorageError: there is no folder for temporary files.
    """
    opset = opset or _FIRST_OPSET
    if opset > _LAST_OPSET:
        raise LoweringError(
            f"export_onnx: opset={opset}: the model is exported by tracing a call, which "
            f"PyTorch can write with {_FIRST_OPSET} to {_LAST_OPSET}"
        )
    axes = free_axes(model, arguments, dynamic_batch)
    _keep_plain_tensors(model)
    _ask_tensors_for_what_is_required(model)
    try:
        call = _Call(model, of_two(model, arguments, axes))
        traced = _trace(call, axes, opset)
    except StorageError:
        raise
    except Exception as error:  # the model's own code, which may raise anything
        raise LoweringError(
            f"tracing a call fails: {first_line_of(error)}; {_advice(model)}"
        ) from error
    free = _still_free(model, axes, call.decisions)
    inputs = named_inputs(model, arguments)
    fix_lengths(traced, {name: inputs[name].shape for name in axes.sizes - free.sizes})
    return traced, free


def _still_free(model: nn.Module, axes: FreeAxes, decisions: PythonDecisions) -> FreeAxes:
    if decisions.on_values:
        raise LoweringError(
            "Python decides on what depends on values of the inputs, and a file would hold what it "
            f"decided on the example: {'; '.join(decisions.on_values)}: decide with tensors, as "
            "torch.where does, decorate the function with torch.jit.script_if_tracing, or "
            f"{_advice(model)}"
        )
    if axes.batch and decisions.on_sizes & {0, None}:
        raise LoweringError(f"Python decides on the length of the batch; {FIX_BATCH}")
    return replace(axes, sizes=frozenset()) if decisions.on_sizes else axes


def _advice(model: nn.Module) -> str:
    if isinstance(model, fx.GraphModule):
        return FIX_BATCH
    return (
        f"export each graph of {type(model).__name__}, with "
        f"export_onnx(model.get_submodule(name), …): {', '.join(find_regions(model))}"
    )


class _Call(nn.Module):
    """A model as a function from the tensors among its arguments to those among its results."""

    def __init__(self, model: nn.Module, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.model = model
        self._arguments = arguments
        self.inputs = list(named_inputs(model, arguments))
        with quiet_exporter():  # fx prints the line that fails
            self.outputs = list(named_outputs(model, model(*arguments)))
        found: list[Tensor] = []
        map_leaves(arguments, lambda each: found.append(each) if isinstance(each, Tensor) else None)
        self.tensors = tuple(found)
        self.decisions = PythonDecisions(len(found))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that the model returns."""
        given = iter(tensors)
        arguments = map_leaves(
            self._arguments, lambda each: next(given) if isinstance(each, Tensor) else each
        )
        with self.decisions:
            return tuple(named_outputs(self.model, self.model(*arguments)).values())


def _trace(call: _Call, axes: FreeAxes, opset: int) -> ModelProto:
    import onnx

    with _temporary_folder() as folder:
        path = Path(folder) / "model.onnx"
        with quiet_exporter(keep_warnings=False), quantization_known(_FIRST_OPSET):
            torch.onnx.export(
                call,
                call.tensors,
                str(path),
                dynamo=False,
                opset_version=min(opset, _LAST_WRITTEN),
                input_names=call.inputs,
                output_names=call.outputs,
                dynamic_axes=axes.names(),
            )
        traced: ModelProto = onnx.load(path)
    for each in traced.opset_import:
        each.version = each.version if each.domain else opset
    least = onnx.helper.find_min_ir_version_for(traced.opset_import)
    traced.ir_version = max(traced.ir_version, least)
    return traced


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory()
    except OSError as error:
        raise StorageError(
            f"export_onnx: no temporary folder can be made: {error}: free some space, or set TMPDIR"
            " to a folder that can be written to"
        ) from error


def _keep_plain_tensors(model: nn.Module) -> None:
    """Let integer weights be buffers of plain modules.

    What stands in no state dict under its own name, as integers of fewer than 8 bits, is a constant
    to the exporter, which then multiplies it by its scale.
    """
    for gm in find_regions(model).values():
        for name, module in list(gm.named_modules(remove_duplicate=False)):
            if name and isinstance(module, QuantizedLayer):
                gm.set_submodule(name, _plain(module))


def _plain(layer: QuantizedLayer) -> nn.Module:
    plain = nn.Module()
    for name, buffer in layer.named_buffers(recurse=False):
        plain.register_buffer(name, buffer)
    for name, parameter in layer.named_parameters(recurse=False):
        plain.register_parameter(name, parameter)
    return plain


def _ask_tensors_for_what_is_required(model: nn.Module) -> None:
    """Let graphs take sizes, which are tensors while they are traced, for the numbers they are."""
    for gm in find_regions(model).values():
        for node in gm.graph.find_nodes(op="call_function", target=require):
            node.target = _require
        gm.recompile()


def _require(value: Any, fixed: Any, what: str) -> None:
    require(value.item() if isinstance(value, Tensor) and value.dim() == 0 else value, fixed, what)
