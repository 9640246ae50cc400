"""The guides run, print what they show, and name what is there."""

import difflib
import functools
import inspect
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from torch import nn

import fxquant
from fxquant import Recipe, Rule
from fxquant.recipe.options import LearningOptions, MixedOptions, RecipeOptions

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from tests.guides.execute import GUIDES, as_text, executed, printed  # noqa: E402

NOTEBOOKS = sorted(GUIDES.glob("*.ipynb"))
COMING_FROM = (GUIDES / "coming_from.md").read_text()
_ALIKE = 0.7  # of the lines of a cell's output: which layers are the weakest differs by machine

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@functools.cache
def run_again(path: Path) -> Any:
    return executed(path)


def words(text: str) -> list[str]:
    """Return the lines of a text, numbers, rulers and the width of columns aside."""
    lines = re.sub(r"[+-]?\d[\d.,]*", "#", text).replace("-", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_and_prints_what_it_shows(path: Path) -> None:
    shown, again = code_cells(nbformat.read(path, as_version=4)), code_cells(run_again(path))
    for before, after in zip(shown, again, strict=True):
        expected, actual = words(printed(before)), words(printed(after))
        alike = difflib.SequenceMatcher(None, expected, actual, autojunk=False).ratio()
        assert alike >= _ALIKE, f"{before.source}\n{printed(after)}"


@pytest.mark.slow
@each_notebook
def test_a_notebook_warns_of_nothing(path: Path) -> None:
    for cell in code_cells(run_again(path)):
        assert [each.text for each in cell.outputs if each.get("name") == "stderr"] == []


@each_notebook
def test_a_notebook_was_run_from_top_to_bottom(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_a_notebook_shows_text_alone_and_no_place_on_a_disk(path: Path) -> None:
    assert path.stat().st_size < 60_000
    for cell in code_cells(nbformat.read(path, as_version=4)):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert set(output.get("data", {"text/plain": ""})) == {"text/plain"}
        assert re.findall(r"/(?:tmp|home|root|usr|work)/|\bWarning\b", printed(cell)) == []


@each_notebook
def test_a_notebook_says_first_what_there_is_at_the_end(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .*\n\nAt the end you ", first.source)


def test_the_readme_lists_each_guide() -> None:
    linked = re.findall(r"\]\((\w+\.\w+)\)", (GUIDES / "README.md").read_text())
    there = [path.name for path in GUIDES.iterdir() if path.suffix in (".ipynb", ".md")]
    assert sorted(linked) == sorted(set(there) - {"README.md"})


@each_notebook
def test_links_lead_somewhere(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#:]+)\)", cell.source):
                assert (GUIDES / target).exists(), target


def test_what_a_cell_shows_is_kept_as_text() -> None:
    data = {"text/plain": "Report", "text/html": "<table>"}
    output = nbformat.v4.new_output("execute_result", data, execution_count=1)
    as_text(output)
    assert output.data == {"text/plain": "Report"}
    nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])]))


def ours() -> list[str]:
    """Return the code of the right-hand column of the table of calls."""
    rows = re.findall(r"^\| (?!there|---)(.*) \|$", COMING_FROM, re.MULTILINE)
    cells = [row.split(" | ", 1)[1] for row in rows]
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def test_each_call_of_the_table_is_one() -> None:
    names = {name for code in ours() for name in re.findall(r"(?<![\w.])(\w+)\(", code)}
    assert len(names) > 10
    assert names - set(fxquant.__all__) == set()
    makers = {name for code in ours() for name in re.findall(r"Recipe\.(\w+)", code)}
    assert all(hasattr(Recipe, name) for name in makers)


def test_each_option_of_the_table_is_one() -> None:
    options = {name for code in ours() for name in re.findall(r"(\w+)=", code)}
    known = {"skip", "rules", "weight_bits", "activation_bits", "weights"}
    for kind in (RecipeOptions, LearningOptions, MixedOptions):
        known |= get_type_hints(kind).keys()
    for call in (fxquant.prepare, fxquant.quantize, fxquant.report, fxquant.search):
        known |= inspect.signature(call).parameters.keys()
    assert options - known == set()


def test_each_recipe_of_the_table_is_made() -> None:
    whole = [re.search(r"Recipe\.\w+\((?:[^().]|\.\w)*\)", code) for code in ours()]
    recipes = [match[0] for match in whole if match]
    assert len(recipes) > 5
    for code in recipes:
        assert isinstance(eval(code, {"Recipe": Recipe, "Rule": Rule, "nn": nn}), Recipe)
