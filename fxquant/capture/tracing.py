"""From a model to an FX graph that shares nothing with it."""

from __future__ import annotations

import logging
from typing import Any, cast

from torch import fx, nn
from torch.nn.utils import parametrize

from fxquant.capture.attributes import use_free_names
from fxquant.capture.example import call_of
from fxquant.capture.given_models import copy_without_wrappers, is_traced, require_module
from fxquant.capture.tracer import trace_graph
from fxquant.capture.weight_hooks import take_off_weight_hooks
from fxquant.errors import CaptureError
from fxquant.modules.overrides import has_global_hooks

_logger = logging.getLogger("fxquant")


def trace(
    model: nn.Module,
    *,
    leaf_modules: tuple[type[nn.Module], ...] = (),
    concrete_args: dict[str, Any] | None = None,
    example_inputs: Any = None,
) -> fx.GraphModule:
    """Return a copy of `model`, in eval mode, as one `GraphModule`.

    The modules that the passes know stay leaves, torchvision's `FrozenBatchNorm2d` among them.
    Parametrizations (`weight_norm`, `spectral_norm`) are computed once and left out.

    Args:
        model: left as it is, mode included.
        leaf_modules: module types to call as they are instead of tracing into them.
        concrete_args: values to fix arguments of `forward` at, so that `if mask is None` can be
            decided. None fixes each argument whose default is None or a bool at that default; the
            graph refuses other values for it.
        example_inputs: a tensor, a tuple of arguments, or a dict of keywords. Then ranks, types and
            sizes are known where Python asks for them, and the graph refuses calls in which what
            was decided so would be decided otherwise.

    Raises:
        CaptureError: names the submodule and the line that cannot be traced.

    >>> [node.name for node in trace(nn.Sequential(nn.Linear(4, 2), nn.ReLU())).graph.nodes]
    ['input_1', '_0', '_1', 'output']
    """
    copied = copy_model(model)
    if is_traced(copied):
        return copied
    leaves = {module for module in copied.modules() if isinstance(module, leaf_modules)}
    call = None if example_inputs is None else call_of(example_inputs)
    graph = trace_graph(copied, leaves, concrete_args, call)
    use_free_names(copied, graph)
    return fx.GraphModule(copied, graph, type(copied).__name__)


def copy_model(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in eval mode, its parametrizations computed once and left out.

    So are weights that hooks compute (`torch.nn.utils.weight_norm`, `spectral_norm`, `prune`), and
    wrappers around models (`fxquant.capture.given_models`).

    Raises:
        CaptureError: it is no module, not initialized, or cannot be copied.
    """
    require_module(model)
    try:
        copied = copy_without_wrappers(model, {}).eval()
    except CaptureError:
        raise
    except RuntimeError as error:  # what PyTorch raises for a non-leaf tensor as an attribute
        raise CaptureError(f"{type(model).__name__} cannot be copied: {error}") from error
    _compute_parametrizations(copied)
    take_off_weight_hooks(copied)
    for module in copied.modules():
        vars(module).pop("qconfig", None)  # of torch.ao.quantization: what it would do, if asked
    if has_global_hooks():
        _logger.warning(
            "%s: hooks on all modules are registered (register_module_forward_hook): they run for "
            "each call of a module, and a graph has fewer of those than the model",
            type(model).__name__,
        )
    return copied


def _compute_parametrizations(model: nn.Module) -> None:
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            parametrizations = cast(nn.ModuleDict, module.parametrizations)
            values = {name: getattr(module, name).detach() for name in parametrizations}
            # Not remove_parametrizations: it changes the class, which the caller's module shares.
            del module.parametrizations
            _drop_hooks_of_parametrizations(module)
            module.__class__ = type(module).__mro__[1]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))


def _drop_hooks_of_parametrizations(module: nn.Module) -> None:
    """Drop what reads state dicts of older forms into parametrizations, which are gone."""
    hooks = module._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        function = getattr(hook, "hook", hook)
        if getattr(function, "__module__", None) == "torch.nn.utils.parametrizations":
            del hooks[key]
