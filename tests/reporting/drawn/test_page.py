"""What the page of a report draws."""

from pathlib import Path

import torch
from torch import nn

import fxquant
from fxquant.display.figures import Bars, Figure, Graph, Histogram, Shares
from fxquant.reporting.table import Report
from tests.helpers import needs_int8

BATCH = torch.randn(16, 3, 8, 8)


def network() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)]
    return nn.Sequential(*layers).eval()


def kinds(figures: list[Figure]) -> list[str]:
    return [type(figure).__name__ for figure in figures]


def one(result: Report, kind: type) -> Figure:
    (found,) = (figure for figure in result.figures() if isinstance(figure, kind))
    return found


def test_a_report_draws_weights_and_its_graph() -> None:
    result = fxquant.report(fxquant.quantize(network(), [BATCH], progress=False))
    assert kinds(result.figures()) == [
        "Tiles", "Shares", "Shares", "Bars", "Histogram", "Histogram", "Graph",
    ]  # fmt: skip
    graph = one(result, Graph)
    assert isinstance(graph, Graph)
    assert graph.before == ()


def test_beside_the_float_model_it_draws_activations_and_the_graph_before() -> None:
    model = network()
    quantized = fxquant.quantize(model, [BATCH], progress=False)
    batches = iter([BATCH, BATCH])
    result = fxquant.report(quantized, reference=model, batches=batches)
    sides = [each.side for each in result.figures() if isinstance(each, Histogram)]
    assert sides == ["weights", "weights", "inputs", "inputs"]
    graph = one(result, Graph)
    assert isinstance(graph, Graph)
    assert len(graph.before) == 7
    assert list(batches) == []


def test_chosen_rows_have_their_own_bars_and_histograms() -> None:
    result = fxquant.report(fxquant.quantize(network(), [BATCH], progress=False)).select("0")
    assert [each.name for each in result.figures() if isinstance(each, Histogram)] == ["0"]
    bars = one(result, Bars)
    assert isinstance(bars, Bars)
    assert [bar.name for bar in bars.bars] == ["0"]


def test_a_prepared_model_has_no_losses_yet(tmp_path: Path) -> None:
    result = fxquant.report(fxquant.prepare(network()))
    assert kinds(result.figures()) == ["Tiles", "Graph"]
    assert result.to_html(tmp_path / "page.html").exists()


@needs_int8
def test_a_lowered_model_says_what_runs_in_int8(tmp_path: Path) -> None:
    lowered = fxquant.lower(fxquant.quantize(network(), [BATCH], progress=False), BATCH)
    result = fxquant.report(lowered)
    multiply_adds = next(each for each in result.figures() if isinstance(each, Shares))
    assert multiply_adds.stacks[0].shares[0].label == "in int8"
    assert result.to_html(tmp_path / "page.html").exists()
