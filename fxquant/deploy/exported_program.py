"""From a graph to ONNX by `torch.export`'s program, with a dynamic batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.deploy.call_names import output_names_of
from fxquant.deploy.quiet import quiet_exporter
from fxquant.errors import LoweringError
from fxquant.numerics.containers import map_leaves

if TYPE_CHECKING:
    from onnx import ModelProto

# PyTorch 2.7 wants an end to it, such that products with other sizes stay within 31 bits.
_MAX_BATCH = 2**20


class Refused(Exception):
    """`torch.export` cannot take a model; the message is the first line of why."""


def export_program(
    model: nn.Module, arguments: tuple[Any, ...], dynamic_batch: bool
) -> torch.export.ExportedProgram:
    """Return what `torch.export` makes of `model`.

    Args:
        model: a graph.
        arguments: what it is called with.
        dynamic_batch: let the first axis of the inputs vary.

    Raises:
        Refused: it cannot.
    """
    shapes = None
    if dynamic_batch:
        arguments, shapes = _with_dynamic_batch(arguments)
    try:
        with quiet_exporter():
            return torch.export.export(model, arguments, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # tracing runs the caller's code, which may raise anything
        raise Refused(first_line_of(error)) from error


def translate_program(
    model: nn.Module, arguments: tuple[Any, ...], dynamic_batch: bool, opset: int | None
) -> ModelProto:
    """Return the ONNX model of `model`, by its program.

    Args:
        model: a graph in PyTorch's standard operators.
        arguments: what it is called with.
        dynamic_batch: as in `export_program`.
        opset: version of ONNX's operators; None: the exporter's own choice.

    Raises:
        Refused: `torch.export` cannot take the model.
        LoweringError: an operator has no counterpart in ONNX, or `opset` cannot be written.
    """
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


def first_line_of(error: BaseException) -> str:
    """Return the type of an error, and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _with_dynamic_batch(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    """Return the arguments, and the same structure with the axes that are dynamic."""
    sizes: list[int] = []

    def note(value: Any) -> None:
        if isinstance(value, Tensor) and value.dim() > 0:
            sizes.append(value.shape[0])

    def has_batch(value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == sizes[0]

    map_leaves(arguments, note)
    axis = torch.export.Dim("batch", max=_MAX_BATCH)
    shapes = map_leaves(arguments, lambda value: {0: axis} if has_batch(value) else None)
    if sizes and sizes[0] == 1:  # torch.export takes an axis of length 1 for a constant
        arguments = map_leaves(
            arguments, lambda value: torch.cat([value, value]) if has_batch(value) else value
        )
    return arguments, shapes
