"""The first calls of a prepared model are compared with the caller's, however they are made."""

import copy
import functools
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import CaptureError, Recipe
from fxquant.calibration.first_calls import FirstCalls, is_compared
from fxquant.numerics.decibels import sqnr
from fxquant.passes import ChooseRanges
from tests.helpers import Net, apply, randomize_batchnorms, whole

_ANOTHER = r"^batch 0 \(float32 12×4\): 1 \(Odd\): traced, it computes something else"
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Odd(nn.Module):
    """Computes something else if it is traced; or only for large batches."""

    def __init__(self, at_least: int = 0) -> None:
        super().__init__()
        self.fc, self.at_least = nn.Linear(4, 4), at_least

    def forward(self, x: Any) -> Any:
        y = self.fc(x)
        return y if isinstance(y, fx.Proxy) or len(y) < self.at_least else 1 - 2 * y


def odd(at_least: int = 0) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Odd(at_least), nn.ReLU(), nn.Linear(4, 2)).eval()


def good() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def in_python(model: nn.Module) -> nn.Module:
    """Put `model` where it becomes a region."""
    return Net(lambda m, x: m.body(x) if x.sum() < 1000 else x, body=model)


CALLS: dict[str, Callable[[nn.Module], object]] = {
    "by hand": lambda prepared: prepared(X),
    "a copy": lambda prepared: copy.deepcopy(copy.deepcopy(prepared))(X),
}


@pytest.mark.parametrize("recipe", [Recipe.minmax(), Recipe.minmax(activation_bits=None)])
@pytest.mark.parametrize("around", [lambda model: model, in_python], ids=["whole", "region"])
@pytest.mark.parametrize("how", CALLS)
def test_a_graph_that_differs_is_an_error_at_the_first_call(
    how: str, around: Any, recipe: Recipe
) -> None:
    prepared = fxquant.prepare(around(odd()), recipe)
    with pytest.raises(CaptureError) as caught:
        CALLS[how](prepared)
    path = "body.1" if around is in_python else "1"
    assert str(caught.value).startswith(
        f"{path} (Odd): traced, it computes something else: output: agrees to "
    )
    assert str(caught.value).endswith(
        "Remedy: prepare(model, example_inputs=…), which leaves in Python what differs, or "
        f"leaf_modules=[{path!r}]"
    )
    with pytest.raises(CaptureError):  # again, and not only once
        prepared(X)


@pytest.mark.parametrize("recipe", [Recipe.minmax(), Recipe.minmax(activation_bits=None)])
@pytest.mark.parametrize("around", [lambda model: model, in_python], ids=["whole", "region"])
@pytest.mark.parametrize("forward", [None, lambda m, x: m(x)], ids=["calibrate", "forward"])
def test_in_calibration_what_differs_is_left_in_python(
    forward: Any, around: Any, recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    model = around(odd())
    prepared = fxquant.prepare(model, recipe)
    fxquant.calibrate(prepared, [X, X[:3]], forward=forward)
    path = "body.1" if around is in_python else "1"
    assert f"{path}: left in Python: traced, it computes something else" in caplog.text
    assert sqnr(model(X), fxquant.convert(prepared)(X)) > 30
    assert not is_compared(prepared)


@pytest.mark.parametrize("around", [lambda model: model, in_python], ids=["whole", "region"])
def test_the_hooks_go_away_after_two_sizes(around: Any) -> None:
    prepared = fxquant.prepare(around(good()), "minmax")
    assert is_compared(prepared)
    prepared(X), prepared(X)
    assert is_compared(prepared)
    prepared(X[:3])
    assert not is_compared(prepared)
    assert not any(
        isinstance(getattr(hook, "__self__", None), FirstCalls)
        for hook in prepared._forward_pre_hooks.values()
    )


def test_an_example_is_one_of_the_two_sizes() -> None:
    prepared = fxquant.prepare(good(), "minmax", example_inputs=X)
    prepared(X)
    assert is_compared(prepared)
    prepared(X[:3])
    assert not is_compared(prepared)


def test_a_batch_of_another_size_than_the_example_is_compared() -> None:
    prepared = fxquant.prepare(odd(at_least=10), "minmax", example_inputs=X)
    prepared(X)
    with pytest.raises(CaptureError, match=_ANOTHER):
        fxquant.calibrate(prepared, [torch.randn(12, 4)])


@torch.no_grad()
def test_what_a_model_keeps_between_calls_it_keeps() -> None:
    def count(m: Any, x: Any) -> Any:
        m.calls += 1
        return m.fc(x) * m.calls

    model = Net(count, fc=nn.Linear(4, 4), calls=0).eval()
    prepared = fxquant.prepare(model, "minmax")
    for _ in range(3):
        assert torch.allclose(prepared(X), model(X))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_folding_is_no_difference(dtype: torch.dtype) -> None:
    model = nn.Sequential(
        *[nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(8)]
    ).eval()
    randomize_batchnorms(model)
    x = X.to(dtype)
    prepared = fxquant.prepare(model.to(dtype), Recipe.minmax(equalization=True))
    fxquant.calibrate(prepared, [x, x[:3]])
    assert not is_compared(prepared)


def test_a_model_that_was_moved_since_is_compared_where_it_is() -> None:
    prepared = fxquant.prepare(good(), "minmax").to(torch.float64)
    prepared(X.double())
    prepared(X[:2].double())
    assert not is_compared(prepared)


def test_convert_and_copies_of_it_compare_nothing() -> None:
    prepared = fxquant.prepare(good(), "minmax")
    prepared(X)
    quantized = fxquant.convert(prepared)
    assert not is_compared(quantized)
    assert not is_compared(copy.deepcopy(quantized))
    quantized(X[:3])
    assert is_compared(prepared)  # which may go on


def test_a_model_that_passes_have_quantized_is_not_compared() -> None:
    prepared = fxquant.prepare(good(), Recipe.minmax(weight_bits=2))
    prepared(X)
    assert apply(ChooseRanges(), whole(prepared))
    prepared(X[:3])
    assert not is_compared(prepared)


class Region(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = good()

    def forward(self, x: Tensor) -> Any:
        return self.body(x) if x.sum() < 1000 else x


@pytest.mark.parametrize("make", [good, Region])
def test_pickles_and_files_leave_the_reference_out(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = fxquant.prepare(make(), "minmax")
    fxquant.save(prepared, tmp_path / "model.fxq")
    for loaded in (
        pickle.loads(pickle.dumps(prepared)),
        fxquant.load(tmp_path / "model.fxq", custom=[Region]),
    ):
        caplog.clear()
        caplog.set_level("INFO", logger="fxquant")
        assert torch.equal(loaded(X), prepared(X))
        if make is Region:  # fx's pickles drop the hooks of graphs
            assert "stored before its first call" in caplog.text
        hooks = [getattr(hook, "__self__", None) for hook in loaded._forward_hooks.values()]
        assert all(each.held is None for each in hooks if isinstance(each, FirstCalls))


def test_it_adds_nothing_to_the_state_of_the_model() -> None:
    with_proof = fxquant.prepare(good(), "minmax")
    without = fxquant.prepare(good(), "minmax", verify=False)
    assert list(with_proof.state_dict()) == list(without.state_dict())
    assert [name for name, _ in with_proof.named_modules()] == [
        name for name, _ in without.named_modules()
    ]


def test_a_keyword_only_argument_reaches_the_reference() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, *, scale: float = 1.0) -> Any:
            return self.fc(x) * scale

    prepared = fxquant.prepare(Scaled(), "minmax")
    fxquant.calibrate(prepared, [{"x": X, "scale": 3.0}, {"x": X[:2]}])
    assert not is_compared(prepared)


def test_a_call_that_agrees_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    prepared = fxquant.prepare(good(), "minmax")
    with caplog.at_level(logging.INFO, "fxquant"):
        prepared(X)
    assert not caplog.messages


def cached(forward: Any) -> Any:
    """Decorate a forward as transformers does: it gives a keyword of its own."""

    @functools.wraps(forward)
    def call(self: Any, *args: Any, **keywords: Any) -> Any:
        return forward(self, *args, **{"use_cache": False, **keywords})

    return call


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    @cached
    def forward(self, x: Tensor, mask: Any = None, use_cache: Any = None) -> Any:
        return self.fc(x) if mask is None else self.fc(x) * mask


def test_a_decorator_may_add_keywords_that_the_graph_has_at_their_defaults() -> None:
    prepared = fxquant.prepare(Cached(), "minmax", example_inputs={"x": X})
    fxquant.calibrate(prepared, [{"x": X}, {"x": X[:3]}])
    assert not is_compared(prepared)
