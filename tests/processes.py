"""Other processes, for tests of what several do with one folder, or as ranks of one group."""

import os
import warnings
from collections.abc import Callable


def forked(function: Callable[[], object]) -> int:
    """Run a function in a copy of this process; return the copy's number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch has threads: none is needed
        child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return child


def in_process(function: Callable[[], object]) -> None:
    """Run a function in a copy of this process, to its end."""
    os.waitpid(forked(function), 0)
