"""What cannot be traced whole is captured in parts, and says of every other part why not."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import CaptureError
from fxquant.capture.naming import Untraced, find_regions
from fxquant.capture.partition import capture
from fxquant.capture.region import Region, make_region
from fxquant.capture.tracer import trace_graph
from tests.helpers import Net, randomize_batchnorms


def conv_bn(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Loops(nn.Module):
    """A head that calls its layers in a loop over a list."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = conv_bn(4, 4)
        self.scores, self.boxes = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 8, 1)

    def forward(self, features: list[Tensor]) -> list[Any]:
        results = []
        for each in features:
            y = self.tower(each)
            results.append((self.scores(y), self.boxes(y)))
        return results


class Detector(nn.Module):
    """Has as many levels as the size of its input allows."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = conv_bn(3, 4), Loops()

    def forward(self, x: Tensor) -> Any:
        features = [self.backbone(x)]
        while features[-1].shape[2] > 4:
            features.append(features[-1][:, :, ::2, ::2])
        return self.head(features)


class Branches(nn.Module):
    """Branches on the shape of its input before it calls `body`, a submodule that is tried."""

    def __init__(self, body: nn.Module, function: Callable[[Any, Any], Any] | None = None) -> None:
        super().__init__()
        self.body = body
        self.function = function

    def forward(self, x: Tensor) -> Any:
        if x.shape[0] > 100:
            x = x[:100]
        return self.body(x) if self.function is None else self.function(self.body, x)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOOP = "a loop over tensors"
BRANCH = "a branch on a tensor or its shape"


def at(line: str) -> str:
    """Return `line` as a reason shows it: with this file's name, and its number."""
    path = Path(__file__)
    return f"({path.name}:{path.read_text().splitlines().index(line) + 1}: {line.strip()})"


LOOP_AT = at("        for each in features:")
WHILE_AT = at("        while features[-1].shape[2] > 4:")
BRANCH_AT = at("        if x.shape[0] > 100:")


def kinds(model: nn.Module) -> dict[str, str]:
    """Return the regions of a model: their types by name."""
    return {path: type(region).__name__ for path, region in find_regions(model).items()}


def run(model: nn.Module, x: Any = X) -> Any:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def failure(model: nn.Module, **options: Any) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(model, **options)
    return str(caught.value)


class Looped(nn.Module):
    """`Loops` without a model around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.loops = nn.Conv2d(3, 4, 1), Loops()

    def forward(self, x: Tensor) -> Any:
        return self.loops([self.stem(x)])


def test_a_loop_leaves_the_parts_that_can_be_traced() -> None:
    model = Detector()
    captured = capture(model)
    assert kinds(captured.model) == {
        "backbone": "Sequential",
        "head.tower": "Sequential",
        "head.scores": "Conv2d",
        "head.boxes": "Conv2d",
    }
    assert captured.untraced == (
        Untraced("", "Detector", f"{BRANCH} {WHILE_AT}"),
        Untraced("head", "Loops", f"{LOOP} {LOOP_AT}; layers in it that stand alone: 2"),
    )
    assert_same(run(captured.model), run(model))


def test_what_can_be_traced_with_its_loop_is_one_region() -> None:
    model = Branches(Looped())
    captured = capture(model)
    assert kinds(captured.model) == {"body": "Looped"}
    assert captured.untraced == (Untraced("", "Branches", f"{BRANCH} {BRANCH_AT}"),)
    assert_same(run(captured.model), run(model))


def test_a_model_that_can_be_traced_stays_one_graph() -> None:
    model = Looped()
    captured = capture(model)
    assert isinstance(captured.model, fx.GraphModule)
    assert not isinstance(captured.model, Region)
    assert captured.untraced == ()
    assert not any(isinstance(module, Region) for module in captured.model.modules())
    assert_same(run(captured.model), run(model))


def test_a_graph_module_is_copied() -> None:
    gm = fxquant.trace(Looped())
    captured = capture(gm).model
    assert isinstance(captured, fx.GraphModule)
    assert fxquant.text(captured) == fxquant.text(gm)
    assert captured.get_parameter("stem.weight") is not gm.get_parameter("stem.weight")


def state_of(model: nn.Module) -> list[Any]:
    return [
        (name, type(module), module.training, set(vars(module)), list(module._modules.items()))
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("options", [{}, {"regions": ["head.tower"]}], ids=["all", "chosen"])
def test_the_callers_model_stays_as_it_was(options: dict[str, Any]) -> None:
    model = Detector().train()
    randomize_batchnorms(model)
    before, tensors = state_of(model), copy.deepcopy(model.state_dict())
    captured = capture(model, **options).model
    assert state_of(model) == before
    assert_same(dict(model.state_dict()), dict(tensors))
    assert not any(module.training for module in captured.modules())
    own = {id(parameter) for parameter in model.parameters()}
    assert not any(id(parameter) in own for parameter in captured.parameters())


def test_a_module_under_two_names_becomes_one_region() -> None:
    model = Branches(Loops())
    model.twin = model.body.tower
    captured = capture(model).model
    assert isinstance(captured.twin, Region)
    assert captured.twin is captured.get_submodule("body.tower")
    assert kinds(captured)["body.tower"] == "Sequential"
    assert len(kinds(captured)) == 3


def test_what_is_inside_a_container_of_two_names_becomes_one_region() -> None:
    layers = nn.ModuleList([nn.Conv2d(3, 3, 1), conv_bn(3, 3)])
    model = Branches(layers, lambda layers, x: layers[1](layers[0](x)))
    model.twin = layers
    captured = capture(model)
    assert kinds(captured.model) == {"body.0": "Conv2d", "body.1": "Sequential"}
    assert captured.model.get_submodule("twin.1") is captured.model.get_submodule("body.1")
    assert_same(run(captured.model), run(model))


@pytest.mark.parametrize(
    ("container", "name"),
    [(nn.ModuleList([conv_bn(3, 3)]), 0), (nn.ModuleDict({"only": conv_bn(3, 3)}), "only")],
    ids=["list", "dict"],
)
def test_containers_hold_regions_and_are_not_listed(container: nn.Module, name: Any) -> None:
    model = Branches(container, lambda body, x: body[name](x))
    captured = capture(model)
    assert kinds(captured.model) == {f"body.{name}": "Sequential"}
    assert [each.path for each in captured.untraced] == [""]
    assert_same(run(captured.model), run(model))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_module("first", None)
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None, double: bool = False) -> Any:
        y = self.conv(x) if mask is None else self.conv(x) * mask
        return y * 2 if double else y


def test_submodules_that_are_none_and_arguments_left_at_their_defaults() -> None:
    model = Branches(Optional())
    captured = capture(model).model
    assert kinds(captured) == {"body": "Optional"}
    assert "first" in captured.get_submodule("body")._modules
    assert_same(run(captured), run(model))


class Inside(nn.Module):
    """A module with layers of several kinds, all of them called from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.lstm, self.attention = nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)
        self.plain = Net(lambda m, x: x * 2)

    def forward(self, x: Tensor) -> Any:
        y = self.plain(self.relu(self.bn(self.conv(x))))
        if y.shape[0] > 100:
            y = y[:100]
        z, _ = self.lstm(y.flatten(2).mean(2)[None])
        return self.attention(z, z, z)[0]


def test_what_stays_in_python_is_listed_with_its_reason() -> None:
    model = Inside()
    captured = capture(model)
    assert kinds(captured.model) == {"conv": "Conv2d"}
    line = at("        if y.shape[0] > 100:")
    assert captured.untraced == (
        Untraced("", "Inside", f"{BRANCH} {line}; layers in it that stand alone: 1"),
        Untraced("bn", "BatchNorm2d", "called from Python: not folded"),
        Untraced("lstm", "LSTM", "LSTM is called as a whole"),
        Untraced("attention", "MultiheadAttention", "MultiheadAttention is called as a whole"),
        Untraced("plain", "Net", "nothing in it to quantize"),
    )
    assert type(captured.model.bn) is nn.BatchNorm2d
    assert_same(run(captured.model), run(model))


class Functional(nn.Module):
    """A layer whose weight is a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.weight))


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 0, 1, 0)))


class Adapted(nn.Conv2d):
    """A layer with a forward of its own, and another layer inside."""

    def __init__(self) -> None:
        super().__init__(3, 4, 1)
        self.extra = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.extra(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "body", [Functional(), Padded(3, 4, 3), Adapted()], ids=lambda body: type(body).__name__
)
def test_layers_written_as_functions_are_found(body: nn.Module) -> None:
    model = Branches(body)
    captured = capture(model)
    assert kinds(captured.model) == {"body": type(body).__name__}
    assert_same(run(captured.model), run(model))


@pytest.mark.parametrize("leaf", ["backbone", "*.tower", nn.Sequential], ids=str)
def test_a_leaf_module_stays_as_it_is_by_name_and_by_type(leaf: Any) -> None:
    model = Detector()
    captured = capture(model, leaf_modules=[leaf])
    leaves = {"backbone": ["backbone"], "*.tower": ["head.tower"]}
    paths = leaves.get(leaf, ["backbone", "head.tower"])
    reason = "a leaf module, as asked for"
    assert [each.path for each in captured.untraced if each.reason == reason] == paths
    assert all(type(captured.model.get_submodule(path)) is nn.Sequential for path in paths)
    assert len(kinds(captured.model)) == 4 - len(paths)
    assert_same(run(captured.model), run(model))


def test_a_leaf_module_in_a_region_is_a_call() -> None:
    captured = capture(Branches(conv_bn(3, 4)), leaf_modules=["body.0"]).model
    region = find_regions(captured)["body"]
    assert [each.target for each in region.graph.find_nodes(op="call_module")] == [
        "traced.0", "traced.1", "traced.2"
    ]  # fmt: skip
    captured = capture(Branches(Looped()), leaf_modules=[Loops]).model
    region = find_regions(captured)["body"]
    assert [each.target for each in region.graph.find_nodes(op="call_module")] == [
        "traced.stem", "traced.loops"
    ]  # fmt: skip


def test_a_leaf_module_can_make_a_model_one_graph() -> None:
    model = nn.Sequential(conv_bn(3, 4), Branches(nn.Conv2d(4, 4, 1)))
    gm = capture(model, leaf_modules=["1"]).model
    assert isinstance(gm, fx.GraphModule)
    assert gm.graph.find_nodes(op="call_module", target="1")
    assert_same(run(gm), run(model))


def test_only_the_regions_asked_for_are_made() -> None:
    model = Detector()
    captured = capture(model, regions=["head.tower", "head.boxes"])
    assert kinds(captured.model) == {"head.tower": "Sequential", "head.boxes": "Conv2d"}
    reason = "not among the regions asked for"
    assert captured.untraced == (
        Untraced("backbone.0", "Conv2d", reason),
        Untraced("head.scores", "Conv2d", reason),
    )
    assert_same(run(captured.model), run(model))


def test_regions_may_be_asked_for_where_all_could_be_traced() -> None:
    model = Looped()
    captured = capture(model, regions=["loops.tower"])
    assert type(captured.model) is Looped
    assert kinds(captured.model) == {"loops.tower": "Sequential"}
    paths = ["stem", "loops.scores", "loops.boxes"]
    assert [each.path for each in captured.untraced] == paths
    assert_same(run(captured.model), run(model))


def test_a_region_asked_for_by_one_of_its_names_is_found_under_all() -> None:
    model = Branches(Loops())
    model.twin = model.body
    for name in ("twin.tower", "body.tower"):
        captured = capture(model, regions=[name])
        assert list(kinds(captured.model)) == [name]
        assert captured.model.get_submodule("twin.tower") is find_regions(captured.model)[name]
        assert [each.path for each in captured.untraced] == ["body.scores", "body.boxes"]


def test_a_region_with_two_names_of_its_own_is_found_under_both() -> None:
    model = Branches(conv_bn(3, 4))
    model.twin = model.body
    captured = capture(model, regions=["twin"])
    assert isinstance(captured.model.body, Region)
    assert captured.model.body is captured.model.twin
    assert captured.untraced == ()


def test_a_region_asked_for_twice_is_made_once() -> None:
    captured = capture(Branches(conv_bn(3, 4)), regions=["body", "body"]).model
    (region,) = find_regions(captured).values()
    assert isinstance(region, Region)
    assert region.original_type is nn.Sequential


@pytest.mark.parametrize(
    "names", [["body", "body.1"], ["body.1", "body"]], ids=["outer first", "inner first"]
)
def test_a_region_inside_another_one_is_an_error(names: list[str]) -> None:
    model = Branches(nn.Sequential(nn.Conv2d(3, 4, 1), conv_bn(4, 4)))
    assert "'body.1'" in failure(model, regions=names)


def test_an_unknown_region_is_an_error() -> None:
    assert failure(Detector(), regions=["head.towre"]).startswith(
        "regions: 'head.towre' is no submodule: Loops has no attribute"
    )
    assert failure(Detector(), regions=["neck"]).startswith(
        "regions: 'neck' is no submodule: Detector has no attribute"
    )


def test_a_region_that_cannot_be_traced_is_an_error() -> None:
    message = failure(Detector(), regions=["backbone", "head"])
    assert message.startswith("Loops cannot be traced: it fails in the model's own forward")
    assert "for each in features:" in message


@pytest.mark.parametrize(("leaf", "shown"), [("neck*", "'neck*'"), (nn.LSTM, repr(nn.LSTM))])
def test_an_unknown_leaf_module_is_an_error(leaf: Any, shown: str) -> None:
    assert failure(Detector(), leaf_modules=[leaf]) == (
        f"leaf_modules: {shown} is no submodule of Detector; it has backbone, head"
    )


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (nn.ReLU(), {}),
        (nn.ModuleList([nn.LSTM(3, 3), nn.BatchNorm2d(3)]), {}),
        (conv_bn(3, 4), {"leaf_modules": ["body"]}),
    ],
    ids=["nothing", "opaque", "leaf"],
)
def test_a_model_of_which_nothing_can_be_traced_is_the_tracers_error(
    body: nn.Module, options: dict[str, Any]
) -> None:
    message = failure(Branches(body), **options)
    assert message.startswith(
        "Branches cannot be traced: it fails in the model's own forward (Branches)\n"
    )
    assert "if x.shape[0] > 100:" in message


class Remembers(nn.Module):
    """Stores what it computes from its input, like torchvision's MultiScaleRoIAlign."""

    def __init__(self, raises: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.raises = raises
        self.scale: Any = None
        self.by_size: dict[str, Any] = {"start": 1}
        self.sizes: list[Any] = [0]

    def forward(self, x: Tensor) -> Any:
        if self.scale is None:
            self.scale = x.mean()
        self.by_size["last"] = x.mean()
        self.sizes.append(x.mean())
        self.made = x.mean()
        if self.raises and x.shape[0] > 100:
            return x
        return self.conv(x) * self.scale


@pytest.mark.parametrize("raises", [False, True], ids=["keeps state", "fails"])
def test_tracing_leaves_no_proxies_in_attributes(raises: bool) -> None:
    model = Remembers(raises).eval()
    by_size, sizes = model.by_size, model.sizes
    with pytest.raises(CaptureError, match="control flow" if raises else "keeps state in self.sca"):
        trace_graph(model)
    assert (model.scale, model.by_size, model.sizes) == (None, {"start": 1}, [0])
    assert model.by_size is by_size
    assert model.sizes is sizes
    assert not hasattr(model, "made")


def test_what_a_model_remembers_does_not_come_from_the_trace() -> None:
    model = Branches(Remembers(raises=True))
    captured = capture(model).model
    assert kinds(captured) == {"body.conv": "Conv2d"}
    assert_same(run(captured), run(model))
    assert vars(captured.get_submodule("body"))["scale"] is None  # `run` called a copy
    captured(X)
    assert torch.equal(vars(captured.get_submodule("body"))["scale"], X.mean())


class Table(nn.Module):
    """Makes a constant in its forward, which the tracer keeps as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x) + torch.arange(4.0).reshape(4, 1, 1)


def test_constants_that_the_tracer_made_stay() -> None:
    model = Branches(Table())
    captured = capture(model).model
    assert_same(run(captured), run(model))
    assert_same(run(copy.deepcopy(captured)), run(model))


def test_a_region_is_traced_with_the_leaves_inside_it() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 1), Branches(nn.Conv2d(4, 4, 1))).eval()
    region = make_region(block, trace_graph(block, {block[1]}), "block")
    assert_same(region(X), block(X))
