"""Containers are taken apart and made again, whatever their class."""

from typing import Any

import pytest
import torch

from fxquant.numerics.containers import holds_the_same, is_own_container, items_of, made_like
from tests.whole.test_containers import MAKE

KNOWN_TO_FX = ("tuple", "named tuple", "list", "nested lists", "mixed", "dict")


@pytest.mark.parametrize("kind", MAKE)
def test_a_container_is_made_like_another(kind: str) -> None:
    value = MAKE[kind](1, 2)
    items = items_of(value)
    assert items is not None
    made = made_like(value, {key: [each] for key, each in items.items()})
    assert type(made) is type(value)
    assert items_of(made) == {key: [each] for key, each in items.items()}
    assert items_of(value) == items
    assert holds_the_same(value, made_like(value, items))
    assert not holds_the_same(value, made)


@pytest.mark.parametrize("value", [3, "text", torch.ones(2), None, MAKE["dataclass"]])
def test_what_holds_nothing_is_no_container(value: Any) -> None:
    assert items_of(value) is None
    assert not is_own_container(value)


def test_fx_knows_some_classes() -> None:
    known = {kind for kind in MAKE if not is_own_container(MAKE[kind](1, 2))}
    assert known == {*KNOWN_TO_FX, "keys that are no text"}
    assert not is_own_container(torch.Size([1]))
