"""One calibrated model, of which any number of recipes make quantized ones, without calibrating.

    bench = Bench(recipe, calibrate, convert)
    bench.quantized(with_rules(recipe, [Rule("conv1", weights=8)]))

Observers keep histograms, and not ranges: so another width, another way to choose the range, or a
side in float is a matter of `convert` alone. What changes the float graph, or watches other tensors
than those that were watched, is calibrated anew.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from fxquant.calibration.input_keeper import collect_inputs, find_keeper
from fxquant.calibration.observed import find_observers
from fxquant.capture.naming import find_regions
from fxquant.errors import CalibrationError
from fxquant.graph.chains import take_out
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.copies import copy_module
from fxquant.modules.observers import Observer
from fxquant.passes.convert.drop_observers import DropObservers
from fxquant.passes.pipeline import Pipeline
from fxquant.passes.prepare.insert_observers import InsertObservers
from fxquant.recipe.recipe import Recipe
from fxquant.streaming.running import Arguments

Calibrate = Callable[[Recipe], nn.Module]
"""Returns a prepared model that has seen the data."""
Convert = Callable[[nn.Module, Recipe, Sequence[Arguments]], nn.Module]
"""Makes another model of a prepared one, by a recipe; leaves the prepared one as it is."""
_MOST_SAMPLES = 128  # that remedies learn from: all of them are tried in a few minutes
_OF_FLOATS = ("equalization", "target")  # fields of a recipe that change the float graph
_logger = logging.getLogger("fxquant")


class Bench:
    """Makes quantized models by any recipe, of one model and one set of data.

    Args:
        recipe: the one that is studied.
        calibrate: for it, and for those that need other observers.
        convert: makes quantized models.
        smooth: makes prepared ones with smoothed inputs; where the studied recipe smooths, that is
            done once.
    """

    def __init__(
        self, recipe: Recipe, calibrate: Calibrate, convert: Convert, smooth: Convert
    ) -> None:
        self._calibrate, self._convert = calibrate, convert
        self._known = _watching(recipe)
        self.recipe = recipe
        self.prepared = calibrate(self._known)
        self.inputs = self._inputs_of(self.prepared)
        if recipe.smoothing:
            self.prepared = smooth(self.prepared, recipe, self.inputs)
        self.num_calibrations = 1

    def quantized(self, recipe: Recipe) -> nn.Module:
        """Return a quantized model; what was refused was logged for the studied recipe already."""
        with silent():
            model, inputs = copy_module(self.prepared), self.inputs
            changed = any(
                getattr(recipe, each) != getattr(self._known, each) for each in _OF_FLOATS
            )
            if changed or not observe_for(model, recipe):
                self.num_calibrations += 1
                model = self._calibrate(_watching(recipe))
                inputs = self._inputs_of(model)
                observe_for(model, recipe)
            elif self.recipe.smoothing:
                recipe = replace(recipe, smoothing=False)
            return self._convert(model, recipe, inputs)

    def _inputs_of(self, prepared: nn.Module) -> list[Arguments]:
        """Return what `prepared` was called with, evenly from all of it."""
        keeper = find_keeper(prepared)
        if keeper is None or keeper.num_samples == 0:
            raise CalibrationError(
                "analyze: `forward` calls parts of the model, and never the model: then nothing is "
                "known of what it is called with"
            )
        with silent():  # as many as there are: how many a reconstruction wants is beside the point
            calls = collect_inputs(prepared, self._known.data, None)
        size = max(1, keeper.num_samples // len(calls))
        return calls[:: max(1, len(calls) * size // _MOST_SAMPLES)]


def _watching(recipe: Recipe) -> Recipe:
    """Return `recipe` with all that has to be watched for remedies: inputs, and means of them."""
    corrects = recipe.bias_correction or recipe.weights is not None
    return replace(recipe, batchnorm_tuning=True, bias_correction=bool(corrects))


def observe_for(model: nn.Module, recipe: Recipe) -> bool:
    """Give the observers of `model` what `recipe` asks for; take out those that it has no use for.

    Returns:
        Whether it has all that are needed.
    """
    anew = find_regions(copy_module(model))
    for path, gm in find_regions(model).items():
        Pipeline(DropObservers(), InsertObservers(recipe))(anew[path])
        asked = {node.target: observer for node, _, observer in find_observers(anew[path])}
        known = {node.target: observer for node, _, observer in find_observers(gm)}
        if not all(_is_like(known.get(target), observer) for target, observer in asked.items()):
            return False
        for node, _, observer in list(find_observers(gm)):
            if node.target in asked:
                observer.spec = asked[node.target].spec
            else:
                take_out(node)
        if recipe.bias_correction is not True:
            DropObservers((ChannelMean,))(gm)
        gm.recompile()
    return True


def _is_like(known: Observer | None, asked: Observer) -> bool:
    """Say whether what an observer saw tells what another would have seen."""
    if known is None or type(known) is not type(asked):
        return False
    if known.clamp != asked.clamp or known.axis != asked.axis:
        return False
    return known.needs_data or not asked.needs_data


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Log nothing below an error: it was said before, or is about a recipe that is only tried."""

    def is_error(entry: logging.LogRecord) -> bool:
        return entry.levelno >= logging.ERROR

    _logger.addFilter(is_error)
    try:
        yield
    finally:
        _logger.removeFilter(is_error)
