"""oneDNN's primitives, each made once, with all that it reads and writes bound to it."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import c_void_p
from typing import Any

import torch
from torch import Tensor

from fxquant.programs.library import Axes, Library, Refused, library

SOURCE, OTHER, RESULT, WEIGHT, BIAS, MANY = 1, 2, 17, 33, 41, 1024  # DNNL_ARG_…
SCALE, SHIFT, SCRATCHPAD, SCALES, ZERO_POINTS = 51, 52, 80, 4096, 8192
STEP = 32768  # times n + 1: of the n-th step behind a primitive's own arithmetic
_TYPES = {torch.float32: 3, torch.int32: 4, torch.int8: 5, torch.uint8: 6}
_ANY = 1  # dnnl_format_tag_any
_IMPLEMENTATION, _WEIGHT_LAYOUT, _SCRATCHPAD_LAYOUT = 8, 131, 136  # dnnl_query_…
_BY_THE_USER = 1  # dnnl_scratchpad_mode_user


class Owned:
    """Something of oneDNN's, destroyed when nobody needs it."""

    kind: str

    def __init__(self, handle: c_void_p) -> None:
        self.handle = handle

    def __del__(self, library: Callable[[], Library] = library) -> None:
        # As a default the function is still there when Python ends and clears this file's names.
        library()(f"{self.kind}_destroy", self.handle)


class Layout(Owned):
    """How a tensor lies in memory."""

    kind = "memory_desc"

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """Return the layout that a tensor has."""
        return cls.strided(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    @classmethod
    def strided(cls, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Layout:
        """Return a layout with these strides, in elements."""
        sizes = (len(shape), Axes(*shape), _TYPES[dtype], Axes(*strides))
        return cls(library().made("memory_desc_create_with_strides", *sizes))

    @classmethod
    def channels_last(cls, x: Tensor) -> Layout:
        """Return the layout of such an `x` by its sizes: an axis of length 1 may have any stride.

        Args:
            x: (N, C, *positions).
        """
        sizes = (x.shape[0], *x.shape[2:], x.shape[1])
        strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        return cls.strided(tuple(x.shape), (strides[0], strides[-1], *strides[1:-1]), x.dtype)

    @classmethod
    def free(cls, shape: Sequence[int], dtype: torch.dtype) -> Layout:
        """Return a layout that a primitive is to choose."""
        sizes = (len(shape), Axes(*shape), _TYPES[dtype], _ANY)
        return cls(library().made("memory_desc_create_with_tag", *sizes))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout):
            return NotImplemented
        return bool(library().functions["memory_desc_equal"](self.handle, other.handle))

    __hash__ = None  # type: ignore[assignment]

    @property
    def num_bytes(self) -> int:
        """How much memory a tensor takes."""
        size: int = library().functions["memory_desc_get_size"](self.handle)
        return size


def is_channels_last(x: Tensor) -> bool:
    """Say whether the values of a position lie side by side, and the positions in order."""
    return x.movedim(1, -1).is_contiguous()


def channels_last(x: Tensor) -> Tensor:
    """Return `x`, or a copy of it, with its channels last in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


class Attributes(Owned):
    """What is done beside a primitive's own arithmetic: scales, zero-points, what is behind it."""

    kind = "primitive_attr"

    def __init__(self) -> None:
        super().__init__(library().made("primitive_attr_create"))
        library()("primitive_attr_set_scratchpad_mode", self.handle, _BY_THE_USER)

    def scale(self, operand: int, axes: int = 0) -> None:
        """Give an operand a scale; of `axes`, as bits, each index has one of its own."""
        library()("primitive_attr_set_scales_mask", self.handle, operand, axes)

    def shift(self, operand: int) -> None:
        """Give an operand a zero-point."""
        library()("primitive_attr_set_zero_points_mask", self.handle, operand, 0)

    def append(self, *steps: tuple[Any, ...]) -> None:
        """Do these behind it.

        ("sum", scale, zero-point, type), ("eltwise", kind, α, β), ("binary", kind, layout).
        """
        chain = library().made("post_ops_create")
        for kind, *rest in steps:
            library()(f"post_ops_append_{kind}", chain, *rest)
        library()("primitive_attr_set_post_ops", self.handle, chain)
        library()("post_ops_destroy", chain)


class Description(Owned):
    """A primitive that is not made yet.

    Args:
        kind: as in `dnnl_KIND_primitive_desc_create`.
        arguments: of that function.
    """

    kind = "primitive_desc"

    def __init__(self, kind: str, *arguments: Any) -> None:
        handles = [each.handle if isinstance(each, Owned) else each for each in arguments]
        super().__init__(library().made(f"{kind}_primitive_desc_create", *handles))

    @property
    def implementation(self) -> str:
        """The name of the kernel."""
        name = ctypes.c_char_p()
        query = library().functions["primitive_desc_query"]
        query(self.handle, _IMPLEMENTATION, 0, ctypes.byref(name))
        return (name.value or b"").decode()

    def weight_layout(self) -> Layout:
        """Return the layout that it wants its weight in."""
        return Layout(library().made("memory_desc_clone", self._layout(_WEIGHT_LAYOUT)))

    def scratchpad(self) -> Tensor | None:
        """Return memory to work in."""
        layout = self._layout(_SCRATCHPAD_LAYOUT)
        size: int = library().functions["memory_desc_get_size"](layout) if layout.value else 0
        return torch.empty(size, dtype=torch.uint8) if size else None

    def _layout(self, what: int) -> c_void_p:
        return c_void_p(library().functions["primitive_desc_query_md"](self.handle, what, 0))


class _Argument(ctypes.Structure):
    _fields_ = (("operand", ctypes.c_int), ("memory", c_void_p))


class _Memory(Owned):
    """A tensor as oneDNN has it, in a given layout."""

    kind = "memory"

    def __init__(self, tensor: Tensor, layout: Layout) -> None:
        if not tensor.is_cpu:
            raise Refused(f"a tensor on {tensor.device}")
        self.tensor, self._layout = tensor, layout  # which must live as long
        engine, handle = library().engine, tensor.data_ptr()
        super().__init__(library().made("memory_create", layout.handle, engine, handle))


class Primitive(Owned):
    """A primitive whose operands are known.

    Args:
        description: of it.
        operands: tensors by what they are to it, with a layout where that is not their own.
    """

    kind = "primitive"

    def __init__(
        self, description: Description, operands: Mapping[int, Tensor | tuple[Tensor, Layout]]
    ) -> None:
        super().__init__(library().made("primitive_create", description.handle))
        self.implementation = description.implementation
        scratchpad = description.scratchpad()
        own = {} if scratchpad is None else {SCRATCHPAD: scratchpad}
        pairs = {
            operand: each if isinstance(each, tuple) else (each, Layout.of(each))
            for operand, each in {**operands, **own}.items()
        }
        self._memories = {operand: _Memory(*pair) for operand, pair in pairs.items()}
        count = len(pairs)
        arguments = [_Argument(name, each.handle) for name, each in self._memories.items()]
        self._arguments = (_Argument * count)(*arguments)
        self.run: Callable[[], int] = functools.partial(
            library().functions["primitive_execute"],
            *(self.handle, library().stream, count, self._arguments),
        )
        """Compute, and return a status, which is 0."""

    @contextmanager
    def scaled_by(self, scale: float | None) -> Iterator[None]:
        """Let the result have another scale, if it has any, until the context ends."""
        memory = self._memories.get(SCALES | RESULT)
        if memory is None or scale is None:
            yield
            return
        before = memory.tensor.clone()
        memory.tensor.fill_(scale)
        yield
        memory.tensor.copy_(before)

    @property
    def is_slow(self) -> bool:
        """Whether oneDNN has nothing but plain loops for it."""
        return self.implementation.startswith("ref")

    def leave_litter(self, value: int) -> None:
        """Fill what it should write before it reads, for a kernel may read what it never wrote."""
        for operand in (SCRATCHPAD, RESULT):
            if operand in self._memories:
                self._memories[operand].tensor.fill_(value)

    def rebind(self, operand: int) -> Callable[[int], int]:
        """Return what lets an operand lie elsewhere, at an address, in the same layout."""
        handle = self._memories[operand].handle
        return functools.partial(library().functions["memory_set_data_handle"], handle)


def packed(integers: Tensor, layout: Layout) -> Tensor:
    """Return `integers` in the layout that a primitive wants, as bytes."""
    result = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    engine = library().engine
    move = Description("reorder", Layout.of(integers), engine, layout, engine, None)
    primitive = Primitive(move, {SOURCE: integers, RESULT: (result, layout)})
    primitive.run()
    return result
