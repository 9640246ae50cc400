"""Quantize one classifier by many recipes and compare each with the float model."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

import fxquant
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr

BITS: tuple[tuple[int, int | None], ...] = ((8, 8), (4, 8), (8, 4), (4, 4))


@dataclass(frozen=True)
class Result:
    """How one recipe did."""

    bits: str
    method: str
    top1: float
    """Percent of the labels."""
    agreement: float
    """Percent of the float model's predictions."""
    logit_sqnr: float
    """Of the logits against the float model's, in dB."""
    weight_bytes: int
    """Of the layers' weights at their bits, scales and zero-points included."""
    seconds: float
    """From the float model to the quantized one."""


def predict(model: nn.Module, images: Tensor, batch_size: int = 128) -> Tensor:
    """Return the logits (N, classes) of `images` (N, C, H, W)."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in torch.split(images, batch_size)])


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all weights: integers at their bits, packed, and 5 bytes per scale."""
    total = 0.0
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            total += module.weight_integers.numel() * module.weight_spec.bits / 8
            total += module.weight_scale.numel() * 5  # float32 scale, int8 zero-point
        else:
            own = module.parameters(recurse=False)
            total += sum(parameter.numel() * parameter.element_size() for parameter in own)
    return round(total)


def compare(
    model: nn.Module,
    recipes: Iterable[tuple[str, str, fxquant.Recipe]],
    calibration: Tensor,
    images: Tensor,
    labels: Tensor,
    batch_size: int = 32,
) -> list[Result]:
    """Return a result for the float model and for each (bits, method, recipe).

    `calibration` and `images` are (N, C, H, W), normalized; `labels` (N,).
    """
    model = copy.deepcopy(model).eval()
    expected = predict(model, images)
    classes = expected.argmax(dim=1)
    top1 = (classes == labels).double().mean().item() * 100
    results = [Result("32/32", "float", top1, 100.0, float("inf"), weight_bytes(model), 0.0)]
    for bits, method, recipe in tqdm(list(recipes), "recipes", disable=None):
        start = time.perf_counter()
        batches = torch.split(calibration, batch_size)
        quantized = fxquant.quantize(model, batches, recipe, progress=False)
        seconds = time.perf_counter() - start
        logits = predict(quantized, images)
        predicted = logits.argmax(dim=1)
        results.append(
            Result(
                bits,
                method,
                (predicted == labels).double().mean().item() * 100,
                (predicted == classes).double().mean().item() * 100,
                sqnr(expected, logits),
                weight_bytes(quantized),
                seconds,
            )
        )
    return results


def activation_recipes(
    bits: Sequence[tuple[int, int | None]] = BITS,
) -> list[tuple[str, str, fxquant.Recipe]]:
    """Return every range method for activations at every pair of bits.

    All else is the same: weights min-max per channel, biases corrected but where moments are.
    """
    methods: list[tuple[str, dict[str, Any]]] = [
        ("min-max", {"activation_range": "minmax"}),
        ("EMA", {"activation_range": "ema"}),
        ("percentile", {"activation_range": "percentile"}),
        ("MSE", {"activation_range": "mse"}),
        ("ACIQ, report's clip", {"activation_range": "aciq", "activation_clip": "report"}),
        ("ACIQ, corrected", {"activation_range": "aciq", "activation_clip": "corrected"}),
        ("ACIQ, weighted", {"activation_range": "aciq", "activation_clip": "weighted"}),
        ("ACIQ, optimal", {"activation_range": "aciq", "activation_clip": "optimal"}),
        ("ACIQ, per channel", {"activation_range": "aciq", "activation_per_channel": True}),
        ("ACIQ, every batch", {"activation_range": "aciq", "activation_dynamic": True}),
        (
            "ACIQ, every batch and channel",
            {
                "activation_range": "aciq",
                "activation_dynamic": True,
                "activation_per_channel": True,
            },
        ),
        ("ACIQ, weights' moments", {"activation_range": "aciq", "bias_correction": "weights"}),
        ("batch norms' statistics", {"activation_range": "bn"}),
    ]
    return [
        (
            f"{weight_bits}/{activation_bits}",
            name,
            fxquant.Recipe.aciq(
                weight_bits=weight_bits, activation_bits=activation_bits, **options
            ),
        )
        for weight_bits, activation_bits in bits
        for name, options in methods
    ]


def table(results: Iterable[Result]) -> str:
    """Return the results as a table."""
    columns = ["bits W/A", "method", "top-1 %", "agrees %", "logits dB", "weights KB", "seconds"]
    rows = [
        [
            each.bits,
            each.method,
            f"{each.top1:.1f}",
            f"{each.agreement:.1f}",
            f"{each.logit_sqnr:.1f}",
            f"{each.weight_bytes / 1000:.1f}",
            f"{each.seconds:.2f}",
        ]
        for each in results
    ]
    return tabulate(rows, columns, disable_numparse=True)
