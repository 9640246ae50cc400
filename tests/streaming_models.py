"""Small graphs with all that a stream must get right, and what a plain forward makes of them."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from tests.helpers import Net

Function = Callable[[Any, Any], Any]


class Arguments(nn.Module):
    """Several inputs, one of them no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: Any, y: Tensor) -> Any:
        return self.fc(x) * scale["by"] + torch.add(input=self.fc(input=y), other=x, alpha=2)


def layers(function: Function, **parts: Any) -> fx.GraphModule:
    """Return the graph of a model with three linear layers and an in-place ReLU."""
    linear = {name: nn.Linear(4, 4) for name in "abc"}
    return fx.symbolic_trace(Net(function, relu=nn.ReLU(inplace=True), **linear, **parts))


def with_iadd(function: Function) -> fx.GraphModule:
    """Return `layers(function)` with `x += y` for each `x + y`: tracing loses the difference."""
    gm = layers(function)
    for each in gm.graph.find_nodes(op="call_function", target=operator.add):
        each.target = operator.iadd
    gm.recompile()
    return gm


def changed_twice(m: Any, x: Any) -> Any:
    y = m.a(x)
    before = y * 2
    m.relu(y)
    z = m.b(y)
    y.add_(z)
    return m.c(y) + before + y


def relu_then_add(m: Any, x: Any) -> Any:
    y = m.a(x)
    return m.c(m.relu(y) + x) * y  # y is what += made of it


def split(m: Any, x: Any) -> Any:
    left, right = m.a(x).chunk(2, 1)
    return m.c(torch.cat([right, left], dim=1)) + torch.cat([left, left], 1)


def sizes(m: Any, x: Any) -> Any:
    y = m.a(x)
    size = y.size()
    z = m.b(y.view(size))
    return m.c(z) * size.numel()


def largest(m: Any, x: Any) -> Any:
    top = m.a(x).max(dim=1)
    y = m.b(x * top.values[:, None])
    return m.c(y) + top.indices[:, None]


def images() -> fx.GraphModule:
    """Return a model with an image of one channel in between, channels last."""
    parts = {"a": nn.Conv2d(8, 1, 1), "b": nn.Conv2d(1, 16, 3, padding=1), "c": nn.Conv2d(16, 4, 3)}
    return fx.symbolic_trace(Net(lambda m, x: m.c(m.b(m.a(x))), **parts))


MODELS: dict[str, Callable[[], fx.GraphModule]] = {
    "chain": lambda: layers(lambda m, x: m.c(m.b(m.a(x)))),
    "residual": lambda: layers(lambda m, x: m.c(m.b(m.a(x)) + m.a(x)) + x),
    "shared": lambda: layers(lambda m, x: m.a(m.a(m.b(m.a(x))))),
    "in place, then both": lambda: layers(changed_twice),
    "+=": lambda: with_iadd(relu_then_add),
    "input in place": lambda: layers(lambda m, x: m.a(x) + m.b(m.relu(x)) + m.c(x)),
    "input, function in place": lambda: layers(lambda m, x: m.b(F.relu(x, True)) + m.c(x)),
    "split": lambda: layers(split),
    "sizes": lambda: layers(sizes),
    "max": lambda: layers(largest),
    "attribute": lambda: layers(
        lambda m, x: m.b(m.a(x) * m.s) + m.s, s=nn.Parameter(torch.ones(4))
    ),
    "arguments": lambda: fx.symbolic_trace(Arguments()),
    "images": images,
}


def inputs(name: str = "", num_batches: int = 3) -> list[tuple[Any, ...]]:
    if name == "images":
        return [
            (torch.randn(4, 8, 33, 33).to(memory_format=torch.channels_last),)
            for _ in range(num_batches)
        ]
    xs = [torch.randn(5, 4) for _ in range(num_batches)]
    if name == "arguments":
        return [(x, {"by": number}, x + 1) for number, x in enumerate(xs)]
    return [(x,) for x in xs]


def clone(value: Any) -> Any:
    return map_aggregate(value, lambda each: each.clone() if isinstance(each, Tensor) else each)


class Recorder(fx.Interpreter):
    """A plain forward that keeps copies of all results, made before anything changes them."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.seen[n] = clone(result)
        return result


def plain_forward(gm: fx.GraphModule, batches: list[tuple[Any, ...]]) -> list[dict[fx.Node, Any]]:
    recorders = [Recorder(gm) for _ in batches]
    with torch.no_grad():
        for recorder, batch in zip(recorders, batches, strict=True):
            recorder.run(*clone(batch))
    return [recorder.seen for recorder in recorders]


def computed(gm: fx.GraphModule) -> list[fx.Node]:
    return [each for each in gm.graph.nodes if each.op not in ("placeholder", "output")]
