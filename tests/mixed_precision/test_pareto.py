"""The frontier lists the best allocations beside the uniform ones, as a table and a picture."""

import importlib.util
from pathlib import Path

import pytest

from fxquant.display.figures import Points
from fxquant.errors import RecipeError
from fxquant.mixed_precision.options import Option
from fxquant.mixed_precision.pareto import frontier
from fxquant.recipe.budget import Budget


def weights(name: str, scale: float, num_weights: int, *, fixed: bool = False) -> list[Option]:
    return [
        Option(
            name=name,
            side="weights",
            bits=bits,
            loss=scale * 4.0**-bits,
            num_weights=num_weights,
            fixed=fixed,
        )
        for bits in ((8,) if fixed else (2, 3, 4))
    ]


OPTIONS = [
    *weights("a", 64.0, 80),
    *weights("b", 1.0, 160),
    *weights("stem", 1.0, 8, fixed=True),
    Option(name="a", side="activations", bits=4, loss=0.5, readers=("a",)),
    Option(name="a", side="activations", bits=8, loss=0.25, readers=("a",)),
]


def test_even_steps_go_from_the_narrowest_weights_to_the_widest() -> None:
    mixed = frontier(OPTIONS, steps=4).mixed
    assert mixed[0].bytes == 80 * 2 // 8 + 160 * 2 // 8 + 8
    assert mixed[-1].bytes == 80 * 4 // 8 + 160 * 4 // 8 + 8
    assert [each.bytes for each in mixed] == sorted(each.bytes for each in mixed)


def test_more_bytes_never_lose_more_and_no_uniform_width_is_better() -> None:
    found = frontier(OPTIONS, steps=9)
    losses = [each.loss for each in found.mixed]
    assert losses == sorted(losses, reverse=True)
    for uniform in found.uniform.values():
        same = [each for each in found.mixed if each.bytes <= uniform.bytes]
        assert min(each.loss for each in same) <= uniform.loss


def test_uniform_widths_leave_what_is_fixed_and_take_the_best_activations() -> None:
    uniform = frontier(OPTIONS, steps=2).uniform
    assert list(uniform) == [2, 3, 4]
    assert uniform[3].bits == {
        "a": {"weights": 3, "activations": 8},
        "b": {"weights": 3},
        "stem": {"weights": 8},
    }


def test_budgets_of_the_callers_own_are_taken_as_they_are() -> None:
    budgets = [Budget(max_bytes=size) for size in (68, 88, 128)]
    assert [each.bytes for each in frontier(OPTIONS, budgets).mixed] == [68, 88, 128]


def test_prints_all_of_them_by_bytes() -> None:
    assert str(frontier(OPTIONS, [Budget(max_bytes=88)])) == (
        "the least loss within 68 to 128 bytes of weights\n"
        "\n"
        "weights      bits a weight    bytes    loss  layers × bits\n"
        "---------  ---------------  -------  ------  ---------------\n"
        "all 2                 2.19       68   4.313  2×2, 1×8\n"
        "mixed                 2.84       88  0.5625  1×2, 1×4, 1×8\n"
        "all 3                 3.16       98   1.266  2×3, 1×8\n"
        "all 4                 4.13      128  0.5039  2×4, 1×8"
    )


def test_each_allocation_is_one_row() -> None:
    found = frontier(OPTIONS, [Budget(max_bytes=size) for size in (88, 88, 89, 500)])
    assert [each.bytes for each in found.mixed] == [88, 128]
    assert [(name, each.bytes) for name, each in found.named()] == [
        ("all 2", 68),
        ("mixed", 88),
        ("all 3", 98),
        ("all 4", 128),
    ]


def test_writes_a_picture_without_a_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.delenv("DISPLAY", raising=False)
    frontier(OPTIONS, steps=3).plot(tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_one_step_is_refused() -> None:
    with pytest.raises(RecipeError, match="frontier: steps=1: give at least 2"):
        frontier(OPTIONS, steps=1)


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = frontier(OPTIONS, steps=2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"matplotlib is not installed: pip install fxquant\[plot\]"
    ):
        found.plot(tmp_path / "frontier.png")


def test_a_page_draws_loss_against_size(tmp_path: Path) -> None:
    found = frontier(OPTIONS, steps=3)
    (points,) = found.figures()
    assert isinstance(points, Points)
    assert len(points.points) == len(found.mixed) + len(found.uniform)
    assert [each.x for each in points.points] == sorted(each.x for each in points.points)
    assert found.to_html(tmp_path / "frontier.html").exists()
