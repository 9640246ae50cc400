import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fxquant.display.page import Section, as_page
from fxquant.errors import FxquantError
from tests.display.page_example import NAMES, NASTY, Losses, example, figures, rows

VOID = {"meta", "link", "input", "wbr", "br"}
CLOSES_ITSELF = {"option"}


class Parsed(HTMLParser):
    """The elements of a page, and its text; raises where one is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID | CLOSES_ITSELF:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    return example().to_html(path, title=NASTY[0]).read_text(encoding="utf-8")


def test_what_is_opened_is_closed(page: str) -> None:
    assert Parsed(page).open == []


def test_names_and_notes_are_text_and_never_markup(page: str) -> None:
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.elements if tag in ("script", "img", "title")] == [
        "title", *["title"] * 2, "script",  # of the page, of two points
    ]  # fmt: skip
    for _, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")]
    text = "".join(parsed.texts)
    for name in NASTY:
        assert name in text


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    parsed = Parsed(page)
    links = [each["href"] for tag in ("a", "link") for each in parsed.all(tag) if "href" in each]
    assert {link[:1] for link in links} == {"#", "d"}
    assert [link for link in links if not link.startswith("#")] == ["data:,"]
    assert not [attributes for _, attributes in parsed.elements if "src" in attributes]
    for forbidden in ("url(", "@import", "http://", "https://"):
        assert forbidden not in page


def test_the_policy_lets_no_other_script_run(page: str) -> None:
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(each["content"] for each in Parsed(page).all("meta") if "http-equiv" in each)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy


def test_each_link_leads_to_one_place_on_the_page(page: str) -> None:
    parsed = Parsed(page)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {each["href"][1:] for each in parsed.all("a") if "href" in each}
    assert len(targets) == len(NAMES)
    assert targets <= set(ids)


def test_a_result_gives_the_same_page_each_time(tmp_path: Path) -> None:
    one, other = (example().to_html(tmp_path / name).read_bytes() for name in ("one", "other"))
    assert one == other


def test_a_part_stands_below_with_its_own_rows(page: str) -> None:
    parsed = Parsed(page)
    assert [each["aria-label"] for each in parsed.all("section")] == [NASTY[0], "Losses"]
    assert len(parsed.all("h1")) == 1
    ids = {each["id"] for each in parsed.all("tr") if "id" in each}
    assert {"r0-0", "r1-1"} <= ids


def test_a_page_is_short_without_tables_and_figures() -> None:
    parsed = Parsed(as_page([Section("Nothing", [], [])]))
    assert parsed.open == []
    assert parsed.all("table") == []


def test_a_thousand_rows_with_two_histograms_each_take_four_megabytes() -> None:
    names = [f"layer{number // 40}.{number % 40}.conv" for number in range(1000)]
    many = Losses(rows(names), figures(names))
    text = as_page([Section("Many", many.heads(), many.tables(), many.figures())])
    assert text.count("<tr id=") == 1000
    assert len(text) < 4_000_000


def test_the_path_is_returned_and_home_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert example().to_html("~/page.html") == tmp_path / "page.html"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert example().to_html(tmp_path / "page.html") == tmp_path / "page.html"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FxquantError) as caught:
        example().to_html(tmp_path)
    assert str(caught.value) == (
        f"Losses.to_html: {str(tmp_path)!r} is a folder: name a file, "
        f"{str(tmp_path / 'report.html')!r}"
    )


def test_a_missing_folder_is_said_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="make the folder first"):
        example().to_html(tmp_path / "missing" / "page.html")


def test_a_name_that_is_no_unicode_is_written_as_it_is_escaped(tmp_path: Path) -> None:
    path = Losses(rows(("a\ud800",))).to_html(tmp_path / "page.html")
    assert re.search(r"a\\ud800</th>", path.read_text(encoding="utf-8"))
