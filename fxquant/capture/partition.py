"""Capture a model whole, or in parts: its largest traceable submodules become regions.

Before:  RetinaNet                               # its forward loops over tensors
After:   RetinaNet                               # in Python
           backbone: Region                      # a graph of 191 nodes
           head: RetinaNetHead                   # in Python
             classification_head.conv: Region
             …

What stays in Python stays in float, and nothing is folded, fused or shared across it: a layer that
stands alone there keeps its batch norm and its ReLU outside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import fx, nn

from fxquant.capture.attributes import use_free_names
from fxquant.capture.calls_inside import calls_inside, takes
from fxquant.capture.example import Call
from fxquant.capture.given_models import is_traced, require_no_hooks, unwrapped, why_opaque
from fxquant.capture.naming import Untraced
from fxquant.capture.region import TRACED, Region, make_region
from fxquant.capture.tracer import fixed_arguments, trace_graph
from fxquant.capture.tracing import copy_model
from fxquant.errors import CaptureError
from fxquant.modules.batchnorm import is_batchnorm_module
from fxquant.modules.layers import is_functional_layer, layer_type

_NOTHING = "nothing in it to quantize"
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_OPAQUE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class Captured:
    """A copy of the caller's model that is a `GraphModule` or holds regions."""

    model: nn.Module
    untraced: tuple[Untraced, ...] = ()
    leaves: frozenset[str] = frozenset()
    """Names of the submodules that graphs call as they are."""
    left: Mapping[str, str] = field(default_factory=dict)
    """What was asked to be left in Python."""
    call: Call | None = None
    """The example that it was traced with."""


def capture(
    model: nn.Module,
    *,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
    regions: Iterable[str] | None = None,
    left: Mapping[str, str] | None = None,
    call: Call | None = None,
) -> Captured:
    """Return a copy of `model`, in eval mode, whole as a graph or with regions.

    Args:
        model: left as it is.
        leaf_modules: types, or globs on names, of modules to call as they are, in float.
        regions: names of submodules to trace, and nothing else; None: as much as can be.
        left: names of submodules to leave in Python, with the reasons: as leaves of graphs; those
            that hold layers as borders of regions.
        call: what the model is called with in an example.

    Raises:
        CaptureError: neither the model nor any submodule with a layer can be traced; a name in
            `leaf_modules` or `regions` is of no submodule.
    """
    copied = copy_model(model)
    if is_traced(copied):
        require_no_hooks(unwrapped(model))
        return Captured(copied)
    partition = _Partition(copied, _find_leaves(copied, leaf_modules), left or {}, call)
    if regions is not None:
        _take_chosen(copied, partition, list(regions))
        return partition.captured(copied)
    try:
        graph = partition.trace(copied, call, is_region=False)
    except CaptureError as error:
        partition.take_apart(copied, "", error.obstacle)
        if not partition.regions:
            raise
        return partition.captured(copied)
    use_free_names(copied, graph)
    return partition.captured(fx.GraphModule(copied, graph, type(copied).__name__))


def _find_leaves(
    model: nn.Module, leaf_modules: Sequence[type[nn.Module] | str]
) -> frozenset[nn.Module]:
    leaves = set()
    given: object = leaf_modules  # a str is a sequence of them
    if isinstance(given, (str, type)):
        shown = repr(given) if isinstance(given, str) else given.__name__
        raise CaptureError(f"leaf_modules={shown}: give a list: [{shown}]")
    for each in leaf_modules:
        found = [module for name, module in model.named_modules() if _is_meant(each, name, module)]
        if not found:
            raise CaptureError(
                f"leaf_modules: {each!r} is no submodule of {type(model).__name__}; it has "
                f"{', '.join(name for name, _ in model.named_children())}"
            )
        leaves.update(found)
    return frozenset(leaves)


def _is_meant(leaf: type[nn.Module] | str, name: str, module: nn.Module) -> bool:
    return fnmatchcase(name, leaf) if isinstance(leaf, str) else isinstance(module, leaf)


def _take_chosen(model: nn.Module, partition: _Partition, names: list[str]) -> None:
    chosen: dict[nn.Module, str] = {}
    for path in names:
        try:
            chosen.setdefault(model.get_submodule(path), path)
        except AttributeError as error:
            children = ", ".join(name for name, _ in model.named_children())
            raise CaptureError(
                f"regions: {path!r} is no submodule: {error}; it has {children}"
            ) from error
    for module, path in chosen.items():
        inner = [chosen[each] for each in module.modules() if each in chosen and each is not module]
        if inner:
            raise CaptureError(f"regions: {inner[0]!r} is inside of {path!r}: name one of them")
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child not in chosen:
                continue
            left = [partition.left[each] for each in child.modules() if each in partition.left]
            if left:
                partition.take_apart(child, chosen[child], left[0])
            else:
                parent._modules[name] = partition.make(child, chosen[child])
    inside = {module for region in partition.regions.values() for module in region.modules()}
    for path, module in model.named_modules():
        if layer_type(module) is not None and module not in inside:
            partition.leave(path, module, "not among the regions asked for")


class _Partition:
    """Which submodules became regions, and which stayed in Python.

    Args:
        model: of which it is.
        leaves: called as they are.
        left: names of what is to stay in Python, with the reasons.
        call: what the model is called with in an example.
    """

    def __init__(
        self,
        model: nn.Module,
        leaves: frozenset[nn.Module],
        left: Mapping[str, str],
        call: Call | None,
    ) -> None:
        self._model, self._call = model, call
        self._calls: dict[nn.Module, list[Call]] | None = None
        self.regions: dict[nn.Module, Region] = {}
        self.untraced: list[Untraced] = []
        self.left: dict[nn.Module, str] = {}
        """Those that hold layers: no graph may go on behind their borders."""
        self._leaves, self._reasons = set(leaves), dict(left)
        self._names = {module: name for name, module in model.named_modules()}
        for path, reason in left.items():
            module = model.get_submodule(path)
            if module is model or _holds_layers(module):
                self.left[module] = reason
            else:
                self._leaves.add(module)
                self.leave(path, module, reason)

    def captured(self, model: nn.Module) -> Captured:
        """Return `model`, in which all regions are in place."""
        for region in self.regions.values():
            region.watch_parts()  # not before: what is in several would be traced with the hooks
        leaves = frozenset(self._names[module] for module in self._leaves)
        return Captured(model, tuple(self.untraced), leaves, self._reasons, self._call)

    def trace(self, module: nn.Module, call: Call | None, *, is_region: bool) -> fx.Graph:
        """Return the graph of a submodule.

        Args:
            module: not copied.
            call: what it is called with in the example, if that is known.
            is_region: whether Python code is around it, which runs its hooks.

        Raises:
            CaptureError: it cannot be traced, or calls what is to stay in Python.
        """
        if module in self.left:
            raise _refusal(self.left[module])
        with contextlib.ExitStack() as stack:
            for each in self.left:
                refuse = partial(_refuse, f"{self._names[each]!r}, which is left in Python")
                stack.callback(each.register_forward_pre_hook(refuse).remove)
            return trace_graph(module, self._leaves, None, call, is_region)

    def leave(self, path: str, module: nn.Module, reason: str) -> None:
        """Note that a submodule stays in Python, once."""
        if all(each.path != path for each in self.untraced):
            self.untraced.append(Untraced(path, type(module).__name__, reason))

    def make(self, module: nn.Module, path: str) -> Region:
        """Return the region of a submodule; one that has several names becomes one region."""
        if module not in self.regions:
            graph, fixed = self._graph_of(module)
            parts = dict(module.named_modules(remove_duplicate=False))
            if not any(_computes_layer(parts, node) for node in graph.nodes):
                raise _NothingInIt(_NOTHING)
            self.regions[module] = make_region(module, graph, path, fixed)
        return self.regions[module]

    def _graph_of(self, module: nn.Module) -> tuple[fx.Graph, dict[str, Any]]:
        """Return the graph of a submodule, and the arguments that it holds at a value.

        What is called in several ways is traced without values, if one graph is not right for all.
        """
        if layer_type(module):
            return _layer_graph(), {}
        if self._calls is None:
            self._calls = {} if self._call is None else calls_inside(self._model, self._call)
        calls = self._calls.get(module, [])
        if calls:
            graph = self.trace(module, calls[0], is_region=True)
            if all(takes(module, graph, call) for call in calls[1:]):
                return graph, {}
        return self.trace(module, None, is_region=True), fixed_arguments(module)

    def take_apart(self, parent: nn.Module, path: str, reason: str) -> None:
        """Put regions in the place of the traceable submodules of `parent`.

        Args:
            parent: what cannot be traced, or is a mere container.
            path: its name in the whole model.
            reason: why it cannot; "" where that goes without saying.
        """
        position = len(self.untraced)
        num_alone = 0
        for name, child in list(parent._modules.items()):
            if child is not None:
                region = self._take(child, f"{path}.{name}" if path else name)
                if region is not None:
                    parent._modules[name] = region
                    num_alone += region.is_layer
        if reason:
            if num_alone:
                reason += f"; layers in it that stand alone: {num_alone}"
            self.untraced.insert(position, Untraced(path, type(parent).__name__, reason))

    def _take(self, module: nn.Module, path: str) -> Region | None:
        """Return the region of a submodule; where there is none, take it apart."""
        if isinstance(module, Region):  # inside of something that has two names
            return module
        reason = self._why_not(module)
        if reason is None:
            try:
                return self.make(module, path)
            except _NothingInIt as error:
                self.leave(path, module, str(error))
                return None
            except CaptureError as error:
                reason = error.obstacle
        is_opaque = isinstance(module, _OPAQUE) or why_opaque(module) is not None
        if module in self._leaves or is_opaque:
            self.leave(path, module, reason)
        else:
            self.take_apart(module, path, reason)
        return None

    def _why_not(self, module: nn.Module) -> str | None:
        """Return why a submodule is not even tried; "" where that goes without saying."""
        if module in self._leaves:
            return "a leaf module, as asked for"
        if isinstance(module, _OPAQUE):
            return f"{type(module).__name__} is called as a whole"
        if why_opaque(module) is not None:
            return why_opaque(module)
        if isinstance(module, _CONTAINERS):
            return ""
        if is_batchnorm_module(module):
            return "called from Python: not folded"
        if any(parameter.dim() > 1 for parameter in module.parameters()):
            return None
        is_torchs = type(module).__module__.startswith("torch.nn.")
        return "" if is_torchs else _NOTHING


def _holds_layers(module: nn.Module) -> bool:
    """Say whether regions may be made inside of `module`."""
    return not isinstance(module, _OPAQUE) and any(
        layer_type(each) is not None for each in module.modules() if each is not module
    )


def _refusal(reason: str) -> CaptureError:
    error = CaptureError(reason)
    error.obstacle = reason
    return error


def _refuse(reason: str, *_: object) -> None:
    raise _refusal(reason)


class _NothingInIt(CaptureError):
    """The submodule can be traced, and there is no layer in the graph."""


def _computes_layer(parts: dict[str, nn.Module], node: fx.Node) -> bool:
    if node.op == "call_module":
        target = str(node.target)
        return target == TRACED or layer_type(parts[target]) is not None
    return is_functional_layer(node)


def _layer_graph() -> fx.Graph:
    """Return the graph of a region that is one layer."""
    graph = fx.Graph()
    layer = graph.call_module(TRACED, (graph.placeholder("input"),))
    graph.output(layer)
    return graph
