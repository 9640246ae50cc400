"""Of one run, each warning once: models are captured, and quantized, several times on the way."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_logger = logging.getLogger("fxquant")


class _Once(logging.Filter):
    """Lets no warning through a second time."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        is_new = record.getMessage() not in self._said
        self._said.add(record.getMessage())
        return is_new


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Log no warning twice inside of the context; one inside of another begins nothing anew.

    >>> with said_once():
    ...     for _ in range(2):
    ...         logging.getLogger("fxquant").warning("once")
    """
    if any(isinstance(each, _Once) for each in _logger.filters):
        yield
        return
    once = _Once()
    _logger.addFilter(once)
    try:
        yield
    finally:
        _logger.removeFilter(once)
