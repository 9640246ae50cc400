"""What each layer's output lost: float and quantized model on the same data, call by call."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.calling.arguments import Forward, call_on_batch
from fxquant.errors import PassError
from fxquant.modules.layers import layer_type
from fxquant.modules.own import own_modules
from fxquant.numerics.decibels import decibels
from fxquant.reporting.float_form import first_of, graphs_of_both

_logger = logging.getLogger("fxquant")


@dataclass
class _Outputs:
    """Of one layer: what it should have given in the calls of one batch, and the sums over all."""

    wanted: list[Tensor] = field(default_factory=list)
    power: float = 0.0
    noise: float = 0.0
    differs: str = ""
    """How its calls are others than the reference's; then nothing is measured."""

    def keep(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self.wanted.append(output.clone())  # a ReLU in place behind the layer would change it

    def compare(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        expected = self.wanted.pop(0) if self.wanted else torch.empty(0)
        if expected.shape != output.shape:
            self.differs = f"{_shown(output)} in the place of {_shown(expected)}"
            return
        expected = expected.to(torch.float64)
        self.power += expected.square().sum().item()
        self.noise += (output.to(torch.float64) - expected).square().sum().item()


def _shown(output: Tensor) -> str:
    return str(tuple(output.shape))


def measure_outputs(
    reference: nn.Module,
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None = None,
) -> dict[str, float]:
    """Return the SQNR of each layer module's output in `model` against `reference`'s, in dB.

    Layers are paired by name; a module called several times counts over all its calls. One whose
    calls differ in number or in shape, as those behind a detector's proposals do, is left out, with
    a warning.

    Args:
        reference: a float model, or what `prepare` or `convert` made of it; left as it is.
        model: what `prepare` or `convert` made of it; left as it is.
        batches: as in `fxquant.calibrate`; left as they are.
        forward: as in `fxquant.calibrate`.

    Raises:
        PassError: they are not forms of one model, or `model` is lowered.
        CalibrationError: no batch, or a batch of a type that is not understood.
    """
    if any(module.stage == "lowered" for _, module in own_modules(model)):
        raise PassError(
            "report: layers of a lowered model give integers: measure those of the model that was "
            "lowered, and see compare(quantized, lowered, batches) for what lowering changed"
        )
    first, remaining = first_of(batches, model, forward, "report")
    reference, model = graphs_of_both(reference, model, first, forward, "report")
    found = {
        name: _Outputs() for name, module in model.named_modules() if layer_type(module) is not None
    }
    for name, outputs in found.items():
        _layer(reference, name).register_forward_hook(outputs.keep)
        model.get_submodule(name).register_forward_hook(outputs.compare)
    with torch.no_grad():
        for number, batch in enumerate(remaining):
            for each in (reference, model):
                call_on_batch(each, batch, f"batch {number}", forward)
            for outputs in found.values():
                if outputs.wanted:
                    outputs.differs = f"{len(outputs.wanted)} calls fewer"
                    outputs.wanted.clear()
    differing = {name: outputs.differs for name, outputs in found.items() if outputs.differs}
    if differing:
        name, what = next(iter(differing.items()))
        _logger.warning(
            "report: %s: its output is not measured: in `model` it gives %s%s",
            name,
            what,
            f"; and {len(differing) - 1} more" if len(differing) > 1 else "",
        )
    return {
        name: decibels(max(each.power, 1e-300), each.noise)
        for name, each in found.items()
        if not each.differs and (each.power > 0 or each.noise > 0)
    }


def _layer(reference: nn.Module, name: str) -> nn.Module:
    try:
        return reference.get_submodule(name)
    except AttributeError as error:
        raise PassError(
            f"report: the reference has no layer {name!r}: give the float model that was "
            "quantized, or what prepare made of it"
        ) from error
