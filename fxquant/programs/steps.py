"""What a program does, one step after the other.

A step is called with the program's values, a list of what is known only while it runs: the inputs,
and what calls of PyTorch returned. All else, and above all the program's own memory, is bound to
the step. It returns nothing, or a status that is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.numerics import cloned
from fxquant.programs.primitives import Primitive

Values = list[Any]


class Unexpected(Exception):
    """A value is not such as the program was made for: the graph computes it."""


class Slot:
    """Stands in arguments for one of the values."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"v{self.number}"


class Own:
    """Stands in a result for a copy of a tensor, or of one of the values: it lies in the memory.

    Of a container its tensors are copied, and they may be those of another part of the result.
    """

    def __init__(self, of: Any) -> None:
        self.of = of


class Execute:
    """Run a primitive."""

    def __init__(self, name: str, primitive: Primitive) -> None:
        self.name, self.primitive, self.run = name, primitive, primitive.run

    def __call__(self, values: Values) -> int:
        """Compute."""
        return self.run()

    def __str__(self) -> str:
        return f"{self.name}: {self.primitive.implementation}"


class Bind:
    """Let a primitive read one of the values, which must lie in memory as the first one did."""

    def __init__(self, slot: Slot, primitive: Primitive, operand: int, like: Tensor) -> None:
        self._slot, self._rebind = slot.number, primitive.rebind(operand)
        self._shape, self._strides, self._dtype = like.shape, like.stride(), like.dtype

    def __call__(self, values: Values) -> int:
        """Tell the primitive where the value lies."""
        x = values[self._slot]
        if x.shape != self._shape or x.stride() != self._strides or x.dtype is not self._dtype:
            raise Unexpected
        if x.is_neg():
            raise Unexpected  # its memory has other signs
        return self._rebind(x.data_ptr())

    def __str__(self) -> str:
        return f"bind v{self._slot}"


class RequireNumbers:
    """See that a dense float32 tensor, or one of the values, has neither NaN nor huge values.

    Of NaN the graph warns. The root of a sum of squares is no less than any of the values.
    """

    GREATEST = 1e14

    def __init__(self, x: Tensor | Slot, like: Tensor) -> None:
        self._x = x if isinstance(x, Slot) else _in_a_row(x)
        self._shape, self._strides = like.shape, like.stride()

    def __call__(self, values: Values) -> None:
        """Look."""
        x: Tensor = values[self._x.number] if isinstance(self._x, Slot) else self._x
        if isinstance(self._x, Slot):
            if x.shape != self._shape or x.stride() != self._strides:
                raise Unexpected  # it may have gaps, or one value in several places
            x = _in_a_row(x)
        if not torch.dot(x, x).item() <= self.GREATEST**2:
            raise Unexpected

    def __str__(self) -> str:
        return "require numbers"


def _in_a_row(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


class Copy:
    """Write a tensor, or one of the values, into the program's memory, as it is or by `write`."""

    def __init__(
        self,
        x: Tensor | Slot,
        into: Tensor,
        write: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    ) -> None:
        self._x, self._into, self._write = x, into, write

    def __call__(self, values: Values) -> None:
        """Write."""
        x = values[self._x.number] if isinstance(self._x, Slot) else self._x
        if x.shape != self._into.shape:
            raise Unexpected
        self._write(self._into, x)

    def __str__(self) -> str:
        return "copy"


def fill(into: Tensor, mask: Tensor) -> None:
    """Write what a mask adds: itself, or 0 where it is true and -∞ where it is false.

    Raises:
        Unexpected: a row of scores would have nothing left, of which PyTorch makes 0.
    """
    if mask.dtype == torch.bool:
        into.fill_(-torch.inf).masked_fill_(mask, 0.0)
    else:
        into.copy_(mask)
    if into.amax(-1).min().item() == -torch.inf:
        raise Unexpected


class Call:
    """Call what the graph calls, and keep the result among the values.

    Args:
        name: of the node.
        function: what is called.
        arguments: a `Slot` where one of the values goes in, also in lists, tuples, dicts, slices.
        options: the same, by name.
        result: where the result goes.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        options: dict[str, Any],
        result: Slot,
    ) -> None:
        self.name, self._function, self._result = name, function, result.number
        self._arguments, self._options = tuple(arguments), options
        nested = [*(each for each in arguments if not isinstance(each, Slot)), *options.values()]
        self._is_nested = any(_has_slots(each) for each in nested)
        self._places = [
            (place, each.number) for place, each in enumerate(arguments) if isinstance(each, Slot)
        ]

    def __call__(self, values: Values) -> None:
        """Call, and keep the result."""
        if self._is_nested:
            arguments = filled(self._arguments, values)
            values[self._result] = self._function(*arguments, **filled(self._options, values))
            return
        given = list(self._arguments)
        for place, slot in self._places:
            given[place] = values[slot]
        values[self._result] = self._function(*given, **self._options)

    def __str__(self) -> str:
        return f"{self.name}: {getattr(self._function, '__name__', self._function)}"


class Write:
    """Run operators of PyTorch that write into the program's memory.

    Args:
        name: of the node.
        calls: of them, each with all its arguments.
    """

    def __init__(self, name: str, calls: Sequence[Callable[[], Any]]) -> None:
        self.name, self._calls = name, list(calls)

    def __call__(self, values: Values) -> None:
        """Compute."""
        for call in self._calls:
            call()

    def __str__(self) -> str:
        return f"{self.name}: {len(self._calls)} operators of PyTorch"


class Release:
    """Let go of values that no later step reads."""

    def __init__(self, slots: Sequence[int]) -> None:
        self._slots = slots

    def __call__(self, values: Values) -> None:
        """Forget them."""
        for slot in self._slots:
            values[slot] = None

    def __str__(self) -> str:
        return "release " + ", ".join(f"v{slot}" for slot in self._slots)


def method(name: str) -> Callable[..., Any]:
    """Return what calls a method of its first argument."""

    def call(owner: Any, *arguments: Any, **options: Any) -> Any:
        return getattr(owner, name)(*arguments, **options)

    call.__name__ = name
    return call


def filled(value: Any, values: Values) -> Any:
    """Return `value` with the values in the places of their slots; containers are new ones."""

    def found(leaf: Any) -> Any:
        if isinstance(leaf, Slot):
            return values[leaf.number]
        return cloned(found(leaf.of)) if isinstance(leaf, Own) else leaf

    return mapped(value, found, (Slot, Own, Tensor))


def mapped(
    value: Any, function: Callable[[Any], Any], leaves: tuple[type, ...] = (fx.Node,)
) -> Any:
    """Return arguments of a node with what `function` makes of its `leaves`; new containers."""
    if isinstance(value, leaves):
        return function(value)
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return slice(*(mapped(each, function, leaves) for each in parts))
    if isinstance(value, (tuple, list)):
        items = [mapped(each, function, leaves) for each in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, dict):
        return {name: mapped(each, function, leaves) for name, each in value.items()}
    return value


def _has_slots(value: Any) -> bool:
    found: list[Any] = []
    mapped(value, found.append, (Slot,))
    return bool(found)


Step = Execute | Bind | RequireNumbers | Copy | Call | Write | Release
