"""What watches gradients in a pass that measures sensitivities: of weights, and of activations.

Each keeps, for every width, the sum of ⟨gradient, rounding error⟩² over batches and draws
(`fxquant.mixed_precision.sensitivity`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.calibration.quantizer_choice import quantizer_of
from fxquant.errors import CalibrationError
from fxquant.mixed_precision.options import Option
from fxquant.modules.layers import Layer, as_layer, is_transposed, num_inputs, num_outputs
from fxquant.modules.observers import Observer
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.streaming.distributed import gather_objects


class Probe:
    """Squares of inner products, one for each width, added up over batches and draws."""

    is_unreached: bool = False
    """No gradient came: known from `options` on."""

    def __init__(self, name: str, widths: Sequence[int], *, fixed: bool) -> None:
        self.name, self.widths, self.fixed = name, tuple(widths), fixed
        self._squares = [0.0] * len(self.widths)

    def add(self, products: Tensor) -> None:
        """Add the squares of the inner products of one draw: (widths,)."""
        for number, product in enumerate(products.tolist()):
            self._squares[number] += product * product

    def losses(self, count: int) -> list[float]:
        """Return the sums of all ranks, divided by `count`."""
        ranks = gather_objects(self._squares, f"the losses of {self.name}")
        losses = [sum(squares) / count for squares in zip(*ranks, strict=True)]
        if not all(math.isfinite(loss) for loss in losses):
            raise CalibrationError(
                f"{self.name}: NaN or infinity in the gradients: look at the inputs, and at the "
                "calls between it and the model's outputs"
            )
        return losses


class WeightProbe(Probe):
    """The weights that go by one name: of a layer, or of the copies that passes made of it."""

    def __init__(
        self,
        name: str,
        rounded: Mapping[Layer, Sequence[QuantizedLayer]],
        bits: int,
        widths: Sequence[int],
        *,
        fixed: bool,
    ) -> None:
        super().__init__(name, widths, fixed=fixed)
        self.bits, self.layers = bits, rounded
        layers = list(rounded)
        self._num_weights = sum(layer.weight.numel() for layer in layers)
        self._multiply_accumulates = 0
        self._was_reached = False
        for layer in layers:
            # Its own: what else uses the weight, in Python code around a region, is not rounded.
            layer.weight = nn.Parameter(layer.weight.detach().clone())
            none = layer.weight.new_zeros(num_outputs(layer))
            bias = none if layer.bias is None else layer.bias
            layer.bias = nn.Parameter(bias.detach().clone())
            layer.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        layer = as_layer(module)
        if is_transposed(layer):
            source = args[0] if args else kwargs["input"]
            count = source.numel() * layer.weight.numel() // num_inputs(layer)
        else:
            count = output.numel() * layer.weight.numel() // num_outputs(layer)
        self._multiply_accumulates += count

    def add_up(self) -> None:
        """Take in the gradients of one draw, and clear them."""
        products = torch.zeros(len(self.widths))
        for layer, rounded in self.layers.items():
            if layer.weight.grad is not None:
                self._was_reached = True
                weights = (each.weight for each in rounded)
                products += _products(layer.weight.grad, layer.weight.detach(), weights)
                layer.weight.grad = None
            if layer.bias is not None and layer.bias.grad is not None:
                biases = (each.bias_values() for each in rounded)
                products += _products(layer.bias.grad, layer.bias.detach(), biases)
                layer.bias.grad = None
        self.add(products)

    def options(self, samples: int, draws: int) -> Iterator[Option]:
        """Yield an option for each width; if nothing is known of them, for the recipe's alone."""
        found = dict(zip(self.widths, self.losses(samples * draws), strict=True))
        is_known = any(gather_objects(self._was_reached))
        if not is_known:
            self.is_unreached = True
            found = {self.bits: 0.0}
        multiply_accumulates = sum(gather_objects(self._multiply_accumulates)) / samples
        for bits, loss in found.items():
            yield Option(
                name=self.name,
                side="weights",
                bits=bits,
                loss=loss,
                num_weights=self._num_weights,
                multiply_accumulates=round(multiply_accumulates),
                fixed=self.fixed or not is_known,
            )


def _products(gradient: Tensor, exact: Tensor, rounded: Iterable[Tensor]) -> Tensor:
    """Return ⟨gradient, rounded - exact⟩ for each of `rounded`: (widths,), on the CPU."""
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return torch.stack([(wide * (each - exact)).sum() for each in rounded]).float().cpu()


class Tap(nn.Module):
    """Hand on an activation; in the backward pass, compare it with its rounded forms."""

    def __init__(self, seen: Sequence[Observer]) -> None:
        super().__init__()
        self.bits = max(observer.spec.bits for observer in seen)
        self.products = torch.zeros(0)
        self.seen = list(seen)  # a list: they are no part of the model
        self.quantizers: list[nn.Module] = []

    def choose(self, widths: Sequence[int]) -> None:
        """Say to which widths to round."""
        self.products = torch.zeros(len(widths))
        for bits in widths:
            seen = [copy.copy(observer) for observer in self.seen]
            for observer in seen:
                observer.spec = replace(observer.spec, bits=bits)
            self.quantizers.append(quantizer_of(*seen))

    def forward(self, x: Any) -> Any:
        """Return `x`, as a copy that calls behind may change in place."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or not self.quantizers:
            return x
        exact = x.detach()
        watched = (x if x.requires_grad else x.detach().requires_grad_()).clone()
        watched.register_hook(partial(self._compare, exact))  # type: ignore[no-untyped-call]
        return watched

    def _compare(self, exact: Tensor, gradient: Tensor) -> None:
        rounded = (quantizer(exact) for quantizer in self.quantizers)
        self.products += _products(gradient, exact, rounded)


@dataclass(eq=False)
class Group:
    """Calls and the activations that they read, of one width: connected through one another."""

    readers: list[str]
    taps: list[Tap]


class ActivationProbe(Probe):
    """The activations of a group."""

    def __init__(self, group: Group, widths: Sequence[int] | None) -> None:
        most = max(tap.bits for tap in group.taps)
        super().__init__(group.readers[0], widths or (most,), fixed=widths is None)
        self.group = group
        for tap in group.taps:
            tap.choose(widths or (tap.bits,))

    def add_up(self) -> None:
        """Take in the inner products of one draw, and clear them."""
        self.add(torch.stack([tap.products for tap in self.group.taps]).sum(dim=0))
        for tap in self.group.taps:
            tap.products.zero_()

    def options(self, samples: int, draws: int) -> Iterator[Option]:
        """Yield an option for each width."""
        for bits, loss in zip(self.widths, self.losses(samples * draws), strict=True):
            yield Option(
                name=self.name,
                side="activations",
                bits=bits,
                loss=loss,
                readers=tuple(self.group.readers),
                fixed=self.fixed,
            )
