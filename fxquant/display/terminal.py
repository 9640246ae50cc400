"""How wide what is printed may be."""

from __future__ import annotations

import shutil
import textwrap

_UNKNOWN = 100  # where there is neither a terminal nor COLUMNS: files, pipes, notebooks' plain text


def line_width() -> int:
    """Return how many characters a line may have: the terminal's, or what COLUMNS says."""
    return shutil.get_terminal_size((_UNKNOWN, 24)).columns


def wrapped(sentence: str, width: int) -> str:
    r"""Return a sentence in lines; those behind the first stand two further in.

    >>> wrapped("20 of 21 layers are quantized", 20)
    '20 of 21 layers are\n  quantized'
    """
    return textwrap.fill(
        sentence, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
