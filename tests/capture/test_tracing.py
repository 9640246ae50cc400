"""Capture copies the model, and where it cannot trace it says where and what helps."""

import copy
import pickle
import re
from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import FrozenBatchNorm2d

import fxquant
from fxquant import CaptureError
from fxquant.passes import DropIdentities
from tests.helpers import Net, apply, graph_text, outputs, relative_error


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Iterates(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return sum(row for row in x)


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * len(x)


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not today")


def failure(model: nn.Module, **options: Any) -> str:
    with pytest.raises(CaptureError) as caught:
        fxquant.trace(model, **options)
    return str(caught.value)


def test_returns_a_copy_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)).train()
    before = copy.deepcopy(model.state_dict())
    gm = fxquant.trace(model)
    assert not any(module.training for module in gm.modules())
    apply(DropIdentities(), gm)
    nn.init.zeros_(gm.get_parameter("0.weight"))
    gm.get_buffer("2.running_mean").add_(1)
    assert all(module.training for module in model.modules())
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, _ in model.named_children()] == ["0", "1", "2"]


def test_computes_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(outputs(fxquant.trace(model), x), outputs(model, x))


def test_a_graph_module_can_be_traced_again() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    again = fxquant.trace(gm)
    assert graph_text(again) == graph_text(gm)
    assert again.get_parameter("0.weight") is not gm.get_parameter("0.weight")


@pytest.mark.parametrize(
    ("model", "error", "line", "remedy"),
    [
        (Branches(), "TraceError", "if x.sum() > 0:", "decide it once, in __init__, or with"),
        (
            Iterates(),
            "TraceError",
            "return sum(row for row in x)",
            "index the tensor, or make the loop's",
        ),
        (Counts(), "RuntimeError", "return x * len(x)", "make the length a constant"),
        (Raises(), "ValueError", 'raise ValueError("not today")', "rewrite the line without"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_an_error_names_the_submodule_the_line_and_a_remedy(
    model: nn.Module, error: str, line: str, remedy: str
) -> None:
    kind = type(model).__name__
    nested = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"deep": nn.Sequential(model)})["deep"])
    message = failure(nested)
    number = Path(__file__).read_text().splitlines().index(f"        {line}") + 1
    first, second, third, last = message.split("\n")
    assert first == f"Sequential cannot be traced: it fails in submodule '1.0' ({kind})"
    assert second == f"  {__file__}:{number}: {line}"
    assert third.startswith(f"  {error}: ")
    assert last.startswith(f"  Remedy: {remedy}")
    assert f"trace(model, leaf_modules=({kind},))" in last


def test_an_error_in_the_models_own_forward_says_so() -> None:
    assert failure(Branches()).startswith(
        "Branches cannot be traced: it fails in the model's own forward (Branches)\n"
    )


def test_a_leaf_module_stays_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Branches()))
    gm = fxquant.trace(model, leaf_modules=(Branches,))
    assert graph_text(gm) == cleandoc("""
        input_1 = input()
        _0 = self.0(input_1) # Linear
        _1_0 = self.1.0(_0) # Branches
        return _1_0
    """)
    x = torch.randn(2, 4)
    assert torch.equal(outputs(gm, x), outputs(model, x))


def test_prepare_takes_the_graph_that_the_remedy_makes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Branches())
    assert "leaf_modules=(Branches,)" in failure(model)
    prepared = fxquant.prepare(fxquant.trace(model, leaf_modules=(Branches,)), "minmax")
    x = torch.randn(2, 4)
    assert torch.equal(outputs(prepared, x), outputs(model, x))


def test_a_frozen_batchnorm_stays_whole_unless_it_has_a_forward_of_its_own() -> None:
    class Doubling(FrozenBatchNorm2d):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * 2

    model = nn.Sequential(FrozenBatchNorm2d(4), Doubling(4))
    gm = fxquant.trace(model)
    assert [each.target for each in gm.graph.find_nodes(op="call_module")] == ["0"]
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(outputs(gm, x), outputs(model, x))


@pytest.mark.parametrize("parametrize", [weight_norm, spectral_norm])
def test_parametrizations_are_computed(parametrize: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(parametrize(nn.Conv2d(3, 4, 3)), nn.ReLU())
    x = torch.randn(2, 3, 5, 5)
    expected = outputs(model, x)
    gm = fxquant.trace(model)
    assert set(gm.state_dict()) == {"0.weight", "0.bias"}
    assert type(gm.get_submodule("0")) is nn.Conv2d
    assert relative_error(outputs(gm, x), expected) < 1e-6


def test_a_prepared_model_that_was_parametrized_can_be_stored(tmp_path: Path) -> None:
    model = fxquant.prepare(nn.Sequential(weight_norm(nn.Linear(4, 3))))
    fxquant.save(model, tmp_path / "model")
    x = torch.ones(2, 4)
    assert torch.equal(fxquant.load(tmp_path / "model")(x), model(x))


def test_what_another_quantizer_was_to_do_with_a_module_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    vars(model[0])["qconfig"] = "as torch.ao.quantization would have it"
    assert not hasattr(fxquant.trace(model).get_submodule("0"), "qconfig")
    assert hasattr(model[0], "qconfig")


@pytest.mark.parametrize("parametrize", [weight_norm, spectral_norm])
def test_the_callers_model_stays_parametrized(
    parametrize: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.Sequential(parametrize(nn.Conv2d(3, 4, 3))).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    fxquant.trace(model)
    assert is_parametrized(model[0])
    assert torch.equal(model(x), expected)


def test_a_computed_tensor_as_an_attribute_is_copied_without_its_gradients() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    layer.kept = layer.weight * 2
    model = nn.Sequential(layer)
    assert torch.equal(fxquant.trace(model)(x), model(x))
    assert layer.kept.requires_grad


@pytest.mark.parametrize(
    "lazy", [nn.Sequential(nn.LazyLinear(4)), nn.Sequential(nn.LazyConv2d(4, 1))]
)
def test_an_uninitialized_module_is_an_error(lazy: nn.Module) -> None:
    assert failure(lazy) == ("'0.weight' is not initialized: run the lazy module on a batch first")


def test_a_lazy_module_that_has_run_is_traced() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d())
    model(torch.randn(2, 3, 5, 5))
    kinds = [type(module) for module in fxquant.trace(model).children()]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d]


def test_a_shared_module_has_one_name() -> None:
    shared = nn.Linear(4, 4)
    gm = fxquant.trace(Net(lambda m, x: m.b(m.a(x)), a=shared, b=shared))
    assert [each.target for each in gm.graph.find_nodes(op="call_module")] == ["a", "a"]
    assert isinstance(gm, fx.GraphModule)


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, double: bool = False) -> Tensor:
        if mask is not None:
            x = x * mask
        return x * 2 if double else x


def test_optional_arguments_are_fixed_at_their_defaults() -> None:
    gm, x = fxquant.trace(Masked()), torch.randn(2, 4)
    assert torch.equal(gm(x), x)
    with pytest.raises(CaptureError, match="argument 'double' fixed at False, but called with T"):
        gm(x, None, True)


def test_concrete_args_fix_arguments_at_other_values() -> None:
    gm, x = fxquant.trace(Masked(), concrete_args={"mask": None, "double": True}), torch.ones(2, 4)
    assert torch.equal(gm(x, None, True), x * 2)


def test_an_error_shows_the_values_it_names() -> None:
    assert not re.search(r"\{\w*\}", failure(Branches()))


def test_models_can_be_traced_after_one_with_a_fixed_argument_was_unpickled() -> None:
    x = torch.randn(2, 4)
    gm = fxquant.trace(Masked())
    loaded = pickle.loads(pickle.dumps(gm))
    assert torch.equal(loaded(x), gm(x))
    assert torch.equal(fxquant.trace(nn.Sequential(nn.ReLU()))(x), x.relu())


def test_an_argument_that_was_fixed_at_none_refuses_a_value() -> None:
    gm = fxquant.trace(Masked())
    with pytest.raises(CaptureError, match=r"argument 'mask' fixed at None, but called with a T"):
        gm(torch.randn(2, 4), torch.ones(4))
