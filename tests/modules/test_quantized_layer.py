"""Fake-quantized activations equal PyTorch's kernel and Eqs. (1)-(5); so do integer weights."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.layers import Layer, output_rows, per_output
from fxquant.modules.quantized_layer import QuantizedLayer, quantize_layer
from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.decibels import sqnr
from fxquant.recipe.spec import TensorSpec
from tests.layer_kinds import KINDS, make_input, make_layer

BITS = (2, 3, 4, 5, 6, 7, 8)
PER_CHANNEL = TensorSpec(symmetric=True, per_channel=True)

each_kind = pytest.mark.parametrize(("kind", "options"), KINDS)
each_grid = pytest.mark.parametrize(
    "grid",
    [Grid.of(bits, signed=signed) for bits in (2, 4, 8, 16) for signed in (False, True)],
    ids=lambda grid: f"{grid.quant_min}..{grid.quant_max}",
)


def make_quantizer(grid: Grid, low: float = -1.3, high: float = 2.9) -> FakeQuantize:
    affine = Affine.over(torch.tensor(low), torch.tensor(high), grid)
    return FakeQuantize(affine, TensorSpec(), sqnr=math.inf)


def torchs(quantizer: FakeQuantize, x: Tensor) -> Tensor:
    grid = quantizer.grid
    return torch.fake_quantize_per_tensor_affine(
        x, quantizer.scale, quantizer.zero_point, grid.quant_min, grid.quant_max
    )


def values() -> Tensor:
    """Return values within the range, far out of it, at its ends and at zero."""
    edges = torch.tensor([0.0, -0.0, -1.3, 2.9, 1e4, -1e4, 1e-30])
    return torch.cat([torch.randn(5000) * 2, edges])


def quantized_layer(kind: type[nn.Module], options: dict[str, Any], spec: TensorSpec) -> Any:
    return quantize_layer(make_layer(kind, options), spec)


@each_grid
def test_fake_quantize_equals_torchs(grid: Grid) -> None:
    quantizer, x = make_quantizer(grid), values()
    assert torch.equal(quantizer(x), torchs(quantizer, x))


@each_grid
def test_fake_quantize_equals_the_equations(grid: Grid) -> None:
    quantizer, x = make_quantizer(grid), values()
    exact = quantizer.affine.round(x)
    # it multiplies by 1/s: at 16 bits a value next to a tie may take the other side
    differs = (quantizer(x) - exact).abs() > 1e-6
    assert differs.sum() <= (20 if grid.steps > 255 else 0)
    torch.testing.assert_close(quantizer(x), exact, rtol=0, atol=quantizer.scale.item() * 1.001)


@each_grid
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_gradient_path_has_the_same_values(grid: Grid, dtype: torch.dtype) -> None:
    quantizer, x = make_quantizer(grid), values().to(dtype)
    expected = quantizer(x)
    with_gradient = quantizer(x.clone().requires_grad_())
    assert with_gradient.requires_grad
    torch.testing.assert_close(with_gradient.detach(), expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_passes_straight_through_within_the_range() -> None:
    quantizer = make_quantizer(Grid(0, 255))
    x = torch.tensor([-9.0, -1.0, 0.0, 2.0, 9.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_comes_out_as_it_went_in(dtype: torch.dtype) -> None:
    quantizer = make_quantizer(Grid(0, 255))
    x = values().clamp(-1e4, 1e4).to(dtype)
    assert quantizer(x).dtype == dtype
    expected = quantizer(x.to(torch.float32)).to(dtype)  # rounded on the grid, then once to dtype
    torch.testing.assert_close(quantizer(x), expected, rtol=1e-6, atol=1e-6)


@each_grid
def test_fake_quantize_is_idempotent(grid: Grid) -> None:
    quantizer = make_quantizer(grid)
    once = quantizer(values())
    assert torch.equal(quantizer(once), once)
    assert once.unique().numel() <= grid.steps + 1


def test_fake_quantize_leaves_its_input_as_it_is() -> None:
    x = values()
    before = x.clone()
    for each in (x, x[::2], x.clone().requires_grad_()):
        make_quantizer(Grid(0, 255))(each)
    assert torch.equal(x, before)


@pytest.mark.parametrize("x", [torch.arange(4), torch.tensor([True]), 3, None, "text"])
def test_anything_but_floating_point_passes_as_it_is(x: Any) -> None:
    assert make_quantizer(Grid(0, 255))(x) is x


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,)])
def test_fake_quantize_keeps_odd_shapes(shape: tuple[int, ...]) -> None:
    assert make_quantizer(Grid(0, 255))(torch.ones(shape)).shape == shape


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_infinity_is_clipped_to_the_ends(needs_gradient: bool) -> None:
    quantizer = make_quantizer(Grid(0, 255))
    x = torch.tensor([math.inf, -math.inf, 3e38, -3e38], requires_grad=needs_gradient)
    ends = quantizer(torch.tensor([9.0, -9.0, 9.0, -9.0]))
    assert torch.equal(quantizer(x).detach(), ends)


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_fake_quantize_keeps_nan_visible(needs_gradient: bool) -> None:
    x = torch.tensor([math.nan, 1.0], requires_grad=needs_gradient)
    for quantizer in (make_quantizer(Grid(0, 255)), with_channels(torch.ones(2))):
        assert quantizer(x).isnan().tolist() == [True, False]


def with_channels(x: Tensor) -> FakeQuantize:
    """Return a quantizer with a scale for each value of `x`."""
    ends = torch.full_like(x, -1.3).detach(), torch.full_like(x, 2.9).detach()
    return FakeQuantize(Affine.over(*ends, Grid(0, 255)), TensorSpec(), math.inf, axis=-1)


def test_a_state_of_other_bits_is_refused_and_another_scale_has_no_known_loss() -> None:
    quantizer, other = make_quantizer(Grid(0, 255)), make_quantizer(Grid(0, 255), high=9.0)
    quantizer.load_state_dict(quantizer.state_dict())
    assert quantizer.sqnr == math.inf
    quantizer.load_state_dict(other.state_dict())
    assert math.isnan(quantizer.sqnr)
    with pytest.raises(RuntimeError) as raised:
        nn.Sequential(quantizer).load_state_dict(
            nn.Sequential(make_quantizer(Grid(0, 15))).state_dict()
        )
    assert "0.scale is of integers from 0 to 15, the model's go from 0 to 255" in str(raised.value)


def test_a_layer_refuses_zero_points_it_would_not_use_and_forgets_the_loss_of_other_weights() -> (
    None
):
    specs = (TensorSpec(symmetric=True), TensorSpec(symmetric=False))
    symmetric, other = (quantized_layer(nn.Linear, {}, spec) for spec in specs)
    known = symmetric.weight_sqnr
    symmetric.load_state_dict(symmetric.state_dict())
    assert symmetric.weight_sqnr == known
    with pytest.raises(RuntimeError, match="weight_zero_point is not 0, and the model's weights"):
        symmetric.load_state_dict(other.state_dict())
    symmetric.load_state_dict(quantized_layer(nn.Linear, {}, specs[0]).state_dict())
    assert math.isnan(symmetric.weight_sqnr)


@each_grid
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_traced_graphs_have_the_same_values(
    grid: Grid, dtype: torch.dtype, needs_gradient: bool
) -> None:
    quantizer, x = make_quantizer(grid), values().to(dtype)
    y = quantizer._round_as_graph(x.requires_grad_(needs_gradient))
    assert torch.equal(y.detach(), quantizer(x.detach()))


def test_channels_pass_the_gradient_within_their_range() -> None:
    x = torch.tensor([-9.0, -1.0, 0.0, 2.0, 9.0], requires_grad=True)
    with_channels(x)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_the_models_dtype_leaves_scale_and_zero_point(dtype: torch.dtype) -> None:
    quantizer = make_quantizer(Grid(0, 255))
    scale, zero_point = quantizer.scale.clone(), quantizer.zero_point.clone()
    quantizer.to(dtype)
    assert (quantizer.scale.dtype, quantizer.zero_point.dtype) == (torch.float32, torch.int32)
    assert torch.equal(quantizer.scale, scale)
    assert torch.equal(quantizer.zero_point, zero_point)


def test_fake_quantize_survives_saving_and_copying() -> None:
    quantizer, x = make_quantizer(Grid(-8, 7)), values()
    one = Affine(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), Grid(-8, 7))
    empty = FakeQuantize(one, TensorSpec(), sqnr=0)
    empty.load_state_dict(quantizer.state_dict())
    for other in (empty, copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other(x), quantizer(x))


def test_fake_quantize_repr() -> None:
    affine = Affine(torch.tensor(0.5), torch.tensor(3, dtype=torch.int32), Grid(0, 15))
    quantizer = FakeQuantize(affine, TensorSpec(bits=4, range="mse"), sqnr=20)
    assert repr(quantizer) == "FakeQuantize(4 bits mse, scale=0.5, zero_point=3)"


@each_kind
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
def test_a_weight_moves_by_half_a_step_at_most_on_its_grid(
    kind: type[nn.Module], options: dict[str, Any], per_channel: bool, symmetric: bool
) -> None:
    layer = make_layer(kind, options)
    for bits in BITS:
        spec = TensorSpec(bits=bits, symmetric=symmetric, per_channel=per_channel)
        quantized = quantize_layer(layer, spec)
        integers = quantized.weight_integers
        assert integers.dtype == torch.int8
        assert integers.shape == quantized.weight.shape == layer.weight.shape
        assert integers.min() >= -(2 ** (bits - 1))
        assert integers.max() <= 2 ** (bits - 1) - 1
        assert quantized.weight_scale.shape == ((8,) if per_channel else ())
        steps = per_output(layer, quantized.weight_scale, layer.weight)
        assert ((quantized.weight - layer.weight).abs() <= steps * 0.50001).all()


@each_kind
def test_a_quantized_layer_computes_with_what_its_integers_stand_for(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    layer, spec = make_layer(kind, options), TensorSpec(bits=4, per_channel=True)
    quantized: Any = quantize_layer(layer, spec)
    assert type(quantized).__name__ == f"Quantized{kind.__name__}"
    assert issubclass(type(quantized), kind)
    reference = copy.deepcopy(layer)
    integers = output_rows(layer, quantized.weight_integers).float()
    scale, zero_point = quantized.weight_scale[:, None], quantized.weight_zero_point[:, None]
    expected = (integers - zero_point) * scale
    torch.testing.assert_close(output_rows(layer, quantized.weight), expected)
    reference.weight.data = quantized.weight
    x = make_input(layer)
    assert torch.equal(quantized(x), reference(x))


@each_kind
def test_eight_bits_per_channel_lose_little(kind: type[nn.Module], options: dict[str, Any]) -> None:
    layer = make_layer(kind, options)
    quantized: Any = quantize_layer(layer, PER_CHANNEL)
    assert quantized.weight_sqnr == pytest.approx(sqnr(layer.weight, quantized.weight))
    assert quantized.weight_sqnr > 40
    x = make_input(layer)
    assert sqnr(layer(x), quantized(x)) > 40


@each_kind
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_a_channel_of_zeros_stays_zero(
    kind: type[nn.Module], options: dict[str, Any], symmetric: bool
) -> None:
    layer = make_layer(kind, options)
    keep = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1])
    layer.weight.data *= per_output(layer, keep, layer.weight)
    spec = TensorSpec(symmetric=symmetric, per_channel=True)
    rows = output_rows(layer, quantize_layer(layer, spec).weight)
    assert not rows[keep == 0].any()
    assert rows[keep == 1].any(dim=1).all()


def test_a_weight_of_zeros_stays_zero_and_loses_nothing() -> None:
    layer = make_layer(nn.Conv2d, {})
    layer.weight.data.zero_()
    for spec in (PER_CHANNEL, TensorSpec()):
        quantized = quantize_layer(layer, spec)
        assert not quantized.weight.any()
        assert quantized.weight_sqnr == math.inf


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose1d, nn.Linear])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_the_source_layer_is_left_as_it_is(kind: type[nn.Module], bias: bool) -> None:
    layer = make_layer(kind, {}, bias=bias)
    before = copy.deepcopy(layer)
    quantized: Any = quantize_layer(layer, PER_CHANNEL)
    quantized.register_forward_hook(lambda *_: None)
    quantized.register_buffer("more", torch.zeros(1), persistent=False)
    quantized.more_modules = nn.ReLU()
    assert quantized.bias is layer.bias
    assert type(layer) is type(before)
    assert layer.weight.requires_grad
    for name, tensor in before.state_dict().items():
        assert torch.equal(layer.state_dict()[name], tensor)
    for name, value in vars(before).items():
        if name not in ("_parameters", "_buffers"):
            assert vars(layer)[name] == value, name


@each_kind
def test_a_quantized_layer_survives_saving_and_copying(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    layer = make_layer(kind, options)
    quantized: Any = quantize_layer(layer, PER_CHANNEL)
    x = make_input(layer)
    other: Any = quantized_layer(kind, options, PER_CHANNEL)
    assert not torch.equal(other(x), quantized(x))
    other.load_state_dict(quantized.state_dict())
    pickled = pickle.loads(pickle.dumps(quantized))
    for each in (other, copy.deepcopy(quantized), pickled):
        assert torch.equal(each(x), quantized(x))
    assert sorted(quantized.state_dict()) == [
        "bias",
        "weight_integers",
        "weight_scale",
        "weight_zero_point",
    ]


def test_a_copy_shares_nothing_with_its_original() -> None:
    quantized: Any = quantized_layer(nn.Conv2d, {}, PER_CHANNEL)
    other = copy.deepcopy(quantized)
    other.weight_integers.zero_()
    other.bias.data.zero_()
    assert quantized.weight_integers.any()
    assert quantized.bias.any()


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_dtype_reaches_the_weight_but_not_the_integers(
    kind: type[nn.Module], options: dict[str, Any], dtype: torch.dtype
) -> None:
    quantized: Any = copy.deepcopy(quantized_layer(kind, options, PER_CHANNEL))
    before = copy.deepcopy(quantized)
    quantized.to(dtype)
    for name in ("weight_integers", "weight_scale", "weight_zero_point"):
        assert getattr(quantized, name).dtype == getattr(before, name).dtype
        assert torch.equal(getattr(quantized, name), getattr(before, name))
    assert quantized.weight.dtype == quantized.bias.dtype == dtype
    assert torch.equal(quantized.weight, before.weight.to(dtype))
    assert quantized(make_input(quantized)).dtype == dtype
    assert torch.equal(quantized.to(torch.float32).weight, before.weight)  # nothing was lost


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_layer_of_another_dtype_quantizes_like_its_float32_copy(dtype: torch.dtype) -> None:
    layer = make_layer(nn.Conv2d, {}).to(dtype)
    quantized = quantize_layer(layer, PER_CHANNEL)
    reference = quantize_layer(copy.deepcopy(layer).float(), PER_CHANNEL)
    assert torch.equal(quantized.weight_integers, reference.weight_integers)
    assert torch.equal(quantized.weight_scale, reference.weight_scale)
    assert quantized.weight.dtype == dtype


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_every_padding_mode_still_works(padding_mode: str, padding: Any) -> None:
    layer = make_layer(nn.Conv2d, {}, padding=padding, padding_mode=padding_mode)
    quantized: Any = quantize_layer(layer, PER_CHANNEL)
    layer.weight.data = quantized.weight
    x = make_input(layer)
    assert torch.equal(quantized(x), layer(x))


@pytest.mark.parametrize(
    "options", [{"stride": 2, "output_padding": 1}, {"dilation": 2}, {"padding": 1, "stride": 3}]
)
def test_transposed_convolutions_keep_their_options(options: dict[str, Any]) -> None:
    layer = make_layer(nn.ConvTranspose2d, options)
    quantized: Any = quantize_layer(layer, PER_CHANNEL)
    layer.weight.data = quantized.weight
    x = make_input(layer)
    assert torch.equal(quantized(x, output_size=None), layer(x))


@pytest.mark.parametrize(
    ("layer", "spec", "text"),
    [
        (
            nn.Conv2d(4, 8, 3, groups=2),
            PER_CHANNEL,
            "QuantizedConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), groups=2, "
            "weight: 8 bits minmax per channel)",
        ),
        (
            nn.Linear(4, 8, bias=False),
            TensorSpec(bits=4, range="mse"),
            "QuantizedLinear(in_features=4, out_features=8, bias=False, "
            "weight: 4 bits mse per tensor)",
        ),
    ],
    ids=["conv", "linear"],
)
def test_repr_adds_the_weights_spec(layer: Layer, spec: TensorSpec, text: str) -> None:
    assert repr(quantize_layer(layer, spec)) == text


def test_a_subclass_becomes_the_quantized_layer_of_its_base() -> None:
    layer = nn.MultiheadAttention(4, 2).out_proj
    assert type(quantize_layer(layer, PER_CHANNEL)).__name__ == "QuantizedLinear"


def test_the_weight_cannot_be_trained_but_the_input_gets_its_gradient() -> None:
    quantized: Any = quantized_layer(nn.Linear, {}, PER_CHANNEL)
    assert isinstance(quantized, QuantizedLayer)
    assert [name for name, _ in quantized.named_parameters()] == ["bias"]
    x = torch.randn(3, 4, requires_grad=True)
    quantized(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, quantized.weight.sum(0).expand(3, 4))
