"""A forward that keeps state is not taken for one that does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CaptureError
from fxquant.capture.recording.state import State


class Keeps(nn.Module):
    def __init__(self, does: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls, self.first, self.seen, self.last = 0, True, [0], None
        self.total: Tensor
        self.register_buffer("total", torch.zeros(4))
        self.does = does

    def forward(self, x: Tensor) -> Any:
        return self.does(self, self.layer(x))


def counts(m: Any, x: Tensor) -> Any:
    m.calls += 1
    return x * m.calls


def counts_in_a_list(m: Any, x: Tensor) -> Any:
    m.seen.append(len(m.seen))
    return x


def is_first(m: Any, x: Tensor) -> Any:
    first, m.first = m.first, False
    return x if first else -x


def remembers(m: Any, x: Tensor) -> Any:
    y = x if m.last is None else x + m.last
    m.last = x
    return y


def adds_up(m: Any, x: Tensor) -> Any:
    m.total.add_(x.mean(0))
    return x + m.total


def adds_up_anew(m: Any, x: Tensor) -> Any:
    m.total = m.total + x.mean(0)
    return x + m.total


def counts_in_a_buffer(m: Any, x: Tensor) -> Any:
    m.total += 1
    return x + m.total


def sets_items(m: Any, x: Tensor) -> Any:
    m.total[:2] = x[0, :2]
    return x + m.total


def leaves_features(m: Any, x: Tensor) -> Any:
    m.features, m.size, m.flag = x.relu(), x.shape, True
    return m.features * m.size[1]


STATE = [
    counts, counts_in_a_list, is_first, remembers, adds_up, adds_up_anew, counts_in_a_buffer,
    sets_items,
]  # fmt: skip


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("does", STATE)
def test_state_is_named_and_nothing_of_it_changes(does: Any, with_example: bool) -> None:
    model, x = nn.Sequential(Keeps(does)), torch.randn(2, 4)
    with pytest.raises(CaptureError, match="state"):
        fxquant.trace(model, example_inputs=x if with_example else None)
    assert not State(model).written()
    kept: Any = model[0]
    assert (kept.calls, kept.first, kept.seen, kept.last) == (0, True, [0], None)
    assert not torch.any(model[0].get_buffer("total"))


@pytest.mark.parametrize("does", STATE)
def test_what_keeps_state_stays_in_python_and_its_layers_are_quantized(does: Any) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), Keeps(does)).eval(), torch.randn(2, 4)
    prepared = fxquant.prepare(model, "minmax", example_inputs=x)
    with torch.no_grad():
        for _ in range(3):
            assert torch.allclose(prepared(x), model(x), atol=1e-6)
    assert "state" in str(fxquant.report(fxquant.convert(prepared)))


@pytest.mark.parametrize("with_example", [False, True])
def test_what_every_call_writes_anew_is_no_state(with_example: bool) -> None:
    model, x = Keeps(leaves_features).eval(), torch.randn(2, 4)
    gm = fxquant.trace(model, example_inputs=x if with_example else None)
    assert torch.equal(gm(x), model(x))


class Asks(nn.Module):
    """Reads, in Python, what the forward of a submodule left there."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Keeps(leaves_features)

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return self.body.features + y if y.isfinite().all() else y


@torch.no_grad()
@pytest.mark.parametrize("with_example", [False, True])
def test_what_code_around_a_submodule_reads_is_there_in_every_call(with_example: bool) -> None:
    torch.manual_seed(0)
    model, x = Asks().eval(), torch.randn(2, 4)
    prepared = fxquant.prepare(model, "minmax", example_inputs=x if with_example else None)
    for each in (x, 2 * x):
        torch.testing.assert_close(prepared(each), model(each))
    report = fxquant.report(fxquant.convert(prepared))
    assert report.num_quantized == 1
    (reason,) = [each.reason for each in report.untraced if each.path == "body"]
    assert reason.startswith("attributes that code around it may read")


def keeps_biases(m: Any, x: Tensor) -> Any:
    key = str(x.device)
    if key not in m.kept:
        m.kept[key] = m.layer.weight[:, [1, 0, 3, 2]]
    return x @ m.kept[key]


@pytest.mark.parametrize("with_example", [False, True])
def test_what_is_kept_of_parameters_alone_is_no_state(with_example: bool) -> None:
    model: Any = Keeps(keeps_biases).eval()
    model.kept, x = {}, torch.randn(2, 4)
    gm = fxquant.trace(model, example_inputs=x if with_example else None)
    assert model.kept == {}
    assert torch.equal(gm(x), model(x))
