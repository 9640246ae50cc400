"""What the submodules of a model are called with when it is called with an example."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fxquant.capture.example import Call
from fxquant.capture.recording.requirements import requirements
from fxquant.errors import CaptureError
from fxquant.numerics.containers import cloned, map_leaves

_MAX_CALLS = 16  # of one submodule: a head that runs on the levels of a pyramid has five


def calls_inside(model: nn.Module, call: Call) -> dict[nn.Module, list[Call]]:
    """Return the calls of each submodule, with fake tensors: the first of each kind of them.

    The model runs once, on a copy that shares its parameters.

    Raises:
        CaptureError: the model cannot be called so.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, memo)
    originals = dict(zip(copied.modules(), model.modules(), strict=True))
    found: dict[nn.Module, dict[str, Call]] = {}
    mode = FakeTensorMode()

    def fake(value: Any) -> Any:
        is_tensor = isinstance(value, Tensor)
        return mode.from_tensor(value, static_shapes=True) if is_tensor else value

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls = found.setdefault(originals[module], {})
        faked = map_leaves((args, kwargs), fake)
        if len(calls) < _MAX_CALLS:
            calls.setdefault(repr(faked), Call(*faked))

    for module in originals:
        if isinstance(module, torch.jit.ScriptModule):
            continue  # which takes no hooks
        module.register_forward_pre_hook(note, with_kwargs=True)
    args, kwargs = cloned((call.args, call.kwargs))
    try:
        with torch.no_grad():
            copied(*args, **kwargs)
    except Exception as error:  # the caller's code, on the caller's example
        raise CaptureError(
            f"example_inputs: {type(model).__name__} cannot be called with them: "
            f"{type(error).__name__}: {error}"
        ) from error
    return {module: list(calls.values()) for module, calls in found.items()}


def takes(module: nn.Module, graph: fx.Graph, call: Call) -> bool:
    """Say whether `graph`, traced from another call of `module`, is right for this one, too."""
    gm = fx.GraphModule(module, copy.deepcopy(graph))
    leaves: list[Any] = []
    map_leaves((call.args, call.kwargs), leaves.append)
    modes = [each.fake_mode for each in leaves if isinstance(each, FakeTensor)]
    try:
        with modes[0] if modes else contextlib.nullcontext(), torch.no_grad():
            gm.forward(*call.args, **call.kwargs)
    except (CaptureError, TypeError, IndexError):
        return False
    except Exception:  # what fake tensors cannot do
        return not requirements(graph)
    return True
