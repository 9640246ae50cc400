"""A graph comes back as it was; one that no tracer made does not get in."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.errors import StorageError
from fxquant.graph.records import Record, Refusal, annotate, record
from fxquant.storage.allowed import Allowed
from fxquant.storage.decoding import Decoder
from fxquant.storage.encoding import Encoder


def double(x: Any) -> Any:
    return x * 2


def through(gm: fx.GraphModule) -> fx.GraphModule:
    """Return `gm` after it was JSON."""
    encoder = Encoder()
    tree = json.loads(json.dumps(encoder.encode(gm, "model"), allow_nan=False))
    decoded = Decoder(encoder.tensors, Allowed()).decode(tree)
    assert isinstance(decoded, fx.GraphModule)
    return decoded


class Traced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("table", torch.randn(4))

    def forward(self, x: Any, mask: Any = None, *, scale: float = math.inf) -> Any:
        y = torch.clamp(self.fc(x) + self.table, max=scale)[:, 1:, None]
        first = torch.split(F.pad(y, (1, 1)), [2, 1], dim=1)[0]
        return {"y": [first.to(torch.float64), x.shape[0]], "z": (y.sum(),)}


class Chosen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        best = self.fc(x).topk(2)
        return best.values * best.indices


def test_a_graph_comes_back() -> None:
    gm, x = fxquant.trace(Traced()), torch.randn(2, 4)
    restored = through(gm)
    for one, other in zip(restored.graph.nodes, gm.graph.nodes, strict=True):
        assert (one.op, one.name, one.target) == (other.op, other.name, other.target)
        assert (str(one.args), str(one.kwargs)) == (str(other.args), str(other.kwargs))
    assert type(restored).__name__ == type(gm).__name__ == "Traced"
    torch.testing.assert_close(restored(x), gm(x), rtol=0, atol=0)
    restored.graph.lint()


def test_parts_of_results_come_back_by_name() -> None:
    gm = fxquant.trace(Chosen())
    x = torch.randn(3, 4)
    assert torch.equal(through(gm)(x), gm(x))


def test_a_new_node_of_a_restored_graph_gets_a_new_name() -> None:
    restored = through(fxquant.trace(Traced()))
    with restored.graph.inserting_before(next(iter(restored.graph.nodes))):
        new = restored.graph.create_node("call_function", torch.relu, name="fc")
    assert new.name not in {node.name for node in restored.graph.nodes if node is not new}


def test_a_name_that_fx_would_not_give_comes_back() -> None:
    gm = fxquant.trace(nn.Sequential(nn.ReLU()))
    next(iter(gm.graph.find_nodes(op="call_module"))).name = "add"
    assert [node.name for node in through(gm).graph.nodes] == ["input_1", "add", "output"]


def test_what_is_known_of_nodes_comes_back_without_moments() -> None:
    gm = fxquant.trace(nn.Sequential(nn.ReLU()))
    moments = (torch.ones(2), torch.ones(2))
    refused = (Refusal("not folded", "why"), Refusal("not fused", "why"))
    for node in gm.graph.find_nodes(op="call_module"):
        annotate(node, folded=("bn",), clamp=(0.0, math.inf), moments=moments, refused=refused)
    (node,) = through(gm).graph.find_nodes(op="call_module")
    known = record(node)
    assert known == Record(folded=("bn",), clamp=(0.0, math.inf), refused=refused)
    assert known.moments is None


def test_a_graph_of_structures_is_refused() -> None:
    gm = fxquant.trace(nn.Sequential(nn.ReLU()))
    gm.graph.set_codegen(fx.graph._PyTreeCodeGen(None))  # type: ignore[arg-type]
    with pytest.raises(StorageError) as caught:
        Encoder().encode(gm, "model")
    assert str(caught.value) == ("model: its graph takes or returns structures (_PyTreeCodeGen)")


Node = list[Any]
X = ["node", 0]
INJECTION = "__import__('os').system('touch injected')"


def node(op: str, name: str, target: str, *args: Any, **kwargs: Any) -> Node:
    return [op, name, target, list(args), kwargs, {}]


def call(target: str, *args: Any, **kwargs: Any) -> Node:
    return node("call_function", "y", target, *args, **kwargs)


def decode_nodes(*nodes: Node) -> fx.GraphModule:
    """Return the module of a graph written by hand, with an input and a ReLU that it may call."""
    tree = Encoder().encode(fxquant.trace(nn.Sequential(nn.ReLU())), "model")
    tree[3] = [node("placeholder", "x", "x"), *nodes]
    decoded = Decoder([], Allowed([double])).decode(tree)
    assert isinstance(decoded, fx.GraphModule)
    return decoded


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (node("placeholder", "y", f"y={INJECTION}"), f'input "y={INJECTION}"'),
        (node("placeholder", "y", "***y"), "input '***y'"),
        (node("placeholder", "y", "lambda"), "input 'lambda'"),
        (node("call_module", f"y = {INJECTION}", "0"), f'a node "y = {INJECTION}"'),
        (node("call_module", "x", "0", X), "two 'x'"),
        (node("call_module", "y", f'0"{INJECTION}'), "call_module of"),
        (node("call_module", "y", "1"), "call_module of '1'"),
        (node("call_module", "y", "0.__class__"), "call_module of '0.__class__'"),
        (node("get_attr", "y", "0.forward"), "get_attr of '0.forward'"),
        (node("get_attr", "y", "_modules"), "get_attr of '_modules'"),
        (node("get_attr", "y", "0.__init__.__globals__"), "get_attr of '0.__init__.__globals__'"),
        (node("call_method", "y", "__class__", X), "a call of the method '__class__'"),
        (node("call_method", "y", "apply_", X), "a call of the method 'apply_'"),
        (node("call_method", "y", "format", "{0}", X), "a call of the method 'format'"),
        (node("call_method", "y", f"view(); {INJECTION}", X), "a call of the method"),
        (node("exec", "y", "0"), "a node that does 'exec'"),
        (call("builtins:getattr", X, "__class__"), "a look at the attribute '__class__'"),
        (call("builtins:getattr", X, "register_hook"), "the attribute 'register_hook'"),
        (call("builtins:getattr", X, X), "a look at the attribute"),
        (call("builtins:max", X, key=X), "max(key=…)"),
        (call("torch:relu", X, **{f"x={INJECTION}": 1}), "the keywords"),
        (call("torch:relu", ["type", "builtins:int"]), "the argument ['type', 'builtins:int']"),
        (call("torch:relu", ["?"]), "the argument ['?']"),
        (call("torch:relu", {}), "the argument {}"),
        (call("os:system", "touch injected"), "it names the function 'os.system', which"),
        (call("torch.hub:load", "a", "b"), "it names the function 'torch.hub.load', which"),
    ],
)
def test_a_graph_that_nobody_traced_is_refused(
    written: Node, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError) as caught:
        decode_nodes(written)
    assert reason in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_arguments_of_hand_made_graphs_are_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"'); {INJECTION} #"
    gm = decode_nodes(call("x:double", text), node("output", "output", "output", ["node", 1]))
    assert gm(torch.ones(2)) == text * 2
    assert not list(tmp_path.iterdir())
