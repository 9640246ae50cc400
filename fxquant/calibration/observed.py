"""What the observers of a model have seen, and whether it can be used."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from fxquant.capture.naming import find_regions, node_name
from fxquant.errors import CalibrationError
from fxquant.graph.operations import data_input, module_of
from fxquant.modules.observers import Observer
from fxquant.modules.own import own_modules
from fxquant.streaming.distributed import gather_objects, num_ranks


def find_observers(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node, Observer]]:
    """Yield each observer call with the tensor it watches and the module, in execution order."""
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        watched = data_input(node)
        if isinstance(module, Observer) and watched is not None:
            yield node, watched, module


def check_calibrated(model: nn.Module) -> None:
    """Raise `CalibrationError` if no observer saw a batch, or one saw NaN or infinity."""
    bad = nonfinite_tensors(model)
    if bad:
        raise CalibrationError(
            f"calibration: NaN or infinity in {bad[0]!r} (the first of {len(bad)} observed "
            "tensors): look at the input or at the calls that make this tensor, and prepare again"
        )
    observed = [each for gm in find_regions(model).values() for each in find_observers(gm)]
    if observed and all(
        observer.needs_data and observer.num_batches == 0 for _, _, observer in observed
    ):
        raise CalibrationError(
            f"none of the {len(observed)} observed tensors has seen a batch: run "
            "fxquant.calibrate(prepared, batches), or prepared(batch) on some, before convert"
        )


def was_called(gm: fx.GraphModule) -> bool:
    """Say whether calibration ran through `gm`, as far as can be told: it may observe nothing."""
    observers = [observer for _, _, observer in find_observers(gm)]
    return not observers or any(
        observer.num_batches > 0 or not observer.needs_data for observer in observers
    )


def combine_observers(model: nn.Module) -> None:
    """Give every rank of `torch.distributed` what all of them saw."""
    if num_ranks() == 1:
        return
    for _, module in own_modules(model):
        if module.watches:
            module.take_in(gather_objects(module.state()))


def nonfinite_tensors(model: nn.Module) -> list[str]:
    """Return the observed tensors that held NaN or infinity: by name, graph by graph."""
    observed = [
        (node_name(gm, watched), observer)
        for gm in find_regions(model).values()
        for _, watched, observer in find_observers(gm)
    ]
    if not observed:
        return []
    counts = torch.stack([observer.nonfinite for _, observer in observed])  # one wait for a GPU
    return [name for (name, _), count in zip(observed, counts.tolist(), strict=True) if count > 0]
