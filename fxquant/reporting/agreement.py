"""How often two models decide the same, where nobody has labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxquant.errors import CalibrationError
from fxquant.streaming.distributed import gather_objects
from fxquant.streaming.running import Arguments


class Agreement:
    """The percentage of samples, or of positions, on which a model decides as `model` does.

    It decides for the largest value along axis 1 of its first output that is a tensor.

    Args:
        model: the float one; left as it is.
        inputs: the arguments of each call.
        where: for errors.

    Raises:
        CalibrationError: an output has no largest value.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Arguments], where: str) -> None:
        self._inputs, self._where = inputs, where
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
        was_training = model.training
        model.eval()
        outputs = [self._logits(model(*arguments)) for arguments in self._inputs]
        model.train(was_training)
        return torch.cat([each.argmax(dim=1).flatten() for each in outputs])

    def _logits(self, output: object) -> Tensor:
        tensors = [each for each in tree_leaves(output) if isinstance(each, Tensor)]
        if tensors and tensors[0].dim() > 1 and tensors[0].shape[1] > 1:
            return tensors[0]
        shown = f"a tensor {tuple(tensors[0].shape)}" if tensors else type(output).__name__
        raise CalibrationError(
            f"{self._where}: the model returns {shown}, which has no largest of several values: "
            "only a metric of your own can tell how much is lost"
        )
