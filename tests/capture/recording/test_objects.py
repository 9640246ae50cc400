"""Objects of any class that a forward returns come out of its graph with this call's tensors."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import StorageError


class Cache:
    def __init__(self) -> None:
        self.layers: list[Any] = []
        self.seen: dict[str, Any] = {}
        self.number = 0

    def add(self, x: Tensor) -> None:
        self.layers.append([x, x * 2])
        self.seen[f"layer {len(self.layers)}"] = x
        self.number += 1


class Caches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        cache = Cache()
        for layer in (self.first, self.second):
            x = layer(x)
            cache.add(x)
        return x, cache


@torch.no_grad()
@pytest.mark.parametrize("is_pickled", [False, True])
def test_an_object_holds_the_tensors_of_each_call(is_pickled: bool) -> None:
    model = Caches().eval()
    gm = fxquant.trace(model, example_inputs=torch.randn(2, 4))
    gm = pickle.loads(pickle.dumps(gm)) if is_pickled else gm
    for size in (2, 3):
        x = torch.randn(size, 4)
        (found, cache), (wanted, expected) = gm(x), model(x)
        assert torch.equal(found, wanted)
        assert type(cache) is Cache
        assert cache.number == 2
        assert torch.equal(cache.layers[1][1], expected.layers[1][1])
        assert cache.seen["layer 2"] is cache.layers[1][0]


@pytest.mark.filterwarnings("ignore:.*does not reference an nn.Module")  # PyTorch 2.7
def test_a_file_cannot_hold_it_and_save_says_so(tmp_path: Path) -> None:
    quantized = fxquant.quantize(Caches(), [torch.randn(2, 4)], "minmax")
    with pytest.raises(StorageError, match="returns an object of a class that no file may name"):
        fxquant.save(quantized, tmp_path / "model.fxq")
