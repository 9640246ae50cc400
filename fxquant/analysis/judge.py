"""How well a model does what the float one does: decisions, outputs, and a metric of the caller's.

judge = Judge(model, batches, evaluate=None, forward=None)
judge(quantized)            # Score(points=93.8, decibels=14.2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.calling.arguments import Forward, call_on_batch
from fxquant.errors import CalibrationError
from fxquant.numerics.containers import tensors_in
from fxquant.numerics.decibels import decibels
from fxquant.reporting.agreement import has_decisions, largest
from fxquant.reporting.running_copies import copy_to_run
from fxquant.streaming.distributed import gather_objects

_WHERE = "analyze"


@dataclass(frozen=True)
class Score:
    """What a model is worth beside the float one."""

    points: float | None
    """Percent of the float model's decisions, or the caller's metric; None: there is neither."""
    decibels: float | None
    """Of all outputs, signal over what quantization changed; None: they cannot be compared."""

    @property
    def order(self) -> tuple[float, float]:
        """What scores are compared by: points, then dB."""
        known = (self.points, self.decibels)
        first, second = (-math.inf if each is None else each for each in known)
        return first, second


def margin_of(points: float, num_decisions: int) -> float:
    """Return the standard error of a percentage of so many decisions, in points.

    >>> round(margin_of(80.0, 64), 1)
    5.0
    """
    share = min(max(points / 100, 0.5 / num_decisions), 1 - 0.5 / num_decisions)
    return 100 * math.sqrt(share * (1 - share) / num_decisions)


class Judge:
    """Runs copies of models on batches, and compares what they return with the float model's.

    Args:
        model: the float one; left as it is, as are those that are judged.
        batches: what models are called with, as in `fxquant.calibrate`.
        evaluate: returns a model's score, higher is better; None: the share of its decisions that
            are the float model's, if it makes any.
        forward: as in `fxquant.calibrate`.

    Raises:
        CalibrationError: nothing can be compared, or a score is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        evaluate: Callable[[nn.Module], float] | None,
        forward: Forward | None,
    ) -> None:
        self._batches, self._evaluate, self._forward = batches, evaluate, forward
        self._expected = self._outputs(model)
        # A list has an item for each sample, as detectors' do: boxes are no decisions.
        self._decides = evaluate is None and all(
            has_decisions(each) and not isinstance(each, list) for each in self._expected
        )
        self.float_score = self(model)
        score = self.float_score
        if score.points is None and score.decibels is None:
            raise CalibrationError(
                f"{_WHERE}: the model returns {type(self._expected[0]).__name__} without tensors "
                "that can be compared: give evaluate=, or forward= that returns some"
            )

    @property
    def is_metric(self) -> bool:
        """Whether points are the caller's."""
        return self._evaluate is not None

    @property
    def num_decisions(self) -> int | None:
        """How many decisions the points are of; None: they are of something else."""
        if not self._decides:
            return None
        return sum(largest(each, _WHERE).numel() for each in self._expected)

    def __call__(self, model: nn.Module) -> Score:
        """Return the score of `model`, over all ranks' batches."""
        points = None if self._evaluate is None else self._points(self._evaluate, model)
        power = noise = 0.0
        agreeing, are_alike = 0, True
        for output, expected in zip(self._outputs(model), self._expected, strict=True):
            pairs = _paired(output, expected)
            are_alike &= pairs is not None
            for one, other in pairs or ():
                power += other.double().square().sum().item()
                noise += (one.double() - other.double()).square().sum().item()
            if self._decides:
                same = largest(output, _WHERE) == largest(expected, _WHERE)
                agreeing += int(same.sum())
        facts = (power, noise, agreeing, self.num_decisions or 0, are_alike)
        ranks = gather_objects(facts, _WHERE)
        power, noise, agreeing, decided = (sum(each) for each in list(zip(*ranks, strict=True))[:4])
        if self._decides:
            points = 100 * agreeing / decided
        is_known = power > 0 and all(each[-1] for each in ranks)
        return Score(points, decibels(power, noise) if is_known else None)

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> list[Any]:
        running = copy_to_run(model)
        return [call_on_batch(running, each, _WHERE, self._forward) for each in self._batches]

    def _points(self, evaluate: Callable[[nn.Module], float], model: nn.Module) -> float:
        scores = gather_objects(float(evaluate(copy_to_run(model))), _WHERE)
        score: float = sum(scores) / len(scores)
        if not math.isfinite(score):
            raise CalibrationError(f"{_WHERE}: `evaluate` gives {score}: it must be finite")
        return score


def _paired(output: Any, expected: Any) -> list[tuple[Tensor, Tensor]] | None:
    """Return the floating-point tensors of both, in pairs; None if they differ in number or shape.

    Detectors find more objects, or fewer.
    """
    one, other = (
        [each for each in tensors_in(found) if each.is_floating_point()]
        for found in (output, expected)
    )
    if [each.shape for each in one] != [each.shape for each in other]:
        return None
    return list(zip(one, other, strict=True))
