"""Functions that a shared library keeps to itself, found by their names in its symbol table.

A library that holds another one often hides that one's functions from the dynamic linker, but keeps
their names for debuggers, in the ELF section `.symtab`. A name is looked up there, and the code at
its address in memory is compared with the file's before anybody calls it.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_SYMBOL_TABLE = 2  # SHT_SYMTAB
_CODE = 1  # SHT_PROGBITS
_FUNCTION = 2  # STT_FUNC
_LINK_MAP = 2  # RTLD_DI_LINKMAP
_COMPARED = 64  # bytes of code


class NotFound(Exception):
    """A function is not where its library's symbol table has it, or there is no such table."""


def addresses(path: Path, names: Collection[str], start: str) -> dict[str, int]:
    """Return where functions of a loaded library lie in memory.

    Args:
        path: of the library, which this process has loaded.
        names: of the functions.
        start: what all names begin with.

    Raises:
        NotFound: the file has no symbol table, or not all the functions; or the memory has other
            code than the file, as after an update under a running process.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as map_:
            sections = _sections(map_)
            values = _values(map_, sections, names, start)
            base = _base(path)
            for name, value in values.items():
                code = ctypes.string_at(base + value, _COMPARED)
                if _code(map_, sections, value) != code:
                    raise NotFound(f"{name} is not in memory as in the file")
    except (OSError, ValueError, struct.error, NotFound) as error:
        raise NotFound(f"{path}: {error}") from error
    return {name: base + value for name, value in values.items()}


class _Section(NamedTuple):
    kind: int
    address: int
    """In memory, before the library's base is added."""
    offset: int
    """In the file."""
    size: int
    link: int
    """Of a symbol table: the number of the section with its names."""


def _sections(map_: mmap.mmap) -> list[_Section]:
    if map_[:5] != b"\x7fELF\x02":
        raise NotFound("no ELF file of 64 bits")
    (start,) = struct.unpack_from("<Q", map_, 0x28)
    each, count = struct.unpack_from("<HH", map_, 0x3A)
    headers = (struct.unpack_from("<IIQQQQI", map_, start + each * n) for n in range(count))
    return [_Section(kind, *rest) for _, kind, _, *rest in headers]


def _values(
    map_: mmap.mmap, sections: Sequence[_Section], names: Collection[str], start: str
) -> dict[str, int]:
    """Return the functions' values in the symbol table: of some 500,000, in 50 ms."""
    symbols = next((each for each in sections if each.kind == _SYMBOL_TABLE), None)
    if symbols is None:
        raise NotFound("it has no symbol table")
    strings = sections[symbols.link]
    table = _bytes(map_, symbols).view(torch.int64).reshape(-1, 3)
    characters = _bytes(map_, strings)
    is_function = (table[:, 0] >> 32) & 15 == _FUNCTION
    table = table[is_function & (table[:, 1] != 0)]
    places = table[:, 0] & 0xFFFFFFFF
    for position, letter in enumerate(start.encode()):
        matches = characters[(places + position).clamp_(max=strings.size - 1)] == letter
        table, places = table[matches], places[matches]
    found = {}
    for place, value in zip(places.tolist(), table[:, 1].tolist(), strict=True):
        first = strings.offset + place
        name = map_[first : map_.find(b"\0", first)].decode()
        if name in names:
            found[name] = value
    missing = sorted(set(names) - found.keys())
    if missing:
        raise NotFound(f"its symbol table has no {', '.join(missing)}")
    return found


def _bytes(map_: mmap.mmap, section: _Section) -> Tensor:
    return torch.frombuffer(map_, dtype=torch.uint8, count=section.size, offset=section.offset)


def _code(map_: mmap.mmap, sections: Sequence[_Section], value: int) -> bytes:
    """Return the first bytes of a function, as the file has them."""
    for section in sections:
        if section.kind == _CODE and 0 <= value - section.address < section.size:
            first = section.offset + value - section.address
            return map_[first : first + _COMPARED]
    return b""


def _base(path: Path) -> int:
    """Return what is added to a value to have its address."""
    library = ctypes.CDLL(str(path), mode=ctypes.DEFAULT_MODE)
    entry = ctypes.c_void_p()
    own = ctypes.CDLL(None)
    own.dlinfo.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    if own.dlinfo(library._handle, _LINK_MAP, ctypes.byref(entry)) or not entry.value:
        raise NotFound(f"{path}: the dynamic linker does not tell where it lies")
    return ctypes.c_size_t.from_address(entry.value).value
