"""From a module to `torch.export`'s program, with a dynamic batch and names for the outputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.capture.naming import find_regions
from fxquant.errors import LoweringError
from fxquant.numerics.containers import map_leaves

# PyTorch 2.7 wants an end to it, such that products with other sizes stay within 31 bits.
_MAX_BATCH = 2**20


def export_program(
    model: nn.Module, arguments: tuple[Any, ...], dynamic_batch: bool
) -> torch.export.ExportedProgram:
    """Return what `torch.export` makes of `model`.

    Args:
        model: a graph.
        arguments: what it is called with.
        dynamic_batch: let the first axis of the inputs vary.

    Raises:
        LoweringError: with the first line of what `torch.export` says, and what may help.
    """
    shapes = None
    if dynamic_batch:
        arguments, shapes = _with_dynamic_batch(arguments)
    try:
        return torch.export.export(model, arguments, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # tracing runs the caller's code, which may raise anything
        if isinstance(model, fx.GraphModule):
            advice = "dynamic_batch=False fixes the length of the batch, which may help"
        else:
            advice = (
                f"{type(model).__name__} is Python code around graphs: export each of them, with "
                f"export_onnx(model.get_submodule(name), …): {', '.join(find_regions(model))}"
            )
        raise LoweringError(
            f"export_onnx: torch.export cannot take the model: {first_line_of(error)}; {advice}"
        ) from error


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


def output_names_of(model: nn.Module, outputs: Any) -> list[str]:
    """Return a name for each tensor in `outputs`: of dictionaries, their keys."""
    taken = inspect.signature(model.forward).parameters
    return [f"{name}_output" if name in taken else name for name in _leaf_names(outputs, "")]


def _leaf_names(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield name or "output"
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _leaf_names(each, f"{name}_{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for number, each in enumerate(value):
            yield from _leaf_names(each, f"{name or 'output'}_{number}")
