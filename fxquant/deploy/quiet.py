"""What PyTorch's exporters print and log on the way: its graphs, line by line, before an error."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet_exporter(*, keep_warnings: bool = True) -> Iterator[None]:
    """Drop what PyTorch prints on the standard error, and its log records of warnings and errors.

    What others print, the model's own code among them, appears as ever.

    Args:
        keep_warnings: if not, Python's warnings are dropped too, whoever gives them.
    """
    handlers = list(_handlers_of_torch())
    for handler in handlers:
        handler.addFilter(_is_wanted)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(_OfOthers(sys.stderr)):
            if not keep_warnings:
                warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_wanted)


def _is_wanted(entry: logging.LogRecord) -> bool:
    """Say whether a record was asked for, with TORCH_LOGS, by its level."""
    return entry.levelno < logging.WARNING


def _handlers_of_torch() -> Iterator[logging.Handler]:
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger):
            yield from logger.handlers


class _OfOthers:
    """A stream that writes what any code but PyTorch's prints."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        if caller.partition(".")[0] == "torch":
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
