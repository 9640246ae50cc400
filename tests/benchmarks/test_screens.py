"""The pictures of what users see."""

from pathlib import Path

import pytest

from benchmarks.judging import screens
from benchmarks.running.browser import Browser, why_no_browser
from tests.display.page_example import example


def test_text_is_as_wide_as_the_terminal() -> None:
    for columns in (80, 120):
        longest = max(map(len, screens.text_at(example().select("conv1"), columns).splitlines()))
        assert longest <= columns


@pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))
def test_each_picture_is_taken(tmp_path: Path) -> None:
    browser = Browser()
    try:
        taken = screens.take_pictures(example(), tmp_path, browser)
    finally:
        browser.close()
    assert [path.name for path in taken] == [
        "terminal-80.png", "terminal-120.png", "page-400-light.png", "page-400-dark.png",
        "page-1600-light.png", "page-1600-dark.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in taken)
