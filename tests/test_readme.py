"""What the READMEs show is what happens, and what they name is there."""

import contextlib
import functools
import inspect
import io
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import fxquant

ROOT = Path(__file__).parents[1]


def find_readmes() -> list[Path]:
    """Return every README.md of the repository, but those in hidden folders and environments."""
    found = []
    for folder, inner, files in os.walk(ROOT):
        inner[:] = [each for each in inner if each[0] not in "._" and each != "build"]
        found += [Path(folder, each) for each in files if each == "README.md"]
    return sorted(found)


READMES = find_readmes()
WINGS = [
    path.parent
    for path in READMES
    if path.is_relative_to(ROOT / "fxquant") or path.is_relative_to(ROOT / "passes")
]


@dataclass
class Block:
    """A fenced block of Python, and what it prints, where the README says so."""

    heading: str
    code: str
    first_line: int
    printed: str | None = None


def blocks_of(readme: Path) -> Iterator[Block]:
    """Yield a README's blocks of Python in order."""
    text = readme.read_text()
    fence = re.compile(r"(<!-- prints -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    found = list(fence.finditer(text))
    for number, match in enumerate(found):
        marked, language, code = match.groups()
        if language != "python":
            continue
        headings = re.findall(r"^#+ (.*)$", fence.sub("", text[: match.start()]), re.MULTILINE)
        shown = found[number + 1] if marked else None
        assert shown is None or shown[2] in ("", "text"), f"{readme}: nothing is shown as printed"
        first_line = text[: match.start(3)].count("\n")
        yield Block(headings[-1], code, first_line, None if shown is None else shown[3])


BLOCKS = {readme: list(blocks_of(readme)) for readme in READMES}
CASES = [
    pytest.param(
        readme, number, id=f"{readme.relative_to(ROOT)}: {block.heading.replace('::', ':')}"
    )
    for readme, blocks in BLOCKS.items()
    for number, block in enumerate(blocks)
]


def stand_ins() -> dict[str, Any]:
    """Return what blocks may use without making it themselves: small models and drawn data."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)]
    model = nn.Sequential(*layers)
    loader = [torch.randn(16, 3, 8, 8) for _ in range(8)]
    prepared = fxquant.prepare(model)
    fxquant.calibrate(prepared, loader)
    names = {"model": model, "loader": loader, "prepared": prepared}
    return names | {"torch": torch, "nn": nn, "fxquant": fxquant}


def draw_photos(folder: Path) -> None:
    """Write JPEGs in one folder a class, as torchvision's `ImageFolder` reads them."""
    noise = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            pixels = noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")


def drawn_weights(url: str, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Return new weights for the file `…/resnet18-f37072fd.pth`, in place of a download."""
    name = url.rpartition("/")[2].partition("-")[0]
    architecture = name if name in torchvision.models.list_models() else name.rpartition("_")[0]
    build = torchvision.models.get_model_builder(architecture)
    has_backbone = "weights_backbone" in inspect.signature(build).parameters
    made = build(weights=None, **({"weights_backbone": None} if has_backbone else {}))
    return dict(made.state_dict())


def run(block: Block, readme: Path, names: dict[str, Any]) -> str:
    """Run a block, and the tests that it defines; return what it printed."""
    before, printed = dict(names), io.StringIO()
    code = compile("\n" * block.first_line + block.code, str(readme), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, names)
        for name, value in list(names.items()):
            if name.startswith("test_") and before.get(name) is not value:
                value()
    return printed.getvalue()


def without_numbers(text: str) -> str:
    """Return a text with # for each number."""
    return re.sub(r"\d+\.?\d*", "#", text)


@functools.cache
def outcomes(readme: Path) -> list[str | Exception]:
    """Run a README's blocks in order, up to the first that fails; return what each printed."""
    found: list[str | Exception] = []
    names = stand_ins()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        draw_photos(Path(folder, "photos"))
        patch.chdir(folder)
        patch.setattr("torchvision.models._api.load_state_dict_from_url", drawn_weights)
        for block in BLOCKS[readme]:
            try:
                found.append(run(block, readme, names))
            except Exception as error:
                found.append(error)
                break
    return found


@pytest.mark.parametrize(("readme", "number"), CASES)
def test_a_block_runs_behind_those_before_it(readme: Path, number: int) -> None:
    found, shown = outcomes(readme), BLOCKS[readme][number].printed
    assert number < len(found), "a block before it fails"
    printed = found[number]
    if isinstance(printed, Exception):
        raise printed
    if shown is not None:
        assert without_numbers(printed) == without_numbers(shown)


def test_every_command_names_a_script_that_exists() -> None:
    commands = {
        name
        for readme in READMES
        for name in re.findall(r"-m\s+(benchmarks(?:\.\w+)+)", readme.read_text())
    }
    assert len(commands) > 5
    for name in commands:
        assert ROOT.joinpath(*name.split(".")).with_suffix(".py").exists(), name


@pytest.mark.parametrize("wing", WINGS, ids=lambda wing: str(wing.relative_to(ROOT)))
def test_a_wings_readme_names_each_of_its_files(wing: Path) -> None:
    text = (wing / "README.md").read_text()
    rooms = [path.name for path in wing.glob("*.py") if path.stem != "__init__"]
    assert [name for name in sorted(rooms) if name not in text] == []
