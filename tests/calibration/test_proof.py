"""What was captured computes what the caller's model does; what would not stays in Python."""

import logging
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import CaptureError
from fxquant.calibration.proof import compare, prove, reference_of
from fxquant.capture.example import Call
from fxquant.capture.naming import find_regions
from fxquant.capture.partition import capture
from fxquant.numerics.decibels import sqnr
from tests.helpers import Net

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Around(nn.Module):
    """A layer, a body that does something with its own layer's result, another layer."""

    def __init__(self, body: Callable[[Any, Any], Any], **state: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.body = Body(body, state)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.relu(self.body(self.first(x))))


class Body(nn.Module):
    def __init__(self, function: Callable[[Any, Any], Any], state: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.inner = function, nn.Linear(4, 4)
        for name, value in state.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.inner(x))


def is_proxy(y: Any) -> bool:
    return isinstance(y, fx.Proxy)


def traced_otherwise(_: Any, y: Any) -> Any:
    return y * 3 - 1 if is_proxy(y) else y


def is_for_jit(_: Any, y: Any) -> Any:
    return y if torch.jit.isinstance(y, Tensor) else 3 - y  # type: ignore[no-untyped-call]


def has_width(y: Any) -> bool:
    try:
        int(y.shape[1])
    except TypeError:
        return False
    return True


def counts(m: Any, y: Any) -> Any:
    m.calls += 1
    return y * m.calls


def counts_in_a_buffer(m: Any, y: Any) -> Any:
    m.calls.add_(1)
    return y * m.calls


def remembers(m: Any, y: Any) -> Any:
    last, m.last = m.last, y
    return y if last is None else y - last


def averages(m: Any, y: Any) -> Any:
    m.mean = 0.5 * m.mean + y.mean(0)
    return y - m.mean


def appends(m: Any, y: Any) -> Any:
    m.kept.append(y)
    return y * len(m.kept)


def doubled(model: Any) -> Any:
    """Let the instance have a forward that doubles what its class computes."""
    model.forward = types.MethodType(lambda self, x: 2 * type(self).forward(self, x) - 1, model)
    return model


def wrapped(model: Any) -> Any:
    """The same by a closure, as a decorator makes it."""
    forward = model.forward
    model.forward = lambda x: 2 * forward(x) - 1
    return model


def hooked(model: Any) -> Any:
    model.register_forward_hook(lambda _, inputs, output: F.softmax(5 * output, 1))
    return model


def prehooked(model: Any) -> Any:
    model.register_forward_pre_hook(lambda _, inputs: ((inputs[0] - 1) / 3,))
    return model


def plain() -> Any:
    return Around(lambda m, y: y)


class Branches(nn.Module):
    """In Python, since it branches on a value; its body is a region."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(-x if x.sum() > 1000 else x)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, nan: Tensor, inf: float = 0.5) -> Any:
        return self.fc(nan) * inf + torch.where(nan > inf, float("inf"), nan).clamp(max=3)


CASES: dict[str, Callable[[], nn.Module]] = {
    "isinstance": lambda: Around(lambda m, y: y if isinstance(y, torch.Tensor) else 3 - y),
    "is_tensor": lambda: Around(lambda m, y: y if torch.is_tensor(y) else 3 - y),
    "jit.isinstance": lambda: Around(is_for_jit),
    "a caught error": lambda: Around(lambda m, y: y if has_width(y) else 3 - y),
    "asks for proxies": lambda: Around(traced_otherwise),
    "a counter": lambda: Around(counts, calls=0),
    "a buffer": lambda: Around(counts_in_a_buffer, calls=torch.tensor(0.0)),
    "a buffer that is replaced": lambda: Around(averages, mean=torch.zeros(4)),
    "an attribute": lambda: Around(remembers, last=None),
    "a list": lambda: Around(appends, kept=[]),
    "forward of the model": lambda: doubled(plain()),
    "forward of the model, wrapped": lambda: wrapped(plain()),
    "forward of a model in training, wrapped": lambda: wrapped(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), plain()).train()
    ),
    "forward of a region": lambda: Branches(doubled(plain())),
    "forward of a region, wrapped": lambda: Branches(wrapped(plain())),
    "forward of a layer": lambda: nn.Sequential(nn.Linear(4, 4), doubled(nn.Linear(4, 4))),
    "forward of a ReLU": lambda: nn.Sequential(nn.Linear(4, 4), doubled(nn.ReLU())),
    "a hook of the model": lambda: hooked(plain()),
    "a hook of a layer that is the model": lambda: hooked(nn.Linear(4, 4)),
    "a pre-hook of the model": lambda: prehooked(plain()),
    "both of a region": lambda: Branches(hooked(prehooked(plain()))),
    "arguments nan and inf": Named,
}  # fmt: skip


def both(name: str) -> tuple[nn.Module, nn.Module]:
    """Return a model of the table as somebody may give it, and the same in eval mode."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(CASES[name]())
    return models[0], models[1].eval()


def calls_agree(model: nn.Module, reference: nn.Module) -> bool:
    """Say whether three calls in a row give the same."""
    return all(sqnr(reference(x), model(x)) > 60 for x in (X, 2 - X, X))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_with_an_example_a_model_is_captured_as_it_is(name: str) -> None:
    model, before = both(name)
    prepared = fxquant.prepare(model, "minmax", example_inputs=X)
    assert calls_agree(prepared, before)
    assert calls_agree(model.eval(), both(name)[1])  # which nothing has changed


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_without_an_example_it_is_the_same_or_an_error(name: str) -> None:
    model, before = both(name)
    try:
        prepared = fxquant.prepare(model, "minmax")
        assert calls_agree(prepared, before)
    except CaptureError as error:
        assert "traced, it computes something else" in str(error)  # noqa: PT017
        assert "example_inputs" in str(error)  # noqa: PT017


def captured_with_proof(model: nn.Module, *args: Any) -> Any:
    call, first = Call(args), capture(model)
    reference = reference_of(model, first.model)
    return prove(reference, first, call, lambda left: capture(model, left=left))


def test_the_smallest_submodule_that_differs_is_left_in_python(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, bad = plain(), Around(traced_otherwise)
    good.last = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(good, bad))
    with caplog.at_level(logging.WARNING, "fxquant"):
        captured = captured_with_proof(model.eval(), X)
    (message,) = caplog.messages
    assert message.startswith("1.1.body: left in Python: traced, it computes something else: outpu")
    assert message.endswith(" dB")
    assert list(captured.left) == ["1.1.body"]
    assert list(find_regions(captured.model)) == [
        "0", "1.0", "1.1.first", "1.1.last", "1.1.body.inner",
    ]  # fmt: skip
    reasons = {each.path: each.reason for each in captured.untraced}
    assert reasons["1.1"].startswith("'1.1.body', which is left in Python")
    assert reasons["1.1.body"].startswith("traced, it computes something else: output: agrees to")


@pytest.mark.parametrize("name", ["0", "0.body"])
def test_a_region_that_was_asked_for_is_taken_apart_if_it_differs(name: str) -> None:
    model = nn.Sequential(Around(traced_otherwise)).eval()
    prepared = fxquant.prepare(model, "minmax", example_inputs=X, regions=[name])
    assert sqnr(model(X), prepared(X)) > 60
    assert "0.body.inner" in find_regions(prepared)


class Scaled(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 5 if is_proxy(x) else x


def test_a_submodule_without_layers_becomes_a_leaf_of_the_graph() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Scaled(), nn.Linear(4, 2)).eval()
    prepared = fxquant.prepare(model, "minmax", example_inputs=X)
    assert isinstance(prepared, fx.GraphModule)
    prepared(X)
    report = fxquant.report(fxquant.convert(prepared))
    (left,) = report.untraced
    assert left.path == "1"
    assert left.kind == "Scaled"
    assert report.num_quantized == 2


def test_a_model_without_a_part_to_fall_back_on_is_an_error() -> None:
    model = Net(lambda m, x: traced_otherwise(m, F.linear(x, m.w)), w=nn.Parameter(torch.eye(4)))
    with pytest.raises(CaptureError) as caught:
        captured_with_proof(model, X)
    agreement = sqnr(X, 3 * X - 1)
    assert str(caught.value).startswith(
        f"Net: traced, it computes something else than in Python: output: agrees to "
        f"{agreement:.1f} dB. Remedy: "
    )


def test_results_of_another_type_or_shape_differ() -> None:
    def both(m: Any, y: Any) -> Any:
        return [y, y[:3]] if is_proxy(y) else (y, y[:2])

    model = Net(lambda m, x: both(m, m.fc(x)), fc=nn.Linear(4, 4))
    gm = capture(model).model
    (difference,) = compare(reference_of(model, gm), gm, Call((X,)))
    assert str(difference) == "output: type list instead of tuple"


def test_a_graph_that_cannot_run_differs() -> None:
    def fails(_: Any, y: Any) -> Any:
        return torch.cat([y, y[:, :1].T], 1) if is_proxy(y) else y

    prepared = fxquant.prepare(Around(fails), "minmax", example_inputs=X)
    (left, *_) = (each for each in fxquant.report(prepared).untraced if each.path == "body")
    assert left.reason.startswith("traced, it computes something else: raises RuntimeError: Sizes")


def test_randomness_is_no_difference(caplog: pytest.LogCaptureFixture) -> None:
    model = Net(lambda m, x: F.dropout(m.fc(x), 0.5), fc=nn.Linear(4, 4)).eval()
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "fxquant"):
        captured = captured_with_proof(model, X)
    assert isinstance(captured.model, fx.GraphModule)
    assert not caplog.messages
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_random_and_differs_is_said_not_to_be_compared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def noisy(m: Any, y: Any) -> Any:
        if not is_proxy(y):
            torch.rand(3)  # other numbers are drawn
        return y, y + torch.rand_like(y)

    model = Net(lambda m, x: noisy(m, m.fc(x)), fc=nn.Linear(4, 4)).eval()
    with caplog.at_level(logging.WARNING, "fxquant"):
        captured = captured_with_proof(model, X)
    assert isinstance(captured.model, fx.GraphModule)
    assert caplog.messages == [
        "Net: its outputs are random, and could not be compared with what was captured"
    ]


def test_the_reference_shares_tensors_with_what_was_captured_and_none_with_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    captured = capture(model).model
    reference = reference_of(model, captured)
    assert not reference.training
    assert reference.get_parameter("0.weight") is captured.get_parameter("0.weight")
    assert reference.get_buffer("1.running_var") is captured.get_buffer("1.running_var")
    theirs = {id(each) for each in (*model.parameters(), *model.buffers())}
    assert not any(id(each) in theirs for each in (*reference.parameters(), *reference.buffers()))


def test_what_forward_writes_leaks_nowhere() -> None:
    model = Around(counts_in_a_buffer, calls=torch.tensor(0.0)).eval()
    captured = capture(model).model
    reference = reference_of(model, captured)
    compare(reference, captured, Call((X,)))
    for each in (model, reference, captured):
        calls = [value for name, value in each.named_buffers() if name.endswith("calls")]
        assert all(value == 0 for value in calls)


def test_an_input_that_is_written_to_is_copied() -> None:
    model = Net(lambda m, x: m.fc(x.mul_(2)), fc=nn.Linear(4, 4))
    x = X.clone()
    captured_with_proof(model, x)
    assert torch.equal(x, X)


def test_verify_false_compares_nothing() -> None:
    model = Around(traced_otherwise).eval()
    prepared = fxquant.prepare(model, "minmax", example_inputs=X, verify=False)
    assert not prepared._forward_hooks
    assert sqnr(model(X), prepared(X)) < 20
    fxquant.quantize(model, [X], "minmax", verify=False)
