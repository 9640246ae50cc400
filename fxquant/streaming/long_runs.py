"""How something long runs: with a bar, and with a folder that it can go on from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Run:
    """How something long runs; it changes no result.

    >>> Run("layers").inside("head")
    Run(checkpoint=PosixPath('layers/head'), progress=None)
    """

    checkpoint: str | os.PathLike[str] | None = None
    """A folder in which finished parts are kept, and looked for."""
    progress: bool | None = None
    """Show a bar; None means where there is a terminal."""

    def inside(self, path: str) -> Run:
        """Return the same with a folder of its own, inside of the checkpoint, for a region."""
        folder = None if self.checkpoint is None else Path(self.checkpoint, path)
        return replace(self, checkpoint=folder)


def bar(
    values: Iterable[_Value],
    title: str,
    progress: bool | None,
    *,
    unit: str = "batch",
    total: int | None = None,
) -> Iterator[_Value]:
    """Yield `values`, with a bar that counts them.

    Args:
        values: what is gone through.
        title: in front of the bar.
        progress: whether to show it; None means where there is a terminal.
        unit: of what is counted.
        total: how many will come, where `values` have no length.
    """
    return iter(tqdm(values, title, total, disable=_is_hidden(progress), delay=1, unit=unit))


def bar_of_costs(total: int, progress: bool | None) -> tqdm[Any]:
    """Return a bar without units: whoever holds it says what is done, and what it costs."""
    return tqdm(
        total=total,
        disable=_is_hidden(progress),
        bar_format="{percentage:3.0f}%|{bar:12}| {elapsed}<{remaining} {desc}{postfix}",
    )


def _is_hidden(progress: bool | None) -> bool | None:
    """Return what tqdm takes: None is for where there is no terminal."""
    return None if progress is None else not progress
