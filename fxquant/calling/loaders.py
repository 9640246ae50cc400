"""What is given as batches: what cannot be gone through batch by batch is refused before anything.

A tensor can be, and so can a path: row by row, letter by letter.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fxquant.calling.arguments import Forward
from fxquant.calling.description import described, is_array
from fxquant.calling.layer_hints import first_taken
from fxquant.errors import CalibrationError, kind_of
from fxquant.numerics.containers import tensors_in
from fxquant.recipe.recipe import Recipe


def require_batches(batches: Any, caller: str, model: Any, forward: Forward | None = None) -> None:
    """Raise `CalibrationError` if `batches` are none, with what they are and what to give.

    So, too, if `forward`, which is to call the model with them, is no function. A tensor may hold
    batches, if its rows have as many axes as the model takes.

    >>> require_batches(iter, "calibrate", nn.Linear(4, 2))
    Traceback (most recent call last):
    fxquant.errors.CalibrationError: calibrate: `batches` is a builtin_function_or_method: give a \
loader, called, or a list of batches
    """
    why = _why_none(batches, caller)
    if isinstance(batches, Tensor) and forward is None and _holds_samples(batches, model):
        why = (
            f"a tensor, {described(batches)}, and its rows would be the batches: give [x], or "
            "x.split(32)"
        )
    if why:
        raise CalibrationError(f"{caller}: `batches` is {why}")
    if not (forward is None or callable(forward)):
        raise CalibrationError(
            f"{caller}: forward={described(forward)}: give a function that calls the model with a "
            "batch: forward=lambda model, batch: model(batch[0])"
        )


def no_batches(batches: Any, caller: str) -> CalibrationError:
    """Return the error for `batches` that turned out to be empty."""
    return CalibrationError(f"{caller}: `batches` is empty: {_why_empty(batches)}")


def is_empty(batch: Any) -> bool:
    """Say whether a batch has tensors, and no value in any of them."""
    tensors = tensors_in(batch)
    return bool(tensors) and all(each.numel() == 0 for each in tensors)


def _why_none(batches: Any, caller: str) -> str:
    """Return what `batches` are and what to give, if they are no batches; else ""."""
    shown = described(batches)
    if is_array(batches):
        return f"{shown}: give tensors in a list, [torch.from_numpy(x)], or .split(32) of it"
    if isinstance(batches, (str, os.PathLike)):
        return (
            f"a path, {shown}: give a loader of what is there, such as "
            "DataLoader(ImageFolder(path, transform), batch_size=32)"
        )
    if isinstance(batches, Mapping):
        return _why_no_mapping(batches)
    if isinstance(batches, nn.Module):
        return f"a model, {kind_of(batches)}: the model comes first, then the batches"
    if isinstance(batches, Recipe):
        return f"a Recipe, which comes behind the batches: {caller}(model, batches, recipe)"
    if isinstance(batches, Dataset) and not hasattr(batches, "__iter__"):
        return (
            f"{kind_of(batches)}, which gives single samples: give DataLoader(dataset, "
            "batch_size=32); or batch_size=None, if its items are batches"
        )
    if inspect.isgenerator(batches) and batches.gi_frame is None:
        return "a generator that has been gone through: give a list, or a new one"
    if not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        called = ", called" if callable(batches) and not isinstance(batches, type) else ""
        return f"{shown}: give a loader{called}, or a list of batches"
    return ""


def _holds_samples(batches: Tensor, model: Any) -> bool:
    """Say whether the rows of a tensor lack the axis of a batch."""
    first = first_taken(model) if isinstance(model, nn.Module) else None
    return batches.dim() <= (2 if first is None else first[1].num_axes)


def _why_no_mapping(batches: Mapping[Any, Any]) -> str:
    loaders = [key for key, each in batches.items() if isinstance(each, (DataLoader, list))]
    if loaders:
        return f"{described(batches)}: give one of these, such as batches[{loaders[0]!r}]"
    return f"a dict, {described(batches)}: if it is one batch, give [batch]; else its values"


def _why_empty(batches: Any) -> str:
    if isinstance(batches, DataLoader) and batches.drop_last:
        return (
            f"a DataLoader with batch_size={batches.batch_size} and drop_last=True, over fewer "
            "samples than that, makes none"
        )
    if isinstance(batches, Iterable) and iter(batches) is batches:
        return (
            f"{kind_of(batches)} gives its batches once, and may have given them: give a list, or "
            "a new one"
        )
    return "give at least one batch"
