"""Tensors whose channels may be rescaled: layers alone read them, and something takes the scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import fx, nn

from fxquant.calibration.observed import find_observers, has_one_range
from fxquant.graph.operations import data_input, layer_of, module_of, readers, source_of
from fxquant.graph.pairs import find_pairs
from fxquant.graph.selection import select_calls
from fxquant.graph.submodules import Submodules, free_name, why_not_changeable
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.layers import Layer, channel_axis
from fxquant.modules.observers import Observer
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.spec import CallSpec, TensorSpec
from fxquant.rounding.smoothing.takers import OwnCall, PairTaker, Taker, norm_taker

_Asked: TypeAlias = Mapping[fx.Node, CallSpec]
_Users: TypeAlias = Mapping[nn.Module, list[fx.Node]]


@dataclass(frozen=True, eq=False)
class LayerInput:
    """A tensor that is observed for layers alone."""

    value: fx.Node
    """Whose values the layers read."""
    observed: fx.Node
    """The call of the observer; between it and the layers there may be a ReLU."""
    observer: Observer
    watched: fx.Node
    """Whose values the observer is to see then."""
    anew: Observer
    """Which is to see them."""
    means: tuple[ChannelMean, ...]
    layers: dict[fx.Node, TensorSpec | None]
    """Calls of layers, with what is asked of their weights."""
    taker: Taker
    gm: fx.GraphModule

    @property
    def axis(self) -> int:
        """Of the channels, from the end."""
        return channel_axis(layer_of(self.gm, next(iter(self.layers))))

    @property
    def rows_from(self) -> list[fx.Node]:
        """The nodes whose values rows are sampled from: of a convolution its result, too."""
        return [self.value, *(() if self.axis == -1 else self.layers)]

    def weights(self) -> list[tuple[Layer, TensorSpec | None]]:
        """Return each layer once."""
        found = {layer_of(self.gm, node): spec for node, spec in self.layers.items()}
        return list(found.items())


def find_inputs(gm: fx.GraphModule, recipe: Recipe) -> list[LayerInput]:
    """Return the tensors of a calibrated graph that may be smoothed, in execution order."""
    asked, users = select_calls(gm, recipe), Submodules(gm).users
    found = [*_between_layers(gm, asked, users)]
    taken = {each.observed for each in found}
    others = _of_linear_layers(gm, asked, users)
    found += (each for each in others if each.observed not in taken)
    order = {node: place for place, node in enumerate(gm.graph.nodes)}
    return sorted(found, key=lambda each: order[each.observed])


def _between_layers(gm: fx.GraphModule, asked: _Asked, users: _Users) -> Iterator[LayerInput]:
    """Yield what a layer takes the scale of."""
    for pair in find_pairs(gm, None, clips=True):
        watching = [module_of(gm, node) for node in pair.between]
        means = tuple(each for each in watching if isinstance(each, ChannelMean))
        observed = [
            node
            for node, each in zip(pair.between, watching, strict=True)
            if isinstance(each, Observer) and not isinstance(each, ChannelMean)
        ]
        value = data_input(pair.second)
        if len(observed) != 1 or value is None or not _is_free(asked.get(pair.first)):
            continue
        observer = module_of(gm, observed[0])
        if isinstance(observer, Observer) and _may_change(observer, users) and pair.second in asked:
            layers = {pair.second: asked[pair.second].weights}
            behind = pair.between[pair.between.index(observed[0]) :]
            clip = next((each for each in reversed(pair.clips(gm)) if each in behind), None)
            watched, clamp = clip or source_of(observed[0]), None if clip else observer.clamp
            anew = Observer(observer.spec, clamp).to(observer.low.device)
            taker = PairTaker(pair, observed[0], clip)
            yield LayerInput(value, observed[0], observer, watched, anew, means, layers, taker, gm)


def _of_linear_layers(gm: fx.GraphModule, asked: _Asked, users: _Users) -> Iterator[LayerInput]:
    """Yield what a layer norm takes the scale of, or a call in front."""
    container = free_name(gm, "smoothing")
    for observed, watched, observer in find_observers(gm):
        if not _may_change(observer, users) or observer.clamp is not None:
            continue
        means, calls = _behind(gm, observed)
        layers = {node: asked[node].weights for node in calls if node in asked}
        is_whole = len(layers) == len(calls) > 0 and all(
            isinstance(module, nn.Linear)
            and set(users[module]) <= set(calls)
            and why_not_changeable(module) is None
            for module in (module_of(gm, node) for node in calls)
        )
        if is_whole:
            taker = norm_taker(gm, watched, observed) or OwnCall(watched, observed, container)
            anew = Observer(observer.spec).to(observer.low.device)
            yield LayerInput(
                watched, observed, observer, watched, anew, tuple(means), layers, taker, gm
            )


def _may_change(observer: Observer, users: _Users) -> bool:
    has_seen = observer.needs_data and int(observer.num_batches) > 0
    return has_seen and has_one_range(observer) and len(users[observer]) == 1


def _is_free(asked: CallSpec | None) -> bool:
    """Say whether rescaling a layer's outputs costs its weight nothing."""
    return asked is None or asked.weights is None or asked.weights.per_channel


def _behind(gm: fx.GraphModule, observed: fx.Node) -> tuple[list[ChannelMean], list[fx.Node]]:
    """Return the means that are kept of what an observer hands on, and the calls that read it."""
    means: list[ChannelMean] = []
    calls: list[fx.Node] = []
    for user in readers(gm, observed):
        module = module_of(gm, user)
        if isinstance(module, ChannelMean):
            means.append(module)
            calls += readers(gm, user)
        else:
            calls.append(user)
    return means, calls
