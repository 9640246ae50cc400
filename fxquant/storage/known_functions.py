"""The functions on tensors and numbers that graphs are made of, by name.

* What `torch.overrides.get_overridable_functions` lists, and what else is native in `torch`:
  relu_, zeros, arange.
* What `torch.nn.functional` defines, and what torchvision's models wrap for fx or hold.
* `operator`, `math`, and the builtins that graphs call.

None of them takes the name of a file, or calls what it is given. A name is "module:name".
"""

from __future__ import annotations

import functools
import importlib
import math
import operator
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import get_overridable_functions

_REFUSED = ("call", "from_file", "save", "triplet_margin_with_distance_loss")
_NAMED = {
    "builtins": (
        "abs", "all", "any", "bool", "complex", "dict", "divmod", "enumerate", "float", "getattr",
        "int", "len", "list", "max", "min", "pow", "range", "reversed", "round", "slice", "sorted",
        "sum", "tuple", "zip",
    ),
    "collections": ("OrderedDict", "UserDict"),
    "torch": ("_assert",),
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
_OPERATORS = {  # namespaces of torch.ops, and the module that registers them
    "aten": "torch",
    "onednn": "torch",
    "quantized": "torch",
    "quantized_decomposed": "torch.ao.quantization.fx._decomposed",
    "torchvision": "torchvision",
    "fxquant": "fxquant.int8.operators",
}


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
    overridable = get_overridable_functions()
    modules = [each for each in overridable if isinstance(each, ModuleType)]
    for module in dict.fromkeys((operator, math, torch, F, *modules)):
        listed = {id(each) for each in overridable.get(module, ())}
        for name, function in _public_functions(module):
            if id(function) in listed or _is_maths_of(module, function):
                found[f"{module.__name__}:{name}"] = function
    return found


def _public_functions(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name in dir(module):
        function = getattr(module, name)
        is_refused = name.startswith("_") or name in _REFUSED or isinstance(function, type)
        if not is_refused and callable(function):
            yield name, function


def _is_maths_of(module: ModuleType, function: Any) -> bool:
    """Say whether `function` is one of a group of `module` that is maths throughout."""
    if module is torch:
        return str(getattr(function, "__qualname__", "")).startswith("_VariableFunctionsClass.")
    if module is F:
        return isinstance(function, FunctionType) and function.__module__ == F.__name__
    return module in (operator, math) and isinstance(function, BuiltinFunctionType)


def known_operator(path: str) -> Callable[..., Any] | None:
    """Return an operator of `torch.ops`, None if it is not known or not to be had here.

    >>> known_operator("aten.relu.default"), known_operator("aten.from_file")
    (<OpOverload(op='aten.relu', overload='default')>, None)
    """
    namespace, *names = path.split(".")
    if namespace not in _OPERATORS or not names or names[0] in _REFUSED:
        return None
    try:
        importlib.import_module(_OPERATORS[namespace])
        found = functools.reduce(getattr, names, getattr(torch.ops, namespace))
    except (ImportError, AttributeError):
        return None
    is_operator = isinstance(found, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    return found if is_operator else None
