"""What the observers of a graph have seen, and whether it can be used."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from fxquant.errors import CalibrationError
from fxquant.observers import Observer
from fxquant.operations import data_input, module_of


def find_observers(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node, Observer]]:
    """Yield each observer call with the tensor it watches and the module, in execution order."""
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        watched = data_input(node)
        if isinstance(module, Observer) and watched is not None:
            yield node, watched, module


def check_calibrated(gm: fx.GraphModule) -> None:
    """Raise `CalibrationError` if no observer saw a batch, or one saw NaN or infinity."""
    observed = list(find_observers(gm))
    check_finite(gm, "calibration")
    if observed and all(observer.num_batches == 0 for _, _, observer in observed):
        raise CalibrationError(
            f"none of the {len(observed)} observed tensors has seen a batch: run "
            "fxquant.calibrate(prepared, batches), or prepared(batch) on some, before convert"
        )


def check_finite(gm: fx.GraphModule, where: str) -> None:
    """Raise `CalibrationError` if an observer saw NaN or infinity; name the first tensor."""
    observed = list(find_observers(gm))
    if not observed:
        return
    counts = torch.stack([observer.nonfinite for _, _, observer in observed]).cpu()
    bad = counts.nonzero().squeeze(1).tolist()
    if bad:
        _, tensor, _ = observed[bad[0]]
        raise CalibrationError(
            f"{where}: NaN or infinity in {tensor.name!r} ({counts[bad[0]]} batches; the first of "
            f"{len(bad)} such tensors): look at the input, or at the call that makes this tensor"
        )
