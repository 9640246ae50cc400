"""Nodes in a row that are computed, learned or judged together: layer, addition, ReLU and so on.

    chain = Chain.behind(gm, conv).take(is_add).take(relu_bounds).take(is_quantize)

goes as far as each result has one reader and that reader is what was asked for. What only asks for
a shape or a type is no reader. One node may then stand for all of them: `chain.replace(by)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxquant.graph.operations import data_input, module_of, readers, source_of
from fxquant.graph.records import annotate, record, value_of
from fxquant.modules.own import OwnModule

Question = Callable[[fx.GraphModule, fx.Node], Any]


@dataclass(frozen=True)
class Chain:
    """Nodes each of which works on the result of the one before.

    >>> from torch import nn
    >>> from fxquant.capture.tracing import trace
    >>> from fxquant.graph.operations import is_add, relu_bounds
    >>> gm = trace(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> layer = list(gm.graph.nodes)[1]
    >>> Chain.behind(gm, layer).take(is_add).take(relu_bounds).nodes
    (_0, _1)
    """

    gm: fx.GraphModule
    nodes: tuple[fx.Node, ...]
    users: Mapping[fx.Node, Sequence[fx.Node]] | None = None
    """Who reads each result; None: all that see its values."""

    @classmethod
    def behind(
        cls,
        gm: fx.GraphModule,
        node: fx.Node,
        users: Mapping[fx.Node, Sequence[fx.Node]] | None = None,
    ) -> Chain:
        """Return the chain that begins with `node`, which is all of it so far."""
        return cls(gm, (node,), users)

    @property
    def first(self) -> fx.Node:
        """The node that the chain begins with."""
        return self.nodes[0]

    @property
    def last(self) -> fx.Node:
        """The node whose result is the chain's."""
        return self.nodes[-1]

    @property
    def next(self) -> fx.Node | None:
        """The node that alone reads the result; None if there is none, or there are several."""
        users = self._users(self.last)
        return users[0] if len(users) == 1 else None

    def take(self, question: Question) -> Chain:
        """Return the chain with its next node, if `question` holds of that; else the chain."""
        after = self.next
        if after is None or not question(self.gm, after):
            return self
        return Chain(self.gm, (*self.nodes, after), self.users)

    def take_all(self, question: Question) -> Chain:
        """Return the chain with all nodes behind it up to the first that `question` denies."""
        chain = self
        while (longer := chain.take(question)) is not chain:
            chain = longer
        return chain

    def why_not_fusable(self) -> str | None:
        """Return why the chain cannot be computed at once, or None if it can.

        It cannot if a result before the last is seen by anyone else.
        """
        for node, after in zip(self.nodes, self.nodes[1:], strict=False):
            others = [
                seer.name
                for user in self._users(node)
                if user is not after
                for seer in _behind_watcher(self.gm, user)
            ]
            if others:
                return f"{node.name} also feeds {', '.join(others)}"
        return None

    def replace(self, by: fx.Node, name: str | None = None) -> None:
        """Let `by`, a node of the same graph, take the place of the chain, whose nodes are erased.

        It gets the records of the last node, the multiply-adds of all, and `name`: without one,
        that of the first. What asks for the shape of one of the nodes, none of which changes it,
        asks for that of `by`.
        """
        name = name or self.first.name
        annotate(by, integers=record(self.last).integers, value_of=value_of(self.last))
        counts = [record(node).multiply_adds for node in self.nodes]
        if any(count is not None for count in counts):
            annotate(by, multiply_adds=sum(count or 0.0 for count in counts))
        for node in reversed(self.nodes):
            node.replace_all_uses_with(by, delete_user_cb=lambda user: user is not by)
            node.graph.erase_node(node)
        by.name = name

    def _users(self, node: fx.Node) -> Sequence[fx.Node]:
        return readers(self.gm, node) if self.users is None else self.users[node]


def _behind_watcher(gm: fx.GraphModule, user: fx.Node) -> list[fx.Node]:
    """Return a reader; if it only watches for others, these."""
    module = module_of(gm, user)
    return list(user.users) if isinstance(module, OwnModule) and module.watches else [user]


def find_chains(gm: fx.GraphModule, first: Question, then: Question) -> Iterator[Chain]:
    """Yield a chain of two wherever `then` works on the result of `first`.

    Others may see that result too: whether the two may be fused is `why_not_fusable`'s to say.
    """
    for node in list(gm.graph.nodes):
        source = data_input(node)
        if source is not None and then(gm, node) and first(gm, source):
            yield Chain(gm, (source, node))


def take_out(node: fx.Node) -> None:
    """Erase `node` and let its users take what it works on."""
    node.replace_all_uses_with(source_of(node))
    node.graph.erase_node(node)


def insert_after(node: fx.Node) -> Any:
    """Return the context in which new nodes land behind `node`, and behind all placeholders."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node.graph.inserting_after(node)
