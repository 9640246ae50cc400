"""What the results of fxquant have in common: they print, and write themselves to files.

A result says its sentences (`heads`) and its tables; how these look in a terminal, a notebook, a
file or a page is decided here, once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fxquant.display.figures import Figure
from fxquant.display.files import as_csv, as_json, as_pandas, plain_facts, written
from fxquant.display.notebook import as_html
from fxquant.display.page import Section, as_page
from fxquant.display.table import Table, Value
from fxquant.display.terminal import line_width, wrapped
from fxquant.errors import FxquantError
from fxquant.whole_files import write_whole

if TYPE_CHECKING:
    import pandas

_Listed = TypeVar("_Listed", bound="Listed")


class Shown:
    """A result with a summary and tables.

    `print` fits it into the terminal's width, or into the environment's COLUMNS; a notebook shows
    it as HTML.
    """

    def heads(self) -> list[str]:
        """Return the sentences of the summary, the most important first."""
        raise NotImplementedError

    def tables(self) -> list[Table]:
        """Return the tables, the main one first."""
        raise NotImplementedError

    def figures(self) -> list[Figure]:
        """Return what a page draws: key numbers, bars, histograms, shares, graphs."""
        return []

    def title(self) -> str:
        """Return what stands above the result on a page."""
        return type(self).__name__

    def parts(self) -> list[Shown]:
        """Return other results that a page shows below this one."""
        return []

    def __str__(self) -> str:
        width = line_width()
        said = "\n".join(wrapped(head, width) for head in self.heads())
        shown = [table.text(width) for table in self.tables() if table.rows]
        return "\n\n".join(each for each in (said, *shown) if each)

    def __repr__(self) -> str:
        heads = self.heads()
        return f"<{type(self).__name__}{': ' if heads else ''}{''.join(heads[:1])}>"

    def _repr_html_(self) -> str:
        return as_html(self.heads(), [table for table in self.tables() if table.rows])

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Write the main table as CSV, if there is a path; return it."""
        return written(as_csv(self.tables()[0]), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Write summary and tables as JSON, if there is a path; return it.

        null is where nothing was measured.
        """
        return written(as_json(plain_facts(self.heads(), self.tables())), path)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the main table as a `pandas.DataFrame`.

        Raises:
            FxquantError: pandas is missing.
        """
        return as_pandas(self.tables()[0], f"{type(self).__name__}.to_pandas")

    def to_html(self, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
        """Write a page that needs nothing but a browser, and return its path.

        It has the summary, tables to sort and filter, and what `figures` draws; without JavaScript
        and on paper all of it can be read. A file of that name is replaced as a whole.

        Args:
            path: of the file; "~" is the home folder.
            title: what stands above; None: `title()`.

        Raises:
            FxquantError: `path` is a folder.
            OSError: the file cannot be written; says what to do.

        >>> import tempfile
        >>> from fxquant.display.table import Column
        >>> class Counted(Shown):
        ...     def heads(self) -> list[str]:
        ...         return ["Two layers."]
        ...
        ...     def tables(self) -> list[Table]:
        ...         return [Table((Column("name", "call"),), (("conv1",), ("fc",)))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Counted().to_html(f"{folder}/counted.html").name
        'counted.html'
        """
        target = Path(path).expanduser()
        if target.is_dir():
            raise FxquantError(
                f"{type(self).__name__}.to_html: {str(path)!r} is a folder: name a file, "
                f"{str(target / 'report.html')!r}"
            )
        sections = [_section(each) for each in _with_parts(self)]
        if title is not None:
            sections[0] = dataclasses.replace(sections[0], title=title)
        page = as_page(sections).encode(errors="backslashreplace")  # a name may hold half a letter
        write_whole(target, lambda file: file.write(page))
        return target


class Listed(Shown):
    """A result that is a list of rows, of which some can be chosen.

    It is a dataclass with a field for them. The main table has a row for each; its first column
    names them.
    """

    def row_field(self) -> str:
        """Return the name of the field that holds the rows."""
        return "rows"

    def badness(self) -> Sequence[float | None]:
        """Return how bad each row is, for `worst`: the greater the worse; None: not known."""
        raise NotImplementedError

    def worst(self: _Listed, n: int = 10) -> _Listed:
        """Return the `n` rows that are worst, the worst first; those that nothing tells of are out.

        Raises:
            FxquantError: `n` is not positive.
        """
        if n < 1:
            raise FxquantError(f"{type(self).__name__}.worst: n={n}: give a positive number")
        known = [(bad, row) for row, bad in enumerate(self.badness()) if bad is not None]
        known.sort(key=lambda each: -each[0])
        return self._chosen([row for _, row in known[:n]])

    def sort(self: _Listed, key: str, *, descending: bool = False) -> _Listed:
        """Return the rows in the order of a column; those without a value come last.

        Args:
            key: the column's name in `to_csv`.
            descending: the greatest first.

        Raises:
            FxquantError: there is no such column.
        """
        table = self.tables()[0]
        keys = [column.key for column in table.columns]
        if key not in keys:
            raise FxquantError(
                f"{type(self).__name__}.sort: no column {key!r}: choose one of {', '.join(keys)}"
            )
        values = table.values(key)
        known = [row for row, value in enumerate(values) if value is not None]
        known.sort(key=_order(values), reverse=descending)
        return self._chosen([*known, *(row for row, value in enumerate(values) if value is None)])

    def select(self: _Listed, *patterns: str) -> _Listed:
        """Return the rows whose names match one of the globs, as those of rules: "layer4.*".

        Raises:
            FxquantError: a pattern matches none.
        """
        table = self.tables()[0]
        names = [str(name) for name in table.values(table.columns[0].key)]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                starts = list(dict.fromkeys(name.partition(".")[0] for name in names))
                raise FxquantError(
                    f"{type(self).__name__}.select: {pattern!r} matches none of {len(names)} rows; "
                    f"names start with: {', '.join(starts[:8])}"
                )
        matching = [
            row
            for row, name in enumerate(names)
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        return self._chosen(matching)

    def __len__(self) -> int:
        return len(getattr(self, self.row_field()))

    def _chosen(self: _Listed, numbers: Sequence[int]) -> _Listed:
        rows = getattr(self, self.row_field())
        chosen: dict[str, Any] = {self.row_field(): tuple(rows[number] for number in numbers)}
        changed: Any = self
        result: _Listed = dataclasses.replace(changed, **chosen)
        return result


def _with_parts(result: Shown) -> list[Shown]:
    return [result, *(inner for part in result.parts() for inner in _with_parts(part))]


def _section(result: Shown) -> Section:
    return Section(result.title(), result.heads(), result.tables(), result.figures())


def _order(values: Sequence[Value]) -> Callable[[int], Any]:
    """Return the key to sort rows by: numbers by size, text by its letters."""
    are_text = any(isinstance(value, str) for value in values)
    return lambda row: str(values[row]) if are_text else values[row]
