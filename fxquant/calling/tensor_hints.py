"""Type and device of what a model is given, against those of its own tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fxquant.calling.description import type_name
from fxquant.calling.failed_call import FailedCall
from fxquant.modules.layers import LAYERS

_TYPES = ("dtype", "Byte", "Double", "Half", "BFloat16", "unsigned char")
_DEVICES = ("device", "cuda", "meta")
_CONVERTED = {torch.float32: "float()", torch.float64: "double()", torch.float16: "half()"}


def hint_of_device(failed: FailedCall) -> str:
    """Say how to bring the model and the batch together."""
    if not any(sign in str(failed.error) for sign in _DEVICES):
        return ""
    mine = {each.device for each in _held(failed.model)}
    theirs = {each.device for each in failed.tensors}
    if any(device.type == "meta" for device in mine):
        return "the model is on meta, where tensors hold no values: load its weights first"
    if any(device.type == "meta" for device in theirs):
        return "tensors on meta hold no values: give batches of data"
    if len(mine) == 1 and theirs - mine:
        device = mine.pop()
        others = ", ".join(sorted(str(each) for each in theirs - {device}))
        return f"the model is on {device}, and the batch on {others}: x.to({str(device)!r})"
    return ""


def _held(model: nn.Module | None) -> Iterator[Tensor]:
    if model is not None:
        yield from model.parameters()
        yield from model.buffers()


def hint_of_type(failed: FailedCall) -> str:
    """Say which type the layer takes, where its input has another."""
    module, tensors = failed.module, failed.inputs
    if not isinstance(module, LAYERS):  # a function that the caller's code or a graph calls
        if not any(sign in str(failed.error) for sign in _TYPES) or _takes_ids(failed.model):
            return ""
        module, tensors = failed.model, failed.tensors
    wanted = _wanted_type(module)
    if wanted is None or not tensors or tensors[0].dtype == wanted:
        return ""
    got = tensors[0].dtype
    if all(each.dtype != got for each in failed.tensors):
        return f"{failed.path} has weights of {type_name(wanted)}, and is given {type_name(got)}"
    takes = f"the model takes {type_name(wanted)}"
    if got is torch.uint8:
        return (
            f"{takes}: convert and normalize, as in training: x.{_conversion(wanted)} / 255, then "
            "minus the mean, over the deviation"
        )
    if got is torch.float64:
        return f"{takes}, and arrays of NumPy are often float64: x.{_conversion(wanted)}"
    if got is torch.float32:
        return f"{takes}: x.{_conversion(wanted)}, or give model.float()"
    return f"{takes}: x.{_conversion(wanted)}"


def _wanted_type(module: nn.Module | None) -> torch.dtype | None:
    """Return the type of the floating-point tensors of a module, if all have the same."""
    types = {each.dtype for each in _held(module) if each.is_floating_point()}
    return types.pop() if len(types) == 1 else None


def _conversion(wanted: torch.dtype) -> str:
    return _CONVERTED.get(wanted, f"to({wanted})")


def _takes_ids(model: nn.Module | None) -> bool:
    """Say whether a batch may be in integers, whatever the weights are in."""
    return model is not None and any(isinstance(each, nn.Embedding) for each in model.modules())
