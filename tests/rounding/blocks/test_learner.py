"""Learning a block brings its output closer than learning its layers, and ends hard."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import CalibrationError, Recipe, Reconstruction, TensorSpec
from fxquant.passes import QuantizeWeights
from fxquant.rounding.blocks.find import Block, find_blocks
from fxquant.rounding.blocks.learner import BlockLearner
from fxquant.rounding.blocks.samples import Samples
from fxquant.rounding.methods.soft_rounding import soft_rounding
from tests.helpers import Net, apply, whole

OPTIONS = Reconstruction(steps=120, samples=256, drop=0.0)


def residual_net() -> nn.Module:
    return Net(
        lambda m, x: F.relu(m.b(F.relu(m.a(x))) + x),
        a=nn.Conv2d(6, 6, 3, padding=1),
        b=nn.Conv2d(6, 6, 3, padding=1),
    )


def images(samples: int = 256) -> Tensor:
    """Return positive images that are alike, as activations are."""
    return (torch.rand(samples, 6, 6, 6) + 0.3 * torch.randn(samples, 6, 1, 1)).relu()


def graphs(model: nn.Module, bits: int = 3) -> tuple[fx.GraphModule, fx.GraphModule, Block]:
    gm = fxquant.trace(model)
    reference = copy.deepcopy(gm)
    apply(QuantizeWeights(Recipe.minmax(weight_bits=bits, activation_bits=None)), gm)
    (block,) = find_blocks(gm)
    return gm, reference, block


def gathered(
    block: Block, reference: fx.GraphModule, x: Tensor, options: Reconstruction = OPTIONS
) -> Samples:
    samples = Samples("block", len(x), options, 0)
    with torch.no_grad():
        for part in torch.split(x, 64):
            samples.add(block.paths[0], part, part, reference(part), len(part))
    samples.close()
    return samples


def learner(
    model: nn.Module, x: Tensor, options: Reconstruction = OPTIONS
) -> tuple[BlockLearner, fx.GraphModule, fx.GraphModule, Block]:
    gm, reference, block = graphs(model)
    samples = gathered(block, reference, x, options)
    return BlockLearner(block, gm, reference, samples, options), gm, reference, block


def test_the_block_comes_closer_and_the_errors_are_those_of_its_output() -> None:
    x = images()
    each, gm, reference, _ = learner(residual_net(), x)
    learned = each.learn()
    judged = x[torch.arange(len(x)) % 8 == 7]
    with torch.no_grad():
        target = reference(judged)
        nearest = (gm(judged) - target).square().sum() / target.square().sum()
        for layer, integers in ((layer, each.integers) for layer, each in learned.layers.items()):
            layer.weight_integers.copy_(integers)
        after = (gm(judged) - target).square().sum() / target.square().sum()
    assert learned.error_before == pytest.approx(float(nearest), rel=1e-4)
    assert learned.error_learned == pytest.approx(float(after), rel=1e-4)
    assert learned.error_learned < 0.5 * learned.error_before


def test_each_weight_goes_to_one_of_the_integers_next_to_it() -> None:
    each, _, reference, block = learner(residual_net(), images())
    learned = each.learn()
    moved = 0
    for subgraph in block.subgraphs:
        layer, weight = subgraph.layer, reference.get_parameter(f"{subgraph.name}.weight")
        steps = weight / layer.weight_scale[:, None, None, None]
        integers = learned.layers[layer].integers
        assert integers.dtype == torch.int8
        assert torch.all((integers - steps).abs() < 1 + 1e-4)
        moved += int((integers != steps.round()).sum())
    assert moved > 20


def test_roundings_are_hard_at_the_end() -> None:
    each, *_ = learner(residual_net(), images(), Reconstruction(steps=300, drop=0.5))
    each.learn()
    h = torch.cat([soft_rounding(weight.v).flatten() for weight in each._rounded()])
    assert ((h < 0.05) | (h > 0.95)).float().mean() > 0.95


def test_what_lambda_counts_in_is_what_a_step_to_the_next_integer_costs() -> None:
    model = nn.Sequential(nn.Linear(64, 4))
    x = torch.randn(4096, 64) * 3
    each, *_ = learner(model, x, Reconstruction(samples=4096, steps=1, drop=0.0))
    each.learn()
    (weight,) = each._rounded()
    expected = weight.scale.square() * x.square().mean() / 4  # of four outputs one changes
    ratio = weight.unit / expected
    torch.testing.assert_close(ratio / ratio.mean(), torch.ones(4, 1), rtol=0.3, atol=0)
    assert weight.unit.mean().item() == pytest.approx(1)


def test_learning_does_not_depend_on_the_scale_of_the_outputs() -> None:
    model, x = residual_net(), images()
    layers = {name: copy.deepcopy(model.get_submodule(name)) for name in "ab"}
    scaled = Net(lambda m, x: F.relu(m.b(F.relu(m.a(x))) + x * 2.0**20), **layers)
    with torch.no_grad():
        for name, bias in (("a", 2**10), ("b", 2**20)):
            scaled.get_parameter(f"{name}.weight").mul_(2**10)
            scaled.get_parameter(f"{name}.bias").mul_(bias)
    learned = [learner(each, x)[0].learn() for each in (model, scaled)]
    same = [
        (one.integers == other.integers).float().mean().item()
        for one, other in zip(*(each.layers.values() for each in learned), strict=True)
    ]
    assert min(same) > 0.98
    assert learned[0].error_learned == pytest.approx(learned[1].error_learned, rel=0.1)


def test_what_is_on_the_grid_stays_there() -> None:
    model = residual_net()
    with torch.no_grad():
        model.get_parameter("a.weight")[:, ::2] = 0
    each, *_ = learner(model, images())
    integers = next(iter(each.learn().layers.values())).integers
    assert torch.all(integers[:, ::2] == 0)
    assert torch.any(integers[:, 1::2] != 0)


def test_nothing_of_the_block_changes_and_no_gradient_is_left() -> None:
    each, gm, reference, _ = learner(residual_net(), images(64))
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    each.learn()
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())
    parameters = [*gm.parameters(), *reference.parameters()]
    assert all(parameter.grad is None for parameter in parameters)


def test_scales_of_activations_are_learned_where_their_range_is_poor() -> None:
    model = residual_net()
    x = images()
    recipe = Recipe.minmax(weight_bits=8, activation_bits=3)
    gm = whole(fxquant.quantize(model, [torch.cat([x, 4 * x[:1]])], recipe))
    reference = fxquant.trace(model)
    (block,) = find_blocks(gm)
    options = Reconstruction(steps=200, drop=0.5, activation_learning_rate=1e-2)
    learned = BlockLearner(block, gm, reference, gathered(block, reference, x), options).learn()
    assert len(learned.scales) == 2
    assert all(scale < 0.8 * each.scale for each, scale in learned.scales.items())
    assert learned.error_learned < 0.5 * learned.error_before
    still = Reconstruction(steps=5, activation_learning_rate=0.0)
    learned = BlockLearner(block, gm, reference, gathered(block, reference, x), still).learn()
    assert all(scale == each.scale for each, scale in learned.scales.items())


def test_elements_left_in_float_come_from_the_float_network() -> None:
    gm, reference, block = graphs(nn.Sequential(nn.Linear(6, 4)))
    x = torch.rand(256, 6)
    options = Reconstruction(steps=300, drop=0.9)
    samples = Samples("block", len(x), options, 0)
    with torch.no_grad():
        samples.add(block.paths[0], torch.full_like(x, 1e6), x, reference(x), len(x))
    samples.close()
    batch = samples.draw()
    with torch.no_grad():
        loss = BlockLearner(block, gm, reference, samples, options)._loss(batch)
        exact = Reconstruction(steps=300, drop=0.0)
        all_quantized = BlockLearner(block, gm, reference, samples, exact)._loss(batch)
    assert 0 < loss < 0.5 * all_quantized


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 12), (12,)),
    "linear on tokens": (lambda: nn.Linear(12, 12, bias=False), (5, 12)),
    "Conv1d": (lambda: nn.Conv1d(12, 12, 3, padding=1), (12, 9)),
    "Conv2d grouped": (lambda: nn.Conv2d(12, 12, 3, padding=1, groups=2), (12, 5, 5)),
    "Conv2d depthwise": (lambda: nn.Conv2d(12, 12, 3, padding=1, groups=12), (12, 5, 5)),
    "Conv3d": (lambda: nn.Conv3d(12, 12, 3, padding=1), (12, 3, 3, 3)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(12, 12, 3, padding=1, groups=2), (12, 5, 5)),
}


@pytest.mark.parametrize(("make", "shape"), SHAPES.values(), ids=SHAPES)
def test_every_kind_of_layer_is_learned(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model = Net(lambda m, x: F.gelu(m.b(F.relu(m.a(x)))) + x, a=make(), b=make())
    x = torch.rand(128, *shape) + 0.3 * torch.randn(128, *[1] * len(shape))
    learned = learner(model, x, Reconstruction(steps=100))[0].learn()
    assert learned.error_learned < 0.9 * learned.error_before


def test_samples_of_several_shapes_are_drawn_by_shape() -> None:
    gm, reference, block = graphs(residual_net())
    samples = Samples("block", 96, OPTIONS, 0)
    with torch.no_grad():
        for x in (images(64), images(32)[..., :4]):
            samples.add(block.paths[0], x, x, reference(x), len(x))
    samples.close()
    widths = [samples.draw().inputs.shape[-1] for _ in range(60)]
    assert 30 < widths.count(6) < 50
    assert {len(batch.inputs) for batch in samples.judged()} == {8, 4}
    learned = BlockLearner(block, gm, reference, samples, OPTIONS).learn()
    assert learned.error_learned < learned.error_before


def test_batches_without_an_axis_of_samples_stay_whole() -> None:
    gm, reference, block = graphs(residual_net())
    samples = Samples("block", 120, OPTIONS, 0)
    with torch.no_grad():
        for x in images(120):
            samples.add(block.paths[0], x, x, reference(x), 1)
    samples.close()
    assert samples.draw().inputs.shape == (6, 6, 6)
    assert [batch.inputs.shape for batch in samples.judged()] == [(6, 6, 6)] * 15
    learned = BlockLearner(block, gm, reference, samples, OPTIONS).learn()
    assert learned.error_learned < learned.error_before


def test_no_more_samples_are_held_than_asked_for() -> None:
    _, reference, block = graphs(residual_net())
    samples = gathered(block, reference, images(256), Reconstruction(samples=64))
    assert sum(len(batch.inputs) for batch in samples.judged()) == 64 // 8


def test_one_sample_is_learned_from_and_judged_by() -> None:
    _, reference, block = graphs(residual_net())
    samples = gathered(block, reference, images(1))
    assert len(samples.draw().inputs) == 1
    assert [len(batch.inputs) for batch in samples.judged()] == [1]


@pytest.mark.parametrize(("bad", "what"), [("inputs", "input"), ("targets", "float output")])
def test_non_finite_samples_name_the_block(bad: str, what: str) -> None:
    _, _, block = graphs(residual_net())
    values: dict[str, Any] = {"inputs": images(4), "floats": images(4), "targets": images(4)}
    values[bad][1, 2] = torch.nan
    samples = Samples("layer1.0", 4, OPTIONS, 0)
    samples.add(block.paths[0], **values, num_samples=4)
    with pytest.raises(CalibrationError, match=f"^layer1.0: NaN or infinity in its {what} on"):
        samples.close()


def test_the_seed_decides() -> None:
    model, x = residual_net(), images(64)
    state = torch.get_rng_state()
    results = []
    for seed in (0, 0, 1):
        options = Reconstruction(steps=60, seed=seed)
        gm, reference, block = graphs(model, bits=2)
        learned = BlockLearner(
            block, gm, reference, gathered(block, reference, x, options), options
        ).learn()
        results.append(torch.cat([each.integers.flatten() for each in learned.layers.values()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_may_have_one_scale_a_zero_point_and_any_dtype(
    dtype: torch.dtype, symmetric: bool
) -> None:
    gm = fxquant.trace(residual_net().to(dtype))
    reference = copy.deepcopy(gm)
    spec = TensorSpec(bits=3, symmetric=symmetric)
    apply(QuantizeWeights(Recipe(weights=spec, activations=None)), gm)
    (block,) = find_blocks(gm)
    options = Reconstruction(steps=60)
    samples = gathered(block, reference, images(64).to(dtype), options)
    learned = BlockLearner(block, gm, reference, samples, options).learn()
    assert learned.error_learned < learned.error_before
    for layer, integers in ((layer, each.integers) for layer, each in learned.layers.items()):
        assert (integers - layer.weight_integers).abs().max() == 1
