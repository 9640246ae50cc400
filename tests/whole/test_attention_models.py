"""Models with attention through every stage: all of their linear layers become integers."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)

import fxquant
from fxquant import Recipe
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from fxquant.recipe import TensorSpec

PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])


class Decoder(nn.Module):
    """Learned queries that look at themselves and at an image, as in DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.queries = nn.Parameter(torch.randn(5, 1, 16))
        self.among_them = nn.MultiheadAttention(16, 2)
        self.at_image = nn.MultiheadAttention(16, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Any:
        memory = self.stem(image).flatten(2).permute(2, 0, 1)
        x = self.queries.expand(-1, memory.shape[1], -1)
        x = x + self.among_them(x, x, x)[0]
        seen, weights = self.at_image(query=x, key=memory, value=memory)
        return self.head(x + seen), weights


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2)


def swin() -> Any:
    return SwinTransformer(
        [4, 4], 8, [2, 1], [2, 2], [2, 2], num_classes=4,
        block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2,
    )  # fmt: skip


SEQUENCES = torch.randn(2, 6, 16)
torch.manual_seed(0)  # models are made while this file is read
MODELS: dict[str, tuple[nn.Module, Any, int]] = {  # what they are called with; their layers
    "encoder": (encoder(activation=F.gelu), SEQUENCES, 8),
    "padded encoder": (encoder(), {"src": SEQUENCES, "src_key_padding_mask": PADDING}, 8),
    "transformer": (
        nn.Transformer(16, 2, 1, 1, 32, batch_first=True),
        {"src": SEQUENCES, "tgt": SEQUENCES[:, :4], "tgt_mask": torch.ones(4, 4).triu(1).bool()},
        12,
    ),
    "decoder": (Decoder(), torch.randn(2, 3, 16, 16), 2 + 2 + 4),
    "swin": (swin(), torch.randn(2, 3, 24, 24), 1 + 3 * 4 + 1 + 1),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("products", [None, TensorSpec(range="mse")], ids=["", "products"])
@pytest.mark.parametrize("name", MODELS)
def test_all_layers_become_integers(name: str, products: TensorSpec | None, tmp_path: Path) -> None:
    model, batch, num_layers = MODELS[name]

    def call(called: nn.Module) -> Tensor:
        with torch.no_grad():
            results = called(**batch) if isinstance(batch, dict) else called(batch)
        first: Tensor = results[0] if isinstance(results, tuple) else results
        return first

    expected = call(model.eval())
    prepared = fxquant.prepare(model, Recipe.minmax(products=products), example_inputs=batch)
    quantized = fxquant.convert(fxquant.calibrate(prepared, [batch]))
    layers = [each for each in quantized.modules() if isinstance(each, QuantizedLayer)]
    assert len(layers) == num_layers
    if products is not None:
        coverage = fxquant.report(quantized).coverage
        assert coverage is not None
        assert coverage.products > 0
    result = call(quantized)
    assert sqnr(expected, result) > 20
    fxquant.save(quantized, tmp_path / "model.fxq")
    assert torch.equal(call(fxquant.load(tmp_path / "model.fxq")), result)
    assert torch.equal(call(pickle.loads(pickle.dumps(quantized))), result)
