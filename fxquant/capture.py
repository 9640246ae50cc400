"""From a model to an FX graph that shares nothing with it."""

from __future__ import annotations

import copy
import linecache
import traceback
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize
from torchvision.ops import FrozenBatchNorm2d

from fxquant.errors import CaptureError
from fxquant.fakequant import FakeQuantize, QuantizedLayer
from fxquant.observers import ChannelMean, Observer

_OWN = (FakeQuantize, QuantizedLayer, Observer, ChannelMean)

_REMEDIES = (
    ("control flow", "decide it once, in __init__, or with torch.where"),
    ("cannot be iterated", "index the tensor, or make the loop's length a constant"),
    ("'len'", "make the length a constant"),
)


def trace(model: nn.Module, *, leaf_modules: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """Return a copy of `model`, in eval mode, as one `GraphModule`.

    The modules that the passes know stay leaves, torchvision's `FrozenBatchNorm2d` among them.
    Parametrizations (`weight_norm`, `spectral_norm`) are computed once and left out.

    Args:
        model: left as it is, mode included.
        leaf_modules: module types to call as they are instead of tracing into them.

    Raises:
        CaptureError: names the submodule and the line that cannot be traced.
    """
    _require_module(model)
    try:
        copied = copy.deepcopy(model).eval()
    except RuntimeError as error:  # what PyTorch raises for a non-leaf tensor as an attribute
        raise CaptureError(f"{type(model).__name__} cannot be copied: {error}") from error
    _compute_parametrizations(copied)
    tracer = _Tracer(leaf_modules)
    try:
        graph = tracer.trace(copied)
    except Exception as error:  # tracing runs the caller's code, which may raise anything
        raise CaptureError(_explain(tracer, copied, error)) from error
    return fx.GraphModule(tracer.root, graph, type(model).__name__)


def _require_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise CaptureError(f"{name!r} is not initialized: run the lazy module on a batch first")


class _Tracer(fx.Tracer):
    """Tracer that keeps known modules whole and remembers where it was when tracing failed.

    Unpickling a `GraphModule` makes its tracer anew, without arguments.
    """

    def __init__(self, leaf_modules: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__()
        self._leaf_modules = leaf_modules
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (*_OWN, *self._leaf_modules)):
            return True
        if isinstance(m, FrozenBatchNorm2d) and type(m).forward is FrozenBatchNorm2d.forward:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:  # the innermost module comes first
                self.failed_in = self.path_of_module(m)
            raise


def _compute_parametrizations(model: nn.Module) -> None:
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _explain(tracer: _Tracer, model: nn.Module, error: Exception) -> str:
    """Return where tracing failed, on which line, why, and what helps."""
    path = tracer.failed_in
    owner = model if path is None else model.get_submodule(path)
    where = "the model's own forward" if path is None else f"submodule {path!r}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename and not frame.filename.startswith("<")
    ]
    line = ""
    if len(frames) > 1:  # the first is `trace` itself
        frame = frames[-1]
        source = linecache.getline(frame.filename, frame.lineno or 0).strip()
        line = f"\n  {frame.filename}:{frame.lineno}: {source}"
    reason = str(error) or type(error).__name__
    remedy = next(
        (words for sign, words in _REMEDIES if sign in reason),
        "rewrite the line without Python decisions on tensors",
    )
    return (
        f"{type(model).__name__} cannot be traced: it fails in {where} ({type(owner).__name__})"
        f"{line}\n  {type(error).__name__}: {reason}\n  Remedy: {remedy}; or keep the module "
        f"whole: trace(model, leaf_modules=({type(owner).__name__},)); or quantize a submodule."
    )
