"""What the observers of a model have seen, and whether it can be used."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from fxquant.capture.naming import find_regions, node_name
from fxquant.errors import CalibrationError
from fxquant.graph.operations import data_input, module_of
from fxquant.modules.channel_observers import ChannelMean, ChannelObserver
from fxquant.modules.observers import LogitObserver, Observer
from fxquant.streaming.distributed import (
    gather_objects,
    greatest_over_ranks,
    least_over_ranks,
    num_ranks,
    sum_over_ranks,
)


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
    """Give every rank of `torch.distributed` what all of them saw.

    Minima, maxima and histograms come out as if one process had seen all batches. Moving averages
    depend on the order of batches, which ranks do not have: theirs are averaged by batches seen.
    """
    if num_ranks() == 1:
        return
    for module in model.modules():
        if isinstance(module, Observer):
            least_over_ranks(module.low)
            greatest_over_ranks(module.high)
            own = module.num_batches.to(torch.float32)
            sum_over_ranks(module.num_batches)
            for average in (module.ema_low, module.ema_high):
                sum_over_ranks(average.mul_(own / module.num_batches.clamp(min=1)))
            sum_over_ranks(module.counts)
            sum_over_ranks(module.nonfinite)
            module.ranks = set().union(*gather_objects(module.ranks))
            if isinstance(module, ChannelObserver):
                module.take_in(gather_objects((own.item(), module.channel_state())))
            if isinstance(module, LogitObserver):
                module.rows = torch.cat(gather_objects(module.rows.cpu())).to(module.low.device)
        elif isinstance(module, ChannelMean):
            own = module.num_values.to(torch.float32)
            sum_over_ranks(module.num_values)
            sum_over_ranks(module.mean.mul_(own / module.num_values.clamp(min=1)))


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
