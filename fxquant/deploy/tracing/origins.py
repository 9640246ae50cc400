"""What of a call's inputs a value of its trace depends on: their values, or only their sizes.

%n = aten::numel(%boxes)      # a size, but how many boxes there are depends on values
%h = aten::size(%x, 2)        # a size
"""

from __future__ import annotations

from typing import Any

# Of other namespaces nothing is known: torchvision::nms returns as many rows as it likes.
_KEEPS_TO_SIZES = ("aten", "prim", "quantized_decomposed")
_SIZED_BY_VALUES = (
    "aten::nonzero", "aten::nonzero_numpy", "aten::masked_select", "aten::where", "aten::bincount",
    "aten::unique_dim", "aten::_unique", "aten::_unique2", "aten::unique_consecutive",
    "aten::repeat_interleave", "aten::Int", "aten::IntImplicit", "aten::ScalarImplicit",
    "aten::item", "prim::CallFunction", "prim::CallMethod", "prim::Loop", "prim::If",
)  # fmt: skip


class Origins:
    """What of a call's inputs a value of the traced graph depends on."""

    def __init__(self, inputs: set[int]) -> None:
        self._inputs = inputs
        self.reaches_values = False
        self.axes: set[int | None] = set()

    def search(self, value: Any, axis: int | None) -> None:
        """Go back from a value, or, if `axis` is given, from the length of one of its axes."""
        waiting = [(value, axis is not None, axis)]
        seen = set()
        while waiting:
            value, of_size, axis = waiting.pop()
            key = (value.unique(), of_size, axis)
            if key in seen:
                continue
            seen.add(key)
            if value.unique() in self._inputs:
                self.reaches_values |= not of_size
                self.axes |= {axis} if of_size else set()
                continue
            node = value.node()
            if of_size and _is_sized_by_values(node):
                of_size = False
            elif node.kind() in ("aten::size", "aten::len", "aten::numel", "aten::sym_size"):
                waiting.append((node.inputsAt(0), True, _axis(node)))
                continue
            waiting += [(each, of_size, axis) for each in node.inputs()]


def _is_sized_by_values(node: Any) -> bool:
    kind = node.kind()
    if kind == "aten::index":  # a mask as an index
        indices = node.inputsAt(1).node().inputs()
        return any(str(each.type().scalarType()) in ("Bool", "Byte") for each in indices)
    return kind in _SIZED_BY_VALUES or kind.partition("::")[0] not in _KEEPS_TO_SIZES


def _axis(node: Any) -> int | None:
    """Return the axis that a node asks the length of; None if it asks for several."""
    operands = list(node.inputs())
    axis = operands[1].toIValue() if len(operands) > 1 else None
    if not isinstance(axis, int):
        return None
    return axis % operands[0].type().dim() if axis < 0 else axis
