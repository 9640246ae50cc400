"""Inside of a run a warning is said once; what is no warning, as often as it comes."""

import logging

import pytest

from fxquant.streaming.said_once import said_once

LOGGER = logging.getLogger("fxquant")


def test_a_warning_is_said_once_in_a_run_and_again_in_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        with said_once():
            for number in (1, 1, 2):
                with said_once():
                    LOGGER.warning("batch %d", number)
    assert caplog.messages == ["batch 1", "batch 2"] * 2
    assert not LOGGER.filters


def test_information_comes_as_often_as_it_is_given(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fxquant"), said_once():
        LOGGER.info("changed")
        LOGGER.info("changed")
    assert caplog.messages == ["changed"] * 2


def test_an_error_ends_it() -> None:
    with pytest.raises(KeyError), said_once():
        raise KeyError
    assert not LOGGER.filters
