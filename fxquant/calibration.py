"""What the observers of a model have seen, and whether it can be used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.distributed import (
    gather_objects,
    greatest_over_ranks,
    least_over_ranks,
    num_ranks,
    sum_over_ranks,
)
from fxquant.errors import CalibrationError
from fxquant.keeper import InputKeeper
from fxquant.observers import ChannelMean, ChannelObserver, LogitObserver, Observer
from fxquant.operations import data_input, module_of
from fxquant.region import find_regions, node_name


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


def require_finite(model: nn.Module, run: Callable[[], object], number: int) -> None:
    """Raise `CalibrationError` if batch `number`, which `run` ran, made NaN or infinity.

    The error names the first call that did: the batch is run again to find it.
    """
    bad = nonfinite_tensors(model)
    if bad:
        for gm in find_regions(model).values():
            for _, _, observer in find_observers(gm):
                observer.nonfinite.zero_()
        first = first_nonfinite(model, run) or bad[0]
        raise CalibrationError(
            f"batch {number}: NaN or infinity first in the result of {first!r}, then in "
            f"{len(bad)} observed tensors. They left the batch out: calibrate goes on with others, "
            "or look at the input and at that call"
        )


def first_nonfinite(model: nn.Module, run: Callable[[], object]) -> str | None:
    """Return the first node whose result holds NaN or infinity while `run` calls `model`."""
    found: list[str] = []
    with contextlib.ExitStack() as stack:
        for gm in find_regions(model).values():
            stack.enter_context(interpreted(gm, _NonfiniteFinder(gm, found)))
        run()
    return found[0] if found else None


@contextlib.contextmanager
def interpreted(gm: fx.GraphModule, interpreter: fx.Interpreter) -> Iterator[None]:
    """Let calls of `gm` go through `interpreter`, which may look at each node's result."""
    gm.forward = lambda *args, **kwargs: interpreter.run(*_positional(gm, args, kwargs))
    try:
        yield
    finally:
        del gm.forward


def _positional(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return what a call gives to the placeholders, defaults filled in."""
    rest = gm.graph.find_nodes(op="placeholder")[len(args) :]
    named = [kwargs.get(str(node.target), *node.args[:1]) for node in rest]
    return [*args, *named]


class _NonfiniteFinder(fx.Interpreter):
    """Run a graph node by node and add the nodes whose results are not finite to `found`."""

    def __init__(self, gm: fx.GraphModule, found: list[str]) -> None:
        super().__init__(gm)
        self._found = found

    def run_node(self, n: fx.Node) -> object:
        """Run one node; observers only hand on their input, or they would count it twice."""
        assert isinstance(self.module, fx.GraphModule)
        watched = data_input(n)
        seen_before = (Observer, ChannelMean, InputKeeper)
        if watched is not None and isinstance(module_of(self.module, n), seen_before):
            return self.env[watched]
        result = super().run_node(n)
        is_float = isinstance(result, Tensor) and result.is_floating_point()
        if is_float and not torch.isfinite(result).all():
            self._found.append(node_name(self.module, n))
        return result
