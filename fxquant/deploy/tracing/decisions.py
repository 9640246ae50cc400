"""What Python decides while a call is traced: a trace holds the answers as constants.

    if boxes.numel() == 0: …         # how many boxes there are depends on the image: refused
    if x.shape[2] % 32: x = pad(x)   # depends on the size of the image: that must then stay fixed
    if self.anchors is None: …       # depends on no input: nothing to note

The graph traced so far tells them apart: it is searched from the tensor that Python asks back to
the inputs. What torchvision's own code decides is left out: it was written for tracing.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fxquant.deploy.tracing.origins import Origins
from fxquant.numerics.containers import map_leaves

_VALUES = (
    Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__complex__,
    Tensor.__contains__, Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__,
    Tensor.is_nonzero, torch.is_nonzero, Tensor.equal, torch.equal, Tensor.allclose, torch.allclose,
    torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor,
)  # fmt: skip
_LENGTHS = (Tensor.__len__, Tensor.unbind, torch.unbind)


class PythonDecisions(TorchFunctionMode):
    """Notes what Python asks of tensors while the call of a model is traced."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self._num_inputs = num_inputs
        self.on_values: list[str] = []
        """Where what depends on values of the inputs was asked for: file, line and source."""
        self.on_sizes: set[int | None] = set()
        """Axes whose length was asked for, of inputs or of what was made of them; None: of all."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _VALUES:
            self._note(args, None)
        elif func in _LENGTHS:
            self._note(args[:1], int((kwargs or {}).get("dim", (*args, 0)[1])))
        return func(*args, **(kwargs or {}))

    def _note(self, asked: Any, axis: int | None) -> None:
        known: Any = torch._C
        state = known._get_tracing_state()
        frame = _asking_frame()
        if state is None or frame is None or _package(frame) == "torchvision":
            return
        inputs = list(state.graph().inputs())[: self._num_inputs]
        origins = Origins({value.unique() for value in inputs})
        for tensor in _tensors(asked):
            origins.search(known._get_value_trace(tensor), axis)
        self.on_sizes |= origins.axes
        place = _place(frame)
        if origins.reaches_values and place not in self.on_values:
            self.on_values.append(place)


def _tensors(value: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []
    map_leaves(value, lambda each: found.append(each) if isinstance(each, Tensor) else None)
    return iter(found)


def _asking_frame() -> FrameType | None:
    """Return the innermost frame that is neither this file's nor PyTorch's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (_package(frame) == "torch" or frame.f_globals is globals()):
        frame = frame.f_back
    return frame


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _place(frame: FrameType) -> str:
    name, line = frame.f_code.co_filename, frame.f_lineno
    source = linecache.getline(name, line, frame.f_globals).strip()
    return f"{Path(name).name}:{line} ({source})" if source else f"{Path(name).name}:{line}"
