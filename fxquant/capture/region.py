"""A `GraphModule` in the place of a submodule: to the Python code around it still the same object.

Before:  model.backbone: BackboneWithFPN
After:   model.backbone: BackboneWithFPN and GraphModule     # forward is the traced graph's

The code around a region may ask for its type, read its attributes, call its methods or its parts.
So a region's class derives from the submodule's own, and it holds all that the submodule held, in
float. The graph works on a copy of that, `traced`, which shares its tensors until a pass replaces
them. Parts that nobody called by themselves while the model was calibrated are released at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from fxquant.capture.attributes import GRAPH_MODULES_OWN, MODULES_OWN, use_free_names
from fxquant.capture.call_notes import CallNotes, NotePart
from fxquant.capture.graph_state import GraphState
from fxquant.errors import CaptureError
from fxquant.modules.layers import layer_type

TRACED = "traced"
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_TYPES: dict[type[nn.Module], type[Region]] = {}


class _PlainInit(nn.Module):
    """Stands between `GraphModule` and the submodule's class, whose `__init__` must not run."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


class Region(GraphState, fx.GraphModule, _PlainInit):
    """The traced graph of a submodule. Made by `make_region`.

    `path` is the submodule's name in the whole model.
    """

    path: str
    original_type: type[nn.Module]
    is_layer: bool = False
    """Whether it is nothing but one layer."""
    parts: tuple[str, ...] = ()
    """Names of the submodules, parameters and buffers that it holds in float, besides `traced`."""
    is_released: bool = False
    """Whether they are gone."""
    calls: CallNotes

    def watch_parts(self) -> None:
        """Note from now on which of the parts in float are called; the graph calls none of them."""
        for name, part in self.named_modules():
            if name and not self.is_layer and name.split(".")[0] != TRACED:
                part.register_forward_pre_hook(NotePart(self.calls, name))

    def release_parts(self) -> dict[str, str]:
        """Drop the parts in float; return those that stay, by name: something else calls them.

        All stay if one does, or if the region itself never ran, for then nothing is known.
        """
        if self.is_layer:
            return {}
        if self.calls.parts or not self.calls.region:
            return dict(self.calls.parts)
        for name in self.parts:
            delattr(self, name)
        self.is_released = True
        return {}

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
            if not (vars(self).get("is_layer") or vars(self).get("is_released")):
                raise
            return getattr(vars(self)["_modules"][TRACED], name)  # cls_logits.weight.dtype


class _Parts(nn.Module):
    """A `Sequential` is iterated over its parts, not over what a region holds besides."""

    def _parts(self) -> list[nn.Module]:
        region: Any = self
        if region.is_released:
            return list(getattr(self, TRACED).children())
        parts = (self._modules.get(name) for name in region.parts)
        return [part for part in parts if part is not None]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._parts())

    def __len__(self) -> int:
        return len(self._parts())

    def __getitem__(self, index: Any) -> Any:
        parts = self._parts()[index]
        return nn.Sequential(*parts) if isinstance(index, slice) else parts


def make_region(
    original: nn.Module, graph: fx.Graph, path: str, fixed: dict[str, Any] | None = None
) -> Region:
    """Return a region that computes `graph` and holds all that `original` holds.

    Args:
        original: what was traced; its submodules become the region's, with hooks.
        graph: whose targets are names in `original`; of a layer, one call of `TRACED`.
        path: the name of `original` in the whole model.
        fixed: the arguments that tracing fixed, by name.
    """
    _require_free_names(original, path)
    is_layer = layer_type(original) is not None
    holder = nn.Module()
    traced = holder.traced = _copy_sharing_tensors(original)
    if not is_layer:
        use_free_names(traced, graph)
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and not is_layer:
            node.target = f"{TRACED}.{node.target}"
    region = build_region(type(original), holder, graph)
    region._modules[TRACED] = traced  # in whole: `GraphModule` takes what the graph names
    region.path, region.is_layer = path, is_layer
    names = [str(node.target) for node in graph.find_nodes(op="placeholder")]
    held: dict[int | str, Any] = {}
    for name, value in (fixed or {}).items():
        held[name] = value
        if name in names:
            held[names.index(name)] = value
    region.calls = CallNotes(path, held)
    if is_layer:  # its hooks stay on the layer, and its tensors are those that the layer has then
        kept = (*_HOOKS, *_REGISTRIES)
        own = {name: value for name, value in vars(original).items() if name not in kept}
        _carry_over(own, region)
    else:
        _carry_over(vars(original), region)
        registered = (original._parameters, original._buffers, original._modules)
        region.parts = tuple(name for names in registered for name in names)
    region.register_forward_pre_hook(region.calls.note_region, with_kwargs=True)
    return region


def _require_free_names(original: nn.Module, path: str) -> None:
    """Raise `CaptureError` if names in the submodule are those of what every region has."""
    own = {*vars(Region), *Region.__annotations__, TRACED, *GRAPH_MODULES_OWN} - MODULES_OWN
    if isinstance(original, fx.GraphModule):
        own -= {*dir(fx.GraphModule)}
    registered = {*original._parameters, *original._buffers, *original._modules}
    hidden = sorted(own.intersection(dir(original)) | (MODULES_OWN & registered))
    if hidden:
        error = CaptureError(f"{path}: it has an attribute {hidden[0]!r}, which a region needs")
        error.obstacle = f"its attribute {hidden[0]!r} has a name that a graph needs"
        raise error


def build_region(original_type: type[nn.Module], root: nn.Module, graph: fx.Graph) -> Region:
    """Return a region in the place of an `original_type`, with what `graph` uses of `root`."""
    region = _region_type(original_type)(root, graph, original_type.__name__)
    assert isinstance(region, Region)
    region.original_type = original_type
    region.training = False
    return region


def _copy_sharing_tensors(module: nn.Module) -> nn.Module:
    """Return a copy of the modules, whose parameters, buffers and other tensors are the same."""
    memo: dict[int, Any] = {}
    for each in module.modules():
        registered = (each._parameters, each._buffers, vars(each))
        for tensor in (value for values in registered for value in values.values()):
            if isinstance(tensor, Tensor):
                memo[id(tensor)] = tensor
    return copy.deepcopy(module, memo)


def _region_type(original_type: type[nn.Module]) -> type[Region]:
    """Return a class that is both `Region` and `original_type`, always the same one."""
    if issubclass(original_type, fx.GraphModule):
        return Region
    if original_type not in _TYPES:
        bases = (Region, _Parts) if issubclass(original_type, nn.Sequential) else (Region,)
        _TYPES[original_type] = type(original_type.__name__, (*bases, original_type), {})
    return _TYPES[original_type]


def _carry_over(attributes: dict[str, Any], region: Region) -> None:
    """Give `region` those of the `attributes`, as in `vars(module)`, that it lacks; hooks too."""
    for name, value in attributes.items():
        if name in _HOOKS:
            vars(region)[name] = value
        elif name in _REGISTRIES:
            own = vars(region)[name]
            own.update(value if isinstance(value, set) else _missing(value, own))
        elif name not in vars(region) and name != "forward":
            vars(region)[name] = value


def _missing(value: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in value.items() if name not in own}


def _extras(region: Region, copied: Region) -> dict[str, Any]:
    """Return what `GraphModule` forgets when it is copied."""
    known = vars(copied).keys() - {*_HOOKS, *_REGISTRIES}
    return {name: value for name, value in vars(region).items() if name not in known}


def _restore(
    original_type: type[nn.Module], restore: Callable[..., fx.GraphModule], arguments: Any
) -> Region:
    """Return the region that was pickled."""
    gm = restore(*arguments)
    region = build_region(original_type, gm, gm.graph)
    _carry_over(arguments[0], region)
    for module in region.modules():
        reserve_hook_numbers(module)
    return region


def reserve_hook_numbers(module: nn.Module) -> None:
    """See that a hook which is registered later gets the number of none that `module` came with."""
    for name, hooks in vars(module).items():
        if name.endswith("_hooks") and isinstance(hooks, dict):
            numbers = [RemovableHandle.next_id, *(number + 1 for number in hooks)]
            RemovableHandle.next_id = max(numbers)
