"""Integer weights in the layout of oneDNN's kernels, packed once and kept as long as they live.

The layout is chosen for the first shape of inputs that a weight meets, and works for every other;
one chosen for no shape at all would be rearranged again at many calls.

Integers that were written to are packed anew: by `copy_`, through `.data`, in inference mode. They
are lazily cloned when they are packed: the two share their memory until somebody writes to one of
them, which gets memory of its own first. So a call needs to ask no more than whether they share it
still, which takes 0.1 µs. What a pointer writes that somebody took before, as a view of NumPy's has
it, stays unseen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fxquant.errors import LoweringError
from fxquant.int8.operands import Geometry, Weight

_PACKED: Any = WeakIdKeyDictionary()
"""integers → `_Packed`."""
_LOCK = threading.Lock()
"""Of packing: watching a weight may give it other memory, from which nobody must read then."""


def prepacked_conv(x: Tensor, weight: Weight, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Return the packed weight of a convolution of `x`, and the zero-points of its outputs.

    Args:
        x: uint8 (N, in, *positions).
        weight: (out, in/groups, *kernel).
        geometry: for which it is packed.
    """

    def pack() -> Tensor:
        shape = list(x.shape) if x.numel() else None
        packed: Tensor = torch.ops.onednn.qconv_prepack(
            weight.integers, weight.scale, 1.0, 0, *geometry, shape
        )
        return packed

    return _prepacked(weight, geometry, pack)


def prepacked_linear(x: Tensor, weight: Weight) -> tuple[Tensor, Tensor]:
    """Return the packed weight of a linear layer, and the zero-points of its outputs.

    Args:
        x: uint8 (…, in).
        weight: (out, in), or (out, in, 1, 1).
    """

    def pack() -> Tensor:
        shape = [x.numel() // x.shape[-1], x.shape[-1]] if x.numel() else None
        # Of a weight that is a transpose qlinear_prepack reads the wrong values.
        rows = weight.integers.flatten(1).contiguous()
        packed: Tensor = torch.ops.onednn.qlinear_prepack(rows, shape)
        return packed

    return _prepacked(weight, None, pack)


def _prepacked(
    weight: Weight, geometry: Geometry | None, pack: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    integers = weight.integers
    known = _PACKED.get(integers)
    if known is None or not known.is_of(integers):
        known = _pack_anew(integers)
    packed: tuple[Tensor, Tensor] | None = known.forms.get(geometry)
    if packed is None:
        if not integers.is_cpu:
            raise LoweringError(
                f"int8 kernels run on the CPU, and the weight is on {integers.device}: move the "
                'model with .cpu(), or, from "meta", load a state with assign=True'
            )
        zero_points = torch.zeros(weight.scale.numel(), dtype=torch.int64)
        with _LOCK:
            packed = known.forms[geometry] = pack(), zero_points
            known.watch(integers)
    return packed


def forms_of(integers: Tensor) -> list[Any]:
    """Return a list, to be added to, of what was made of `integers` as they are now."""
    return _current(integers).others


def _current(integers: Tensor) -> _Packed:
    """Return what is known of `integers` as they are now, watched from now on."""
    known: _Packed | None = _PACKED.get(integers)
    if known is None or not known.is_of(integers):
        known = _pack_anew(integers)
        with _LOCK:
            known.watch(integers)
    return known


class Watch:
    """Looks whether weights are still those that they were."""

    def __init__(self) -> None:
        self._weights: list[Tensor] = []
        self._known: list[_Packed] = []
        self._num_repacked = _REPACKED.count

    def add(self, integers: Tensor) -> None:
        """Watch one more weight."""
        self._weights.append(integers)
        self._known.append(_current(integers))

    def all_as_before(self) -> bool:
        """Say whether nobody wrote to any of them."""
        count = _REPACKED.count
        if count == self._num_repacked and all(map(_is_lazily_cloned, self._weights)):
            return True
        pairs = zip(self._known, self._weights, strict=True)
        is_same = all(known.is_of(integers) for known, integers in pairs)
        if is_same:
            self._num_repacked = count
        return is_same


class _Count:
    """How many weights were packed again, for they were written to."""

    count = 0


_REPACKED = _Count()


def _pack_anew(integers: Tensor) -> _Packed:
    before = _PACKED.get(integers)
    if before is not None:
        before.is_outdated = True
        _REPACKED.count += 1
    made = _PACKED[integers] = _Packed()
    return made


_is_lazily_cloned: Callable[[Tensor], bool] = torch._C._is_cow_tensor  # type: ignore[attr-defined]


class _Packed:
    """The packed forms of one weight, and what its integers were then."""

    is_outdated = False
    """Whether the weight was packed again since, for it was written to."""

    def __init__(self) -> None:
        self.forms: dict[Geometry | None, tuple[Tensor, Tensor]] = {}
        """By geometry, None for a product: the packed weight and its outputs' zero-points."""
        self.others: list[Any] = []
        """Forms that others made, with what they need to know of each."""
        self._before: Tensor | None = None

    def watch(self, integers: Tensor) -> None:
        """Keep a clone, which takes no memory before somebody writes to `integers`.

        Memory that other processes may write to as well is copied, and compared at each call.
        """
        if _is_shared(integers):
            self._before = integers.clone()
            return
        if not integers.untyped_storage().resizable():  # of a file, of NumPy: not PyTorch's own
            integers.data = integers.clone()
        self._before = torch._lazy_clone(integers)

    def is_of(self, integers: Tensor) -> bool:
        """Say whether `integers` are what they were."""
        return not self.is_outdated and (_is_lazily_cloned(integers) or self._fits(integers))

    def _fits(self, integers: Tensor) -> bool:
        """Compare: somebody had access, to write or, as pickling does, to read."""
        before = self._before
        if before is None or not _have_equal_bytes(before, integers):
            return False
        if not _is_shared(integers):
            self.watch(integers)
        return True


def _is_shared(integers: Tensor) -> bool:
    return bool(integers.untyped_storage().is_shared())


def _have_equal_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two int8 tensors are equal: eight values at a time, where that goes."""
    rows = a.shape == b.shape and a.is_contiguous() and b.is_contiguous()
    if rows and not any(each % 8 for each in (a.numel(), a.storage_offset(), b.storage_offset())):
        a, b = (each.flatten().view(torch.int64) for each in (a, b))
    return torch.equal(a, b)
