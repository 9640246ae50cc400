"""How often two models decide the same, where nobody has labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.calling.arguments import Forward, call_on_batch
from fxquant.errors import CalibrationError
from fxquant.numerics.containers import tensors_in
from fxquant.reporting.running_copies import copy_to_run
from fxquant.streaming.distributed import gather_objects


class Agreement:
    """The percentage of samples, or of positions, on which a model decides as `model` does.

    It decides for the largest value along axis 1 of its first output that is a tensor with axes.

    Args:
        model: the float one; left as it is, as are those that it is compared with.
        batches: what models are called with, as in `fxquant.calibrate`.
        where: for errors.
        forward: as in `fxquant.calibrate`.

    Raises:
        CalibrationError: an output has no largest value.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        where: str,
        forward: Forward | None = None,
    ) -> None:
        self._batches, self._where, self._forward = batches, where, forward
        self._expected = self._decisions(model)

    def __call__(self, model: nn.Module) -> float:
        """Return the percentage for `model`, of all ranks' inputs."""
        agree = self._decisions(model) == self._expected
        counts = gather_objects((agree.sum().item(), agree.numel()), self._where)
        agreeing, all_of_them = map(sum, zip(*counts, strict=True))
        return 100 * agreeing / all_of_them

    @torch.no_grad()
    def _decisions(self, model: nn.Module) -> Tensor:
        """Return where the largest values are, of all samples and positions."""
        running = copy_to_run(model)
        outputs = [
            call_on_batch(running, batch, f"{self._where}: batch {n}", self._forward)
            for n, batch in enumerate(self._batches)
        ]
        return torch.cat([largest(output, self._where) for output in outputs])


def has_decisions(output: object) -> bool:
    """Say whether the first tensor of what a model returned has several values along axis 1."""
    logits = _first_tensor(output)
    return logits is not None and logits.dim() > 1 and logits.shape[1] > 1


def largest(output: object, where: str) -> Tensor:
    """Return the index of the largest value along axis 1, flattened, of the first tensor with axes.

    Raises:
        CalibrationError: there is no such axis; it starts with `where`.
    """
    logits = _first_tensor(output)
    if logits is not None and has_decisions(output):
        return logits.argmax(dim=1).flatten()
    shown = type(output).__name__ if logits is None else f"a tensor {tuple(logits.shape)}"
    raise CalibrationError(
        f"{where}: the model returns {shown}, which has no largest of several values: "
        "only a metric of your own can tell how much is lost"
    )


def _first_tensor(output: object) -> Tensor | None:
    return next((each for each in tensors_in(output) if each.dim() > 0), None)  # a loss is none
