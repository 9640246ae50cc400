"""The tracer: records what a module's forward does, with the values of an example or without."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from fxquant.capture.attention.decomposition import (
    decomposed,
    decomposed_call,
    is_decomposable,
)
from fxquant.capture.example import Call
from fxquant.capture.given_models import why_opaque
from fxquant.capture.recording.decisions import ASSERT, Decisions
from fxquant.capture.recording.objects import emptied, filled, proxies_inside, slots_inside
from fxquant.capture.recording.proxies import AssignableProxy, ValueProxy
from fxquant.capture.recording.python_of_tracing import (
    ONE_AT_A_TIME,
    python_of_tracing,
    recorded_functions,
)
from fxquant.capture.recording.requirements import require
from fxquant.capture.recording.root_arguments import HELD, RootArguments
from fxquant.capture.recording.values import Values
from fxquant.modules.batchnorm import is_batchnorm_module
from fxquant.modules.layers import layer_type
from fxquant.modules.own import OwnModule
from fxquant.numerics.containers import holds_the_same, is_own_container

_BUILTINS = (abs, bool, float, getattr, int, len, max, min, round, sum)
_COMPARED = (
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.not_,
    operator.contains, operator.and_, operator.or_,
)  # fmt: skip
_IN_PLACE = (
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv,
    operator.ifloordiv, operator.imod, operator.ipow, operator.iand, operator.ior,
)  # fmt: skip


class Recorder(fx.Tracer):
    """Tracer that keeps known modules whole and remembers where it was when tracing failed.

    With a call it knows what each node stands for. Unpickling a `GraphModule` makes its tracer
    anew, without arguments.
    """

    def __init__(
        self,
        leaves: Set[nn.Module] = frozenset(),
        fixed: dict[str, Any] | None = None,
        call: Call | None = None,
        with_hooks: bool = False,
    ) -> None:
        super().__init__()
        self._leaves, self._fixed, self._call = leaves, fixed or {}, call
        self._with_hooks = with_hooks
        self._values = None if call is None else Values()
        self._autowrap_function_ids |= recorded_functions() | set(map(id, (*_BUILTINS, require)))
        self._autowrap_search.extend([torch, F])
        self._names: dict[int, str] = {}
        self._held: dict[str, Any] = {}
        self.decisions = Decisions(self)
        self._questions: dict[Any, ValueProxy] = {}
        self._autocasts = _autocasts()
        self.made: set[str] = set()
        """Names of constants that it made attributes of the root."""
        self.failed_in: str | None = None

    def get_fresh_qualname(self, prefix: str) -> str:
        """Return a free name for a constant."""
        name = str(super().get_fresh_qualname(prefix))
        self.made.add(name)
        return name

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Return the graph of `root`."""
        if isinstance(root, nn.Module):
            tensors = [*root.named_parameters(), *root.named_buffers()]
            self._names = {id(tensor): name for name, tensor in reversed(tensors)}
            modules = root.named_modules(remove_duplicate=False)
            self._held = {**dict(modules), **dict(tensors)}  # not by get_submodule: 'to' may be one
            if type(self) is not Recorder:  # unpickling: each function in the code is one call
                named = type(root).forward.__globals__.values()
                self._autowrap_function_ids |= {id(each) for each in named if callable(each)}
                self.proxy_buffer_attributes = True  # what is computed from buffers stays computed
        with contextlib.ExitStack() as stack:
            stack.enter_context(ONE_AT_A_TIME)
            stack.enter_context(python_of_tracing(self._values is not None))
            if self._values is not None:
                stack.enter_context(self.decisions.without_messages())
            graph = super().trace(root, concrete_args)
        self.decisions.check_kept()
        self.decisions.hold_facts()
        self._hold_nones()
        questions = {proxy.node for proxy in self._questions.values()}
        for node in reversed(graph.nodes):
            node.meta.pop("is_wrapped", None)  # unpickled, such graphs let nothing be traced
            if not node.users and (node in questions or node.op == "get_attr"):
                graph.erase_node(node)
        graph._tracer_cls = Recorder
        return graph

    # What stays whole.

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module is one node: PyTorch's own, ours, and those asked for."""
        if isinstance(m, OwnModule) or m in self._leaves or why_opaque(m) is not None:
            return True
        if "forward" in vars(m) and not isinstance(m, fx.GraphModule):
            return False  # a forward of its own is traced as it runs
        if layer_type(m) is not None or is_batchnorm_module(m):
            return True  # subclasses of PyTorch's that compute the same; torchvision's, frozen
        if is_decomposable(m):
            return decomposed(m) is None
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record the call of a module, or what it does; one made in a forward is no submodule."""
        if (self._values and self._values.is_computing) or m not in (self.submodule_paths or {}):
            return forward(*args, **kwargs)
        plain = decomposed(m)
        if plain is not None:
            forward = functools.partial(plain, m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:  # the innermost module comes first
                self.failed_in = self.path_of_module(m)
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a proxy for a parameter, unless a result is being computed with it."""
        if self._values is None:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        name = self._names.get(id(attr_val))
        if self._values.is_computing or name is None or not isinstance(attr_val, nn.Parameter):
            return attr_val
        if name not in parameter_proxy_cache:  # fx looks through all parameters for each
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    # The arguments of the root.

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return what calls the root, with its hooks and the forward of its own, if it has one."""
        root = self.root
        if self._call is None and not self._is_customized(root):
            kinds = [each.kind for each in inspect.signature(root.forward).parameters.values()]
            if not self._fixed or inspect.Parameter.VAR_POSITIONAL in kinds:
                return super().create_args_for_root(root_fn, is_module, self._fixed or None)
        args, kwargs = RootArguments(self, self._call, self._fixed, self._values).stand_ins()
        called: Any = root._call_impl if self._with_hooks else root.forward
        return (lambda: called(*args, **kwargs)), []

    def _is_customized(self, root: nn.Module) -> bool:
        """Say whether calling the root does more than the forward of its class."""
        hooks = root._forward_hooks or root._forward_pre_hooks
        return "forward" in vars(root) or (self._with_hooks and bool(hooks))

    # What is recorded, and what Python is told.

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return a proxy of which nothing is known."""
        return AssignableProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Return what stands in the graph for a proxy, a tensor, a container, a number."""
        if isinstance(a, fx.Proxy):
            if a.tracer is not self:
                raise TraceError("the forward uses what an earlier call left behind: it has state")
            return a.node
        if isinstance(a, Tensor):
            if id(a) in self._names:
                return self.create_node("get_attr", self._names[id(a)], (), {})
            return super().create_arg(a.detach() if isinstance(a, nn.Parameter) else a)
        if isinstance(a, np.generic):
            return a.item()
        if isinstance(a, float) and not math.isfinite(a) and self._hides(str(abs(a))):
            return self.create_node("call_function", float, (str(a),), {})
        if is_own_container(a):
            return self._made_again(a)
        inside = proxies_inside(a)
        if inside:
            prototype = self._kept(emptied(a, inside))
            values = tuple(self.create_arg(each) for each in inside)
            return self.create_node("call_function", filled, (prototype, values), {})
        if slots_inside(a):  # when such a graph is unpickled
            return self._kept(a)
        return super().create_arg(a)

    def _kept(self, prototype: Any) -> fx.Node:
        """Return a node for an object that the root keeps, or is to keep."""
        kept = (name for name, value in vars(self.root).items() if value is prototype)
        name = next(kept, None) or self.get_fresh_qualname("_object_constant")
        setattr(self.root, name, prototype)
        return self.create_node("get_attr", name, (), {})

    def _hides(self, name: str) -> bool:
        """Say whether an argument has the name by which generated code calls infinity or NaN."""
        return any(node.target == name for node in self.graph.find_nodes(op="placeholder"))

    def _made_again(self, value: Any) -> fx.Node:
        """Record the making of a dataclass, or of a class of dict or list: a `ModelOutput`."""
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if dataclasses.is_dataclass(value):
            fields = [each.name for each in dataclasses.fields(value) if each.init]
            kwargs = {name: getattr(value, name) for name in fields}
        else:
            args = (dict(value) if isinstance(value, Mapping) else list(value),)
        kind: Any = type(value)
        try:
            made = kind(*args, **kwargs)
        except TypeError as error:
            raise TraceError(f"a {kind.__name__} cannot be made again: {error}") from error
        if not holds_the_same(made, value):
            raise TraceError(f"a {kind.__name__} cannot be made again: it holds other things then")
        recorded_args, recorded_kwargs = self.create_arg(args), self.create_arg(kwargs)
        return self.create_node("call_function", kind, recorded_args, recorded_kwargs)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None,
        type_expr: Any = None, proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:  # fmt: skip
        """Record a call; return a proxy of what it gives, or a fact that no size has a part in."""
        inner = getattr(target, "__wrapped__", None)
        if id(inner) in self._autowrap_function_ids:  # as PyTorch's function finds itself patched
            target = inner
        attended = decomposed_call(target, args, kwargs)
        if attended is not None:
            return attended
        _refuse_writing(kind, target, args)
        if _autocasts() != self._autocasts:
            raise TraceError("autocast inside of the forward: a graph would leave it out")
        if self._values is None or proxy_factory_fn is not None:
            return super().create_proxy(
                kind, target, args, kwargs, name, type_expr, proxy_factory_fn
            )
        if target in (ASSERT, torch._assert):
            return None if args[0] else _fail(args)
        value = self._values.compute(self._function(kind, target), args, kwargs)
        is_method = kind == "call_method"
        if is_method and target in ("dim", "ndimension"):
            return self.decisions.fact("ndim", value)
        if isinstance(value, bool) and (is_method or target not in _COMPARED):
            return self.decisions.fact("dtype", value)
        if isinstance(value, HELD) and not isinstance(value, (bool, type(None))):
            return self.decisions.fact("dtype", value)
        is_question = isinstance(value, (bool, int, float, torch.Size))
        key = self._question(target, args, kwargs) if is_question else None
        if key in self._questions:
            return self._questions[key]
        proxy: Any = super().create_proxy(
            kind, target, args, kwargs, name, type_expr, lambda node: ValueProxy(node, self, value)
        )
        if key is not None:
            self._questions[key] = proxy
        if target in ("squeeze", torch.squeeze) and len(args) + len(kwargs) == 1:
            self.decisions.require_of(
                proxy.node, "ndim", value.dim()
            )  # how many axes go depends on sizes
        return None if value is None else proxy

    def _function(self, kind: str, target: Any) -> Callable[..., Any]:
        if kind == "call_method":
            return _method(target)
        if kind == "call_module":
            return self._held[target]  # type: ignore[no-any-return]
        if kind == "get_attr":
            return lambda: self._held[target]
        assert kind == "call_function", kind
        return target  # type: ignore[no-any-return]

    def _question(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return what is equal for calls that ask the same, of tensors of the same shapes."""
        shapes = []

        def name(value: Any) -> Any:
            if isinstance(value, ValueProxy) and isinstance(value.known, Tensor):
                shapes.append(value.known.shape)
            return value.node.name if isinstance(value, fx.Proxy) else value

        return target, repr(map_aggregate((args, kwargs), name)), tuple(shapes)

    def _hold_nones(self) -> None:
        """Put our requirements in the places of fx's own, which unpickled let nothing be traced."""
        for node in list(self.graph.nodes):
            if getattr(node.target, "__name__", "") == "_assert_is_none":
                argument = node.args[0]
                argument.target = argument.target.removesuffix("_1")  # mask_1, as fx renames it
                node.target = require
                node.args = (argument, None, f"argument {argument.target!r} fixed at None")


def _refuse_writing(kind: str, target: Any, args: Any) -> None:
    """Raise where the forward writes to a tensor that it did not compute: to its state."""
    if not args or not isinstance(args[0], Tensor) or isinstance(args[0], fx.Proxy):
        return
    is_in_place = target in _IN_PLACE or (
        kind == "call_method"
        and (
            target in ("__setitem__",)
            or target.startswith("__i")
            or target[-1] == "_" != target[-2]
        )
    )
    if is_in_place:
        name = getattr(target, "__name__", target)
        raise TraceError(f"{name} writes to a tensor that is no result of the input: it has state")


@functools.cache
def _method(name: str) -> Callable[..., Any]:
    """Return a function that calls the method of its first argument."""

    def call(value: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(value, name)(*args, **kwargs)

    call.__name__ = name
    return call


def _autocasts() -> list[bool]:
    return [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]


def _fail(args: Any) -> None:
    raise AssertionError(*args[1:])
