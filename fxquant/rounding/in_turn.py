"""The loop of all that is learned in turn: layers, or blocks of them.

for each unit, behind all those that its inputs depend on:
what the checkpoint holds of it is put back; else it is learned, and saved
the streams go on with what it now computes
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from fxquant.capture.naming import target_name
from fxquant.modules.figures import LearnedRounding
from fxquant.rounding.side_by_side import SideBySide
from fxquant.streaming.checkpoint import Checkpoint
from fxquant.streaming.distributed import object_from_first_rank, rank
from fxquant.streaming.long_runs import Run, UnitsBar

_logger = logging.getLogger("fxquant")
TITLES = {"adaround": "AdaRound", "adaquant": "AdaQuant", "gram": "Gram matrix"}
"""Of bars, by `Reconstruction.method`."""


class Unit(Protocol):
    """What is learned at once."""

    @property
    def name(self) -> str:
        """Its name in the graph."""

    @property
    def cost(self) -> int:
        """About how long it takes, in weights."""

    @property
    def rounding(self) -> LearnedRounding | None:
        """What was learned of it, None before."""

    def values(self) -> list[Tensor]:
        """Return what learning may change, as it is now."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""


_Unit = TypeVar("_Unit", bound=Unit)


def learn_in_turn(
    units: Sequence[_Unit],
    sides: SideBySide[_Unit],
    learn: Callable[[_Unit, int], None],
    run: Run,
    title: str,
    plural: str = "layers",
) -> bool:
    """Learn each unit on what those in front of it give; return whether one of them changed.

    Args:
        units: each behind all those that its inputs depend on.
        sides: the data, which `learn` takes of each unit, or the loop skips.
        learn: called with a unit and its number; writes what it learned into the unit.
        run: where finished units are kept, and whether a bar is shown.
        title: of the bar.
        plural: what the units are called there.
    """
    changed = False
    costs = [unit.cost for unit in units]
    bar = UnitsBar(title, plural, costs, run.progress)
    with _opened(run, sides) as checkpoint, bar:
        for number, unit in enumerate(units):
            name = target_name(sides.gm, unit.name)
            bar.begin(name)
            before = unit.values()
            saved = _load(checkpoint, number, unit.name)
            if saved:
                sides.skip(unit)
                unit.restore(saved)
            else:
                learn(unit, number)
                if checkpoint is not None:
                    checkpoint.save(number, unit.name, unit.state())
            bar.end()
            _logger.info("%s: %s", name, unit.rounding)
            changed |= _differ(before, unit.values())
    return changed


def _opened(run: Run, sides: SideBySide[_Unit]) -> AbstractContextManager[Checkpoint | None]:
    if run.checkpoint is None:
        return nullcontext()
    return Checkpoint(run.checkpoint, sides.identity(), writes=rank() == 0)


def _load(checkpoint: Checkpoint | None, number: int, name: str) -> dict[str, Any] | None:
    """Return what the checkpoint of rank 0 holds of a unit."""
    if checkpoint is None:
        return None
    saved = checkpoint.load(number, name) if rank() == 0 else None
    return cast("dict[str, Any] | None", object_from_first_rank(saved))


def _differ(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) != len(after) or not all(map(torch.equal, before, after))
