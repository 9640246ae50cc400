"""PyTorch's own messages are dropped, those of others are not."""

import logging
import sys
import warnings

import pytest
import torch
from torch import fx

from fxquant.deploy.quiet import quiet_exporter


def test_drops_what_pytorch_prints(capfd: pytest.CaptureFixture[str]) -> None:
    gm = fx.symbolic_trace(lambda x: x + torch.ones(2))
    with quiet_exporter(), pytest.raises(RuntimeError):
        gm(torch.ones(3))  # PyTorch prints the line that fails
    assert capfd.readouterr() == ("", "")
    with quiet_exporter():
        print("mine", file=sys.stderr)
    assert capfd.readouterr().err == "mine\n"


def test_drops_what_pytorch_logs(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with quiet_exporter():
            logger.warning("inside")
            logging.getLogger("mine").warning("by me")
        logger.warning("after")
    finally:
        logger.removeHandler(handler)
    assert "inside" not in capfd.readouterr().err
    assert handler.filters == []


def test_drops_warnings_only_where_that_is_asked_for() -> None:
    with quiet_exporter(keep_warnings=False):
        warnings.warn("dropped", UserWarning, stacklevel=1)
    with quiet_exporter(), pytest.warns(UserWarning, match="kept"):
        warnings.warn("kept", UserWarning, stacklevel=1)
