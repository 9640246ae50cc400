"""What people give as a model: wrappers are taken off, and what is no float module is named.

Before:  DataParallel(module=OptimizedModule(_orig_mod=Net(backbone=DataParallel(module=…))))
After:   Net(backbone=…)             # named, and traced, as the model inside

Wrappers call the module in them, and nothing else: `nn.DataParallel`, `DistributedDataParallel`,
`torch.compile(model)` and weight averages (`torch.optim.swa_utils.AveragedModel`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel

from fxquant.errors import CaptureError, kind_of, with_article
from fxquant.modules.copies import copy_module
from fxquant.modules.overrides import rebind_overrides

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_SHARDED = ("FullyShardedDataParallel", "FSDPModule")
_QUANTIZED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")
_OF_FLOAT_MODELS = ("FloatFunctional", "FXFloatFunctional")  # in the same files, all the same

_SCRIPTED = ", compiled by torch.jit: give the torch.nn.Module that it was made from"


def require_module(model: Any) -> None:
    """Raise `CaptureError` if `model` is no float module, with what it is and what to give."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model is {_kind_and_remedy(model)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(f"model is {kind_of(model)}{_SCRIPTED}")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise CaptureError(f"{name!r} is not initialized: run the lazy module on a batch first")
    for name, module in model.named_modules():
        kind = type(module)
        where = f"{name!r}" if name else "model"
        if f"{kind.__module__}.".startswith(_QUANTIZED) and kind.__name__ not in _OF_FLOAT_MODELS:
            raise CaptureError(
                f"{where} is a {kind.__module__}.{kind.__name__}: PyTorch has quantized the model "
                "already: give the float model"
            )
        if any(each.__name__ in _SHARDED for each in kind.__mro__):
            raise CaptureError(
                f"{where} is {with_article(kind.__name__)}, whose weights are in pieces: gather "
                "its state dict and load that into the model that was wrapped"
            )
        if _is_of_aten(module):
            raise CaptureError(
                f"{where} is a graph of ATen operators, without layers, as torch.export and "
                "make_fx return it: give the torch.nn.Module that it was made from"
            )


def is_traced(model: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Say whether a model is a graph already, with leaves of the caller's choice.

    One of another class is not: torchvision's feature extractors have a graph for each mode, and
    put it in again when the mode is set.
    """
    return isinstance(model, fx.GraphModule) and type(model).__mro__[1] is fx.GraphModule


def why_opaque(module: nn.Module) -> str | None:
    """Return why nothing can be traced inside of a module, and what to do; None: it can be."""
    if isinstance(module, torch.jit.ScriptModule):
        return f"{kind_of(module)}{_SCRIPTED}"
    return None


def _kind_and_remedy(model: Any) -> str:
    if isinstance(model, torch.export.ExportedProgram):
        return (
            "an ExportedProgram, a graph of ATen operators, without layers: give the "
            "torch.nn.Module that it was exported from"
        )
    if isinstance(model, type):
        return f"the class {model.__name__}: give an instance, {model.__name__}(…)"
    if isinstance(model, (str, os.PathLike)):
        return f"{str(model)!r}, {kind_of(model)}: load the model, and give the module"
    if isinstance(model, dict):
        for key, value in model.items():
            if isinstance(value, nn.Module):
                return f"a dict with {kind_of(value)} under {key!r}: give that"
        is_state = bool(model) and all(isinstance(each, Tensor) for each in model.values())
        kind = "a state dict" if is_state else "a dict"
        keys = ", ".join(map(repr, list(model)[:3]))
        return (
            f"{kind} ({keys}, …): make the torch.nn.Module that it belongs to, and load it with "
            "load_state_dict"
        )
    if isinstance(model, torch.jit.ScriptFunction):
        return f"a ScriptFunction{_SCRIPTED}"
    if isinstance(model, (FunctionType, MethodType)):
        return (
            f"{kind_of(model)}, {model.__qualname__}: give the torch.nn.Module that it is "
            "the forward of, or write one that calls it"
        )
    return f"{kind_of(model)}: give a torch.nn.Module"


def _is_of_aten(module: nn.Module) -> bool:
    if type(module).__name__ == "UnflattenedModule":  # of torch.export.unflatten
        return True
    return isinstance(module, fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
        for node in module.graph.nodes
    )


def require_no_hooks(gm: fx.GraphModule) -> None:
    """Raise `CaptureError` if a given graph has forward hooks: copies of graphs lose them."""
    if gm._forward_hooks or gm._forward_pre_hooks:
        raise CaptureError(
            "the given GraphModule has forward hooks, which a copy of a graph loses: take them "
            "off, and let a pass write into the graph what they compute"
        )


def unwrapped(model: Any) -> Any:
    """Return the model in a wrapper, in all of its wrappers; of what is none, `model` itself.

    Raises:
        CaptureError: the wrapper has hooks, which would be lost.

    >>> unwrapped(nn.DataParallel(nn.ReLU()))
    ReLU()
    """
    inner = _inside(model)
    if inner is None:
        return model
    if model._forward_hooks or model._forward_pre_hooks:
        raise CaptureError(
            f"{kind_of(model)} has forward hooks: register them on the {type(inner).__name__} in it"
        )
    return unwrapped(inner)


def _inside(module: Any) -> nn.Module | None:
    """Return what a wrapper calls; None of what is no wrapper."""
    if isinstance(module, _WRAPPERS):
        return module.module
    is_compiled = type(module).__name__ == "OptimizedModule"  # its import takes seconds
    return module._modules.get("_orig_mod") if is_compiled else None


def copy_without_wrappers(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return `copy_module(model, memo)`, and the modules inside in the place of all wrappers."""
    for module in reversed(list(model.modules())):  # those in others come first
        inner = unwrapped(module)
        if inner is not module:
            memo[id(module)] = copy_module(inner, memo)
    copied: nn.Module = copy_module(unwrapped(model), memo)
    for module in copied.modules():
        written = getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)
        if written is not None and getattr(written, "__func__", None) is type(module).forward:
            del module.forward  # model.forward = torch.compile(model.forward)
    rebind_overrides(copied.modules(), memo)
    return copied


@contextlib.contextmanager
def compiled_functions_as_written() -> Iterator[None]:
    """Let calls of what `torch.compile` returned run the function that it was given.

    Where it finds that it is traced, it raises an error else.
    """
    config: Any = sys.modules.get("torch._dynamo.config")
    if config is None:
        yield
        return
    before = config.error_on_nested_fx_trace
    config.error_on_nested_fx_trace = False  # `config.patch` would leave a ContextVar, each time
    try:
        yield
    finally:
        config.error_on_nested_fx_trace = before
