"""The C functions of the oneDNN that PyTorch carries.

PyTorch's operators make a primitive of oneDNN anew at every call, which takes as long as a small
layer's arithmetic. A program makes it once, by oneDNN's own interface (version 3, whose names,
numbers and structures stay what they are). PyTorch hides these functions from the dynamic linker;
`fxquant.programs.symbols` finds them.
"""

from __future__ import annotations

import ctypes
import functools
import re
from ctypes import c_float, c_int, c_int32, c_int64, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

import torch

from fxquant.programs.symbols import NotFound, addresses

Axes = c_int64 * 12
"""Numbers, one an axis, as oneDNN takes them."""
_MAJOR = 3
_OPENMP = 2  # DNNL_RUNTIME_OMP: PyTorch's own threads
_OUT = c_void_p  # of what a function makes, by reference
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "engine_create": (_OUT, c_int, c_size_t),
    "stream_create": (_OUT, c_void_p, c_uint),
    "memory_desc_create_with_strides": (_OUT, c_int, Axes, c_int, Axes),
    "memory_desc_create_with_tag": (_OUT, c_int, Axes, c_int, c_int),
    "memory_desc_clone": (_OUT, c_void_p),
    "memory_desc_destroy": (c_void_p,),
    "memory_create": (_OUT, c_void_p, c_void_p, c_void_p),
    "memory_set_data_handle": (c_void_p, c_void_p),
    "memory_destroy": (c_void_p,),
    "primitive_attr_create": (_OUT,),
    "primitive_attr_destroy": (c_void_p,),
    "primitive_attr_set_scratchpad_mode": (c_void_p, c_int),
    "primitive_attr_set_scales_mask": (c_void_p, c_int, c_int),
    "primitive_attr_set_zero_points_mask": (c_void_p, c_int, c_int),
    "primitive_attr_set_post_ops": (c_void_p, c_void_p),
    "post_ops_create": (_OUT,),
    "post_ops_append_sum": (c_void_p, c_float, c_int32, c_int),
    "post_ops_append_eltwise": (c_void_p, c_int, c_float, c_float),
    "post_ops_append_binary": (c_void_p, c_int, c_void_p),
    "post_ops_destroy": (c_void_p,),
    "convolution_forward_primitive_desc_create": (
        *(_OUT, c_void_p, c_int, c_int, c_void_p, c_void_p, c_void_p, c_void_p),
        *(Axes, Axes, Axes, Axes, c_void_p),
    ),
    "matmul_primitive_desc_create": (
        *(_OUT, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    ),
    "pooling_forward_primitive_desc_create": (
        *(_OUT, c_void_p, c_int, c_int, c_void_p, c_void_p),
        *(Axes, Axes, Axes, Axes, Axes, c_void_p),
    ),
    "binary_primitive_desc_create": (
        *(_OUT, c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_void_p),
    ),
    "concat_primitive_desc_create": (
        *(_OUT, c_void_p, c_void_p, c_int, c_int, c_void_p, c_void_p),
    ),
    "reorder_primitive_desc_create": (_OUT, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    "layer_normalization_forward_primitive_desc_create": (
        *(_OUT, c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_float, c_uint, c_void_p),
    ),
    "softmax_forward_primitive_desc_create": (
        *(_OUT, c_void_p, c_int, c_int, c_void_p, c_void_p, c_int, c_void_p),
    ),
    "primitive_desc_next_impl": (c_void_p,),
    "primitive_desc_destroy": (c_void_p,),
    "primitive_create": (_OUT, c_void_p),
    "primitive_execute": (c_void_p, c_void_p, c_int, c_void_p),
    "primitive_destroy": (c_void_p,),
}
"""What each function takes; all return a status."""
_QUERIES: dict[str, tuple[Any, ...]] = {
    "memory_desc_equal": (c_int, c_void_p, c_void_p),
    "memory_desc_get_size": (c_size_t, c_void_p),
    "primitive_desc_query_md": (c_void_p, c_void_p, c_int, c_int),
    "primitive_desc_query": (c_int, c_void_p, c_int, c_int, c_void_p),
    "version": (c_void_p,),
}
"""What functions return that need not succeed, and what they take."""
_STATUSES = {
    1: "out of memory", 2: "invalid arguments", 3: "not implemented", 4: "the last implementation",
    5: "a runtime error", 6: "not required", 7: "invalid graph", 8: "invalid operation",
    9: "invalid shape", 10: "invalid data type",
}  # fmt: skip


class Refused(Exception):
    """oneDNN does not do what it is asked."""


class _Version(ctypes.Structure):
    _fields_ = (
        *(("major", c_int), ("minor", c_int), ("patch", c_int)),
        *(("hash", ctypes.c_char_p), ("runtime", c_uint), ("gpu_runtime", c_uint)),
    )


class Library:
    """oneDNN's functions, without the `dnnl_` of their names; a status is raised as `Refused`."""

    def __init__(self, found: dict[str, int]) -> None:
        functions: dict[str, Any] = {}
        for name, takes in _SIGNATURES.items():
            functions[name] = ctypes.CFUNCTYPE(c_int, *takes)(found[f"dnnl_{name}"])
        for name, (returns, *rest) in _QUERIES.items():
            functions[name] = ctypes.CFUNCTYPE(returns, *rest)(found[f"dnnl_{name}"])
        self.functions = functions
        self.engine = self.made("engine_create", 1, 0)
        self.stream = self.made("stream_create", self.engine, 1)

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function."""
        status = self.functions[name](*arguments)
        if status:
            raise Refused(f"{name}: {_STATUSES.get(status, status)}")

    def made(self, name: str, *arguments: Any) -> c_void_p:
        """Return what a function makes."""
        result = c_void_p()
        self(name, ctypes.byref(result), *arguments)
        return result

    def version(self) -> _Version:
        """Return the version of oneDNN that was found."""
        return _Version.from_address(self.functions["version"]())


@functools.cache
def library() -> Library:
    """Return the functions.

    Raises:
        NotFound: there are none, or not those that PyTorch says it carries.
    """
    path = Path(torch.__path__[0]) / "lib" / "libtorch_cpu.so"
    names = [f"dnnl_{name}" for name in (*_SIGNATURES, *_QUERIES)]
    found = Library(addresses(path, names, "dnnl_"))
    version = found.version()
    wanted = re.search(r"MKL-DNN v([\d.]+) \(Git Hash (\w+)\)", torch.__config__.show())
    number = f"{version.major}.{version.minor}.{version.patch}"
    if wanted is None or wanted.groups() != (number, version.hash.decode()):
        raise NotFound(f"oneDNN {number}, where PyTorch has {wanted and wanted[0]}")
    if version.major != _MAJOR or version.runtime != _OPENMP:
        raise NotFound(f"oneDNN {number} with the threads of runtime {version.runtime}")
    return found


@functools.cache
def why_unavailable() -> str | None:
    """Return why there are no programs here, or None if there are."""
    try:
        library()
    except (NotFound, Refused) as reason:
        return str(reason)
    return None
