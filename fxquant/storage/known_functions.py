"""The functions, operators, methods and attributes that graphs in files may use: closed lists.

* What `torch.overrides.get_overridable_functions` lists, and what else is native in `torch`:
  relu_, zeros, arange.
* What `torch.nn.functional` defines, what torchvision's models wrap for fx or hold, and the public
  functions of `torchvision.ops`.
* `operator`, `math`, and the builtins that graphs call.
* Operators `torch.ops.aten.*` and methods of tensors of which PyTorch has a function of that name;
  operators of quantization and of torchvision.

None of them takes the name of a file, calls what it is given, hands out memory, or trusts what it
is given as kernels do that other functions guard: whole families are left out by name
(`_REFUSED`). A name is "module:name".
"""

from __future__ import annotations

import functools
import importlib
import math
import operator
import re
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import get_overridable_functions

_REFUSED = re.compile(
    r"call|data_ptr|from_file|from_numpy|frombuffer|asarray|new|save|apply_|map2?_|set_|set_data"
    r"|.*storage.*|share_memory_|register_hook|module_load|rename_?|names|refine_names|align_.*"
    r"|triplet_margin_with_distance_loss|handle_torch_function|has_torch_function.*"
    r"|.*unsafe.*|.*backward.*|.*resize.*|.*sparse.*|.*(csr|csc|bsr|bsc)(_tensor)?|.*coalesced?.*"
    r"|(cudnn|miopen|mkldnn|fbgemm|quantized|native|sym_constrain|batch_norm|q|lu|ldl)_.+"
    r"|embedding_renorm_?|fused_.*|choose_qparams.*|segment_reduce|to_mkldnn|.*vulkan.*"
    r"|record_stream|retain_grad|ps_roi_pool"
    r"|(gru|lstm|rnn_tanh|rnn_relu)(_cell)?|hspmm|smm|sspaddmm|saddmm|spmm|dsmm|hsmm|lobpcg|ctc_loss"
)
"""Functions that take files or callables, hand out memory, or are kernels without guards."""
_NAMED = {
    "builtins": (
        "abs", "all", "any", "bool", "complex", "dict", "divmod", "enumerate", "float", "getattr",
        "int", "len", "list", "max", "min", "pow", "range", "reversed", "round", "slice", "sorted",
        "sum", "tuple", "zip",
    ),
    "collections": ("OrderedDict", "UserDict"),
    "torch": ("_assert", "finfo", "iinfo", "batch_norm"),
    "torch.nn.functional": ("batch_norm",),
    "torch.fx._symbolic_trace": ("_assert_is_none",),
    "torchvision.models.optical_flow.raft": ("_pass_through_h",),
    "torchvision.models.swin_transformer": (
        "_patch_merging_pad", "_get_relative_position_bias", "shifted_window_attention",
    ),
    "torchvision.models.video.mvit": ("_unsqueeze", "_squeeze", "_add_rel_pos", "_add_shortcut"),
    "torchvision.models.video.swin_transformer": (
        "_get_window_and_shift_size", "_get_relative_position_bias", "_compute_pad_size_3d",
        "_compute_attention_mask_3d", "shifted_window_attention_3d",
    ),
}  # fmt: skip
_CHECKED = (getattr, max, min, sorted)
"""Builtins that reach what is private, or call what they are given: graphs check how."""
_OPERATORS = {  # namespaces of torch.ops: the module that registers them, and what is taken
    "aten": ("torch", ""),
    "quantized_decomposed": (
        "torch.ao.quantization.fx._decomposed", r"(de)?quantize_per_(tensor|channel)",
    ),
    "torchvision": (
        "torchvision", r"nms|(ps_)?roi_align|roi_pool|deform_conv2d",
    ),
}  # fmt: skip
_METHODS = (
    "bfloat16", "bool", "byte", "cdouble", "cfloat", "char", "cpu", "cuda", "dim", "double",
    "element_size", "float", "get_device", "half", "int", "is_contiguous", "item", "long",
    "ndimension", "nelement", "new_tensor", "requires_grad_", "short", "size", "stride", "tolist",
    "type", "type_as", "view",
)  # fmt: skip
_OF_CONTAINERS = (
    "append", "clear", "copy", "count", "extend", "get", "insert", "items", "keys", "pop",
    "popitem", "remove", "reverse", "setdefault", "update", "values",
)  # fmt: skip
_ATTRIBUTES = (
    "H", "T", "device", "dtype", "data", "eps", "imag", "index", "is_complex", "is_cpu", "is_cuda",
    "is_floating_point", "is_leaf", "is_meta", "is_mps", "is_nested", "is_signed", "itemsize",
    "layout", "mH", "mT", "max", "min", "nbytes", "ndim", "real", "requires_grad", "resolution",
    "shape", "smallest_normal", "start", "step", "stop", "tiny", "type",
)  # fmt: skip


@functools.cache
def known_functions() -> dict[str, Callable[..., Any]]:
    """Return the functions by name; some have several.

    >>> known_functions()["torch:relu"] is torch.relu, "torch:load" in known_functions()
    (True, False)
    """
    found = {
        f"{module}:{name}": getattr(importlib.import_module(module), name)
        for module, names in _NAMED.items()
        for name in names
    }
    ops = importlib.import_module("torchvision.ops")
    for name, function in _public_functions(ops):
        if isinstance(function, FunctionType) and name in ops.__all__:
            found[f"{function.__module__}:{name}"] = function
    overridable = get_overridable_functions()
    modules = [each for each in overridable if isinstance(each, ModuleType)]
    for module in dict.fromkeys((operator, math, torch, F, *modules)):
        if module.__name__ in ("torch.foreach", "torch.nn.init"):
            continue
        listed = {id(each) for each in overridable.get(module, ())}
        for name, function in _public_functions(module):
            if id(function) in listed or _is_maths_of(module, function):
                found[f"{module.__name__}:{name}"] = function
    return found


def _public_functions(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name in dir(module):
        function = getattr(module, name)
        is_refused = name.startswith("_") or _REFUSED.fullmatch(name) or isinstance(function, type)
        if not is_refused and callable(function):
            yield name, function


def _is_maths_of(module: ModuleType, function: Any) -> bool:
    """Say whether `function` is one of a group of `module` that is maths throughout."""
    if module is torch:
        return str(getattr(function, "__qualname__", "")).startswith("_VariableFunctionsClass.")
    if module is F:
        return isinstance(function, FunctionType) and function.__module__ == F.__name__
    return module in (operator, math) and isinstance(function, BuiltinFunctionType)


def is_harmless(function: Any) -> bool:
    """Say whether a known function is so with any arguments, so that a file may hold it too."""
    return all(function is not each for each in _CHECKED)


def known_operator(path: str) -> Callable[..., Any] | None:
    """Return an operator of `torch.ops`, None if it is not known or not to be had here.

    >>> known_operator("aten.relu.default"), known_operator("aten.from_file")
    (<OpOverload(op='aten.relu', overload='default')>, None)
    """
    namespace, *names = path.split(".")
    module, pattern = _OPERATORS.get(namespace, ("", ""))
    if not module or not 1 <= len(names) <= 2:
        return None
    is_known = re.fullmatch(pattern, names[0]) if pattern else _is_maths(names[0])
    if not is_known or "out" in names[1:]:
        return None
    try:
        importlib.import_module(module)
        found = functools.reduce(getattr, names, getattr(torch.ops, namespace))
    except (ImportError, AttributeError):
        return None
    is_operator = isinstance(found, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    return found if is_operator else None


@functools.cache
def _maths() -> frozenset[str]:
    """Return the names of the known functions, in place too, without their modules."""
    names = {name.rpartition(":")[2] for name in known_functions() if name.startswith("torch")}
    return frozenset(names)


def _is_maths(name: str) -> bool:
    """Say whether PyTorch has a known function of that name."""
    return name.removesuffix("_") in _maths() or name in _maths()


@functools.cache
def known_methods() -> frozenset[str]:
    """Return the names of the methods of tensors and containers that graphs may call.

    >>> "reshape" in known_methods(), "data_ptr" in known_methods(), "new" in known_methods()
    (True, False, False)
    """
    public = [name for name in dir(Tensor) if not name.startswith("_")]
    maths = {
        name
        for name in public
        if callable(getattr(Tensor, name))
        and not _REFUSED.fullmatch(name)
        and (_is_maths(name) or hasattr(torch.ops.aten, name))
    }
    return frozenset({*maths, *_METHODS, *_OF_CONTAINERS})


@functools.cache
def known_attributes() -> frozenset[str]:
    """Return the names of what graphs may read of tensors, of their types and of tuples of them.

    A method's name is one too: nothing that a graph may call would call what it reads.

    >>> sorted({"shape", "values", "f_globals"} & known_attributes())
    ['shape', 'values']
    """
    fields = {
        name
        for kind in vars(torch.return_types).values()
        if isinstance(kind, type)
        for name in vars(kind)
        if not name.startswith(("_", "n_"))
    }
    return frozenset({*fields, *_ATTRIBUTES})
