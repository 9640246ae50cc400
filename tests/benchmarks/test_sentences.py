"""The table of a quantized sentence encoder."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.rounding import sentences
from fxquant import Recipe


class Letters:
    """A tokenizer of letters, as tokenizers' own is called."""

    class Encoding:
        def __init__(self, ids: list[int], length: int) -> None:
            self.ids = ids + [0] * (length - len(ids))
            self.attention_mask = [1] * len(ids) + [0] * (length - len(ids))

    def encode_batch(self, texts: list[str]) -> list[Any]:
        ids = [[ord(letter) % 32 for letter in text[:12]] for text in texts]
        return [self.Encoding(each, max(map(len, ids))) for each in ids]


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(32, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.fc((self.embed(ids) * mask[..., None]).sum(1))
        return result


def test_docstrings_give_enough_sentences() -> None:
    texts = sentences.sentences()
    assert len(texts) == len(set(texts)) > 1024 + 200
    assert all(40 < len(each) < 200 for each in texts)


def test_each_recipe_is_judged_on_sentences_that_it_has_not_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(sentences, "load_encoder", lambda: (Bag().eval(), Letters()))
    monkeypatch.setattr(sentences, "keep_memory", lambda: None)
    monkeypatch.setattr(
        sentences, "RECIPES", {f"{n}": Recipe.minmax(weight_bits=n) for n in (2, 8)}
    )
    monkeypatch.setattr(sys, "argv", ["sentences"])
    sentences.main()
    two, eight = (line.split() for line in capsys.readouterr().out.splitlines()[2:])
    assert float(two[1]) < 0.99 < float(eight[1]) <= 1
    assert float(eight[2]) > float(two[2])
    assert float(eight[3].strip("%")) > 80


def test_judged_counts_neighbours() -> None:
    points = torch.nn.functional.normalize(torch.randn(50, 4), dim=-1)
    assert sentences.judged(points, points) == pytest.approx((1, 1, 1, 1))
    assert sentences.judged(-points, points)[0] == pytest.approx(-1)
    assert sentences.judged(points[torch.randperm(50)], points)[2] < 0.5
