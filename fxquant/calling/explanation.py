"""The one place where errors of the caller's forward are caught, and said again with what is known.

    with explained("batch 0", batch):
        model(*arguments)

    batch 0 (uint8 4×3×16×16): conv1 (Conv2d 3→8) raised RuntimeError: Input type (unsigned char)
    and bias type (float) should be the same: the model takes float32: convert and normalize …

Which batch, its types and shapes; the innermost module; the error's own type and first line, which
stays chained; and a way out where the facts support one.
"""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType
from typing import Any

import torch

from fxquant.calling.batch_hints import hint_of_axes, hint_of_form
from fxquant.calling.description import described_tensor, in_brackets
from fxquant.calling.failed_call import FailedCall, failed_call
from fxquant.calling.layer_hints import hint_of_layer
from fxquant.calling.tensor_hints import hint_of_device, hint_of_type
from fxquant.errors import CalibrationError, CaptureError, FxquantError

_MOST_LETTERS = 200
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class explained(contextlib.AbstractContextManager[None]):
    """Let what the caller's model raises in the block say where, on what, and what to do.

    Errors of fxquant's own, Ctrl-C and what says that there is no memory come out as they are. A
    class: of a generator `contextlib` lets StopIteration out, which would end the caller's loop.

    Args:
        where: "batch 0", "example_inputs".
        batch: what the model is called with, as the caller gave it.

    Raises:
        CalibrationError: the block raised an error, which is its cause.
    """

    def __init__(self, where: str, batch: Any) -> None:
        self._where, self._batch = where, batch

    def __enter__(self) -> None:
        self._quiet = contextlib.redirect_stderr(_ButGraphs(sys.stderr))
        self._quiet.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self._quiet.__exit__(kind, error, frames)
        if isinstance(error, CaptureError):
            _put_in_front(self._where, self._batch, error)
        if isinstance(error, Exception) and not _is_ours(error) and not _is_of_memory(error):
            failed = failed_call(error, self._batch, self._where)
            raise CalibrationError(_message(self._where, failed)) from error


def _message(where: str, failed: FailedCall) -> str:
    parts = [
        f"{where} {in_brackets(failed.batch)}",
        f"{failed.what()}{_given(failed)} raised {_first_line(failed.error)}",
        "; ".join(_hints(failed)),
    ]
    return ": ".join(part for part in parts if part)


def _hints(failed: FailedCall) -> list[str]:
    """Return ways out: what is wrong with the form of the batch hides all else."""
    if failed.is_deliberate:
        return []
    alone = _hint_of_forward(failed) or hint_of_form(failed) or hint_of_device(failed)
    if alone:
        return [alone]
    found = hint_of_axes(failed) or hint_of_layer(failed), hint_of_type(failed)
    return [hint for hint in found if hint]


def _hint_of_forward(failed: FailedCall) -> str:
    is_wrongly_called = isinstance(failed.error, TypeError) and "positional arg" in str(
        failed.error
    )
    return (
        "it is called as forward(model, batch)" if is_wrongly_called and not failed.models else ""
    )


def _given(failed: FailedCall) -> str:
    """Return what the layer was given, where that is not what is in the batch."""
    if failed.module is None or failed.line or not failed.path:
        return ""
    others = [each for each in failed.inputs if not failed.is_of_batch(each)]
    return f", given {', '.join(map(described_tensor, others))}," if others else ""


def _first_line(error: Exception) -> str:
    kind, line = type(error).__name__, str(error).strip().partition("\n")[0]
    if len(line) > _MOST_LETTERS:
        line = f"{line[:_MOST_LETTERS]}…"
    return f"{kind}: {line}" if line else kind


def _is_ours(error: Exception) -> bool:
    return isinstance(error, FxquantError)


def _is_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def _put_in_front(where: str, batch: Any, error: FxquantError) -> None:
    """Let what fxquant says of a call begin with where that was."""
    first, *rest = error.args or ("",)
    if isinstance(first, str) and not first.startswith(where):
        error.args = (f"{where} {in_brackets(batch)}: {first}", *rest)


class _ButGraphs:
    """A stream that writes all but the listings of generated code that fx prints before errors."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if sys._getframe(1).f_globals.get("__name__") == "torch.fx.graph_module":
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
