"""What the observers of a graph have seen, and whether it can be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx

from fxquant.distributed import (
    gather_objects,
    greatest_over_ranks,
    least_over_ranks,
    num_ranks,
    sum_over_ranks,
)
from fxquant.errors import CalibrationError
from fxquant.keeper import InputKeeper
from fxquant.observers import ChannelMean, Observer
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
    bad = nonfinite_tensors(gm)
    if bad:
        raise CalibrationError(
            f"calibration: NaN or infinity in {bad[0].name!r} (the first of {len(bad)} observed "
            "tensors): look at the input or at the calls that make this tensor, and prepare again"
        )
    if observed and all(observer.num_batches == 0 for _, _, observer in observed):
        raise CalibrationError(
            f"none of the {len(observed)} observed tensors has seen a batch: run "
            "fxquant.calibrate(prepared, batches), or prepared(batch) on some, before convert"
        )


def combine_observers(gm: fx.GraphModule) -> None:
    """Give every rank of `torch.distributed` what all of them saw.

    Minima, maxima and histograms come out as if one process had seen all batches. Moving averages
    depend on the order of batches, which ranks do not have: theirs are averaged by batches seen.
    """
    if num_ranks() == 1:
        return
    for module in gm.modules():
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
        elif isinstance(module, ChannelMean):
            own = module.num_values.to(torch.float32)
            sum_over_ranks(module.num_values)
            sum_over_ranks(module.mean.mul_(own / module.num_values.clamp(min=1)))


def nonfinite_tensors(gm: fx.GraphModule) -> list[fx.Node]:
    """Return the observed tensors that held NaN or infinity, in execution order."""
    observed = list(find_observers(gm))
    if not observed:
        return []
    counts = torch.stack([observer.nonfinite for _, _, observer in observed])  # one wait for a GPU
    return [each[1] for each, count in zip(observed, counts.tolist(), strict=True) if count > 0]


def forget_nonfinite(gm: fx.GraphModule) -> None:
    """Reset the observers' count of batches that held NaN or infinity, which they left out."""
    for _, _, observer in find_observers(gm):
        observer.nonfinite.zero_()


def first_nonfinite(gm: fx.GraphModule, run: Callable[[], object]) -> fx.Node | None:
    """Return the first node whose result holds NaN or infinity while `run` calls `gm`."""
    interpreter = _NonfiniteFinder(gm)
    gm.forward = interpreter.run
    try:
        run()
    finally:
        del gm.forward
    return interpreter.found


class _NonfiniteFinder(fx.Interpreter):
    """Run a graph node by node and remember the first result that is not finite."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.found: fx.Node | None = None

    def run_node(self, n: fx.Node) -> object:
        """Run one node; observers only hand on their input, or they would count it twice."""
        assert isinstance(self.module, fx.GraphModule)
        watched = data_input(n)
        seen_before = (Observer, ChannelMean, InputKeeper)
        if watched is not None and isinstance(module_of(self.module, n), seen_before):
            return self.env[watched]
        result = super().run_node(n)
        is_float = isinstance(result, Tensor) and result.is_floating_point()
        if self.found is None and is_float and not torch.isfinite(result).all():
            self.found = n
        return result
