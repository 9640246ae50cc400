"""The graph behind each pass, in files: with the environment variable `FXQUANT_DUMP=DIR`.

DIR/001_DropIdentities.txt, DIR/002_FoldConstants.txt, … : numbered from 1 in each process, and in a
folder that was emptied. `DIR/.dumped.json` lists them: a later process removes these. Of several
ranks the first one writes.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from torch import fx

from fxquant.errors import StorageError
from fxquant.graph.printing import text
from fxquant.streaming.distributed import rank

_LIST = ".dumped.json"
_written: dict[Path, list[str]] = {}
"""By folder, the files of this process."""


def dump_graph(gm: fx.GraphModule, name: str) -> None:
    """Write the text of `gm` behind the pass of that name, if the variable asks for it.

    Raises:
        StorageError: it cannot be written.
    """
    asked = os.environ.get("FXQUANT_DUMP")
    if not asked or rank() != 0:
        return
    folder = Path(asked).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder not in _written or not (folder / _LIST).exists():
            _remove_earlier(folder)
            _written[folder] = []
        files = _written[folder]
        plain = re.sub(r"[^\w.-]+", "_", name).strip("_")
        files.append(f"{len(files) + 1:03d}_{plain}.txt")
        (folder / files[-1]).write_text(text(gm), encoding="utf-8")
        (folder / _LIST).write_text(json.dumps({"files": files}), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"FXQUANT_DUMP={asked}: cannot be written to: {error}: name another folder, or unset it"
        ) from error


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier process wrote: nothing else, whatever it is called."""
    if not (folder / _LIST).exists():
        return
    try:
        files = json.loads((folder / _LIST).read_text(encoding="utf-8"))["files"]
    except (ValueError, TypeError, KeyError):  # somebody else's file
        return
    for name in files:
        (folder / Path(name).name).unlink(missing_ok=True)
