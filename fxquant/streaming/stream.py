"""Run a graph over a whole data set, piece by piece, each node once for each batch.

    stream = Stream(gm, batches, store)
    stream.demand([conv_1, conv_2])
    for (value,) in stream.values(conv_1): ...       # runs what conv_1 needs
    for (value,) in stream.values(conv_2): ...       # goes on from there

Between the pieces modules may be changed: what ran before keeps the old values, what comes later
sees the new ones. Only values that are still needed are kept, in a `ValueStore`. So collecting data
for every layer of a network costs one pass through it, whatever its depth; running the network up
to each layer anew costs half a pass a layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph.mutations import is_inplace, read_instead, run_out_of_place
from fxquant.modules.own import OwnModule
from fxquant.numerics.containers import map_leaves
from fxquant.streaming.running import device_of, laid_out_for
from fxquant.streaming.value_store import ValueStore

_READ_ANEW = ("placeholder", "get_attr")


class Stream:
    """The values of a graph's nodes over all batches.

    Args:
        gm: the graph; it stays as it is.
        batches: the arguments of each call, in the order of the placeholders; on any device.
        store: where values wait; streams may share one.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        batches: Sequence[tuple[Any, ...]],
        store: ValueStore,
    ) -> None:
        self._gm, self._batches, self._store = gm, batches, store
        self._placeholders = list(gm.graph.find_nodes(op="placeholder"))
        self._device = device_of(gm)
        self._instead = read_instead(gm)
        self._pending: set[fx.Node] = set()
        self._uses: Counter[fx.Node] = Counter()

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes that `node` reads, in-place changes of them accounted for."""
        instead = self._instead.get(node, {})
        return list(dict.fromkeys(instead.get(each, each) for each in node.all_input_nodes))

    def demand(self, nodes: Iterable[fx.Node]) -> None:
        """Say which nodes' values will be asked for, as often as they will be; before all else."""
        waiting = list(nodes)
        self._uses.update(waiting)
        while waiting:
            node = waiting.pop()
            if node.op in _READ_ANEW or node in self._pending:
                continue
            self._pending.add(node)
            inputs = self.inputs(node)
            self._uses.update(inputs)
            waiting += inputs

    def skip(self, *nodes: fx.Node) -> None:
        """Give up one demand of each of `nodes`."""
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            self._uses[node] -= 1
            if self._uses[node] > 0 or node.op in _READ_ANEW:
                continue
            if node in self._pending:  # no one will run it
                self._pending.remove(node)
                waiting += self.inputs(node)
            else:
                for number in range(len(self._batches)):
                    self._store.drop(node, number)

    def values(self, *nodes: fx.Node) -> Iterator[tuple[Any, ...]]:
        """Yield the values of `nodes`, a demand of each, for one batch after the other.

        The iterator must be run to its end before the next one is made.
        """
        piece = self._piece(nodes)
        self._pending.difference_update(piece)
        touched = Counter(nodes)
        last_reader: dict[fx.Node, fx.Node] = {}
        for node in piece:
            touched.update(self.inputs(node))
            last_reader.update(dict.fromkeys(self.inputs(node), node))
        self._uses.subtract(touched)
        own = set(piece)
        kept = [node for node in piece if self._uses[node] > 0]
        needed = {*kept, *nodes}
        freed = [
            node
            for node in touched
            if self._uses[node] == 0 and node not in own and node.op not in _READ_ANEW
        ]
        done_after: dict[fx.Node, list[fx.Node]] = {}
        for node, reader in last_reader.items():
            if node not in needed:
                done_after.setdefault(reader, []).append(node)
        for number in range(len(self._batches)):
            values: dict[fx.Node, Any] = {}
            with torch.no_grad():
                for node in piece:
                    values[node] = self._run(node, values, number)
                    for each in done_after.get(node, ()):
                        values.pop(each, None)
                result = tuple(self._read(node, values, number) for node in nodes)
            yield result
            for node in kept:
                self._store.put(node, number, values[node])
            for node in freed:
                self._store.drop(node, number)

    def _piece(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Return what must run before `nodes` are known, in execution order."""
        wanted: set[fx.Node] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node in self._pending and node not in wanted:
                wanted.add(node)
                waiting += self.inputs(node)
        return [node for node in self._gm.graph.nodes if node in wanted]

    def _run(self, node: fx.Node, values: dict[fx.Node, Any], number: int) -> Any:
        instead = self._instead.get(node, {})

        def read(each: fx.Node) -> Any:
            return self._read(instead.get(each, each), values, number)

        args: Any = fx.node.map_arg(node.args, read)
        kwargs: Any = fx.node.map_arg(node.kwargs, read)
        if node.op == "call_method":
            function = getattr(type(args[0]), str(node.target))
        elif node.op == "call_module":
            function = self._gm.get_submodule(str(node.target))
            if isinstance(function, OwnModule) and function.watches:
                return args[0]  # what runs here is no calibration
        else:
            function = node.target
        args, kwargs = laid_out_for(function, args, kwargs)
        if is_inplace(self._gm, node):
            return run_out_of_place(node, function, args, kwargs)
        return function(*args, **kwargs)

    def _read(self, node: fx.Node, values: dict[fx.Node, Any], number: int) -> Any:
        if node in values:
            return values[node]
        if node.op == "placeholder":
            return self._moved(self._batches[number][self._placeholders.index(node)])
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self._gm.get_submodule(owner), name)
        return self._store.get(node, number)

    def _moved(self, value: Any) -> Any:
        """Return an input on the model's device; images with channels last in memory.

        So convolutions on the CPU take two thirds of the time, and rows of channels lie together.
        """

        def move(each: Any) -> Any:
            if not isinstance(each, Tensor):
                return each
            each = each.to(self._device)
            return each.contiguous(memory_format=torch.channels_last) if each.dim() == 4 else each

        return map_leaves(value, move)
