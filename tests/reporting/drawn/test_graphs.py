"""What became of each node, as a page shows it."""

import torch
from torch import nn

import fxquant
from fxquant import Recipe
from fxquant.display.figures import Graph, Line, Note
from fxquant.reporting.drawn.graphs import drawn_graphs
from fxquant.reporting.float_form import captured_form
from tests.helpers import Net


def lines(graph: Graph, side: str = "after") -> dict[str, Line]:
    return {line.name: line for line in getattr(graph, side)}


def quantized(model: nn.Module) -> tuple[nn.Module, Graph]:
    batch = torch.randn(4, 3, 8, 8)
    converted = fxquant.quantize(model, [batch], Recipe.minmax(), progress=False)
    (graph,) = drawn_graphs(converted, captured_form(model, converted, batch, None))
    return converted, graph


def network() -> Net:
    parts = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "relu": nn.ReLU()}
    return Net(lambda m, x: m.relu(m.bn(m.conv(x))), **parts).eval()


def test_both_ends_of_a_fold_and_of_a_fusion_say_so() -> None:
    _, graph = quantized(network())
    assert lines(graph)["conv"].notes == (
        Note("folded", "folded bn"),
        Note("fused", "fused relu"),
    )
    assert lines(graph)["relu"].notes == (Note("fused", "fused into conv"),)
    assert lines(graph, "before")["bn"].notes == (Note("folded", "folded into conv"),)
    assert graph.note == "5 nodes before, 5 after; 1 folded, 1 fused, 1 added"


def test_a_call_of_the_report_leads_to_its_row() -> None:
    converted, graph = quantized(network())
    rows = {row.name for row in fxquant.report(converted).rows}
    assert {line.row for line in graph.after} == rows | {""} == {"conv", ""}


def test_the_statement_names_the_module() -> None:
    _, graph = quantized(network())
    assert lines(graph, "before")["conv"].text == "conv = self.conv(x)  # Conv2d"
    assert lines(graph)["conv"].text.endswith("# QuantizedConv2d 8 bits minmax")


def test_what_was_refused_says_why() -> None:
    parts = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)}
    _, graph = quantized(Net(lambda m, x: m.bn(y := m.conv(x)) + y, **parts).eval())
    assert Note("refused", "not folded: conv also feeds add") in lines(graph)["bn"].notes
    assert "1 refused" in graph.note


def test_what_the_recipe_leaves_in_float_says_so() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    recipe = Recipe.minmax(rules=[fxquant.Rule("1", skip=True)])
    quantized_model = fxquant.quantize(model, [torch.randn(4, 8)], recipe, progress=False)
    (graph,) = drawn_graphs(quantized_model)
    assert lines(graph)["_1"].notes == (Note("left", "left in float by the recipe"),)
    assert graph.before == ()


def test_what_is_gone_for_another_reason_was_taken_out() -> None:
    parts = {"fc": nn.Linear(8, 4), "drop": nn.Dropout()}
    _, graph = quantized(Net(lambda m, x: m.drop(m.fc(x)), **parts).eval())
    gone = lines(graph, "before").keys() - lines(graph).keys()
    assert all(
        lines(graph, "before")[name].notes == (Note("removed", "taken out"),) for name in gone
    )


def test_regions_have_a_graph_each_and_folds_are_found_in_them() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.stem(x)
            return self.head(y) if float(y.mean()) < 1e9 else y

    batch = torch.randn(4, 3, 8, 8)
    model = Branches().eval()
    converted = fxquant.quantize(model, [batch], Recipe.minmax(), progress=False)
    graphs = drawn_graphs(converted, captured_form(model, converted, batch, None))
    assert [graph.title for graph in graphs] == ["Graph of stem", "Graph of head"]
    assert lines(graphs[0], "before")["_1"].notes == (Note("folded", "folded into _0"),)
