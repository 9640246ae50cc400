"""What the tests of hints share."""

from typing import Any

import pytest
from torch import nn

from fxquant import CalibrationError
from fxquant.calling.explanation import explained


def hint(model: nn.Module, x: Any) -> str:
    """Return what is said behind the error's own first line; "" if nothing is."""
    with pytest.raises(CalibrationError) as raised, explained("batch 0", x):
        model(x)
    first = str(raised.value.__cause__).partition("\n")[0]
    said = str(raised.value)
    return said[said.index(first[:100]) + len(first) :].removeprefix(": ") if first else said
