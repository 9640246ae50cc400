"""How something long runs: with a bar, and with a folder that it can go on from."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

_Value = TypeVar("_Value")
_SELDOM = 10.0  # seconds between two lines, where each stays: in a file, in a log
_OF_UNITS = "{{desc}}: {{percentage:3.0f}}%|{bar}| {{elapsed}}<{{remaining}}{{postfix}}"
_LEAST_NAME = 12  # characters
_GROWTH = 4  # by which the times get longer: "?", "00:42", "1:00:42"


@dataclass(frozen=True)
class Run:
    """How something long runs; it changes no result.

    >>> Run("layers").inside("head")
    Run(checkpoint=PosixPath('layers/head'), progress=None)
    """

    checkpoint: str | os.PathLike[str] | None = None
    """A folder in which finished parts are kept, and looked for."""
    progress: bool | None = None
    """Show a bar; None means where there is a terminal or a notebook."""

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
    """Yield `values`, with a bar that counts them, once that has taken a second.

    Inside of another bar it goes away when it is done.

    Args:
        values: what is gone through.
        title: in front of the bar.
        progress: whether to show it; None means where there is a terminal or a notebook.
        unit: of what is counted.
        total: how many will come, where `values` have no length.
    """
    if total is None and isinstance(values, Sized):
        total = len(values)
    return iter(_made(progress, iterable=values, desc=title, total=total, delay=1, unit=unit))


class UnitsBar:
    """A bar of units of unlike cost: how many are done, which is next, and how long the rest takes.

        AdaRound 7 of 21 layers:  33%|███▉        | 00:12<00:24, layer3.0.conv1

    Args:
        title: in front of the bar.
        units: what they are called.
        costs: of each, in any unit of its own.
        progress: whether to show it; None means where there is a terminal or a notebook.
    """

    def __init__(self, title: str, units: str, costs: Sequence[int], progress: bool | None) -> None:
        self._title, self._units, self._costs, self._number = title, units, costs, 0
        drawn = "{bar}" if _is_notebook() else "{bar:12}"  # does not move with the name behind it
        self._bar = _made(
            progress, total=sum(costs), desc=title, bar_format=_OF_UNITS.format(bar=drawn)
        )

    def __enter__(self) -> UnitsBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, name: str) -> None:
        """Show the name of the next unit, which is begun."""
        done = f"{self._number + 1} of {len(self._costs)}"
        self._bar.set_description_str(f"{self._title} {done} {self._units}", refresh=False)
        is_seldom = self._bar.disable or self._bar.mininterval == _SELDOM
        self._bar.set_postfix_str(self._fitting(name), refresh=not is_seldom)

    def end(self) -> None:
        """Count the unit that was begun."""
        self._bar.update(self._costs[self._number])
        self._number += 1
        if self._number == len(self._costs):
            self._bar.set_postfix_str("")

    def stop(self) -> None:
        """Let what is done be all."""
        if not self._bar.disable:
            self._bar.total = self._bar.n
            self._bar.set_postfix_str("")

    def _fitting(self, name: str) -> str:
        """Return a name, or its end, that leaves some of the terminal's line to the bar."""
        columns = None if self._bar.disable else self._bar.format_dict["ncols"]
        if not isinstance(columns, int):  # no terminal
            return name
        self._bar.set_postfix_str("", refresh=False)
        room = max(_LEAST_NAME, columns - len(f"{self._bar}, ") - _GROWTH)
        return name if len(name) <= room else f"…{name[1 - room :]}"


def _made(progress: bool | None, **options: Any) -> tqdm[Any]:
    """Return a bar for where the output goes: a notebook, a terminal, or a file."""
    is_notebook = _is_notebook()
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    is_kept = is_notebook or is_terminal  # each line of a file stays
    if progress is not None or not is_kept:  # else tqdm's own TQDM_DISABLE says
        options["disable"] = not progress
    kind = _of_notebooks() if is_notebook else tqdm
    return kind(
        leave=not getattr(kind, "_instances", ()),  # those inside of others go
        dynamic_ncols=is_terminal,
        mininterval=0.1 if is_kept else _SELDOM,
        **options,
    )


def _is_notebook() -> bool:
    """Say whether this runs in the kernel of a notebook, which is no terminal and shows bars."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


def _of_notebooks() -> type[tqdm[Any]]:
    """Return the bar for notebooks: as a widget, or, without ipywidgets, as text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ipywidgets is missing
        from tqdm.auto import tqdm as found

    kind: type[tqdm[Any]] = found
    return kind
