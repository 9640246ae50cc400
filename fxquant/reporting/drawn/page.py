"""All that a report's page draws: of its rows, and of the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from fxquant.calling.arguments import Forward
from fxquant.display.figures import Figure
from fxquant.graph.journal import read_recipe
from fxquant.modules.own import own_modules
from fxquant.reporting.coverage import Coverage
from fxquant.reporting.drawn.activations import drawn_activations
from fxquant.reporting.drawn.graphs import drawn_graphs
from fxquant.reporting.drawn.key_numbers import drawn_shares, drawn_tiles
from fxquant.reporting.drawn.losses import drawn_losses
from fxquant.reporting.drawn.weights import drawn_weights
from fxquant.reporting.float_form import captured_form
from fxquant.reporting.rows import Row
from fxquant.reporting.sizes import Sizes


def figures_of_models(
    model: nn.Module,
    reference: nn.Module | None = None,
    batch: Any = None,
    forward: Forward | None = None,
) -> tuple[Figure, ...]:
    """Return what can only be drawn from the models: histograms, graphs; nothing is changed.

    Args:
        model: a prepared, a converted or a lowered model.
        reference: the float model, whose graphs then stand beside; None: not known.
        batch: for it, and for histograms of activations.
        forward: as in `fxquant.calibrate`.
    """
    captured, activations = None, []
    if reference is not None:
        if read_recipe(reference) is None:
            captured = captured_form(reference, model, batch, forward)
        if any(module.stage == "converted" for _, module in own_modules(model)):
            activations = list(drawn_activations(model, batch, forward))
    return (*drawn_weights(model), *activations, *drawn_graphs(model, captured))


def figures_of_rows(
    rows: Sequence[Row], coverage: Coverage | None, sizes: Sizes | None
) -> Iterator[Figure]:
    """Yield key numbers, shares, and a bar a row."""
    yield drawn_tiles(rows, coverage, sizes)
    yield from drawn_shares(coverage, sizes)
    losses = drawn_losses(rows)
    if losses.series:
        yield losses
