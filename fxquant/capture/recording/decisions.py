"""What Python is told of sizes while a forward is recorded, and what then holds calls to it.

x.ndim == 4                  # a fact: inputs are held to their ranks, once, at the head
if x.shape[2] == 224: ...    # a decision: require(eq, True, 'x.shape[2] == 224') stays behind
f"got {x.shape}"             # told, and forgotten again if it is only an assertion's message
if self.shape != x.shape:    # a cache by shape: what it holds is made anew in every call
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import TraceError

from fxquant.capture.recording.proxies import ValueProxy
from fxquant.capture.recording.requirements import in_words, require

ASSERT = torch._assert
_COUNTED = ("chunk", "split", "unbind", "tensor_split", "split_with_sizes")


class Decisions:
    """What the forward asked of the example, and the requirements that come of it.

    Args:
        tracer: in whose graph they stay.
    """

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._inputs: list[ValueProxy] = []
        self._facts: set[str] = set()
        self._told: set[fx.Node] = set()
        self._formatted: dict[fx.Node, str] = {}
        self._kept: list[tuple[dict[str, Any], str, Any]] = []

    def add_input(self, proxy: ValueProxy) -> None:
        """Note a tensor that a call gives."""
        self._inputs.append(proxy)

    def fact(self, name: str, value: Any) -> Any:
        """Return what is so whatever the sizes are: a rank, or what follows from types."""
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
            self.require(proxy.node, tuple(value) if isinstance(value, tuple) else value, words)
        return value

    def length(self, proxy: ValueProxy) -> int:
        """Return the length of a shape, a tensor or a container; calls are held to it."""
        value = proxy.known
        if isinstance(value, torch.Size):
            return int(self.fact("ndim", len(value)))
        if isinstance(value, Tensor):
            return int(proxy.shape[0])
        if getattr(proxy.node.target, "__name__", proxy.node.target) in _COUNTED:
            return int(self._tracer.create_proxy("call_function", len, (proxy,), {}))
        return len(value)

    def formatted(self, proxy: ValueProxy, specification: str = "") -> str:
        """Return a size as text; calls are held to it, unless it is an assertion's message."""
        was_told = proxy.node in self._told
        text = format(self.decide(proxy), specification)
        if proxy.node in self._told and not was_told:
            self._formatted[next(iter(reversed(self._tracer.graph.nodes)))] = text
        return text

    @contextlib.contextmanager
    def without_messages(self) -> Iterator[None]:
        """Forget what the messages of assertions were told, `f"got {x.shape}"`: all sizes."""

        @functools.wraps(ASSERT)
        def check(condition: Any, message: Any) -> None:
            for node in reversed(self._tracer.graph.nodes):  # the message was made right before
                if node.target not in (require, getattr, operator.getitem):
                    break
                if self._formatted.get(node, message + " ") in message:
                    self._told.discard(node.args[0])
                    self._tracer.graph.erase_node(node)
            ASSERT(condition, message)

        torch._assert = check
        try:
            yield
        finally:
            torch._assert = ASSERT

    def is_kept(self, shape: tuple[int, ...]) -> bool:
        """Say whether a module keeps this very shape in an attribute, and note which."""
        for module in self._tracer.root.modules():
            for name, value in vars(module).items():
                if value is shape:
                    self._kept.append((vars(module), name, shape))
                    return True
        return False

    def check_kept(self) -> None:
        """Raise `TraceError` where the forward did not renew a shape that it compared with.

        Then that is no cache: the other branch of the comparison is another computation.
        """
        for attributes, name, shape in self._kept:
            if attributes.get(name) is shape:
                raise TraceError(
                    f"control flow on a whole shape, compared with self.{name} == {shape!r}"
                )

    def require(self, node: fx.Node, value: Any, words: str) -> None:
        """Let the graph refuse calls in which `node` gives another value."""
        place = self._tracer.scope.module_path
        words = f"{words}, in {place}" if place else words
        self._tracer.create_node("call_function", require, (node, value, words), {})

    def require_of(self, node: fx.Node, name: str, value: Any) -> None:
        """Let the graph refuse calls in which an attribute of what `node` gives is another."""
        asked = self._tracer.create_node("call_function", getattr, (node, name), {})
        self.require(asked, value, f"{node.name}.{name} == {value!r}")

    def hold_facts(self) -> None:
        """Hold the inputs to their ranks, and their types, where the forward asked for any."""
        graph = self._tracer.graph
        placeholders = graph.find_nodes(op="placeholder")
        for proxy in reversed(self._inputs):
            is_argument = proxy.node.op == "placeholder"
            for name in sorted(self._facts, reverse=True):
                with graph.inserting_after(placeholders[-1] if is_argument else proxy.node):
                    asked = graph.call_function(getattr, (proxy.node, name))
                words = f"{in_words(proxy.node)}.{name} == {getattr(proxy.known, name)!r}"
                with graph.inserting_after(asked):
                    graph.call_function(require, (asked, getattr(proxy.known, name), words))
