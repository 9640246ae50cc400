"""What is counted belongs to a node of a graph, or to a module outside of all graphs."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as modes

import fxquant
from fxquant.calibration.counted_call import stop_counting
from fxquant.calibration.counting import MultiplyAddCounter
from fxquant.capture.naming import find_regions
from fxquant.capture.partition import capture
from fxquant.streaming.running import interpreted
from tests.detectors import detector, images
from tests.helpers import Net


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.q(x) @ self.k(x).transpose(1, 2)
        return scores @ x + self.k(x).sum()  # type: ignore[no-any-return]


def counted(model: nn.Module, *arguments: Any) -> MultiplyAddCounter:
    stop_counting(model)  # no hooks of its own
    counter = MultiplyAddCounter(model)
    counter.start()
    try:
        model(*arguments)
    finally:
        counter.stop()
    return counter


def by_name(counter: MultiplyAddCounter) -> dict[str, int]:
    return {node.name: number for node, number in counter.nodes.items()}


def test_each_call_has_its_own() -> None:
    found = counted(fxquant.trace(Attention()), torch.ones(3, 5, 8))
    linear, product = 3 * 5 * 8 * 4, 3 * 5 * 5
    assert by_name(found) == {
        "q": linear, "k": linear, "matmul": product * 4, "matmul_1": product * 8, "k_1": linear,
    }  # fmt: skip
    assert not found.modules


def test_an_interpreter_counts_as_the_generated_code_does() -> None:
    gm, x = fxquant.trace(Attention()), torch.ones(3, 5, 8)
    expected = by_name(counted(gm, x))
    with interpreted(gm, fx.Interpreter(gm)):
        assert by_name(counted(gm, x)) == expected


def test_an_interpreter_of_another_graph_counts_for_the_node_that_runs_it() -> None:
    inner = fx.symbolic_trace(nn.Linear(8, 4))
    model = Net(lambda m, x: m.leaf(x), leaf=Net(lambda _, x: fx.Interpreter(inner).run(x)))
    gm = capture(model, leaf_modules=["leaf"]).model
    assert by_name(counted(gm, torch.ones(2, 8))) == {"leaf": 64}


def test_what_runs_inside_of_a_module_counts_for_the_node_that_calls_it() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 6))
    assert by_name(counted(fxquant.trace(model), torch.ones(5, 1, 8))) == {
        "_0": 5 * 64, "_1": 5 * 24 * 14,
    }  # fmt: skip


def test_regions_of_equal_code_are_told_apart_and_calls_add_up() -> None:
    prepared = fxquant.prepare(detector(), verify=False)
    graphs = find_regions(prepared)
    assert graphs["head.scores"].code == graphs["head.boxes"].code
    found = counted(prepared, images(1))
    positions = 8 * 8 + 4 * 4  # of two levels
    numbers = {
        path: sum(found.nodes[node] for node in gm.graph.nodes) for path, gm in graphs.items()
    }
    assert numbers == {
        "backbone": 64 * 3 * 8 * 9 + 16 * 8 * 8 * 9,
        "head.tower": 2 * positions * 8 * 8 * 9,
        "head.scores": positions * 8 * 3,
        "head.boxes": positions * 8 * 4,
        "many": 0,
    }
    assert not found.modules


def test_outside_of_graphs_the_innermost_module_has_it() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.leaf = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4))

        def similar(self, x: Tensor) -> Tensor:
            return x @ x.T if x.sum() > 0 else x

        def forward(self, x: Tensor) -> Tensor:
            return self.similar(self.leaf(self.fc(x)))

    model = fxquant.prepare(Model().eval(), leaf_modules=["leaf"], verify=False)
    found = counted(model, torch.ones(2, 8))
    names = {module: name for name, module in model.named_modules()}
    leaf: Any = model.get_submodule("leaf")
    numbers = {names[module]: number for module, number in found.modules.items()}
    assert numbers.keys() <= {"", "leaf.0"}
    assert numbers[names[leaf[0]]] == 2 * 8 * 4
    assert sum(found.nodes.values()) == 2 * 8 * 8


def test_observers_are_not_looked_at_and_see_what_they_would() -> None:
    prepared, x = fxquant.prepare(nn.Sequential(nn.Linear(8, 4)), verify=False), torch.randn(16, 8)
    observer = prepared.get_submodule("observers.input_1")
    seen: list[int] = []
    inside = observer.register_forward_hook(lambda *_: seen.append(len(modes())))
    assert by_name(counted(prepared, x)) == {"_0": 16 * 8 * 4}
    assert seen == [0]
    inside.remove()
    assert not observer._forward_hooks
    assert observer.get_buffer("high") == x.max()


def test_the_results_are_those_without_it() -> None:
    gm, x = fxquant.trace(Attention()), torch.randn(3, 5, 8)
    results = []
    handle = gm.register_forward_hook(lambda _, __, result: results.append(result))
    counted(gm, x)
    handle.remove()
    assert torch.equal(results[0], gm(x))
