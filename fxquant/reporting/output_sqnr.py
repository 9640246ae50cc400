"""What each layer's output lost: float and quantized model on the same data, call by call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.calibration.arguments import arguments_of
from fxquant.calibration.input_keeper import stop_keeping_inputs
from fxquant.modules.layers import layer_type
from fxquant.numerics.decibels import decibels
from fxquant.passes.convert.drop_observers import DropObservers
from fxquant.passes.pipeline import Pipeline


def measure_outputs(
    reference: nn.Module, model: nn.Module, batches: Iterable[Any]
) -> dict[str, float]:
    """Return the SQNR of each layer module's output in `model` against `reference`'s, in dB.

    Layers are paired by name; a module called several times counts over all its calls.
    """
    reference = Pipeline(DropObservers()).on_copy_of(reference)  # they have seen enough
    stop_keeping_inputs(reference)
    names = [name for name, module in model.named_modules() if layer_type(module) is not None]
    power = dict.fromkeys(names, 0.0)
    noise = dict.fromkeys(names, 0.0)
    wanted: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda _module, _args, output: wanted.setdefault(name, []).append(
            output.clone()  # a ReLU in place behind the layer would change it
        )

    def compare(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            expected = wanted[name].pop(0).to(torch.float64)
            power[name] += expected.square().sum().item()
            noise[name] += (output.to(torch.float64) - expected).square().sum().item()

        return hook

    handles = [reference.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    handles += [model.get_submodule(name).register_forward_hook(compare(name)) for name in names]
    try:
        with torch.no_grad():
            for number, batch in enumerate(batches):
                reference(*arguments_of(reference, batch, f"batch {number}"))
                model(*arguments_of(model, batch, f"batch {number}"))
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: decibels(max(power[name], 1e-300), noise[name])
        for name in names
        if power[name] > 0 or noise[name] > 0
    }
