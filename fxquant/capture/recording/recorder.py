"""The tracer: records what a module's forward does, with the values of an example or without."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Set
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
from fxquant.capture.example import EMPTY, Argument, Call, arguments
from fxquant.capture.given_models import why_opaque
from fxquant.capture.recording.objects import emptied, filled, proxies_inside, slots_inside
from fxquant.capture.recording.python_of_tracing import (
    ONE_AT_A_TIME,
    python_of_tracing,
    recorded_functions,
)
from fxquant.capture.recording.requirements import in_words, require
from fxquant.capture.recording.values import ValueProxy, Values
from fxquant.modules.batchnorm import is_batchnorm_module
from fxquant.modules.layers import layer_type
from fxquant.modules.own import OwnModule
from fxquant.numerics.containers import holds_the_same, is_own_container, items_of, made_like

_ASSERT = torch._assert
_HELD = (type(None), bool, str, torch.dtype, torch.layout, torch.memory_format)
_PLAIN = (*_HELD, int, float, torch.device)
_BUILTINS = (abs, bool, float, getattr, int, len, max, min, round, sum)
_COMPARED = (
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.not_,
    operator.contains, operator.and_, operator.or_,
)  # fmt: skip
_COUNTED = ("chunk", "split", "unbind", "tensor_split", "split_with_sizes")
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
        self._inputs: list[ValueProxy] = []
        self._facts: set[str] = set()
        self._told: set[fx.Node] = set()
        self._formatted: dict[fx.Node, str] = {}
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
        with ONE_AT_A_TIME, python_of_tracing(self._values is not None), self._asserted():
            graph = super().trace(root, concrete_args)
        self._hold_facts()
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
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in arguments(root.forward, self._call):
            value = self._argument(argument)
            if argument.by_keyword:
                if argument.is_given or argument.name in self._fixed:
                    kwargs[argument.name] = value
            else:
                args.append(value)
        called: Any = root._call_impl if self._with_hooks else root.forward
        return (lambda: called(*args, **kwargs)), []

    def _is_customized(self, root: nn.Module) -> bool:
        """Say whether calling the root does more than the forward of its class."""
        hooks = root._forward_hooks or root._forward_pre_hooks
        return "forward" in vars(root) or (self._with_hooks and bool(hooks))

    def _argument(self, argument: Argument) -> Any:
        """Return what stands for an argument: a proxy, or the value that it is held at."""
        name = argument.name
        value = self._fixed.get(name, argument.value)
        is_held = name in self._fixed or (self._call is not None and not argument.is_given)
        if is_held and not isinstance(value, _PLAIN):
            return value  # no call can be held to it: it is no argument any more
        default = () if argument.default is EMPTY else (argument.default,)
        earlier = self.graph.find_nodes(op="placeholder")
        if not default and any(node.args for node in earlier):
            default = (None,)  # of **kwargs: Python wants defaults behind the first
        node = self.create_node("placeholder", name, default, {})
        if is_held:
            self._require(node, value, f"argument {name!r} fixed at {value!r}")
            return value
        if self._values is None:
            return fx.Proxy(node, self)
        return self._opened(node, self._values.faked(value), f"argument {name!r}")

    def _opened(self, node: fx.Node, value: Any, what: str) -> Any:
        """Return the containers that an argument is made of, a proxy in each tensor's place."""
        if isinstance(value, _HELD):
            self._require(node, value, f"{what} fixed at {value!r}")
            return value
        if isinstance(value, list) and value and all(map(_is_image, value)):
            return fx.Proxy(node, self)  # of which each call brings another number
        items = items_of(value)
        if items is not None:
            read: Any = operator.getitem
            if isinstance(value, (Mapping, list, tuple)):
                counted = self.create_node("call_function", len, (node,), {})
                self._require(counted, len(value), f"{what} of length {len(value)}")
            else:
                read = getattr
            return made_like(
                value,
                {
                    key: self._item(node, read, key, each, f"{what}[{key!r}]")
                    for key, each in items.items()
                },
            )
        proxy = ValueProxy(node, self, value)
        if isinstance(value, Tensor):
            self._inputs.append(proxy)
        return proxy

    def _item(self, node: fx.Node, read: Any, key: Any, value: Any, what: str) -> Any:
        item = self.create_node("call_function", read, (node, key), {})
        return self._opened(item, value, what)

    # What is recorded, and what Python is told.

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
        if target in (_ASSERT, torch._assert):
            return None if args[0] else _fail(args)
        value = self._values.compute(self._function(kind, target), args, kwargs)
        is_method = kind == "call_method"
        if is_method and target in ("dim", "ndimension"):
            return self.fact(args[0], "ndim", value)
        if isinstance(value, bool) and (is_method or target not in _COMPARED):
            return self.fact(args[0], "dtype", value)
        if isinstance(value, _HELD) and not isinstance(value, (bool, type(None))):
            return self.fact(args[0], "dtype", value)
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
            self._require_of(proxy.node, "ndim", value.dim())  # how many axes go depends on sizes
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

    def fact(self, proxy: Any, name: str, value: Any) -> Any:
        """Return what is so whatever the sizes are: a rank, a type."""
        self._facts.add("ndim" if name == "ndim" else "dtype")
        return value

    def decide(self, proxy: ValueProxy) -> Any:
        """Return a size, or a condition on sizes, as it is in the example; calls are held to it."""
        value = proxy.known
        if proxy.node not in self._told and not isinstance(value, torch.device):
            self._told.add(proxy.node)
            words = in_words(proxy.node)
            if value is False:
                words = f"not ({words})"
            elif value is not True:
                words = f"{words} == {value!r}"
            self._require(proxy.node, tuple(value) if isinstance(value, tuple) else value, words)
        return value

    def formatted(self, proxy: ValueProxy, specification: str = "") -> str:
        """Return a size as text; calls are held to it, unless it is an assertion's message."""
        was_told = proxy.node in self._told
        text = format(self.decide(proxy), specification)
        if proxy.node in self._told and not was_told:
            self._formatted[next(iter(reversed(self.graph.nodes)))] = text
        return text

    @contextlib.contextmanager
    def _asserted(self) -> Iterator[None]:
        """Forget what the messages of assertions were told, `f"got {x.shape}"`: all sizes."""
        if self._values is None:
            yield
            return

        @functools.wraps(_ASSERT)
        def check(condition: Any, message: Any) -> None:
            for node in reversed(self.graph.nodes):  # the message was put together right before
                if node.target not in (require, getattr, operator.getitem):
                    break
                if self._formatted.get(node, message + " ") in message:
                    self._told.discard(node.args[0])
                    self.graph.erase_node(node)
            _ASSERT(condition, message)

        torch._assert = check
        try:
            yield
        finally:
            torch._assert = _ASSERT

    def decide_length(self, proxy: ValueProxy) -> int:
        """Return the length of a shape, a tensor or a container; calls are held to it."""
        value = proxy.known
        if isinstance(value, torch.Size):
            return self.fact(proxy, "ndim", len(value))  # type: ignore[no-any-return]
        if isinstance(value, Tensor):
            return int(proxy.shape[0])
        if getattr(proxy.node.target, "__name__", proxy.node.target) in _COUNTED:
            return int(self.create_proxy("call_function", len, (proxy,), {}))
        return len(value)

    def _require(self, node: fx.Node, value: Any, words: str) -> None:
        place = self.scope.module_path
        words = f"{words}, in {place}" if place else words
        self.create_node("call_function", require, (node, value, words), {})

    def _require_of(self, node: fx.Node, name: str, value: Any) -> None:
        asked = self.create_node("call_function", getattr, (node, name), {})
        self._require(asked, value, f"{node.name}.{name} == {value!r}")

    def _hold_facts(self) -> None:
        """Hold the inputs to their ranks, and their types, where the forward asked for any."""
        placeholders = self.graph.find_nodes(op="placeholder")
        for proxy in reversed(self._inputs):
            is_argument = proxy.node.op == "placeholder"
            for name in sorted(self._facts, reverse=True):
                with self.graph.inserting_after(placeholders[-1] if is_argument else proxy.node):
                    asked = self.graph.call_function(getattr, (proxy.node, name))
                words = f"{in_words(proxy.node)}.{name} == {getattr(proxy.known, name)!r}"
                with self.graph.inserting_after(asked):
                    self.graph.call_function(require, (asked, getattr(proxy.known, name), words))

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


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3


def _fail(args: Any) -> None:
    raise AssertionError(*args[1:])
