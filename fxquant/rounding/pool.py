"""Gather rows of one layer from a stream of batches, and set some aside to judge by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.modules.layers import Layer, num_groups
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.rounding.methods.losses import Rows
from fxquant.rounding.rows import sample_rows
from fxquant.streaming.distributed import num_ranks

_MAX_BYTES = 512 << 20  # of all ranks' inputs: a depthwise layer of 960 channels has 35 KB a row


class RowPool:
    """Randomly drawn output positions of one layer.

    Args:
        name: of the layer, for errors.
        layer: the quantized or the float one.
        num_samples: that will come, over all calls.
        options: how many rows to draw, on all ranks together, and the seed.
        number: of the layer, so that each draws its own positions.
    """

    def __init__(
        self, name: str, layer: Layer, num_samples: int, options: Reconstruction, number: int
    ) -> None:
        self._name, self._layer, self._options = name, layer, options
        self._generator = options.generator(number)
        row_bytes = 4 * layer.weight.numel() / layer.weight.shape[0] * num_groups(layer)
        wanted = min(options.pool_rows, options.steps * options.rows, int(_MAX_BYTES / row_bytes))
        num_rows = max(1, wanted / num_ranks())
        self._per_sample = math.ceil(num_rows / max(num_samples, 1))
        self._every = round(1 / options.held_out)
        self._samples = 0
        self._drawn: list[tuple[Tensor, Tensor]] = []
        self._held_out: list[Tensor] = []

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Draw rows of one batch.

        Args:
            inputs: x̂, what the quantized layer is called with.
            targets: the float network's tensor behind the layer's activation.
        """
        rows = sample_rows(self._layer, inputs, targets, self._per_sample, self._generator)
        has_batch = inputs.dim() > max(1, self._layer.weight.dim() - 1)
        samples = len(inputs) if has_batch else 1
        per_sample = rows[0].shape[1] // max(samples, 1)
        numbers = torch.arange(self._samples, self._samples + samples) % self._every
        self._held_out.append((numbers == self._every - 1).repeat_interleave(per_sample))
        self._samples += samples
        self._drawn.append(rows)

    def rows(self, weight: Tensor, bias: Tensor | None) -> tuple[Rows, Rows]:
        """Return the rows to learn from, in random order, and those to judge by.

        Args:
            weight: the float one, (groups, out, in), float32.
            bias: (groups · out,) or None.

        Raises:
            CalibrationError: the rows hold NaN or infinity.
        """
        inputs = torch.cat([drawn for drawn, _ in self._drawn], dim=1)
        targets = torch.cat([drawn for _, drawn in self._drawn], dim=1)
        self._drawn.clear()
        for what, values in (("input", inputs), ("float output", targets)):
            low, high = torch.aminmax(values)  # both are NaN if a value is
            if not torch.isfinite(high - low):
                raise CalibrationError(
                    f"{self._name}: NaN or infinity in its {what} on the calibration data: look at "
                    "the calls before it, or leave it in float with a Rule(…, skip=True)"
                )
        held_out = torch.cat(self._held_out)
        if not held_out.any():  # fewer samples than it takes to set one aside
            held_out = torch.arange(len(held_out)) % self._every == self._every - 1
        order = torch.randperm(len(held_out), generator=self._generator)
        judged = held_out.nonzero().squeeze(1)
        learned = order[~held_out[order]]
        if not len(judged):
            judged = learned
        return _take(inputs, targets, learned, weight, bias), _take(
            inputs, targets, judged, weight, bias
        )


def _take(
    inputs: Tensor, targets: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None
) -> Rows:
    index = index.to(inputs.device)
    inputs, targets = inputs.index_select(1, index), targets.index_select(1, index)
    outputs = torch.bmm(inputs, weight.mT)
    if bias is not None:
        outputs += bias.to(torch.float32).reshape(len(weight), 1, -1)
    return Rows(inputs, outputs, targets)
