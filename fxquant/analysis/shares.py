"""How much of the change of the outputs each weight and activation is due: shares that add up.

    L(α) = ‖y(α) - y(0)‖²,   every weight at W + α ΔW, every activation at a + α Δa
    L(1) = Σ_t ∫₀¹ ⟨∂L/∂t, Δt⟩ dα

All roundings grow together from nothing, α = 0, to what they are, α = 1, and each tensor is due
what its own rounding error adds on the way (Aumann and Shapley's shares, "Values of non-atomic
games", 1974; along a straight line as in Sundararajan et al., "Axiomatic attribution for deep
networks", 2017). Two points of Gauss's rule take the integral; a backward pass each serves all.
Gradients pass roundings straight through, and stop where an activation is clipped.

The first-order loss of a tensor alone, ‖J Δt‖² (`fxquant.mixed_precision.sensitivity`), says what
it costs in a float network. Here all others are rounded too: errors add up, cancel, and are clipped
on their way. So this tells better what a tensor's return to more bits wins (README of this wing).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxquant.calibration.first_calls import stop_comparing
from fxquant.calibration.input_keeper import stop_keeping_inputs
from fxquant.graph.states import require_prepared
from fxquant.mixed_precision.options import Side
from fxquant.mixed_precision.placing import place_probes
from fxquant.mixed_precision.probes import ActivationProbe, Tap, WeightProbe
from fxquant.modules.copies import copy_module, detach_results
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.layers import Layer
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.containers import tensors_in
from fxquant.recipe.budget import Budget
from fxquant.streaming.running import Arguments, copied_to, device_of

_HALF = 0.5 / math.sqrt(3)
_POINTS = (0.5 - _HALF, 0.5 + _HALF)  # of Gauss's rule on [0, 1]: each counts half

Key = tuple[str, Side]
"""A tensor: the call that rules know it by, and which side of it."""


@dataclass(frozen=True)
class Share:
    """What one tensor's rounding adds to the squared change of the outputs, a sample."""

    bits: int
    """What the recipe gives it."""
    cost: float | None
    """None: outputs differ in number or shape, as those of detectors do."""


@dataclass(frozen=True)
class Shares:
    """Those of all tensors."""

    of: Mapping[Key, Share]
    power: float
    """Of the outputs, a sample: what changes are measured against."""
    loss: float | None
    """The squared change of the outputs, a sample, with all tensors rounded; None: see there."""


def measure_shares(
    prepared: nn.Module,
    calls: Sequence[Arguments],
    budget: Budget,
    rounded: Mapping[int, nn.Module],
    num_samples: int,
) -> Shares:
    """Return what each tensor adds to the change of the outputs.

    Args:
        prepared: calibrated; left as it is.
        calls: what the model is called with.
        budget: whose widths are the recipe's.
        rounded: models whose weights and biases count in place of those rounded to nearest, by
            width.
        num_samples: in `calls`.
    """
    recipe = require_prepared(prepared, "analyze")
    model = copy_module(prepared)
    stop_comparing(model)
    stop_keeping_inputs(model)
    model.requires_grad_(False)
    probes = place_probes(model, recipe, budget, rounded, keep_rules=False)
    between = _Between(model, probes)
    power = loss = 0.0
    are_alike = True
    for call in calls:
        between.move_to(0.0)
        with torch.no_grad():
            exact = [each.detach().clone() for each in _outputs(model, call)]
        power += sum(each.double().square().sum().item() for each in exact)
        changes = [_change_at(point, between, model, call, exact) for point in (*_POINTS, 1.0)]
        are_alike &= all(each is not None for each in changes)
        loss += changes[-1] or 0.0
    found = {}
    for key, cost in between.sums.items():
        found[key] = Share(between.bits[key], cost / num_samples if are_alike else None)
    return Shares(found, power / num_samples, loss / num_samples if are_alike else None)


def _change_at(
    point: float, between: _Between, model: nn.Module, call: Arguments, exact: Sequence[Tensor]
) -> float | None:
    """Return how much the outputs change at `point`; before the end, take in the gradients."""
    between.move_to(point)
    with torch.set_grad_enabled(point < 1):
        change = _change(_outputs(model, call), exact)
        if change is not None and change.requires_grad:
            change.backward()  # type: ignore[no-untyped-call]
            between.add_up(1 / len(_POINTS))
    found = None if change is None else change.item()
    detach_results(model)
    return found


def _outputs(model: nn.Module, call: Arguments) -> list[Tensor]:
    found = tensors_in(model(*copied_to(device_of(model), call)))
    return [each for each in found if each.is_floating_point()]


def _change(outputs: Sequence[Tensor], exact: Sequence[Tensor]) -> Tensor | None:
    """Return Σ (ŷ - y)² over all outputs; None if they differ in number or shape."""
    if [each.shape for each in outputs] != [each.shape for each in exact] or not exact:
        return None
    pairs = zip(outputs, exact, strict=True)
    return torch.stack([(one.float() - other.float()).square().sum() for one, other in pairs]).sum()


class _Between:
    """Every probed tensor between what it is and what it is rounded to."""

    def __init__(self, model: nn.Module, probes: Sequence[WeightProbe | ActivationProbe]) -> None:
        self._tensors: dict[Key, list[_Weight | _Activation]] = {}
        self.bits: dict[Key, int] = {}
        places = {tap: name for name, tap in model.named_modules() if isinstance(tap, Tap)}
        for probe in probes:
            if isinstance(probe, WeightProbe):
                tensors = [
                    weight
                    for layer, forms in probe.layers.items()
                    for weight in _weights_of(layer, forms[probe.widths.index(probe.bits)])
                ]
                self._tensors[probe.name, "weights"] = [*tensors]
                self.bits[probe.name, "weights"] = probe.bits
                continue
            self.bits[probe.name, "activations"] = max(tap.bits for tap in probe.group.taps)
            known = self._tensors.setdefault((probe.name, "activations"), [])
            for tap in probe.group.taps:
                activation = _Activation(tap.quantizers[probe.widths.index(tap.bits)])
                model.set_submodule(places[tap], activation)
                known.append(activation)
        self.sums = dict.fromkeys(self._tensors, 0.0)

    def move_to(self, point: float) -> None:
        """Put all tensors at `point`, from 0, what they are, to 1, what they are rounded to."""
        for tensors in self._tensors.values():
            for tensor in tensors:
                tensor.move_to(point)

    def add_up(self, share: float) -> None:
        """Take in the gradients of one backward pass, and clear them."""
        for key, tensors in self._tensors.items():
            self.sums[key] += share * sum(tensor.product() for tensor in tensors)


def _weights_of(layer: Layer, form: QuantizedLayer) -> list[_Weight]:
    """Return a layer's weight, and its bias, which a correction may have changed."""
    found = [_Weight(layer.weight, form.weight)]
    if isinstance(layer.bias, nn.Parameter):
        found.append(_Weight(layer.bias, form.bias_values()))
    return found


class _Weight:
    """A weight or a bias, between its values and those that it is rounded to."""

    def __init__(self, values: Tensor, rounded: Tensor) -> None:
        self._values, self._exact = values, values.detach().clone()
        self._error = rounded.detach() - self._exact

    def move_to(self, point: float) -> None:
        """Put it at `point`."""
        self._values.data.copy_(self._exact + point * self._error)

    def product(self) -> float:
        """Return the gradient times the error, and clear it."""
        gradient, self._values.grad = self._values.grad, None
        return 0.0 if gradient is None else (gradient.float() * self._error).sum().item()


class _Activation(nn.Module):
    """Hand on an activation, between its values and those that it is rounded to."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self._point, self._sum = 0.0, 0.0
        self._quantizer = quantizer

    def move_to(self, point: float) -> None:
        """Put it at `point`."""
        self._point = point

    def forward(self, x: Tensor) -> Tensor:
        """Return x + α (x̂ - x), as a copy that calls behind may change in place."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        if self._point == 0:
            return x.clone()
        if not torch.is_grad_enabled():
            return x + self._point * self._error(x)
        x = x if x.requires_grad else x.detach().requires_grad_()
        error = self._error(x)
        own = error.detach()
        moved: Tensor = x + self._point * error

        def compare(gradient: Tensor) -> None:
            self._sum += (gradient.float() * own).sum().item()

        moved.register_hook(compare)  # type: ignore[no-untyped-call]
        return moved

    def _error(self, x: Tensor) -> Tensor:
        rounded: Tensor = self._quantizer(x)
        error = rounded - x
        # Others than FakeQuantize hand no gradient on.
        return error if isinstance(self._quantizer, FakeQuantize) else error.detach()

    def product(self) -> float:
        """Return the gradient times the error, and clear it."""
        found, self._sum = self._sum, 0.0
        return found
