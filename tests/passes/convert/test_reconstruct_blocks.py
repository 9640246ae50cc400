"""ReconstructBlocks learns block by block on the two graphs side by side."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import CalibrationError, PassError, Recipe, Reconstruction, StorageError
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes import QuantizeWeights
from fxquant.passes.convert.reconstruct_blocks import ReconstructBlocks
from fxquant.rounding.blocks.learner import BlockLearner, LearnedBlock
from fxquant.rounding.blocks.samples import Samples
from fxquant.rounding.blocks.weights import LearnedLayer
from fxquant.streaming.long_runs import Run
from tests.helpers import Net, apply, assert_same_state, graph_text, node, outputs, refusals, whole

OPTIONS = Reconstruction(steps=150, samples=64, blocks=True, activation_learning_rate=1e-3)
FEW = Reconstruction(steps=20, samples=64, blocks=True, activation_learning_rate=1e-3)


def network(m: Any, x: Any) -> Any:
    x = F.relu(m.stem(x))
    x = F.relu(m.b(F.relu(m.a(x))) + x)
    x = F.relu(m.d(F.relu(m.c(x))) + x[:, :, ::2, ::2])
    return m.fc(x.mean((2, 3)))


def make_model() -> nn.Module:
    return Net(
        network,
        stem=nn.Conv2d(3, 6, 3, padding=1),
        a=nn.Conv2d(6, 6, 3, padding=1),
        b=nn.Conv2d(6, 6, 3, padding=1),
        c=nn.Conv2d(6, 6, 3, stride=2, padding=1),
        d=nn.Conv2d(6, 6, 3, padding=1),
        fc=nn.Linear(6, 4),
    )


def images(samples: int = 64) -> Tensor:
    return torch.rand(samples, 3, 8, 8) + 0.3 * torch.randn(samples, 3, 1, 1)


def rounded(
    model: nn.Module,
    x: Tensor,
    options: Reconstruction = OPTIONS,
    bits: int = 3,
    activation_bits: int | None = None,
    **rest: Any,
) -> tuple[fx.GraphModule, fx.GraphModule, ReconstructBlocks]:
    """Return `model` rounded to nearest, and learned, and the pass that learned."""
    recipe = Recipe.minmax(weight_bits=bits, activation_bits=activation_bits)
    gm = whole(fxquant.quantize(model, [x], recipe))
    reference = fxquant.trace(model)
    nearest = copy.deepcopy(gm)
    batches = [(part,) for part in torch.split(x, 32)]
    each = ReconstructBlocks(reference, batches, options, **rest)
    assert apply(each, gm)
    return nearest, gm, each


def layers(gm: nn.Module) -> dict[str, QuantizedLayer]:
    return {name: each for name, each in gm.named_modules() if isinstance(each, QuantizedLayer)}


def error(model: nn.Module, gm: nn.Module, x: Tensor) -> float:
    return float((outputs(gm, x) - outputs(model, x)).square().mean())


@pytest.mark.parametrize("activation_bits", [None, 4])
def test_the_network_comes_closer_to_the_float_one(activation_bits: int | None) -> None:
    model, x = make_model(), images()
    nearest, learned, _ = rounded(model, x, activation_bits=activation_bits)
    new = images()
    assert error(model, learned, new) < 0.7 * error(model, nearest, new)


def test_every_layer_of_a_block_records_the_blocks_errors() -> None:
    _, learned, _ = rounded(make_model(), images(), FEW)
    found = {name: each.rounding for name, each in layers(learned).items()}
    assert found["a"] is found["b"]
    assert found["c"] is found["d"]
    assert len({id(each) for each in found.values()}) == 4
    for each in found.values():
        assert each is not None
        assert each.method == "blocks"
        assert each.steps == FEW.steps
        assert each.seconds > 0
        assert each.error_learned <= each.error_nearest


def test_scales_of_activations_move_and_their_integers_stay() -> None:
    nearest, learned, _ = rounded(make_model(), images(), activation_bits=4)
    moved = 0
    for name, each in learned.named_modules():
        if isinstance(each, FakeQuantize):
            before = nearest.get_submodule(name)
            assert isinstance(before, FakeQuantize)
            assert torch.equal(each.zero_point, before.zero_point)
            assert each.scale.dtype == torch.float32
            moved += int(each.scale != before.scale)
    assert moved == 6


def test_text_shows_the_learned_layers_and_the_graph_is_the_same() -> None:
    nearest, learned, _ = rounded(make_model(), images(), FEW, activation_bits=None)
    assert graph_text(learned).replace(" blocks", "") == graph_text(nearest)
    assert graph_text(learned).count(" blocks") == 6


def test_a_second_run_without_scales_to_learn_changes_nothing() -> None:
    _, learned, again = rounded(make_model(), images(), FEW)
    assert not apply(again, learned)


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_generator() -> None:
    model, x = make_model(), images()
    state = torch.get_rng_state()
    one, other = (rounded(model, x, FEW, activation_bits=4)[1] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_state(one, other)


def test_keeps_nearest_rounding_where_learning_is_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(self: BlockLearner) -> LearnedBlock:
        layers = {
            each: LearnedLayer(
                torch.zeros_like(each.weight_integers), 2 * each.weight_scale, None, each.weight
            )
            for each in self._weights
        }
        scales = {each: 2 * each.scale for each in self._log_scales}
        return LearnedBlock(layers, scales, 0.1, 0.2)

    monkeypatch.setattr(BlockLearner, "learn", learn)
    model, x = make_model(), images(8)
    gm = whole(fxquant.quantize(model, [x], Recipe.minmax(weight_bits=3)))
    before = copy.deepcopy(gm)
    assert not apply(ReconstructBlocks(fxquant.trace(model), [(x,)], OPTIONS), gm)
    assert_same_state(gm, before)
    assert "nearest kept" in str(fxquant.report(gm))


def test_blocks_learn_from_what_the_blocks_in_front_of_them_give() -> None:
    model, x = make_model(), images()
    _, learned, _ = rounded(model, x, FEW)
    reference = fxquant.trace(model)
    seen: list[tuple[str, Tensor, Tensor]] = []
    add = Samples.add

    def spy(self: Any, path: Any, inputs: Tensor, floats: Tensor, *rest: Any) -> None:
        seen.append((path.entry.name, inputs, floats))
        add(self, path, inputs, floats, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Samples, "add", spy)
        apply(ReconstructBlocks(reference, [(x,)], FEW), learned)
    names = ["x", "relu", "relu_2", "mean"]
    assert [name for name, _, _ in seen] == names
    for name, inputs, floats in seen:
        for gm, value in ((learned, inputs), (reference, floats)):
            torch.testing.assert_close(value, value_of(gm, name, x))


def value_of(gm: fx.GraphModule, name: str, x: Tensor) -> Tensor:
    """Return the value of a node, by cutting a copy of the graph behind it."""
    cut = copy.deepcopy(gm)
    (output,) = cut.graph.find_nodes(op="output")
    output.args = (node(cut, name),)
    cut.graph.eliminate_dead_code()
    cut.recompile()
    value = outputs(cut, x)
    assert isinstance(value, Tensor)
    return value


def test_each_node_of_both_graphs_runs_once_a_batch() -> None:
    model, x = make_model(), images(64)
    gm = whole(fxquant.quantize(model, [x], Recipe.minmax(activation_bits=None)))
    reference = fxquant.trace(model)
    counts = {"float": 0, "quantized": 0}

    def count(side: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            counts[side] += not torch.is_grad_enabled()

        return hook

    for side, graph in (("float", reference), ("quantized", gm)):
        graph.get_submodule("a").register_forward_hook(count(side))
    options = Reconstruction(steps=1, samples=64)
    apply(ReconstructBlocks(reference, [(part,) for part in torch.split(x, 16)], options), gm)
    assert counts["quantized"] == 4


def test_a_recurrence_and_a_shared_head_are_learned_over_all_calls() -> None:
    model = Net(
        lambda m, x: (m.head(F.relu(m.a(F.relu(m.a(x))))), m.head(x[:, :, ::2])),
        a=nn.Conv2d(3, 3, 3, padding=1),
        head=nn.Conv2d(3, 4, 1),
    )
    x = images(256)
    nearest, learned, _ = rounded(model, x, Reconstruction(steps=150, drop=0.0))
    for level in (0, 1):
        errors = [
            float((outputs(gm, x)[level] - outputs(model, x)[level]).square().mean())
            for gm in (nearest, learned)
        ]
        assert errors[1] < errors[0]


def test_learns_blocks_that_view_images_as_rows() -> None:
    def between(m: Any, x: Any) -> Any:
        rows = m.fc(m.conv(x).view(-1, 48))
        return F.relu(x + rows.view(-1, 3, 4, 4))

    model = Net(between, conv=nn.Conv2d(3, 3, 3, padding=1), fc=nn.Linear(48, 48))
    recipe = Recipe.adaround(steps=2, blocks=True)
    report = fxquant.report(fxquant.quantize(model, [torch.randn(4, 3, 4, 4)], recipe))
    assert [row.rounding is not None for row in report.rows if row.weights] == [True, True]


def test_a_join_that_is_no_block_is_reported_with_the_reason() -> None:
    model = Net(lambda m, x: (m.b(y := m.a(x)) + x, y), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    _, learned, _ = rounded(model, torch.rand(64, 4))
    reason = "not learned as one block: a inside of it also feeds output"
    assert refusals(learned)["add"] == (reason,)
    (add,) = (row for row in fxquant.report(learned).rows if row.name == "add")
    assert add.remarks == (reason,)
    assert all(each.rounding is not None for each in layers(learned).values())


def test_finished_blocks_are_taken_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make_model(), images()
    _, expected, _ = rounded(model, x, FEW, activation_bits=4)
    learn, calls = BlockLearner.learn, iter(range(9))

    def learn_or_stop(self: BlockLearner) -> LearnedBlock:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return learn(self)

    monkeypatch.setattr(BlockLearner, "learn", learn_or_stop)
    with pytest.raises(KeyboardInterrupt):
        rounded(model, x, FEW, activation_bits=4, how=Run(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "0000_stem.pt",
        "0001_a to b.pt",
    ]
    _, resumed, _ = rounded(model, x, FEW, activation_bits=4, how=Run(tmp_path))
    assert next(calls) == 5  # stem and the first block once; then the others
    assert_same_state(resumed, expected)
    assert layers(resumed)["a"].rounding is not None
    with pytest.raises(StorageError, match="the recipe is another"):
        rounded(model, x, Reconstruction(steps=9), activation_bits=4, how=Run(tmp_path))


def test_no_batches_is_an_error() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(CalibrationError, match="ReconstructBlocks: `batches` is empty"):
        ReconstructBlocks(gm, [])(gm)


def test_a_reference_of_another_model_is_an_error() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 4)))
    apply(QuantizeWeights(Recipe.minmax()), gm)
    other = fxquant.trace(Net(lambda m, x: m.a(x), a=nn.Linear(4, 4)))
    with pytest.raises(PassError, match="the reference has no node 'input_1'"):
        ReconstructBlocks(other, [(torch.rand(2, 4),)])(gm)


def test_several_ranks_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxquant.passes.convert.reconstruct_blocks.num_ranks", lambda: 2)
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(PassError, match="ReconstructBlocks: 2 ranks"):
        ReconstructBlocks(gm, [(torch.rand(2, 4),)])(gm)


def test_a_graph_without_quantized_layers_is_left_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 4)))
    assert not apply(ReconstructBlocks(gm, [(torch.rand(2, 4),)]), gm)
    assert "ReconstructBlocks: the graph has no quantized layers" in caplog.text


def test_logs_one_line_a_block_and_the_bar_can_be_quiet(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model, x, few = make_model(), images(), Reconstruction(steps=5)
    with caplog.at_level(logging.INFO, "fxquant"):
        rounded(model, x, few, how=Run(progress=False))
    lines = [line.split(":")[0] for line in caplog.messages if " dB, " in line]
    assert lines == ["stem", "a to b", "c to d", "fc"]
    assert capsys.readouterr().err == ""
    rounded(model, x, few, how=Run(progress=True))
    assert "AdaRound 4 of 4 blocks: 100%" in capsys.readouterr().err


def test_biases_are_corrected_by_what_calibration_saw() -> None:
    x = images(16)
    options: dict[str, Any] = {"blocks": True, "steps": 2, "samples": 16, "bias_correction": True}
    prepared = fxquant.prepare(make_model(), Recipe.adaround(**options))
    fxquant.calibrate(prepared, [x])
    seen = {name: each.clone() for name, each in prepared.named_buffers() if "means" in name}
    kept: dict[str, Tensor] = {}

    class Correcting(fxquant.passes.CorrectBias):
        def run(self, gm: fx.GraphModule) -> bool:
            kept.update({name: each for name, each in gm.named_buffers() if "means" in name})
            return super().run(gm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxquant.conversion.CorrectBias", Correcting)
        quantized = fxquant.convert(prepared)
    assert seen.keys() == kept.keys()
    assert all(torch.equal(each, seen[name]) for name, each in kept.items())
    assert all(each.rounding is not None for each in layers(quantized).values())


def test_learns_behind_a_part_that_is_taken_of_float_values() -> None:
    net = Net(lambda m, x: (m.a(x.narrow(1, 0, 1)), m.b(x)), a=nn.Linear(1, 8), b=nn.Linear(12, 8))
    x = torch.randn(64, 12)
    x[:, 0] *= 1e-3  # the steps of the whole would be too coarse for it
    recipe = Recipe.adaround(blocks=True, steps=2, samples=64)
    quantized = whole(fxquant.quantize(net, [x], recipe))
    assert "narrow_1 = x.narrow(1, 0, 1)" in graph_text(quantized)
    assert all(each.rounding is not None for each in layers(quantized).values())
