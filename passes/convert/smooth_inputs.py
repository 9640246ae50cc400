"""Bring the channels of a linear layer's input to one range, and take it back in the weight.

Before:  norm = LayerNorm(h); observers_norm = Observer(norm); fc = Linear(observers_norm)
After:   the same graph, with γ/s, (β - c)/s in the norm, W · s and b + W c in the layer

Before:  gelu = F.gelu(fc1); observers_gelu = Observer(gelu); fc2 = Linear(observers_gelu)
After:   smoothed_gelu = ChannelAffine(gelu)     # (x - c)/s
         observers_gelu = Observer(smoothed_gelu); fc2 = Linear(observers_gelu)

Of a transformer's activations a few channels are many times as wide as the others, and a scale that
serves all of them leaves most channels a few integers. What is rescaled in front of a layer its
weight can take back: (x - c)/s, W diag(s), b + W c compute the same. The scale goes into a layer
norm where nothing else reads that; else it is a call of its own, on floats.

    sⱼ = rⱼ^α / wⱼ^(1-α),  rⱼ = max |xⱼ - cⱼ|,  wⱼ = max |W·ⱼ|

is SmoothQuant's (Xiao et al., 2023, Eq. 4); c, the middle of each channel's range, is Outlier
Suppression+'s (Wei et al., 2023), and RepQ-ViT's in layer norms (Li et al., 2023). Tried beside it
is sⱼ = max(1, rⱼ/T), which leaves all but the widest channels alone. α or T is chosen for each
tensor, as is whether there is a c: by the error of what all layers behind compute of a sample
of rows, both sides rounded as they will be. A tensor that gains less than `least_gain` stays as it
is. Then its observer sees the data again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from fxquant.calibration.observed import find_observers, has_one_range
from fxquant.calibration.quantizer_choice import quantizer_of
from fxquant.errors import CalibrationError
from fxquant.graph.chains import insert_after
from fxquant.graph.operations import module_of, readers
from fxquant.graph.selection import select_calls
from fxquant.graph.submodules import Submodules, free_name, why_not_changeable
from fxquant.modules.batchnorm import fold_before
from fxquant.modules.by_channel import ChannelAffine
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.layers import as_layer
from fxquant.modules.observers import Observer
from fxquant.modules.overrides import why_overridden
from fxquant.modules.quantized_layer import quantize_layer
from fxquant.numerics.decibels import decibels
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import OBSERVED
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.spec import TensorSpec
from fxquant.streaming.distributed import gather_objects
from fxquant.streaming.long_runs import Run, bar
from fxquant.streaming.running import Arguments
from fxquant.streaming.stream import Stream
from fxquant.streaming.value_store import ValueStore

_EXPONENTS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_OCTAVES = (1.0, 2.0, 3.0, 4.0, 5.0)
_FLOOR = 1e-2  # of the rows' mean power, below which a row counts less
_ROWS = 1024  # of a tensor, that α is chosen by


@dataclass(frozen=True, eq=False)
class SmoothInputs(Pass):
    """Bring the channels of each linear layer's input to one range."""

    starts_from = OBSERVED

    recipe: Recipe
    batches: Sequence[Arguments]
    """The arguments of each call, on any device."""
    how: Run = field(default_factory=Run)
    least_gain: float = 3.0
    """dB by which the error of the layers' results must fall."""

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise where there is no data."""
        if len(self.batches) == 0:
            raise CalibrationError("`batches` is empty: give at least one")

    @torch.no_grad()
    def run(self, gm: fx.GraphModule) -> bool:
        """Smooth one tensor after the other; modified if one gains by it."""
        inputs, chosen = list(_find_inputs(gm, self.recipe)), {}
        for each, values in self._values(gm, inputs, "smoothing"):
            seen = _Seen.of(values)
            best = None if seen is None else _best(each, seen, self.least_gain)
            if best is not None:
                chosen[each] = best
        for each, values in self._values(gm, list(chosen), "observing"):
            _observe_anew(each, chosen[each], values)
        submodules, container = Submodules(gm), free_name(gm, "smoothing")
        for each, smoothing in chosen.items():
            _write(each, smoothing, submodules, container)
        return bool(chosen)

    def _values(
        self, gm: fx.GraphModule, inputs: list[_Input], title: str
    ) -> Iterator[tuple[_Input, Iterator[Tensor]]]:
        """Yield each tensor with its values in all batches."""
        with ValueStore(self.recipe.data.max_bytes) as store:
            stream = Stream(gm, self.batches, store)
            stream.demand(each.watched for each in inputs)
            for each in bar(inputs, title, self.how.progress, unit="tensor"):
                yield each, (value for (value,) in stream.values(each.watched))


@dataclass(frozen=True, eq=False)
class _Input:
    """A tensor that is observed for linear layers alone."""

    observed: fx.Node
    watched: fx.Node
    observer: Observer
    anew: Observer
    """Which is to see the smoothed tensor."""
    means: tuple[ChannelMean, ...]
    layers: dict[fx.Node, TensorSpec | None]
    """Calls of layers, with what is asked of their weights."""
    gm: fx.GraphModule

    def weights(self) -> list[tuple[nn.Linear, TensorSpec | None]]:
        """Return each layer once."""
        found: dict[nn.Linear, TensorSpec | None] = {}
        for node, spec in self.layers.items():
            layer = module_of(self.gm, node)
            assert isinstance(layer, nn.Linear)
            found[layer] = spec
        return list(found.items())


def _find_inputs(gm: fx.GraphModule, recipe: Recipe) -> Iterator[_Input]:
    asked = select_calls(gm, recipe)
    users = Submodules(gm).users
    for observed, watched, observer in find_observers(gm):
        seen = observer.needs_data and has_one_range(observer) and int(observer.num_batches) > 0
        if not seen or observer.clamp is not None or len(users[observer]) > 1:
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
            anew = Observer(observer.spec).to(observer.low.device)
            yield _Input(observed, watched, observer, anew, tuple(means), layers, gm)


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


@dataclass(frozen=True)
class _Seen:
    """What went by: each channel's extremes, (channels,), over all ranks, and some rows."""

    low: Tensor
    high: Tensor
    rows: Tensor

    @classmethod
    def of(cls, values: Iterator[Tensor]) -> _Seen | None:
        """Look at all batches; None if there is nothing, or something is not finite."""
        lows, highs, rows = [], [], []
        for value in values:
            flat = value.reshape(-1, value.shape[-1]).to(torch.float32)
            if len(flat):
                lows.append(flat.amin(dim=0))
                highs.append(flat.amax(dim=0))
                rows.append(flat[:: max(1, len(flat) // 64)].clone())
        own = (
            [
                torch.stack(lows).amin(dim=0).cpu(),
                torch.stack(highs).amax(dim=0).cpu(),
                torch.cat(rows)[:: max(1, sum(map(len, rows)) // _ROWS)].cpu(),
            ]
            if lows
            else None
        )
        ranks = [each for each in gather_objects(own, "extremes of channels") if each is not None]
        if not ranks:
            return None
        low = torch.stack([each[0] for each in ranks]).amin(dim=0)
        high = torch.stack([each[1] for each in ranks]).amax(dim=0)
        return cls(low, high, ranks[0][2]) if torch.isfinite(high - low).all() else None


@dataclass(frozen=True)
class _Smoothing:
    """x → (x - shift) / scale: (channels,) each."""

    scale: Tensor
    shift: Tensor


def _best(each: _Input, seen: _Seen, least_gain: float) -> _Smoothing | None:
    """Return the smoothing of least error, None if it gains too little."""
    weights = [layer.weight.detach().float().cpu() for layer, _ in each.weights()]
    met, wanted = torch.cat(weights).abs().amax(dim=0), [seen.rows @ own.T for own in weights]
    without = _Smoothing(torch.ones_like(seen.low), torch.zeros_like(seen.low))
    tried = []
    for shift in (without.shift, (seen.low + seen.high) / 2):
        width = torch.maximum(seen.high - shift, shift - seen.low)
        tried += [_Smoothing(scale, shift) for scale in _scales(width, met)]
    errors = [_error(each, seen, wanted, smoothing) for smoothing in (without, *tried)]
    least = min(range(len(tried)), key=lambda number: errors[1 + number])
    is_worth_it = errors[0] > 0 and (
        decibels(errors[0], max(errors[1 + least], 1e-30)) >= least_gain
    )
    return tried[least] if is_worth_it else None


def _scales(width: Tensor, met: Tensor) -> Iterator[Tensor]:
    """Yield scales to try, (channels,) each.

    Args:
        width: the greatest |x| of each channel.
        met: the greatest |weight| that meets it.
    """
    usable = (width > 0) & (met > 0)
    for exponent in _EXPONENTS:
        scale = torch.where(usable, width**exponent / met.clamp(min=1e-30) ** (1 - exponent), 1.0)
        middle = torch.exp(torch.log(scale[usable]).mean()) if usable.any() else 1.0
        yield torch.where(usable, scale / middle, 1.0)
    for octaves in _OCTAVES:
        yield (width / (width.max() * 2**-octaves).clamp(min=1e-30)).clamp(min=1.0)


def _error(
    each: _Input, seen: _Seen, wanted_of_layers: list[Tensor], smoothing: _Smoothing
) -> float:
    """Return the squared error of what all layers compute of the rows, both sides rounded.

    Relative to what each row gives: tokens that attention rests on are many times as large as
    others, and norms make all equal.
    """
    observer = Observer(each.observer.spec)
    ends = torch.stack([seen.low, seen.high])
    rows, ends = ((value - smoothing.shift) / smoothing.scale for value in (seen.rows, ends))
    observer(torch.cat([rows, ends]))
    rounded = quantizer_of(observer)(rows)
    error = 0.0
    for (layer, spec), wanted in zip(each.weights(), wanted_of_layers, strict=True):
        weight = layer.weight.detach().float().cpu()
        moved = nn.Linear(layer.in_features, layer.out_features, bias=False)
        moved.weight = nn.Parameter(weight * smoothing.scale)
        quantized = moved if spec is None else quantize_layer(moved, spec)
        shift = smoothing.shift @ weight.T
        found = rounded @ quantized.weight.detach().float().T + shift
        power = wanted.square().mean(dim=1)
        noise = (found - wanted).square().mean(dim=1)
        error += float((noise / (power + _FLOOR * power.mean()).clamp(min=1e-30)).sum())
    return error


def _observe_anew(each: _Input, smoothing: _Smoothing, values: Iterator[Tensor]) -> None:
    """Let the tensor's new observer see what the smoothed one will be, on all ranks."""
    for value in values:
        each.anew((value - smoothing.shift.to(value)) / smoothing.scale.to(value))
    each.anew.take_in(gather_objects(each.anew.state(), "the state of an observer"))


def _write(each: _Input, smoothing: _Smoothing, submodules: Submodules, container: str) -> None:
    gm = each.gm
    for target in dict.fromkeys(str(node.target) for node in each.layers):
        layer = as_layer(gm.get_submodule(target))
        scale, shift = (value.to(layer.weight.device) for value in _parts(smoothing))
        fold_before(submodules.own(target), scale, shift)
    for mean in each.means:
        path = next(name for name, module in gm.named_modules() if module is mean)
        own = copy.deepcopy(mean)
        own.mean = (own.mean - smoothing.shift.to(own.mean)) / smoothing.scale.to(own.mean)
        submodules.put(path, own)
    if _takes_scale(gm, each, submodules):
        norm = submodules.own(str(each.watched.target))
        scale, shift = (value.to(norm.weight) for value in _parts(smoothing))
        bias = torch.zeros_like(shift) if norm.bias is None else norm.bias.detach()
        norm.weight = nn.Parameter(norm.weight.detach() / scale, requires_grad=False)
        norm.bias = nn.Parameter((bias - shift) / scale, requires_grad=False)
    else:
        path = free_name(gm, f"{container}.{each.watched.name}")
        scale, shift = (value.to(each.observer.low.device) for value in _parts(smoothing))
        submodules.put(path, ChannelAffine(1 / scale, -shift / scale))
        with insert_after(each.watched):
            call = gm.graph.call_module(path, (each.watched,))
        call.name = f"smoothed_{each.watched.name}"
        each.observed.replace_input_with(each.watched, call)
    submodules.put(str(each.observed.target), each.anew)


def _parts(smoothing: _Smoothing) -> tuple[Tensor, Tensor]:
    return smoothing.scale, smoothing.shift


def _takes_scale(gm: fx.GraphModule, each: _Input, submodules: Submodules) -> bool:
    """Say whether the tensor is a layer norm's that nothing but its observer reads."""
    norm = module_of(gm, each.watched)
    return (
        type(norm) is nn.LayerNorm
        and norm.weight is not None
        and norm.weight.dim() == 1
        and why_overridden(norm) is None
        and len(submodules.users.get(norm, [])) == 1
        and readers(gm, each.watched) == [each.observed]
    )
