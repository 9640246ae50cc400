"""Run the notebooks of `fxquant/guides/`, and write what their cells print into them.

    python -m tests.guides.execute [NOTEBOOK …]

Without names all are run. Outputs are kept as text, so that a notebook reads the same anywhere, and
what changes between two runs is seen in the diff.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

# By name: mypy complains of `import` differently where they are installed and where they are not.
nbformat: Any = import_module("nbformat")
nbclient: Any = import_module("nbclient")

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "fxquant" / "guides"
COLUMNS = 96  # of printed tables: what a page shows without scrolling
_SECONDS = 300  # a cell may take
_TIMES = re.compile(r"\d+(?:\.\d+)?(?= s\b)")


def executed(path: Path) -> Any:
    """Return a notebook, run from the first cell to the last in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "COLUMNS": str(COLUMNS),
        "PYTHONPATH": search.strip(os.pathsep),
        "TQDM_DISABLE": "1",  # bars are gone when a cell has ended, but not from its output
    }
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = nbclient.NotebookClient(
            notebook, timeout=_SECONDS, kernel_name="python3", resources=resources
        )
        client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.clear()
        for output in cell.get("outputs", []):
            as_text(output)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def as_text(output: Any) -> None:
    """Leave an output's text alone, in place, its times blanked."""
    if "data" in output:
        output.data = {"text/plain": _TIMES.sub("…", output.data.get("text/plain", ""))}
        output.metadata = {}
    elif "text" in output:
        output.text = _TIMES.sub("…", output.text)


def printed(cell: Any) -> str:
    """Return what a cell shows: what it prints, and its last value."""
    shown = []
    for output in cell.get("outputs", []):
        text = output.text if output.output_type == "stream" else output.data["text/plain"]
        shown.append(text if isinstance(text, str) else "".join(text))
    return "".join(shown)


def main() -> None:
    """Run notebooks, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("notebooks", nargs="*", type=Path, help="paths; all, if none is named")
    for path in parser.parse_args().notebooks or sorted(GUIDES.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(path)


if __name__ == "__main__":
    main()
