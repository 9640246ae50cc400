"""What stands for the arguments of the module that is traced: placeholders, or held values.

def forward(self, x, pair, mask=None, *rest): ...      # example: (x, (a, b)), {}
x, pair, mask = input(), input(), input(default=None)
forward(x, (pair[0], pair[1]), None)                   # len(pair) == 2 and mask are required
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.capture.example import EMPTY, Argument, Call, arguments
from fxquant.capture.recording.proxies import ValueProxy
from fxquant.capture.recording.values import Values
from fxquant.numerics.containers import items_of, made_like

HELD = (type(None), bool, str, torch.dtype, torch.layout, torch.memory_format)
"""What Python decides by: no proxy can stand for it."""
_PLAIN = (*HELD, int, float, torch.device)


class RootArguments:
    """The arguments of a tracer's root.

    Args:
        tracer: whose graph gets the placeholders.
        call: what the root is called with in the example, or None.
        fixed: values to hold arguments at, by name.
        values: makes fakes of what the example gives; None without one.
    """

    def __init__(
        self, tracer: Any, call: Call | None, fixed: dict[str, Any], values: Values | None
    ) -> None:
        self._tracer, self._call, self._fixed, self._values = tracer, call, fixed, values

    def stand_ins(self) -> tuple[list[Any], dict[str, Any]]:
        """Return what to call the root with, by position and by keyword as the example does."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in arguments(self._tracer.root.forward, self._call):
            value = self._stand_in(argument)
            if not argument.by_keyword:
                args.append(value)
            elif argument.is_given or argument.name in self._fixed:
                kwargs[argument.name] = value
        return args, kwargs

    def _stand_in(self, argument: Argument) -> Any:
        name = argument.name
        value = self._fixed.get(name, argument.value)
        is_held = name in self._fixed or (self._call is not None and not argument.is_given)
        if is_held and not isinstance(value, _PLAIN):
            return value  # no call can be held to it: it is no argument any more
        default = () if argument.default is EMPTY else (argument.default,)
        earlier = self._tracer.graph.find_nodes(op="placeholder")
        if not default and any(node.args for node in earlier):
            default = (None,)  # of **kwargs: Python wants defaults behind the first
        node = self._tracer.create_node("placeholder", name, default, {})
        if is_held:
            self._tracer.decisions.require(node, value, f"argument {name!r} fixed at {value!r}")
            return value
        if self._values is None:
            return self._tracer.proxy(node)
        return self._opened(node, self._values.faked(value), f"argument {name!r}")

    def _opened(self, node: fx.Node, value: Any, what: str) -> Any:
        """Return the containers that an argument is made of, a proxy in each tensor's place."""
        decisions = self._tracer.decisions
        if isinstance(value, HELD):
            decisions.require(node, value, f"{what} fixed at {value!r}")
            return value
        if isinstance(value, list) and value and all(map(_is_image, value)):
            return self._tracer.proxy(node)  # of which each call brings another number
        items = items_of(value)
        if items is None:
            proxy = ValueProxy(node, self._tracer, value)
            if isinstance(value, Tensor):
                decisions.add_input(proxy)
            return proxy
        read: Any = getattr
        if isinstance(value, (Mapping, list, tuple)):
            read = operator.getitem
            counted = self._tracer.create_node("call_function", len, (node,), {})
            decisions.require(counted, len(value), f"{what} of length {len(value)}")
        opened = {}
        for key, each in items.items():
            item = self._tracer.create_node("call_function", read, (node, key), {})
            opened[key] = self._opened(item, each, f"{what}[{key!r}]")
        return made_like(value, opened)


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3
