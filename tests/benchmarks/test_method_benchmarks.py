"""The benchmarks of methods: networks compute the same, runs are kept, tables are right."""

from pathlib import Path

import pytest
import torch

from benchmarks import digits, methods
from benchmarks.judging.comparison import Result
from benchmarks.methods import METHODS, MIXED, UNIFORM, Cell, cells, read, recipe_of, tables, write
from benchmarks.networks.cifar_resnet import CifarResNet
from benchmarks.ranges.equalization import recipes, with_wild_channels
from tests.helpers import randomize_batchnorms, relative_error


@pytest.mark.parametrize("network", ["digits", "cifar"])
def test_wild_channels_leave_the_network_as_it_is_and_are_wild(network: str) -> None:
    torch.manual_seed(0)
    model = (digits.DigitsNet() if network == "digits" else CifarResNet()).eval()
    randomize_batchnorms(model)
    wild = with_wild_channels(model, 5.0)
    x = torch.randn(4, 1, 8, 8) if network == "digits" else torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(wild(x), model(x)) < 1e-3
    scales = [
        (before / after).abs()
        for (name, before), after in zip(
            model.state_dict().items(), wild.state_dict().values(), strict=True
        )
        if name.endswith("bn1.weight") and "." in name.removesuffix("bn1.weight")
    ]
    assert torch.cat(scales).max() / torch.cat(scales).min() > 500


def test_equalization_is_compared_with_what_goes_without() -> None:
    assert [recipe.equalization for _, _, recipe in recipes()] == [False, True, False, True]


def test_every_method_makes_a_recipe_for_every_column() -> None:
    for column in (*UNIFORM, *MIXED):
        for method in METHODS:
            if "per channel" in method and (column in MIXED or UNIFORM[column][1] is None):
                continue
            recipe = recipe_of(Cell(column, method, 1))
            assert (recipe.budget is not None) == (column in MIXED)
            if column in UNIFORM:
                assert recipe.weights is not None
                assert recipe.weights.bits == UNIFORM[column][0]
            if recipe.reconstruction is not None:
                assert recipe.reconstruction.seed == 1


def test_what_draws_nothing_runs_once() -> None:
    found = list(cells(["ACIQ", "AdaRound", "ACIQ, per channel"], ["4/4", "3/32"], 3))
    count = {method: sum(cell.method == method for cell in found) for method in METHODS}
    assert count["ACIQ"] == 2
    assert count["AdaRound"] == 6
    assert count["ACIQ, per channel"] == 1  # activations are in float at 3/32


def result(method: str, top1: float) -> Result:
    return Result("4/4", method, top1, 95.0, 12.3, 1000, 2.0)


def test_the_tables_take_seeds_together() -> None:
    text = tables(
        [result("AdaRound", 90.0), result("AdaRound", 92.0), result("ACIQ", 88.0)], ["4/4"]
    )
    lines = [line.split() for line in text.splitlines()]
    assert ["AdaRound", "91.0", "±", "1.4"] in lines
    assert ["ACIQ", "88.0"] in lines
    assert ["AdaRound", "12.3"] in lines
    assert ["seconds", "4/4"] in lines


def test_runs_are_kept_and_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kept.json"
    done = {Cell("4/4", "ACIQ", 0): result("ACIQ", 88.0)}
    write(path, done)
    assert read(path) == done
    assert read(tmp_path / "none.json") == {}
    monkeypatch.setattr(methods, "keep_memory", lambda: None)  # it would start pytest anew
    monkeypatch.setattr("benchmarks.digits.trained_model", lambda *_: digits.DigitsNet().eval())
    monkeypatch.setattr(
        "sys.argv",
        ["methods", "digits", "--columns", "4/4", "--methods", "ACIQ", "nearest, min-max",
         "--calibration", "64", "--results", str(path)],
    )  # fmt: skip
    methods.main()
    assert read(path)[Cell("4/4", "ACIQ", 0)].top1 == 88.0
    assert Cell("4/4", "nearest, min-max", 0) in read(path)
    assert "88.0" in capsys.readouterr().out
