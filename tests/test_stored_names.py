"""Saved files know fxquant's classes by names that stay, wherever the classes go."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import StorageError
from fxquant.modules.quantized_layer import QuantizedLinear
from fxquant.storage.allowed import Allowed, name_of, needs_custom
from fxquant.storage.encoding import Encoder
from fxquant.stored_names import stored_as, stored_name, stored_names, value_stored_as
from tests.stored_models import CUSTOM, KINDS, make_prepared


def test_every_name_stays() -> None:  # or models that were saved do not load: add, never take away
    assert stored_names() == [
        "AffineNumbers", "Budget", "CallNotes", "CallNotes.note_region", "ChannelAffine",
        "ChannelClamp", "ChannelMean",
        "ChannelObserver", "CountedCall", "CountedCall.begin", "CountedCall.end",
        "DynamicQuantize", "FakeQuantize", "FirstCalls", "FirstCalls.begin", "FirstCalls.end",
        "FunctionalBatchNorm", "Grid", "InputKeeper", "InputKeeper.keep_call", "Int8Add",
        "Int8Conv", "Int8Geometry", "Int8Linear", "Int8Result", "Journal",
        "LearnedRounding", "LogitObserver", "NotePart", "Observer", "QuantizedConv1d",
        "QuantizedConv2d", "QuantizedConv3d", "QuantizedConvTranspose1d",
        "QuantizedConvTranspose2d", "QuantizedConvTranspose3d", "QuantizedLinear", "Recipe",
        "Reconstruction", "Refusal", "Rule", "Target", "TensorSpec", "Untraced", "attention_mask",
        "attention_weights_of", "float_mask", "kernels.average", "kernels.dequantize",
        "kernels.max_pool2d", "kernels.narrow", "kernels.pad", "kernels.quantize",
        "kernels.requantize", "kernels.widen", "merge_windows", "nested_padding_mask",
        "partition_windows", "require", "window_mask",
        "zero_padding",
    ]  # fmt: skip


def test_a_name_leads_to_what_has_it_and_back() -> None:
    for name in stored_names():
        value = value_stored_as(name)
        assert (stored_name(value), name_of(value)) == (name, f"fxquant:{name}")
        assert not needs_custom(value)
        kind = (
            "type"
            if isinstance(value, type)
            else "method"
            if "." in value.__qualname__
            else "function"
        )
        find = getattr(Allowed(), f"{kind}_named")
        assert find(f"fxquant:{name}") is value


def test_two_classes_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="Other cannot be stored as 'Rule': that is the name of "):

        @stored_as("Rule")
        class Other:
            pass


def test_a_class_without_the_mark_may_not_be_named_not_even_below_one_with_it() -> None:
    class Derived(fxquant.Rule):
        pass

    assert stored_name(Derived) is None
    with pytest.raises(StorageError, match="it names the class"):
        Allowed().type_named(name_of(Derived))


def test_a_file_loads_when_a_class_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = fxquant.quantize(nn.Sequential(nn.Linear(4, 2)), [torch.ones(2, 4)]), torch.ones(4)
    fxquant.save(model, tmp_path / "before.fxq")
    monkeypatch.setattr(QuantizedLinear, "__module__", "fxquant.elsewhere")
    fxquant.save(model, tmp_path / "after.fxq")
    assert (tmp_path / "before.fxq").read_bytes() == (tmp_path / "after.fxq").read_bytes()
    loaded = fxquant.load(tmp_path / "before.fxq")
    assert type(loaded.get_submodule("0")) is QuantizedLinear
    assert torch.equal(loaded(x), model(x))


def module_paths(model: nn.Module) -> set[str]:
    """Return what a file of the model says of modules of fxquant, by their paths."""
    tree: Any = Encoder().encode(model, "model")
    return set(re.findall(r"fxquant\.[\w.]+:[\w.]+", str(tree)))


@pytest.mark.parametrize("kind", [each for each in KINDS if each not in ("resnet18", "retinanet")])
def test_no_file_names_a_class_of_fxquant_by_its_module(kind: str) -> None:
    prepared = make_prepared(kind)
    converted = fxquant.convert(prepared)
    assert module_paths(prepared) == module_paths(converted) == set()
    if kind in ("residual", "mobilenet_v2"):
        assert module_paths(fxquant.lower(converted)) == set()


def test_what_the_user_subclasses_keeps_its_own_name() -> None:
    assert all(needs_custom(each) for each in CUSTOM)
