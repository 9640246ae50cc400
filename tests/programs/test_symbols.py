"""Functions are found by name in a library's symbol table, and never called where they are not."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fxquant.programs import symbols
from fxquant.programs.library import why_unavailable
from fxquant.programs.symbols import NotFound, addresses

LIBRARY = Path(torch.__path__[0]) / "lib" / "libtorch_cpu.so"
needs_names = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))


@needs_names
def test_a_function_lies_where_another_look_finds_it() -> None:
    names = ["dnnl_version", "dnnl_engine_create"]
    found = addresses(LIBRARY, names, "dnnl_")
    assert sorted(found) == sorted(names)
    assert addresses(LIBRARY, names[:1], "dnnl_")["dnnl_version"] == found["dnnl_version"]


@needs_names
def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(NotFound, match=re.escape("has no dnnl_no_such_function")):
        addresses(LIBRARY, ["dnnl_version", "dnnl_no_such_function"], "dnnl_")


@needs_names
def test_memory_that_is_not_as_in_the_file_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    true_base = symbols._base
    monkeypatch.setattr(symbols, "_base", lambda path: true_base(path) + 16)
    with pytest.raises(NotFound, match="dnnl_version is not in memory as in the file"):
        addresses(LIBRARY, ["dnnl_version"], "dnnl_")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no library", "no ELF file"), (b"", "empty"), (b"\x7fELF\x02" + b"\0" * 10, "unpack")],
)
def test_a_file_that_is_no_library_is_told(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content)
    with pytest.raises(NotFound, match=reason):
        addresses(path, ["f"], "f")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        addresses(tmp_path / "none.so", ["f"], "f")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_stripped_library_is_told_and_a_hidden_function_is_found(tmp_path: Path) -> None:
    source, path = tmp_path / "hidden.c", tmp_path / "hidden.so"
    source.write_text(
        '__attribute__((visibility("hidden"))) int own_answer(int x) { return x + 41; }\n'
        "int shown(int x) { return own_answer(x) + own_answer(x + 1); }\n"
    )
    command = ["cc", "-O1", "-fno-inline", "-shared", "-fPIC", str(source), "-o", str(path)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(path))
    assert not hasattr(library, "own_answer")
    address = addresses(path, ["own_answer"], "own_")["own_answer"]
    assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(address)(1) == 42
    subprocess.run([*command, "-s"], check=True)
    with pytest.raises(NotFound, match="it has no symbol table"):
        addresses(path, ["own_answer"], "own_")
