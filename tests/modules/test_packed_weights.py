"""State dicts and pickles hold the weights packed; the model in memory and its copies do not."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.modules import packed_weights as packed_state
from fxquant.modules.quantized_layer import QuantizedConv2d, QuantizedLayer, quantize_layer
from fxquant.recipe.spec import TensorSpec

BELOW_8 = range(2, 8)


def quantized(bits: int, layer: nn.Module | None = None, *, symmetric: bool = True) -> Any:
    layer = nn.Conv2d(3, 5, 3) if layer is None else layer
    spec = TensorSpec(bits=bits, symmetric=symmetric, per_channel=True)
    return quantize_layer(layer, spec)  # type: ignore[arg-type]


def errors_of(layer: nn.Module, state: dict[str, Any]) -> str:
    """Return what loading `state` complains of."""
    with pytest.raises(RuntimeError) as caught:
        layer.load_state_dict(state)
    return str(caught.value)


@pytest.mark.parametrize("bits", BELOW_8)
def test_a_state_dict_holds_the_bits_and_no_more(bits: int) -> None:
    state = quantized(bits).state_dict()
    assert set(state) == {"bias", "weight_packed", "weight_scale", "weight_zero_point"}
    assert state["weight_packed"].dtype is torch.uint8
    assert state["weight_packed"].shape == (-(-5 * 3 * 3 * 3 * bits // 8),)


def test_a_state_dict_of_8_bits_holds_the_integers() -> None:
    layer = quantized(8)
    assert layer.state_dict()["weight_integers"] is not None
    assert torch.equal(layer.state_dict()["weight_integers"], layer.weight_integers)
    assert "weight_packed" not in layer.state_dict()


@pytest.mark.parametrize("bits", [*BELOW_8, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_another_layer_takes_the_state_dict(bits: int, symmetric: bool) -> None:
    one, other = (quantized(bits, symmetric=symmetric) for _ in range(2))
    state = one.state_dict()
    keys = list(state)
    other.load_state_dict(state)
    assert list(state) == keys
    assert other.weight_integers.dtype is torch.int8
    assert torch.equal(one.weight, other.weight)


def test_a_whole_model_takes_the_state_dict_in_half_precision_too() -> None:
    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        recipe = fxquant.Recipe.aciq(weight_bits=3)
        return fxquant.quantize(net, [torch.randn(2, 3, 8, 8)], recipe).to(torch.bfloat16)

    one, other = model(0), model(1)
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    assert torch.equal(one(x), other(x))


def test_a_layer_below_8_bits_takes_plain_integers() -> None:
    one, other = quantized(4), quantized(4)
    state = one.state_dict()
    del state["weight_packed"]
    state["weight_integers"] = one.weight_integers
    other.load_state_dict(state)
    assert torch.equal(one.weight, other.weight)


def test_loading_by_assignment_takes_packed_weights() -> None:
    one, other = quantized(4), quantized(4)
    other.load_state_dict(one.state_dict(), assign=True)
    assert torch.equal(one.weight, other.weight)
    assert isinstance(other.weight_integers, Tensor)


def test_packed_weights_of_other_bits_are_an_error_with_both_sizes() -> None:
    layer = quantized(4)
    before = layer.weight_integers.clone()
    assert errors_of(layer, quantized(3).state_dict()).endswith(
        "size mismatch for weight_packed: got torch.uint8 of shape (51,), where 135 weights of 4 "
        "bits take torch.uint8 of shape (68,): is the other model's recipe the same?"
    )
    assert torch.equal(layer.weight_integers, before)


@pytest.mark.parametrize(
    ("packed", "given"),
    [
        (torch.zeros(68), "torch.float32 of shape (68,)"),
        (torch.zeros(1, 68, dtype=torch.uint8), "torch.uint8 of shape (1, 68)"),
        (7, "int"),
    ],
)
def test_what_is_no_packed_weight_is_an_error_that_says_what_it_is(
    packed: object, given: str
) -> None:
    layer = quantized(4)
    errors = errors_of(layer, {**layer.state_dict(), "weight_packed": packed})
    assert f"size mismatch for weight_packed: got {given}, where" in errors
    assert "Missing" not in errors
    assert "Unexpected" not in errors


def test_packed_weights_in_a_layer_of_8_bits_are_an_error() -> None:
    assert "where 135 weights of 8 bits take torch.uint8 of shape (135,)" in errors_of(
        quantized(8), quantized(4).state_dict()
    )


def test_integers_beyond_the_grid_are_an_error_with_their_range() -> None:
    layer, state = quantized(4), quantized(8).state_dict()
    low, high = state["weight_integers"].min(), state["weight_integers"].max()
    assert (
        f"values from {low} to {high} in weight_integers, where weights of 4 bits go from -8 "
        in (errors_of(layer, state))
    )


def test_integers_of_another_shape_are_pytorchs_own_error() -> None:
    state = {**quantized(8).state_dict(), "weight_integers": torch.zeros(2, 2, dtype=torch.int8)}
    assert "size mismatch for weight_integers: copying a param with shape" in errors_of(
        quantized(8), state
    )


def test_missing_weights_are_missing() -> None:
    state = quantized(4).state_dict()
    del state["weight_packed"]
    assert 'Missing key(s) in state_dict: "weight_integers"' in errors_of(quantized(4), state)


@pytest.mark.parametrize("bits", [*BELOW_8, 8])
@pytest.mark.parametrize("layer", [nn.Linear(700, 70), nn.ConvTranspose2d(64, 64, 3)])
def test_a_pickle_holds_the_bits_and_little_more(bits: int, layer: nn.Module) -> None:
    before = quantized(bits, layer)
    pickled = pickle.dumps(before)
    file = io.BytesIO()
    torch.save(before, file)
    num_bytes = before.weight_integers.numel() * bits / 8
    assert num_bytes < len(pickled) < num_bytes + 5000
    assert num_bytes < len(file.getvalue()) < num_bytes + 9000
    file.seek(0)
    for after in (pickle.loads(pickled), torch.load(file, weights_only=False)):
        assert vars(after).keys() == vars(before).keys()
        assert after._buffers.keys() == before._buffers.keys()
        assert torch.equal(after.weight, before.weight)


def test_a_pickle_with_plain_integers_can_be_read() -> None:
    before = quantized(4)
    after = QuantizedConv2d.__new__(QuantizedConv2d)
    after.__setstate__(vars(before))
    assert torch.equal(after.weight, before.weight)


def test_copies_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = quantized(4)
    monkeypatch.delattr(packed_state, "pack_bits")
    deep, shallow = copy.deepcopy(layer), copy.copy(layer)
    assert torch.equal(deep.weight, layer.weight)
    assert deep.weight_integers is not layer.weight_integers
    assert deep.bias is not layer.bias
    assert shallow._buffers is layer._buffers


def test_a_copied_model_shares_what_the_model_shares() -> None:
    layer = quantized(4)
    model = nn.ModuleList([layer, layer, quantized(4)])
    model[2].bias = layer.bias
    copied: Any = copy.deepcopy(model)
    assert copied[0] is copied[1]
    assert copied[2].bias is copied[0].bias
    assert isinstance(copied[0], QuantizedLayer)
    assert copied[0].bias is not layer.bias
