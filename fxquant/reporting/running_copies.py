"""What reports run are copies: a call may write to buffers, and observers would count it."""

from __future__ import annotations

from torch import nn

from fxquant.calibration.counted_call import stop_counting
from fxquant.calibration.first_calls import stop_comparing
from fxquant.calibration.input_keeper import stop_keeping_inputs
from fxquant.capture.naming import find_regions
from fxquant.modules.copies import copy_module
from fxquant.passes.convert.drop_observers import DropObservers


def copy_to_run(model: nn.Module) -> nn.Module:
    """Return a copy of a float or of any quantized model, in eval mode, that observes nothing."""
    copied = copy_module(model).eval()
    for gm in find_regions(copied).values():
        if DropObservers().run(gm):
            gm.recompile()
    stop_keeping_inputs(copied)
    stop_comparing(copied)
    stop_counting(copied)
    return copied
