"""The tensors that a model takes and returns, by the names that they have in a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.numerics.containers import items_of, map_leaves

_MAX_CHANNELS = 4


@dataclass(frozen=True)
class FreeAxes:
    """Axes of the inputs that may be of another length than in the example."""

    batch: frozenset[str] = frozenset()
    """Names of the inputs whose first axis is the batch."""
    sizes: frozenset[str] = frozenset()
    """Names of the inputs that are images, (channels, height, width), of any size."""

    def names(self) -> dict[str, dict[int, str]]:
        """Return the name of each free axis, by input and place."""
        images = {each: {1: f"{each}_height", 2: f"{each}_width"} for each in self.sizes}
        return images | {each: {0: "batch"} for each in self.batch}


def named_inputs(model: nn.Module, arguments: tuple[Any, ...]) -> dict[str, Tensor]:
    """Return the tensors among the arguments by name: the parameter's, with number or key."""
    bound = inspect.signature(model.forward).bind(*arguments).arguments
    return {name: tensor for key in bound for name, tensor in _named(bound[key], key)}


def output_names_of(model: nn.Module, outputs: Any) -> list[str]:
    """Return a name for each tensor in `outputs`: of dictionaries, their keys."""
    return list(named_outputs(model, outputs))


def named_outputs(model: nn.Module, outputs: Any) -> dict[str, Tensor]:
    """Return the tensors in `outputs` by name."""
    taken = inspect.signature(model.forward).parameters
    return {
        f"{name}_output" if name in taken else name: tensor for name, tensor in _named(outputs, "")
    }


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    items = items_of(value)
    if isinstance(value, Tensor):
        yield name or "output", value
    elif items is None:
        return
    elif isinstance(value, (list, tuple)):
        for number, each in items.items():
            yield from _named(each, f"{name or 'output'}_{number}")
    else:
        for key, each in items.items():
            yield from _named(each, f"{name}_{key}" if name else str(key))


def free_axes(model: nn.Module, arguments: tuple[Any, ...], dynamic_batch: bool) -> FreeAxes:
    """Return which axes can be asked to be free: a list of images is a batch itself.

    Args:
        model: what takes the arguments.
        arguments: an example.
        dynamic_batch: whether the first axis shall be free, of all inputs that are as long there as
            the first one.
    """
    inputs = named_inputs(model, arguments)
    listed = {id(tensor) for each in arguments for tensor in _listed_images(each)}
    images = frozenset(name for name, tensor in inputs.items() if id(tensor) in listed)
    lengths = {
        name: tensor.shape[0]
        for name, tensor in inputs.items()
        if name not in images and tensor.dim() > 0
    }
    length = next(iter(lengths.values()), None)
    batch = frozenset(name for name, each in lengths.items() if each == length)
    return FreeAxes(batch if dynamic_batch else frozenset(), images)


def _listed_images(value: Any) -> list[Tensor]:
    """Return the images of a list of images."""
    if not isinstance(value, (list, tuple)):
        return []
    is_image = (
        isinstance(each, Tensor) and each.dim() == 3 and each.shape[0] <= _MAX_CHANNELS
        for each in value
    )
    return list(value) if all(is_image) else []


def of_two(model: nn.Module, arguments: tuple[Any, ...], axes: FreeAxes) -> tuple[Any, ...]:
    """Return the arguments with a batch of two where it is free and has one: 1 is special."""
    inputs = named_inputs(model, arguments)
    if any(inputs[name].shape[0] > 1 for name in axes.batch):
        return arguments
    doubled: tuple[Any, ...] = _changed(arguments, [inputs[name] for name in axes.batch], _doubled)
    return doubled


def of_other_batches(
    model: nn.Module, arguments: tuple[Any, ...], axes: FreeAxes
) -> Iterator[tuple[Any, ...]]:
    """Yield calls like `arguments`, with a longer batch and with a batch of one."""
    batch = [named_inputs(model, arguments)[name] for name in axes.batch]
    if batch:
        yield _changed(arguments, batch, _doubled)
        yield _changed(arguments, batch, lambda x: x[-1:])


def of_other_sizes(
    model: nn.Module, arguments: tuple[Any, ...], axes: FreeAxes
) -> Iterator[tuple[Any, ...]]:
    """Yield calls like `arguments`, with images lying on their side, and with smaller ones."""
    images = [named_inputs(model, arguments)[name] for name in axes.sizes]
    if images:
        yield _changed(arguments, images, lambda x: x.transpose(1, 2).contiguous())
        yield _changed(arguments, images, _cropped)


def _changed(value: Any, tensors: list[Tensor], change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest of containers with `change` applied to these tensors in it."""
    known = {id(tensor) for tensor in tensors}
    return map_leaves(value, lambda each: change(each) if id(each) in known else each)


def _doubled(x: Tensor) -> Tensor:
    return torch.cat([x, x.flip(0)])


def _cropped(x: Tensor) -> Tensor:
    return x[:, x.shape[1] // 4 :, x.shape[2] // 8 :].contiguous()
