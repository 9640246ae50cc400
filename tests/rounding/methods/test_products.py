"""bfloat16 and int8 are used where the machine has it and the layer is large."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxquant.rounding.methods import products as precision
from fxquant.rounding.methods.products import gram_matrix, multiplies_int8, product_dtype

LARGE, SMALL = torch.empty(1, 2, 4608), torch.empty(1, 2, 27)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    precision.multiplies_bfloat16.cache_clear()
    yield
    precision.multiplies_bfloat16.cache_clear()


def flags(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: f"flags : fpu sse {text}")


@pytest.mark.parametrize("has", ["avx512_bf16", "amx_bf16"])
def test_large_layers_use_it_where_the_processor_multiplies_it(
    has: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags(monkeypatch, has)
    assert product_dtype(LARGE, 512) == torch.bfloat16
    assert product_dtype(SMALL, 16) == torch.float32
    assert product_dtype(torch.empty(64, 2, 4608), 512) == torch.float32  # many groups


def test_other_processors_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "avx512f")
    assert product_dtype(LARGE, 512) == torch.float32


def test_a_machine_that_does_not_tell_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    assert product_dtype(LARGE, 512) == torch.float32


def inputs(rows: int = 1024, columns: int = 1200, seed: int = 0) -> Tensor:
    """Return what is behind a ReLU: half of it 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, rows, columns, generator=generator).relu_()


def exact(rows: Tensor, mean: Tensor) -> Tensor:
    centred = rows.double() - mean[:, None].double()
    return centred.mT @ centred


def share_of_variance(rows: Tensor, mean: Tensor) -> Tensor:
    """Return the errors of a Gram matrix as shares of the standard deviations' products."""
    wanted = exact(rows, mean)
    deviations = wanted.diagonal(dim1=1, dim2=2).sqrt()
    error = (gram_matrix(rows, mean) - wanted).abs()
    return error / (deviations[:, None] * deviations[:, :, None]).clamp(min=1e-30)


needs_vnni = pytest.mark.skipif(not multiplies_int8("cpu"), reason="no VNNI: float32 everywhere")


def test_a_small_gram_matrix_is_that_of_float32() -> None:
    rows = inputs(columns=100).reshape(4, 256, 100)
    assert share_of_variance(rows, rows.mean(1)).max() < 1e-5


@pytest.mark.parametrize("columns", [600, 1024, 1200, 2100])
def test_a_large_gram_matrix_is_right_to_half_a_percent(columns: int) -> None:
    rows = inputs(columns=columns)
    assert share_of_variance(rows, rows.mean(1)).max() < 5e-3
    elsewhere = rows.mean(1) + 0.1  # of all ranks' rows
    assert share_of_variance(rows, elsewhere).max() < 5e-3


@needs_vnni
def test_a_large_gram_matrix_is_that_of_integers() -> None:
    rows = inputs()
    assert share_of_variance(rows, rows.mean(1)).max() > 1e-4


@pytest.mark.parametrize("far", [1.0, 100.0])
def test_inputs_far_from_0_are_multiplied_in_float32(far: float) -> None:
    rows = inputs() + far
    assert share_of_variance(rows, rows.mean(1)).max() < 1e-3 * far


@pytest.mark.parametrize("value", [10, 30, 100, 1000])
def test_single_inputs_with_a_value_far_out_spoil_nothing(value: float) -> None:
    rows = inputs()
    rows[0, 5, 7], rows[0, 6, 900], rows[0, :, 11] = value, -value / 5, 0
    share = share_of_variance(rows, rows.mean(1))[0]
    assert share.diagonal().max() < 5e-3
    assert share.max() < 1e-2
    assert gram_matrix(rows, rows.mean(1))[0, 11].abs().max() < 1e-6


def test_it_is_symmetric_and_not_negative() -> None:
    rows = inputs(rows=600)  # fewer than inputs: singular
    gram = gram_matrix(rows, rows.mean(1))[0]
    assert torch.allclose(gram, gram.T, atol=1e-3)
    values = torch.linalg.eigvalsh(gram.double())
    assert values.min() > -1e-3 * values.mean()


def test_what_is_not_finite_stays_so() -> None:
    rows = inputs()
    rows[0, 3, 4] = float("nan")
    assert gram_matrix(rows, rows.mean(1))[0, 4].isnan().any()


@needs_vnni
def test_a_processor_that_multiplies_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    multiplies_int8.cache_clear()
    saturating = lambda a, b: (a.long() @ b.long()).clamp(-32768, 32767).int()  # noqa: E731
    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not multiplies_int8("cpu")
    monkeypatch.undo()
    multiplies_int8.cache_clear()
    assert multiplies_int8("cpu")
