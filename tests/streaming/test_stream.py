"""A stream gives each node's value over all batches, and runs it once for each."""

import random
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant.streaming.stream import Stream
from fxquant.streaming.value_store import ValueStore
from tests.helpers import Net, node
from tests.streaming_models import MODELS, clone, computed, inputs, layers, plain_forward

ORDERS = ("forwards", "backwards", "shuffled", "in pairs", "all at once")


class WatchedStore(ValueStore):
    """A store that tells what it holds."""

    def __init__(self, max_bytes: int | None = None) -> None:
        super().__init__(max_bytes)
        self.held: Counter[fx.Node] = Counter()

    def put(self, key: Any, number: int, value: Any) -> None:
        super().put(key, number, value)
        self.held[key] += 1

    def drop(self, key: Any, number: int) -> None:
        super().drop(key, number)
        self.held[key] -= 1

    def names(self) -> set[str]:
        return {key.name for key, count in self.held.items() if count}


def assert_equal(actual: Any, expected: Any) -> None:
    if isinstance(expected, (tuple, list)):
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, Tensor):
        assert torch.equal(actual, expected)
        assert not actual.requires_grad or isinstance(actual, nn.Parameter)
    else:
        assert actual == expected


def in_pieces(nodes: list[fx.Node], order: str) -> list[list[fx.Node]]:
    if order == "all at once":
        return [nodes]
    shuffled = random.Random(0).sample(nodes, len(nodes))
    chosen = {"forwards": nodes, "backwards": nodes[::-1], "shuffled": shuffled}
    if order == "in pairs":
        return [shuffled[start : start + 2] for start in range(0, len(nodes), 2)]
    return [[each] for each in chosen[order]]


@pytest.mark.parametrize("max_bytes", [None, 0, 500], ids="cap={}".format)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", MODELS)
def test_every_value_is_that_of_a_plain_forward(
    name: str, order: str, max_bytes: int | None
) -> None:
    gm = MODELS[name]()
    batches = inputs(name)
    originals = clone(batches)
    expected = plain_forward(gm, batches)
    pieces = in_pieces(computed(gm), order)
    with (store := WatchedStore(max_bytes)):
        stream = Stream(gm, batches, store)
        stream.demand(each for piece in pieces for each in piece)
        for piece in pieces:
            values = list(stream.values(*piece))
            assert_equal(values, [tuple(seen[each] for each in piece) for seen in expected])
        assert store.names() == set()
    assert_equal(batches, originals)  # the caller's tensors are as they were


def run_pieces(stream: Stream, *pieces: fx.Node) -> list[list[Any]]:
    """Return the values of the nodes, one piece after the other."""
    return [[value for (value,) in stream.values(piece)] for piece in pieces]


def counted(gm: fx.GraphModule) -> Counter[str]:
    """Return what will count the calls of each module."""
    calls: Counter[str] = Counter()
    for name, module in gm.named_children():

        def count(*_: Any, name: str = name) -> None:
            calls[name] += 1

        module.register_forward_hook(count)
    return calls


@pytest.mark.parametrize("order", ORDERS)
def test_every_node_runs_once_for_each_batch(order: str) -> None:
    gm = layers(lambda m, x: m.c(m.b(m.a(x)) + m.a(x)) + m.relu(m.b(x)))
    batches = inputs()
    calls = counted(gm)
    pieces = in_pieces(computed(gm), order)
    stream = Stream(gm, batches, ValueStore())
    stream.demand(each for piece in pieces for each in piece)
    assert not calls
    for piece in pieces:
        list(stream.values(*piece))
    assert calls == {"a": 6, "b": 6, "c": 3, "relu": 3}


def test_nodes_that_no_demand_needs_never_run() -> None:
    gm = layers(lambda m, x: m.c(m.b(m.a(x))) + m.relu(m.a(x)))
    calls = counted(gm)
    stream = Stream(gm, inputs(), ValueStore())
    stream.demand([node(gm, "b")])
    run_pieces(stream, node(gm, "b"))
    assert calls == {"a": 3, "b": 3}


def test_a_value_that_is_demanded_twice_is_given_twice_and_runs_once() -> None:
    gm = layers(lambda m, x: m.b(m.a(x)))
    calls, store = counted(gm), WatchedStore()
    stream = Stream(gm, inputs(), store)
    a = node(gm, "a")
    stream.demand([a, a])
    first, second = run_pieces(stream, a, a)
    assert_equal(first, second)
    assert calls == {"a": 3}
    assert store.names() == set()


def test_inputs_and_attributes_may_be_demanded() -> None:
    gm = layers(lambda m, x: m.a(x) * m.s, s=nn.Parameter(torch.ones(4)))
    batches = inputs()
    x, s = node(gm, "x"), node(gm, "s")
    stream = Stream(gm, batches, ValueStore())
    stream.demand([x, s])
    assert_equal(list(stream.values(x, s)), [(batch, gm.s) for (batch,) in batches])


def test_holds_only_what_is_still_needed() -> None:
    gm = layers(lambda m, x: m.c(m.b(m.a(x)) + x))
    store = WatchedStore()
    stream = Stream(gm, inputs(), store)
    names = ["a", "b", "c"]
    stream.demand(node(gm, name) for name in names)
    for name, kept in zip(names, ({"a"}, {"b"}, set()), strict=True):
        for _ in stream.values(node(gm, name)):
            assert store.bytes_in_memory <= 3 * 5 * 4 * 4  # of three batches (5, 4), one value each
        assert store.names() == kept
    assert store.bytes_in_memory == 0


def test_within_a_batch_a_value_goes_with_its_last_reader() -> None:
    gm = MODELS["chain"]()
    results: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    for name in "abc":
        module = gm.get_submodule(name)
        module.register_forward_pre_hook(
            lambda *_: alive.append(sum(each() is not None for each in results))
        )
        module.register_forward_hook(lambda *each: results.append(weakref.ref(each[-1])))
    stream = Stream(gm, inputs(num_batches=1), ValueStore())
    stream.demand([node(gm, "c")])
    run_pieces(stream, node(gm, "c"))
    assert alive == [0, 1, 1]


def test_a_module_that_changes_between_pieces_affects_what_runs_later() -> None:
    gm = layers(lambda m, x: m.b(m.a(x)) + m.a(x))
    batches = inputs()
    before, after = (gm.get_parameter(name).detach().clone() for name in ("a.bias", "b.bias"))
    expected = plain_forward(gm, batches)
    a, b, add = (node(gm, name) for name in ("a", "b", "add"))
    stream = Stream(gm, batches, ValueStore())
    stream.demand([a, b, add])
    run_pieces(stream, a)
    with torch.no_grad():
        gm.get_parameter("a.bias").add_(1)  # of `b` only the second call of `a` sees it
        gm.get_parameter("b.bias").add_(2)
    (bs, sums) = run_pieces(stream, b, add)
    torch.testing.assert_close(bs, [seen[b] + 2 for seen in expected])
    torch.testing.assert_close(sums, [seen[add] + 3 for seen in expected])
    assert not torch.equal(before, gm.get_parameter("a.bias"))
    assert not torch.equal(after, gm.get_parameter("b.bias"))


def test_two_streams_share_a_store() -> None:
    gm, other = MODELS["residual"](), MODELS["residual"]()
    batches = inputs()
    with (store := WatchedStore(200)):
        streams = [Stream(each, batches, store) for each in (gm, other)]
        for stream, graph in zip(streams, (gm, other), strict=True):
            stream.demand(computed(graph))
        sides = [plain_forward(each, batches) for each in (gm, other)]
        for one, same in zip(computed(gm), computed(other), strict=True):
            pairs = zip(streams[0].values(one), streams[1].values(same), strict=True)
            expected = [((left[one],), (right[same],)) for left, right in zip(*sides, strict=True)]
            assert_equal(list(pairs), expected)
        assert store.names() == set()


def heads() -> fx.GraphModule:
    """Return a model with two heads, b and c, on one value, a."""

    def function(m: Any, x: Any) -> Any:
        y = m.a(x)
        return m.b(y * 2), m.c(y)

    return layers(function)


@pytest.mark.parametrize(("skipped", "runs"), [("b", {"a": 3, "c": 3}), ("c", {"a": 3, "b": 3})])
def test_a_node_whose_demand_was_given_up_does_not_run(skipped: str, runs: dict[str, int]) -> None:
    gm = heads()
    calls = counted(gm)
    stream = Stream(gm, inputs(), ValueStore())
    stream.demand([node(gm, "b"), node(gm, "c")])
    stream.skip(node(gm, skipped))
    run_pieces(stream, *[node(gm, name) for name in "bc" if name != skipped])
    assert calls == runs


def test_a_node_whose_demand_was_given_up_runs_where_others_need_it() -> None:
    gm = MODELS["chain"]()
    batches = inputs()
    expected = plain_forward(gm, batches)
    a, b, c = (node(gm, name) for name in "abc")
    store = WatchedStore()
    stream = Stream(gm, batches, store)
    stream.demand([a, b, c])
    stream.skip(a, b)
    (values,) = run_pieces(stream, c)
    assert_equal(values, [seen[c] for seen in expected])
    assert store.names() == set()


def test_a_given_up_demand_holds_nothing_that_it_would_have_read() -> None:
    gm = heads()
    store = WatchedStore()
    stream = Stream(gm, inputs(), store)
    stream.demand([node(gm, "b"), node(gm, "c")])
    stream.skip(node(gm, "b"))
    run_pieces(stream, node(gm, "c"))
    assert store.names() == set()


def test_giving_up_the_last_demand_of_a_kept_value_frees_it() -> None:
    gm = MODELS["chain"]()
    store = WatchedStore()
    stream = Stream(gm, inputs(), store)
    a = node(gm, "a")
    stream.demand([a, a])
    run_pieces(stream, a)
    assert store.names() == {"a"}
    stream.skip(a)
    assert store.names() == set()


class Flattens(nn.Module):
    """Not PyTorch's code: it asks how its input lies in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


@pytest.mark.parametrize(
    "function", [lambda m, x: x.view(2, -1), lambda m, x: x.view_as(m.flat), lambda m, x: m.own(x)]
)
def test_images_are_given_in_rows_to_what_asks_how_they_lie_in_memory(function: Any) -> None:
    model = Net(lambda m, x: function(m, m.conv(x)), conv=nn.Conv2d(3, 4, 3), own=Flattens())
    model.register_buffer("flat", torch.zeros(2, 64))
    gm = fxquant.trace(model, leaf_modules=(Flattens,))
    x = torch.randn(2, 3, 6, 6)
    last = list(gm.graph.nodes)[-2]
    stream = Stream(gm, [(x,)], ValueStore())
    stream.demand([last])
    ((value,),) = stream.values(last)
    torch.testing.assert_close(value, gm(x))
