"""What a batch is, where it has not the form of one: ways out that can be seen without a layer."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from fxquant.calling.description import is_array, is_image
from fxquant.calling.failed_call import FailedCall
from fxquant.calling.layer_hints import embeddings_in, first_taken
from fxquant.modules.batchnorm import is_batchnorm_module

_BATCHES = (
    "give tensors, tuples or lists that start with one, or dicts of keywords; or pass "
    "forward=lambda model, batch: … to calibrate"
)
_EXAMPLE = "give one batch: a tensor, a tuple of arguments, or a dict of keywords"
_LOADER = "a DataLoader(dataset, batch_size=32) makes batches"


def way_to_tensors(value: Any, where: str) -> str:
    """Return how to make a batch, or an example, of what is none.

    >>> way_to_tensors((1, 3, 224, 224), "example_inputs")
    'a shape is no input: give torch.randn(1, 3, 224, 224)'
    """
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    if is_array(value) or (is_array(first) and isinstance(value, tuple)):
        x = "x" if first is value else "batch[0]"
        return f"give tensors: torch.from_numpy({x}){_in_float32(first)}"
    if is_array(first):
        return f"give tensors: torch.from_numpy(numpy.stack(batch)){_in_float32(first)}"
    if is_image(first):
        return f"make tensors of images in the dataset, by transforms.ToTensor(); {_LOADER}"
    if isinstance(first, os.PathLike) or (isinstance(first, str) and os.path.splitext(first)[1]):
        return f"read the files into tensors, as torchvision.datasets.ImageFolder does; {_LOADER}"
    if isinstance(value, DataLoader):
        return "give one batch of it: next(iter(loader))"
    if isinstance(value, (tuple, list)) and value and all(type(each) is int for each in value):
        return f"a shape is no input: give torch.randn({', '.join(map(str, value))})"
    return _EXAMPLE if "example_inputs" in where else _BATCHES


def way_from_keys(model: nn.Module, batch: Mapping[Any, Any]) -> str:
    """Return how to give a model a mapping of which no key is an argument of its forward."""
    names = list(inspect.signature(model.forward).parameters)
    tensors = [key for key, each in batch.items() if isinstance(each, Tensor) and each.dim() > 1]
    takes = f"none of its keys is an argument of forward({', '.join(names)})"
    if len(names) != 1 or len(tensors) != 1:
        return (
            f"{takes}: give dicts with these keys, or forward=lambda model, batch: … to calibrate"
        )
    return f"{takes}: give batch[{tensors[0]!r}], or {{{names[0]!r}: batch[{tensors[0]!r}]}}"


def hint_of_form(failed: FailedCall) -> str:
    """Return a way out for a batch in another form than the model takes; "" if none is known."""
    batch, model = failed.batch, failed.model
    if isinstance(batch, Mapping) and model is not None:
        if inspect.signature(model.forward).parameters.keys().isdisjoint(batch):
            return way_from_keys(model, batch)
        lists = [key for key, each in batch.items() if isinstance(each, list)]
        return f"give tensors: torch.tensor(batch[{lists[0]!r}])" if lists else ""
    if not failed.tensors:
        return way_to_tensors(batch, failed.where)
    return _labels_first(failed)


def hint_of_axes(failed: FailedCall) -> str:
    """Say that there is no batch axis, where the model has a layer that wants one more axis."""
    if not failed.tensors or failed.model is None:
        return ""
    x, module, first = failed.tensors[0], failed.module, first_taken(failed.model)
    if first is not None:
        name, taken = first
        makes_batches = failed.inputs and failed.inputs[0].dim() == taken.num_axes
        if x.dim() != taken.num_axes - 1 or makes_batches or _is_list_of_samples(failed.batch):
            return ""
        if x.shape[0] == taken.channels:
            return f"{name} takes {taken}, and this is one sample: x[None]; {_LOADER}"
    elif x.dim() == 1 and module is not None and is_batchnorm_module(module):
        return f"{failed.path} takes (batch, features), and this is one sample: x[None]; {_LOADER}"
    elif (
        x.dim() == 1
        and not x.is_floating_point()
        and isinstance(failed.error, (IndexError, ValueError))
    ):
        name = next((name for name, _ in embeddings_in(failed.model)), "")
        return (
            f"{name} takes ids (batch, length), and this is one sequence: x[None]" if name else ""
        )
    return ""


def _is_list_of_samples(batch: Any) -> bool:
    """Say whether a batch is a list of images, as detectors take it."""
    return isinstance(batch, list) and all(
        isinstance(each, Tensor) and each.dim() == 3 for each in batch
    )


def _labels_first(failed: FailedCall) -> str:
    """Say that the inputs are not in front, where the model was given labels."""
    batch = failed.batch
    if not isinstance(batch, (tuple, list)) or not isinstance(batch[0], Tensor):
        return ""
    labels, given = batch[0], failed.inputs[:1]
    others = [
        number
        for number, each in enumerate(batch)
        if isinstance(each, Tensor) and each.dim() > max(1, labels.dim())
    ]
    if labels.dim() > 1 or not others or not given or given[0].shape != labels.shape:
        return ""
    return (
        f"inputs come first: give (x, labels), or forward=lambda model, batch: "
        f"model(batch[{others[0]}]) to calibrate"
    )


def _in_float32(array: Any) -> str:
    return ".float()" if str(array.dtype) == "float64" else ""
