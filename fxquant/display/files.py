"""Tables as CSV, JSON and pandas: every value under its column's key, whole, not as it is shown."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxquant.display.table import Table, Value
from fxquant.errors import FxquantError

if TYPE_CHECKING:
    import pandas


def as_csv(table: Table) -> str:
    r"""Return a table as CSV with a line of keys; empty where there is nothing.

    >>> from fxquant.display.table import Column
    >>> as_csv(Table((Column("name", "call"), Column("db", "dB")), (("a, b", 1.5), ("c", None))))
    'name,db\r\n"a, b",1.5\r\nc,\r\n'
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([column.key for column in table.columns])
    writer.writerows(table.rows)
    return text.getvalue()


def as_json(facts: Any) -> str:
    """Return JSON as the standard has it: NaN is null, an infinite number is text.

    >>> print(as_json({"db": float("inf")}))
    {
      "db": "inf"
    }
    """
    return json.dumps(_finite(facts), indent=2, ensure_ascii=False, allow_nan=False)


def as_pandas(table: Table, where: str) -> pandas.DataFrame:
    """Return a table as a `pandas.DataFrame`, one column a key.

    Raises:
        FxquantError: pandas is missing.
    """
    if importlib.util.find_spec("pandas") is None:
        raise FxquantError(f"{where}: pandas is not installed: pip install pandas")
    import pandas

    keys = [column.key for column in table.columns]
    return pandas.DataFrame([list(row) for row in table.rows], columns=keys)


def written(text: str, path: str | os.PathLike[str] | None) -> str:
    """Write `text` to a file, if there is a path; return it."""
    if path is not None:
        Path(path).expanduser().write_text(text, encoding="utf-8", newline="")
    return text


def _finite(facts: Any) -> Any:
    if isinstance(facts, dict):
        return {key: _finite(value) for key, value in facts.items()}
    if isinstance(facts, (list, tuple)):
        return [_finite(each) for each in facts]
    if isinstance(facts, float) and not math.isfinite(facts):
        return None if math.isnan(facts) else str(facts)
    return facts


def plain_facts(heads: list[str], tables: list[Table]) -> dict[str, Any]:
    """Return what a result says and shows, for `as_json`."""
    listed: dict[str, list[dict[str, Value]]] = {}
    for number, table in enumerate(tables):
        listed[table.title or ("rows" if number == 0 else f"table {number}")] = table.records()
    return {"summary": heads, **listed}
