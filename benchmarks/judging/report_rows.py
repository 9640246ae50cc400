"""The rows of the report's table: kept in a JSON file, one written when it is finished; printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

Row = dict[str, Any]
KEY = ("model", "weights", "data", "method", "options")
"""What tells a row from the others; beside it a row has "figures" and "seconds"."""


class Rows:
    """The rows in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read()  # a file of something else is found out at once

    def find(self, key: Row) -> Row | None:
        """Return the row with these values of `KEY`, None if there is none."""
        return next((row for row in self._read() if _key(row) == _key(key)), None)

    def add(self, row: Row) -> None:
        """Write a row, in the place of one of the same key; the file is old or new, never half."""
        rows = [each for each in self._read() if _key(each) != _key(row)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"rows": [*rows, row]}, indent=1) + "\n")
        unfinished.replace(self.path)

    def _read(self) -> list[Row]:
        if not self.path.exists():
            return []
        try:
            rows = json.loads(self.path.read_text())["rows"]
            for row in rows:
                _key(row)
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(
                f"{self.path}: not rows of this table ({type(error).__name__}: {error}); move it "
                "away, or give --results FILE"
            ) from error
        return list(rows)


def _key(row: Row) -> str:
    return json.dumps([row[name] for name in KEY], sort_keys=True)


def table(rows: Sequence[Row]) -> str:
    """Return rows as the report has them: a line a method, the models side by side."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    headers, columns = ["\nmethod"], [methods]
    for model in models:
        own = {row["method"]: row for row in rows if row["model"] == model}
        figures = dict.fromkeys(name for row in own.values() for name in row["figures"])
        for number, name in enumerate(figures):
            headers.append(f"{'' if number else model}\n{name}")
            columns.append(
                [_cell(own[each]["figures"].get(name)) if each in own else "" for each in methods]
            )
        headers.append("\nseconds")
        columns.append([f"{own[each]['seconds']:.1f}" if each in own else "" for each in methods])
    return tabulate(list(zip(*columns, strict=True)), headers, disable_numparse=True)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
