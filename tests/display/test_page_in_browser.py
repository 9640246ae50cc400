"""A page does in a browser what it is for; without Chromium and selenium these are skipped."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.running.browser import Browser, why_no_browser
from fxquant.display.page import Section, as_page
from tests.display.page_example import NAMES, Losses, example, figures, rows

pytestmark = pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))
CONTRAST = """
const light = (color) => {
  const parts = color.match(/[\\d.]+/g).map(Number);
  const [r, g, b] = parts.slice(0, 3).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const color = getComputedStyle(each).backgroundColor;
    if (!/, 0\\)$|transparent/.test(color)) return color;
  }
  return "rgb(255, 255, 255)";
};
const found = [];
for (const element of document.querySelectorAll("main *:not(option)")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility({ visibilityProperty: true })) continue;
  const style = getComputedStyle(element);
  const is_drawn = element.closest("svg") !== null;
  const front = light(is_drawn ? style.fill : style.color);
  const chosen = element.closest(".chosen") !== null && is_drawn;
  const back = light(chosen ? getComputedStyle(element.previousSibling).fill : behind(element));
  const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
  if (ratio < 4.5) found.push(`${element.tagName}.${element.getAttribute("class")}: ${ratio}`);
}
return [...new Set(found)];
"""
CUT_OFF = """
const found = [];
for (const element of document.querySelectorAll("main *")) {
  const scrolls = element.parentElement.closest(".scroll");
  const box = element.getBoundingClientRect();
  if (!scrolls && box.width && (box.right > innerWidth + 0.5 || box.left < -0.5)) {
    found.push(`${element.tagName}.${element.className} ${box.left} to ${box.right}`);
  }
}
return found;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example().to_html(tmp_path_factory.mktemp("page") / "page.html")


def shown(browser: Browser) -> list[str]:
    script = """
    const rows = [...document.querySelectorAll("#r0t0 tbody tr")];
    return rows.filter((row) => row.offsetHeight).map((row) => row.cells[0].textContent);
    """
    return list(browser.run(script))


def order(browser: Browser) -> list[int]:
    return [NAMES.index(name) for name in shown(browser)]


def sorting(browser: Browser) -> list[str]:
    headings = browser.all("#r0t0 thead th")
    return [str(each.get_attribute("aria-sort")) for each in headings]


def test_a_heading_sorts_up_then_down_then_back_and_leaves_what_is_empty_below(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    decibels = browser.all("#r0t0 thead button")[3]
    decibels.click()
    assert order(browser) == [1, 7, 4, 0, 2, 5, 3, 6]
    assert sorting(browser) == ["none", "none", "none", "ascending", "none"]
    decibels.click()
    assert order(browser) == [5, 2, 0, 4, 7, 1, 3, 6]
    assert sorting(browser)[3] == "descending"
    decibels.click()
    assert order(browser) == list(range(8))
    assert sorting(browser) == ["none"] * 5


def test_the_keyboard_sorts_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.all("#r0t0 thead button")[0].send_keys("\ue007")
    assert sorting(browser)[0] == "ascending"
    assert order(browser)[-3:] == [7, 1, 2]  # fc, layer1.0.conv, layer1.1.conv


def test_words_and_a_kind_choose_rows(browser: Browser, page: Path) -> None:
    browser.open(page)
    box = browser.all("input[type=search]")[0]
    box.send_keys("LAYER1 conv")
    assert order(browser) == [1, 2]
    said = browser.all("output")[0]
    assert said.text == "2 of 8 rows"
    box.clear()
    browser.run("arguments[0].dispatchEvent(new Event('input'))", box)
    browser.all("select option[value=Linear]")[0].click()
    assert order(browser) == [3, 4, 7]
    box.send_keys("nothing")
    assert order(browser) == []
    assert said.text == "0 of 8 rows"


def test_what_is_usual_can_still_be_filtered_by(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.all("input[type=search]")[0].send_keys("8 bits")
    assert order(browser) == [1]


def test_a_link_to_a_row_that_is_filtered_away_brings_it_back(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.all("input[type=search]")[0].send_keys("fc")
    browser.all(".col")[2].click()
    assert order(browser) == list(range(8))
    assert browser.run("return document.querySelector('tr:target').id") == "r0-2"


def test_a_bar_shows_its_values_and_the_histograms_of_its_row(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelectorAll('.col')[2].focus()")
    tip = browser.all("#tip")[0]
    assert tip.text.splitlines()[0] == NAMES[2]
    assert "weights 3.0 %" in tip.text
    assert len(tip.find_elements("css selector", "svg")) == 2
    browser.driver.switch_to.active_element.send_keys("\ue014")  # the right arrow
    assert tip.text.splitlines()[0] == NAMES[3]
    browser.driver.switch_to.active_element.send_keys("\ue00c")  # escape
    assert not tip.is_displayed()


def test_a_row_shows_its_histograms_where_the_pointer_is(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser.open(page)
    name = browser.all("#r0t0 tbody th")[0]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", name)
    time.sleep(0.1)  # until the browser has told of the scrolling, which hides what is shown
    ActionChains(browser.driver).move_to_element(name).perform()
    tip = browser.all("#tip")[0]
    assert tip.is_displayed()
    assert len(tip.find_elements("css selector", "svg")) == 2


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_cut_off_and_all_can_be_read(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width, dark=dark)
    sizes = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert sizes[0] <= sizes[1] == width
    assert browser.run(CUT_OFF) == []
    assert browser.run(CONTRAST) == []
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark
    assert browser.errors() == []
    assert browser.run("return window.broken === undefined")


@pytest.mark.parametrize("width", [400, 1600])
def test_without_javascript_all_rows_are_there(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, javascript=False)
    controls = browser.all(".controls")
    assert [each.is_displayed() for each in controls] == [False] * len(controls)
    rows_shown = browser.all("#r0t0 tbody tr")
    assert [each.is_displayed() for each in rows_shown] == [True] * len(NAMES)
    assert [each.text for each in browser.all("#r0t0 tbody th")][:3] == list(NAMES[:3])
    assert all(each.is_displayed() for each in browser.all(".hist svg, .pair code"))


def test_on_paper_no_box_scrolls_and_what_is_folded_up_is_open(
    browser: Browser, page: Path
) -> None:
    browser.open(page, 800)
    browser.run("for (const each of document.querySelectorAll('details')) each.open = false")
    browser.command("Emulation.setEmulatedMedia", media="print")
    script = """
    return [...document.querySelectorAll(".scroll")].map((each) => getComputedStyle(each).overflow)
    """
    assert set(browser.run(script)) == {"visible"}
    assert all(each.size["height"] > 10 for each in browser.all(".hist svg"))
    assert not browser.all(".controls")[0].is_displayed()


def test_a_thousand_rows_are_sorted_in_a_second(browser: Browser, tmp_path: Path) -> None:
    names = [f"layer{number // 40}.{number % 40}.conv" for number in range(1000)]
    many = Losses(rows(names), figures(names))
    path = tmp_path / "many.html"
    text = as_page([Section("Many", many.heads(), many.tables(), many.figures())])
    path.write_text(text, encoding="utf-8")
    browser.open(path, 400)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    begin = time.perf_counter()
    browser.run(
        "document.querySelectorAll('#r0t0 thead button')[3].click(); document.body.offsetTop"
    )
    assert time.perf_counter() - begin < 1
    assert browser.run("return document.querySelector('#r0t0 tbody tr').cells[0].textContent") == (
        "layer0.1.conv"
    )
