"""bfloat16 is used where the machine has it and the layer is large."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fxquant.rounding import losses as precision
from fxquant.rounding.losses import product_dtype

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
