"""Integer weights below 8 bits take no more bytes than bits where they are stored.

In memory:                       weight_integers  int8, (out, in/groups, kh, kw)
In a state dict, in a pickle:    weight_packed    uint8, (ceil(n·bits/8),)

Loading takes both forms. Weights of 8 bits are stored as they are.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.numerics.packing import axis_order, in_order, pack_bits, packed_size, unpack_bits
from fxquant.recipe.spec import TensorSpec

_INTEGERS, _PACKED, _SHAPE = "weight_integers", "weight_packed", "weight_shape"
_ORDER = "weight_order"
_ZERO_POINT = "weight_zero_point"


class PackedWeights(nn.Module):
    """A module whose buffer `weight_integers` is stored densely; copies do without."""

    weight_integers: Tensor
    weight_spec: TensorSpec
    weight_shape: tuple[int, ...]
    """Of the integers, in a pickle that holds them packed."""
    weight_order: list[int] | None
    """Of their axes in memory, there too."""
    weight_sqnr: float

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight_spec.bits < 8:
            integers = destination.pop(prefix + _INTEGERS)
            destination[prefix + _PACKED] = pack_bits(integers, self.weight_spec.bits)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = {name: state_dict.get(prefix + name) for name in (_PACKED, _INTEGERS)}
        integers, error = found[_INTEGERS], None
        if found[_PACKED] is not None:
            integers, error = self._unpack(found[_PACKED], prefix + _PACKED)
        elif isinstance(integers, Tensor):
            error = self._why_not_on_grid(integers, prefix + _INTEGERS)
        if error is not None:
            error_msgs.append(error)
            integers = self.weight_integers
        zero_point = state_dict.get(prefix + _ZERO_POINT)
        has_values = isinstance(zero_point, Tensor) and not zero_point.is_meta
        if self.weight_spec.symmetric and has_values and zero_point.any():
            error_msgs.append(
                f"{prefix}{_ZERO_POINT} is not 0, and the model's weights are symmetric: is the "
                "other model's recipe the same?"
            )
        given = {_INTEGERS: integers, "weight_scale": state_dict.get(prefix + "weight_scale")}
        if any(differs(self._buffers[name], each) for name, each in given.items()):
            self.weight_sqnr = math.nan  # it was that of other integers
        if integers is not found[_INTEGERS]:
            state_dict = {**state_dict, prefix + _INTEGERS: integers}  # the caller's stays
            state_dict.pop(prefix + _PACKED, None)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _unpack(self, packed: Any, key: str) -> tuple[Tensor | None, str | None]:
        """Return the integers, or what is wrong with them."""
        bits, num_values = self.weight_spec.bits, self.weight_integers.numel()
        shape = (packed_size(num_values, bits),)
        if isinstance(packed, Tensor) and (packed.dtype, packed.shape) == (torch.uint8, shape):
            return unpack_bits(packed, bits, self.weight_integers.shape), None
        given = type(packed).__name__
        if isinstance(packed, Tensor):
            given = f"{packed.dtype} of shape {tuple(packed.shape)}"
        return None, (
            f"size mismatch for {key}: got {given}, where {num_values} weights of {bits} bits "
            f"take torch.uint8 of shape {shape}: is the other model's recipe the same?"
        )

    def _why_not_on_grid(self, integers: Tensor, key: str) -> str | None:
        """Return what is wrong with integers that `weight_spec` has no room for."""
        bits = self.weight_spec.bits
        if (
            integers.numel() == 0
            or integers.is_meta
            or integers.shape != self.weight_integers.shape
        ):
            return None  # of other shapes PyTorch tells
        low, high = (bound.item() for bound in torch.aminmax(integers))
        if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1):
            return None
        return (
            f"values from {low} to {high} in {key}, where weights of {bits} bits go from "
            f"{-(2 ** (bits - 1))} to {2 ** (bits - 1) - 1}: is the other model's recipe the same?"
        )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        if self.weight_spec.bits < 8:
            buffers = dict(self._buffers)
            integers = buffers.pop(_INTEGERS)
            assert integers is not None
            buffers[_PACKED] = pack_bits(integers, self.weight_spec.bits)
            order = axis_order(integers)
            state.update({"_buffers": buffers, _SHAPE: tuple(integers.shape), _ORDER: order})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        shape, order = state.pop(_SHAPE, None), state.pop(_ORDER, None)
        if shape is not None:
            buffers = dict(state["_buffers"])
            packed = buffers.pop(_PACKED)
            integers = unpack_bits(packed, state["weight_spec"].bits, shape)
            buffers[_INTEGERS] = in_order(integers, order)
            state["_buffers"] = buffers
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeights:
        copied = self._blank()
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def __copy__(self) -> PackedWeights:
        copied = self._blank()
        vars(copied).update(vars(self))
        return copied

    def _blank(self) -> PackedWeights:
        return type(self).__new__(type(self))


def differs(own: Tensor | None, given: Any) -> bool:
    """Whether a state gives a module another tensor than its own."""
    if own is None or not isinstance(given, Tensor):
        return False
    return own.is_meta or own.device != given.device or not torch.equal(own, given)
