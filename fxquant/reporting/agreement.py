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
        decided = [
            self._logits(call_on_batch(running, batch, f"{self._where}: batch {n}", self._forward))
            .argmax(dim=1)
            .flatten()
            for n, batch in enumerate(self._batches)
        ]
        return torch.cat(decided)

    def _logits(self, output: object) -> Tensor:
        tensors = [each for each in tensors_in(output) if each.dim() > 0]  # a loss is none
        if tensors and tensors[0].dim() > 1 and tensors[0].shape[1] > 1:
            return tensors[0]
        shown = f"a tensor {tuple(tensors[0].shape)}" if tensors else type(output).__name__
        raise CalibrationError(
            f"{self._where}: the model returns {shown}, which has no largest of several values: "
            "only a metric of your own can tell how much is lost"
        )
