"""A `GraphModule` in the place of a submodule: to the Python code around it still the same object.

Before:  model.backbone: BackboneWithFPN
After:   model.backbone: BackboneWithFPN and GraphModule     # forward is the traced graph's

The code around a region may read its attributes, call its methods, or ask for its type. So a
region's class derives from the submodule's own, and everything that the submodule held stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fxquant.layers import LAYERS

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_TYPES: dict[type[nn.Module], type[Region]] = {}
LAYER = "layer"  # the name of the layer inside a region that is nothing but a layer


class _PlainInit(nn.Module):
    """Stands between `GraphModule` and the submodule's class, whose `__init__` must not run."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


class Region(fx.GraphModule, _PlainInit):
    """The traced graph of a submodule. Made by `make_region`.

    `path` is the submodule's name in the whole model.
    """

    path: str
    original_type: type[nn.Module]

    def __deepcopy__(self, memo: dict[int, Any]) -> Region:
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, Region)
        type(copied).__name__ = self.original_type.__name__
        _carry_over(copy.deepcopy(_extras(self, copied), memo), copied)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        restore, arguments = super().__reduce__()
        return _restore, (self.original_type, restore, arguments)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not issubclass(vars(self).get("original_type", nn.Module), LAYERS):
                raise
            return getattr(vars(self)["_modules"][LAYER], name)  # someone reads its weight.dtype


def make_region(original: nn.Module, graph: fx.Graph, path: str) -> Region:
    """Return a region that computes `graph` and holds all that `original` holds.

    Args:
        original: what was traced; its submodules become the region's.
        graph: whose targets are names in `original`; of a layer, one call of `LAYER`.
        path: the name of `original` in the whole model.
    """
    if isinstance(original, LAYERS):
        region = _build(type(original), {LAYER: original}, graph)
        region.path = path
    else:
        region = _build(type(original), original, graph)
        _carry_over({**vars(original), "path": path}, region)
    return region


def path_of(gm: fx.GraphModule) -> str:
    """Return the name of a region in the whole model; of a model that is one graph, ""."""
    return gm.path if isinstance(gm, Region) else ""


def node_name(gm: fx.GraphModule, node: fx.Node) -> str:
    """Return a node's name, that of its region in front."""
    return ".".join(part for part in (path_of(gm), node.name) if part)


def find_regions(model: nn.Module) -> dict[str, fx.GraphModule]:
    """Return the graphs of a model by name; a model that is one graph is its own, named ""."""
    if isinstance(model, fx.GraphModule):
        return {path_of(model): model}
    regions = [module for module in model.modules() if isinstance(module, Region)]
    return {region.path: region for region in regions}


def _build(
    original_type: type[nn.Module], root: nn.Module | dict[str, Any], graph: fx.Graph
) -> Region:
    region = _region_type(original_type)(root, graph, original_type.__name__)
    assert isinstance(region, Region)
    region.original_type = original_type
    return region


def _region_type(original_type: type[nn.Module]) -> type[Region]:
    """Return a class that is both `Region` and `original_type`, always the same one.

    A layer's region is no layer: the passes must not take it for one.
    """
    if issubclass(original_type, (fx.GraphModule, *LAYERS)):
        return Region
    if original_type not in _TYPES:
        _TYPES[original_type] = type(original_type.__name__, (Region, original_type), {})
    return _TYPES[original_type]


def _carry_over(attributes: dict[str, Any], region: Region) -> None:
    """Give `region` those of the `attributes`, as in `vars(module)`, that it lacks; hooks too."""
    for name, value in attributes.items():
        if name in _HOOKS:
            vars(region)[name] = value
        elif name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            own = vars(region)[name]
            # Submodules in whole: the graph needs parts of them, the code around may need others.
            own.update(value if name == "_modules" else _missing(value, own))
        elif name not in vars(region) and name != "forward":
            vars(region)[name] = value


def _missing(value: Any, own: Any) -> Any:
    if isinstance(value, set):
        return value
    return {name: each for name, each in value.items() if name not in own}


def _extras(region: Region, copied: Region) -> dict[str, Any]:
    """Return what `GraphModule` forgets when it is copied."""
    known = vars(copied)
    return {name: value for name, value in vars(region).items() if name not in known} | {
        name: vars(region)[name] for name in _HOOKS
    }


def _restore(
    original_type: type[nn.Module], restore: Callable[..., fx.GraphModule], arguments: Any
) -> Region:
    """Return the region that was pickled."""
    gm = restore(*arguments)
    region = _build(original_type, gm, gm.graph)
    _carry_over(arguments[0], region)
    return region
