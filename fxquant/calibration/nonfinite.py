"""Find the first call that makes NaN or infinity of finite values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from fxquant.calibration.observed import find_observers, nonfinite_tensors
from fxquant.capture.naming import find_regions, node_name
from fxquant.errors import CalibrationError
from fxquant.graph.operations import data_input, module_of
from fxquant.modules.own import as_own
from fxquant.streaming.running import interpreted


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


class _NonfiniteFinder(fx.Interpreter):
    """Run a graph node by node and add the nodes whose results are not finite to `found`."""

    def __init__(self, gm: fx.GraphModule, found: list[str]) -> None:
        super().__init__(gm)
        self._found = found

    def run_node(self, n: fx.Node) -> object:
        """Run one node; observers only hand on their input, or they would count it twice."""
        assert isinstance(self.module, fx.GraphModule)
        watched = data_input(n)
        if watched is not None and as_own(module_of(self.module, n)).watches:
            return self.env[watched]
        result = super().run_node(n)
        is_float = isinstance(result, Tensor) and result.is_floating_point()
        if is_float and not torch.isfinite(result).all():
            self._found.append(node_name(self.module, n))
        return result
