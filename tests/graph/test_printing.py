"""The text of a graph: one line a node, the same under every version and after pickling."""

import copy
import pickle
from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe
from fxquant.graph.records import annotate, refuse
from tests.helpers import Net, node, randomize_batchnorms

LINES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "operator": (lambda m, x: x + 1, "add = operator.add(x, 1)"),
    "torch function": (lambda m, x: torch.flatten(x, 1), "flatten = torch.flatten(x, 1)"),
    "F function": (lambda m, x: F.relu(x), "relu = F.relu(x)"),
    "function both in torch and F": (lambda m, x: F.conv2d(x, x), "conv2d = torch.conv2d(x, x)"),
    "pooling": (lambda m, x: F.max_pool2d(x, 2), "max_pool2d = F.max_pool2d(x, 2)"),
    "linalg function": (lambda m, x: torch.linalg.norm(x), "linalg_norm = _linalg.linalg_norm(x)"),
    "builtin": (lambda m, x: getattr(x, "shape"), "getattr_1 = builtins.getattr(x, 'shape')"),  # noqa: B009
    "method": (lambda m, x: x.relu(), "relu = x.relu()"),
    "method with arguments": (lambda m, x: x.view(2, -1), "view = x.view(2, -1)"),
    "method with keywords": (lambda m, x: x.clamp(min=0), "clamp = x.clamp(min=0)"),
    "method of a keyword node": (lambda m, x: x.add(other=x), "add = x.add(other=x)"),
    "index": (lambda m, x: x[0], "getitem = operator.getitem(x, 0)"),
    "tuple index": (lambda m, x: x[0,], "getitem = operator.getitem(x, (0,))"),
    "slices": (
        lambda m, x: x[:, 1:, :-1, ::2, 0:4:3, ..., None],
        "getitem = operator.getitem(x, (:, 1:, :-1, ::2, 0:4:3, ..., None))",
    ),
    "computed slice": (
        lambda m, x: x[: x.size(0)],
        "size = x.size(0)\ngetitem = operator.getitem(x, :size)",
    ),
    "lists and floats": (
        lambda m, x: torch.cat([x, x], dim=1) * 0.5,
        "cat = torch.cat([x, x], dim=1)\nmul = operator.mul(cat, 0.5)",
    ),
    "dtype and device": (
        lambda m, x: x.to(torch.float16).to(torch.device("cpu")),
        "to = x.to(torch.float16)\nto_1 = to.to(device(type='cpu'))",
    ),
    "attribute": (lambda m, x: x * m.table, "table = self.table\nmul = operator.mul(x, table)"),
    "module": (
        lambda m, x: m.body[0](x),
        "body_0 = self.body.0(x)                                 # Tanh",
    ),
}


@pytest.mark.parametrize(("function", "lines"), LINES.values(), ids=LINES)
def test_prints(function: Callable[[Any, Any], Any], lines: str) -> None:
    gm = fxquant.trace(
        Net(function, table=nn.Parameter(torch.ones(1)), body=nn.Sequential(nn.Tanh()))
    )
    assert fxquant.text(gm).split("\n")[1:-1] == lines.split("\n")


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda m, x: x, "return x"),
        (lambda m, x: (x, None), "return (x, None)"),
        (lambda m, x: (x,), "return (x,)"),
        (lambda m, x: [x, (x, 1.0)], "return [x, (x, 1.0)]"),
        (lambda m, x: {"out": x, "aux": [x]}, "return {'out': x, 'aux': [x]}"),
        (lambda m, x: None, "return None"),
    ],
)
def test_prints_what_is_returned(function: Callable[[Any, Any], Any], line: str) -> None:
    assert fxquant.text(fxquant.trace(Net(function))).split("\n")[-1] == line


def test_prints_defaults_of_inputs() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return x * scale

    assert fxquant.text(fxquant.trace(Scaled())).split("\n")[:2] == [
        "x = input()",
        "scale = input() = 2.0",
    ]


def test_prints_what_is_known_of_a_node_in_one_column() -> None:
    gm = fxquant.trace(Net(lambda m, x: m.fc(x).relu(), fc=nn.Linear(4, 4)))
    annotate(node(gm, "fc"), folded=("bn1", "bn2"), relu="relu")
    annotate(node(gm, "relu"), fused_into="fc")
    refuse(node(gm, "relu"), "not fused", "first")
    refuse(node(gm, "relu"), "not fused", "second")
    assert fxquant.text(gm) == cleandoc("""
        x = input()
        fc = self.fc(x)                                         # Linear · folded: bn1, bn2 · fused: relu
        relu = fc.relu()                                        # fused into fc · refused: not fused: first · refused: not fused: second
        return relu
    """)  # noqa: E501


def test_prints_the_specs_of_a_prepared_and_the_numbers_of_a_converted_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    recipe = Recipe.minmax(weight_bits=4, bias_correction=True)
    prepared = fxquant.prepare(model, recipe)
    assert fxquant.text(prepared) == cleandoc("""
        input_1 = input()
        observers_input_1 = self.observers.input_1(input_1)     # Observer 8 bits minmax
        input_means_0 = self.input_means.0(observers_input_1)   # ChannelMean
        _0 = self.0(input_means_0)                              # Linear · fused: _1
        _1 = self.1(_0)                                         # ReLU · fused into _0
        return _1
    """)
    fxquant.calibrate(prepared, [torch.tensor([[-1.0, 2.0]])], progress=False)
    assert fxquant.text(fxquant.convert(prepared)) == cleandoc("""
        input_1 = input()
        quantizers_input_1 = self.quantizers.input_1(input_1)   # FakeQuantize 8 bits minmax scale=0.01176 zero_point=85
        _0 = self.0(quantizers_input_1)                         # QuantizedLinear 4 bits minmax · fused: _1
        _1 = self.1(_0)                                         # ReLU · fused into _0
        return _1
    """)  # noqa: E501


def test_refuses_a_module_without_a_graph() -> None:
    with pytest.raises(fxquant.PassError) as raised:
        fxquant.text(nn.Linear(2, 2))
    assert str(raised.value) == (
        "text: got a Linear, which has no graph: text(fxquant.trace(model)) prints that of a float "
        "model"
    )


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 1)


PICKLED: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), conv()),
    "residual": lambda: Net(
        lambda m, x: F.relu(m.b(F.relu(m.bn(m.a(x)))) + x), a=conv(), b=conv(), bn=nn.BatchNorm2d(4)
    ),
    "functional": lambda: Net(
        lambda m, x: F.conv2d(F.relu(F.conv2d(x, m.w)), m.w), w=torch.randn(4, 4, 1, 1)
    ),
    "shared conv, two batch norms": lambda: Net(
        lambda m, x: F.relu(m.bn1(m.conv(x))) + F.relu(m.bn2(m.conv(-x))),
        conv=conv(),
        bn1=nn.BatchNorm2d(4),
        bn2=nn.BatchNorm2d(4),
    ),
    "functions dropped between functions": lambda: Net(
        lambda m, x: m.conv(F.dropout(F.relu(m.conv(x)), 0.5, False).relu()).relu(), conv=conv()
    ),
    "refused": lambda: Net(
        lambda m, x: m.bn(y := m.a(x)) + F.relu(y), a=conv(), bn=nn.BatchNorm2d(4)
    ),
}


@pytest.mark.parametrize("make", PICKLED.values(), ids=PICKLED)
def test_is_the_same_after_pickling_and_copying(make: Callable[[], nn.Module]) -> None:
    model = make()
    randomize_batchnorms(model)
    prepared = fxquant.prepare(model)
    fxquant.calibrate(prepared, [torch.randn(4, 4, 3, 3)], progress=False)
    for gm in (prepared, fxquant.convert(prepared)):
        before = fxquant.text(gm)
        assert fxquant.text(copy.deepcopy(gm)) == before
        assert fxquant.text(pickle.loads(pickle.dumps(gm))) == before
    converted = fxquant.convert(pickle.loads(pickle.dumps(prepared)))
    assert fxquant.text(converted) == fxquant.text(fxquant.convert(prepared))


def test_a_notebook_shows_the_text_line_by_line() -> None:
    shown = fxquant.text(fxquant.trace(nn.Sequential(nn.Linear(4, 2))))
    assert shown.splitlines()[2] == "return _0"
    assert shown._repr_html_().startswith('<pre style="overflow-x:auto">input_1 = input()\n_0')
