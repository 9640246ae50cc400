"""Wrapped models are quantized like the model inside; what is no float module is named."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.optim.swa_utils import AveragedModel
from torchvision.models.feature_extraction import create_feature_extractor

import fxquant
from fxquant import CaptureError
from fxquant.capture.given_models import unwrapped
from fxquant.numerics.decibels import sqnr
from tests.helpers import Net, outputs

pytestmark = [  # PyTorch's own, of torch.jit and torch.ao
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.ao:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.norm(self.fc(x)))


def compiled(function: Any) -> Any:
    return torch.compile(function, backend="eager")


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_forward(model: Any) -> nn.Module:
    model.forward = compiled(model.forward)
    return model  # type: ignore[no-any-return]


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "data parallel": nn.DataParallel,
    "distributed": nn.parallel.DistributedDataParallel,
    "compiled": compiled,
    "averaged": AveragedModel,
    "compiled in place": compiled_in_place,
    "compiled forward": compiled_forward,
    "two": lambda model: nn.DataParallel(compiled(model)),
}


def test_a_given_graph_with_hooks_is_refused_because_its_copy_would_lose_them() -> None:
    gm = fx.symbolic_trace(Inner().eval())
    gm.register_forward_hook(lambda module, args, output: -output)
    with pytest.raises(CaptureError, match=r"^the given GraphModule has forward hooks, which a "):
        fxquant.prepare(gm)


@torch.no_grad()
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_is_quantized_as_the_model_inside(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    inner = Inner().eval()
    expected = fxquant.text(fxquant.quantize(inner, [X]))
    wrapped = wrap(copy.deepcopy(inner))
    before = list(wrapped.state_dict())
    assert fxquant.text(fxquant.quantize(wrapped, [X])) == expected
    assert list(wrapped.state_dict()) == before


@torch.no_grad()
@pytest.mark.parametrize("is_traceable", [True, False], ids=["whole", "regions"])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_submodules_keep_the_name_of_the_wrapper(
    wrap: Callable[[nn.Module], nn.Module], is_traceable: bool
) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.two(m.one(x))
        return y if is_traceable or y.isfinite().all() else x

    twice = wrap(Inner())
    model = Net(forward, one=twice, two=nn.Sequential(twice)).eval()
    expected = outputs(model, X)
    quantized = fxquant.quantize(model, [X])
    report = fxquant.report(quantized)
    names = {"one.fc"} if is_traceable else {"one.fc", "two.0.fc"}
    assert {row.name for row in report.rows} == names
    assert report.num_quantized == len(report.rows)
    assert sqnr(expected, quantized(X)) > 25


def test_a_wrapper_with_hooks_is_refused() -> None:
    model = nn.DataParallel(Inner())
    model.register_forward_hook(lambda module, inputs, output: -output)
    with pytest.raises(CaptureError) as caught:
        fxquant.prepare(nn.Sequential(model))
    assert str(caught.value) == (
        "a DataParallel has forward hooks: register them on the Inner in it"
    )
    assert unwrapped(X) is X


@compiled
def doubled(x: Tensor) -> Tensor:
    return x * 2


@torch.no_grad()
def test_compiled_functions_are_traced_as_they_were_written() -> None:
    model = Net(lambda m, x: doubled(m.fc(x)), fc=nn.Linear(4, 4)).eval()
    quantized = fxquant.quantize(model, [X])
    assert isinstance(quantized, fx.GraphModule)
    assert sqnr(model(X), quantized(X)) > 30


@torch.no_grad()
@pytest.mark.parametrize("is_traceable", [True, False], ids=["whole", "regions"])
def test_script_modules_inside_stay_as_they_are_and_are_reported(is_traceable: bool) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.last(m.act(m.scripted(x)))
        return y if is_traceable or y.isfinite().all() else x

    parts = {"scripted": torch.jit.script(Inner()), "act": torch.jit.script(nn.ReLU())}
    model = Net(forward, last=nn.Linear(4, 4), **parts).eval()
    quantized = fxquant.quantize(model, [X])
    assert sqnr(model(X), quantized(X)) > 30
    report = fxquant.report(quantized)
    coverage = report.coverage
    assert coverage is not None
    reason = "a RecursiveScriptModule, compiled by torch.jit: give the torch.nn.Module that it was"
    said = [each for row in report.rows for each in row.remarks]
    said += [each.reason for each in report.untraced] + [each.reason for each in coverage.left]
    assert any(reason in each for each in said)


class Quantizable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.add = nn.Linear(4, 4), FloatFunctional()

    def forward(self, x: Tensor) -> Any:
        return self.add.add(self.fc(x), x)


def test_a_feature_extractor_stays_quantized_when_its_mode_is_set() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    extractor = create_feature_extractor(model.eval(), {"2": "relu", "3": "last"})
    batch = torch.randn(4, 3, 8, 8)
    quantized = fxquant.quantize(extractor, [batch], progress=False)
    expected = quantized(batch)
    assert 20 < sqnr(extractor(batch)["last"], expected["last"]) < 60
    for again in (quantized.train().eval(), copy.deepcopy(quantized).eval()):
        torch.testing.assert_close(again(batch), expected, rtol=0, atol=0)


def test_float_models_made_for_torch_ao_are_no_quantized_ones() -> None:
    model = Quantizable().eval()
    assert sqnr(outputs(model, X), fxquant.quantize(model, [X])(X)) > 30


def exported() -> Any:
    return torch.export.export(Inner().eval(), (X,))


def dynamic() -> Any:
    quantize: Any = torch.ao.quantization.quantize_dynamic
    return quantize(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "scripted": (
        lambda: torch.jit.script(Inner()),
        "model is a RecursiveScriptModule, compiled by torch.jit: give the torch.nn.Module that "
        "it was made from",
    ),
    "traced": (
        lambda: torch.jit.trace(Inner().eval(), X),  # type: ignore[no-untyped-call]
        "model is a TopLevelTracedModule, compiled by torch.jit: give the torch.nn.Module that "
        "it was made from",
    ),
    "exported": (
        exported,
        "model is an ExportedProgram, a graph of ATen operators, without layers: give the "
        "torch.nn.Module that it was exported from",
    ),
    "its module": (
        lambda: exported().module(),
        "model is a graph of ATen operators, without layers, as torch.export and make_fx return "
        "it: give the torch.nn.Module that it was made from",
    ),
    "its module inside": (
        lambda: nn.ModuleDict({"net": exported().module()}),
        "'net' is a graph of ATen operators, without layers, as torch.export and make_fx return "
        "it: give the torch.nn.Module that it was made from",
    ),
    "quantized": (
        dynamic,
        "'0' is a torch.ao.nn.quantized.dynamic.modules.linear.Linear: PyTorch has quantized the "
        "model already: give the float model",
    ),
    "function": (
        lambda: compiled_in_place,
        "model is a function, compiled_in_place: give the torch.nn.Module that it is the forward "
        "of, or write one that calls it",
    ),
    "method": (
        lambda: Inner().forward,
        "model is a method, Inner.forward: give the torch.nn.Module that it is the forward of, or "
        "write one that calls it",
    ),
    "class": (lambda: Inner, "model is the class Inner: give an instance, Inner(…)"),
    "state dict": (
        lambda: Inner().state_dict(),
        "model is a state dict ('fc.weight', 'fc.bias', 'norm.weight', …): make the "
        "torch.nn.Module that it belongs to, and load it with load_state_dict",
    ),
    "checkpoint": (
        lambda: {"epoch": 3, "net": Inner()},
        "model is a dict with an Inner under 'net': give that",
    ),
    "name": (
        lambda: "resnet18",
        "model is 'resnet18', a str: load the model, and give the module",
    ),
    "path": (
        lambda: Path("a.pt"),
        "model is 'a.pt', a PosixPath: load the model, and give the module",
    ),
    "list": (lambda: [Inner()], "model is a list: give a torch.nn.Module"),
    "none": (lambda: None, "model is None: give a torch.nn.Module"),
}


@pytest.mark.parametrize("entry", [fxquant.prepare, fxquant.trace])
@pytest.mark.parametrize(("make", "message"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_float_module_is_named_with_what_to_give(
    make: Callable[[], Any], message: str, entry: Callable[[Any], Any]
) -> None:
    with pytest.raises(CaptureError) as caught:
        entry(make())
    assert str(caught.value) == message
