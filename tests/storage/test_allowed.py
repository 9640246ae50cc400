"""A file may name what models are made of, and nothing that reaches beyond them."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fxquant.errors import StorageError
from fxquant.storage.allowed import Allowed, name_of, needs_custom
from fxquant.storage.known_functions import known_functions


class Counted(nn.Module):
    """One's own module."""


class Pair(NamedTuple):
    left: Tensor
    right: Tensor

    def swapped(self) -> "Pair":
        return Pair(self.right, self.left)


def double(x: Tensor) -> Tensor:
    return x * 2


@pytest.mark.parametrize(
    "name",
    [
        "os:system", "posix:system", "subprocess:run", "builtins:eval", "builtins:exec",
        "builtins:open", "builtins:__import__", "builtins:print", "importlib:import_module",
        "torch:load", "torch:save", "torch:compile", "torch:from_file", "torch:vmap",
        "torch.hub:load", "torch.hub:load_state_dict_from_url", "torch.serialization:load",
        "torch.jit:load", "torch.jit._serialization:load", "torch.utils.cpp_extension:load",
        "torch.utils.model_zoo:load_url", "torch._dynamo:optimize", "torch.library:custom_op",
        "torch.nn.functional:torch", "torch.nn.functional:handle_torch_function",
        "torch.nn.functional:triplet_margin_with_distance_loss", "torch.nn.modules.module:Module",
        "operator:call", "operator:attrgetter", "operator:methodcaller", "math:os", "pickle:loads",
        "torchvision.io:read_file", "torchvision.models:get_model",
        "torchvision.models.resnet:resnet18", "torchvision.models._api:get_weight",
        "torchvision.datasets.utils:download_url", "torchvision.ops.misc:Conv2dNormActivation",
        "fxquant.storage.files:load", "fxquant.streaming.checkpoint:Checkpoint",
        "fxquant.api:convert", "fxquant:convert", "fxquant:load", "fxquant:Checkpoint",
        "fxquant.int8.kernels:quantize", "fxquant:quantize", "fxquant:kernels", "fxquant:Recipe",
        "torch.ops:aten.from_file", "torch.ops:aten.save.default", "torch.ops:image.write_file",
        "torch.ops:torchvision", "torch.ops:profiler._record_function_enter",
        "torch.ops:prim.Print", "torch.ops:aten.add.__class__", "fxquant.int8.kernels:torch.load",
        "", ":", "x",
    ],
)  # fmt: skip
def test_a_function_that_could_do_harm_is_refused(name: str) -> None:
    with pytest.raises(StorageError, match="it names the function"):
        Allowed().function_named(name)


@pytest.mark.parametrize(
    "name",
    [
        "os:_Environ", "builtins:property", "builtins:open", "subprocess:Popen",
        "torch.utils.data:DataLoader", "torch.nn.modules.module:OrderedDict",
        "torch.nn.modules.linear:Module", "torch.jit:ScriptModule", "torchvision.datasets:VOC",
        "torchvision.io:VideoReader", "fxquant.streaming.checkpoint:Checkpoint",
        "fxquant.passes.prepare.fold_batchnorm:FoldBatchNorm",
        "fxquant.streaming.value_store:ValueStore", "fxquant:Checkpoint", "fxquant:ValueStore",
        "fxquant:FoldBatchNorm", "fxquant:Pipeline", "fxquant:OwnModule", "fxquant:",
        "fxquant:kernels.quantize", "fxquant.recipe.rule:Rule",
        "fxquant.modules.quantized_layer:QuantizedConv2d",
        "torch.nn.functional:relu", "torch.nn.modules.linear:Linear.forward",
        "torch.nn.modules.linear:Linear.__init__.__globals__", "tests.storage.test_allowed:Counted",
    ],
)  # fmt: skip
def test_a_class_that_is_not_a_models_is_refused(name: str) -> None:
    with pytest.raises(StorageError, match="it names the class"):
        Allowed().type_named(name)


def test_a_refusal_says_what_to_give() -> None:
    with pytest.raises(StorageError) as caught:
        Allowed().type_named("tests.storage.test_allowed:Counted")
    assert str(caught.value) == (
        "it names the class 'tests.storage.test_allowed.Counted', which files may not use: if you "
        "know it and trust the file, load(path, custom=[Counted])"
    )
    with pytest.raises(StorageError) as caught:
        Allowed().type_named("torch.nn.modules.conv:Conv9d")
    assert str(caught.value) == (
        "it names the class 'torch.nn.modules.conv.Conv9d', which is not there in the versions "
        "installed here: install others, or load(path, custom=[Conv9d])"
    )


def test_ones_own_are_found_by_name_wherever_they_were_defined() -> None:
    allowed = Allowed(
        [Counted, Pair, Pair.swapped, double, torch.ops.mkldnn._reorder_linear_weight.default]
    )
    assert allowed.type_named("tests.storage.test_allowed:Counted") is Counted
    assert allowed.type_named("__main__:Counted") is Counted
    assert allowed.function_named("elsewhere:double") is double
    assert callable(allowed.function_named("torch.ops:mkldnn._reorder_linear_weight.default"))
    assert allowed.method_named("tests.storage.test_allowed:Pair.swapped") is Pair.swapped
    assert not allowed.is_method("forwards")
    assert not allowed.is_method("extra_repr")  # of Counted: no graph computes modules
    assert allowed.is_method("swapped")
    assert allowed.is_attribute("right")


def test_what_is_given_as_custom_must_have_a_name() -> None:
    with pytest.raises(StorageError, match="custom: 3 is neither a class nor a function"):
        Allowed([3])  # type: ignore[list-item]


def test_every_known_function_is_found_by_its_name_again() -> None:
    assert len(known_functions()) > 700
    for function in known_functions().values():
        assert Allowed().function_named(name_of(function)) is function
        assert not needs_custom(function)
