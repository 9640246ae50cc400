"""What the layer that raised an error takes, and what it got: ways out that its own facts support.

A way is proposed only where it leads to what the layer takes: to permute axes, where the channels
that it wants are found on another; to flatten, where that gives the features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxquant.calling.description import described_layer
from fxquant.calling.failed_call import FailedCall, named_modules

_AXES = {1: "length", 2: "height, width", 3: "depth, height, width"}
_LAST_TO_SECOND = {1: "0, 2, 1", 2: "0, 3, 1, 2", 3: "0, 4, 1, 2, 3"}


def hint_of_layer(failed: FailedCall) -> str:
    """Return what the layer takes, and how to give it that; "" where nothing is known to help."""
    rules = (_ids, _positions, _channels, _features, _size, _channels_last)
    hints = (rule(failed) for rule in rules)
    return next((hint for hint in hints if hint), "")


@dataclass(frozen=True)
class Taken:
    """What a convolution takes: `(batch, 3, height, width)`."""

    channels: int
    sides: int
    """How many axes lie behind the channels."""

    @classmethod
    def by(cls, module: nn.Module | None) -> Taken | None:
        """Return what a module takes that has channels and a kernel; None of others."""
        channels, kernel = (getattr(module, name, None) for name in ("in_channels", "kernel_size"))
        if not isinstance(channels, int) or not isinstance(kernel, tuple):
            return None
        return cls(channels, len(kernel)) if len(kernel) in _AXES else None

    @property
    def num_axes(self) -> int:
        """The number of axes of a batch."""
        return self.sides + 2

    def __str__(self) -> str:
        return f"(batch, {self.channels}, {_AXES[self.sides]})"


def first_taken(model: nn.Module | None) -> tuple[str, Taken] | None:
    """Return the name of the model's first convolution, and what it takes; None if it has none."""
    modules = () if model is None else named_modules(model)
    found = ((name, Taken.by(module)) for name, module in modules)
    return next(((name, taken) for name, taken in found if taken is not None), None)


def _channels(failed: FailedCall) -> str:
    """Say where the channels are that a convolution looks for on the axis behind the batch."""
    taken = Taken.by(failed.module)
    if taken is None or not failed.inputs:
        return ""
    x, takes = failed.inputs[0], f"{failed.path or 'the model'} takes {taken}"
    if x.dim() == taken.num_axes - 1:
        way = _way_for_one(x, taken) if failed.is_of_batch(x) else ""
        return f"{takes}: {way}" if way else ""
    if x.dim() != taken.num_axes:
        return f"{takes}, {taken.num_axes} axes, and got {x.dim()}"
    found = x.shape[1]
    if found == taken.channels:
        return ""
    if failed.is_of_batch(x) and x.shape[-1] == taken.channels:
        return f"{takes}, and the channels are last: x.permute({_LAST_TO_SECOND[taken.sides]})"
    colours = _colours(taken, found) if failed.is_of_batch(x) else ""
    return f"{takes}, and got {_counted(found)}{colours}"


def _way_for_one(x: Tensor, taken: Taken) -> str:
    """Return how to give a convolution what has one axis less than it takes."""
    if x.shape[0] == taken.channels:
        return ""
    if taken.channels == 1:
        return "the axis of the one channel is missing: x.unsqueeze(1)"
    if x.shape[-1] == taken.channels:
        order = ", ".join(str(axis) for axis in (taken.sides, *range(taken.sides)))
        return f"this is one sample, channels last: x.permute({order})[None]"
    return ""


def _counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _colours(taken: Taken, found: int) -> str:
    if taken.sides != 2:
        return ""
    wanted = taken.channels
    if (wanted, found) == (3, 1):
        return ": convert grey images to RGB, or x.expand(-1, 3, -1, -1)"
    if (wanted, found) == (1, 3):
        return ": convert images to grey, as torchvision.transforms.Grayscale does"
    if (wanted, found) == (3, 4):
        return ': the fourth may be opacity: image.convert("RGB"), or x[:, :3]'
    return ""


def _features(failed: FailedCall) -> str:
    """Say what may have made another number of features than a linear layer takes."""
    layer = failed.module
    if not isinstance(layer, nn.Linear) or not failed.inputs or failed.inputs[0].dim() == 0:
        return ""
    x, wanted = failed.inputs[0], layer.in_features
    if x.shape[-1] == wanted:
        return ""
    takes = f"{failed.path or 'the model'} takes {wanted} features"
    if failed.is_of_batch(x):
        if x.dim() > 2 and math.prod(x.shape[1:]) == wanted:
            return f"{takes}: x.flatten(1)"
        return f"{takes}, and the last axis has {x.shape[-1]}"
    sides = _sides_of_images(failed)
    return (
        f"{takes}: {sides} is another size of images than it was made for: resize" if sides else ""
    )


def _sides_of_images(failed: FailedCall) -> str:
    """Return "32×32", if images are what the first convolution reads; else ""."""
    first = first_taken(failed.model)
    if first is None or not failed.tensors:
        return ""
    x, taken = failed.tensors[0], first[1]
    if x.dim() != taken.num_axes or x.shape[1] != taken.channels:
        return ""
    return "×".join(str(size) for size in x.shape[2:])


def _size(failed: FailedCall) -> str:
    """Say that images are smaller than a window that goes over them."""
    if "ernel size can't be greater" in str(failed.error) or "too small" in str(failed.error):
        sides = _sides_of_images(failed)
        return f"images of {sides} are too small for the model: resize them" if sides else ""
    return ""


def _channels_last(failed: FailedCall) -> str:
    """Say that channels are last where code in front of the first convolution fails on that."""
    first = first_taken(failed.model)
    if first is None or not failed.tensors or not isinstance(failed.error, RuntimeError):
        return ""
    x, (name, taken) = failed.tensors[0], first
    place = x.dim() - taken.sides - 1
    if place not in (0, 1) or x.shape[-1] != taken.channels or x.shape[place] == taken.channels:
        return ""
    order = (*range(place), x.dim() - 1, *range(place, x.dim() - 1))
    axes = ", ".join(map(str, order))
    return f"{name} takes {taken}, and the channels are last: x.permute({axes})"


def _ids(failed: FailedCall) -> str:
    """Say which ids an embedding takes."""
    layer = failed.module
    if not isinstance(layer, nn.Embedding) or not failed.inputs:
        return ""
    ids, last = failed.inputs[0], layer.num_embeddings - 1
    takes = f"{failed.path or 'the model'} takes ids of int64 from 0 to {last}"
    if ids.is_floating_point():
        is_whole = bool((ids == ids.round()).all())
        return f"{takes}: x.long()" if is_whole else f"{takes}, and got fractions"
    if ids.numel() == 0 or ids.is_meta:
        return ""
    low, high = int(ids.min()), int(ids.max())
    if low >= 0 and high <= last:
        return ""
    places = torch.arange(ids.shape[-1], device=ids.device) if ids.dim() > 0 else ids
    if ids.shape[-1:] == places.shape and ids.shape[-1] > 1 and bool((ids == places).all()):
        return _too_long(failed.path, layer, ids.shape[-1])
    shown = str(low) if low == high else f"{low} to {high}"
    return f"{takes}, and got {shown}: is the tokenizer the model's own?"


def _positions(failed: FailedCall) -> str:
    """Say that a sequence is longer than the positions that a model knows."""
    if isinstance(failed.module, nn.Embedding) or failed.model is None:
        return ""
    ids = [each for each in failed.tensors if each.dim() == 2 and not each.is_floating_point()]
    for name, layer in embeddings_in(failed.model):
        if (
            ids
            and name.startswith(failed.path)
            and "pos" in name
            and ids[0].shape[1] > layer.num_embeddings
        ):
            return _too_long(name, layer, ids[0].shape[1])
    return ""


def embeddings_in(model: nn.Module) -> Iterator[tuple[str, nn.Embedding]]:
    """Yield the embeddings of a model, by name, in the order of their definition."""
    for name, module in named_modules(model):
        if isinstance(module, nn.Embedding):
            yield name, module


def _too_long(name: str, layer: nn.Embedding, length: int) -> str:
    return (
        f"{name} ({described_layer(layer)}) has {layer.num_embeddings} positions, and the sequence "
        f"has {length}: cut it to x[:, :{layer.num_embeddings}]"
    )
