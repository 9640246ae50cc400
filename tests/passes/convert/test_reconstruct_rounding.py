"""ReconstructRounding learns every layer's rounding on the two graphs side by side."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import CalibrationError, PassError, Recipe, Reconstruction
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes import DropObservers, InsertObservers, QuantizeWeights, ReconstructRounding
from fxquant.streaming.long_runs import Run
from tests.helpers import Net, apply, graph_text, outputs, relative_error

OPTIONS = Reconstruction(steps=200, samples=256)


def rounded(
    model: nn.Module, batches: list[Tensor], bits: int = 3, **options: Any
) -> tuple[fx.GraphModule, fx.GraphModule, ReconstructRounding]:
    """Return `model` rounded to nearest, and learned, at `bits`, and the pass that learned."""
    recipe = Recipe.minmax(weight_bits=bits, activation_bits=None)
    gm = fxquant.trace(model)
    reference = copy.deepcopy(gm)
    apply(QuantizeWeights(recipe), gm)
    nearest = copy.deepcopy(gm)
    each = ReconstructRounding(reference, [(batch,) for batch in batches], **options)
    assert apply(each, gm)
    return nearest, gm, each


def layers(gm: nn.Module) -> dict[str, QuantizedLayer]:
    return {name: each for name, each in gm.named_modules() if isinstance(each, QuantizedLayer)}


def correlated(*shape: int) -> Tensor:
    """Return inputs that are alike, as images and activations are; there rounding pays."""
    return torch.rand(shape) + 0.3 * torch.randn(shape[0], *[1] * (len(shape) - 1))


def error(model: nn.Module, gm: nn.Module, x: Tensor) -> float:
    return float((outputs(gm, x) - outputs(model, x)).square().mean())


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 8), (12,)),
    "linear on 3-D": (lambda: nn.Linear(12, 8, bias=False), (5, 12)),
    "linear on 4-D": (lambda: nn.Linear(12, 8), (3, 2, 12)),
    "Conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (6, 12)),
    "Conv2d": (lambda: nn.Conv2d(6, 8, 3), (6, 8, 8)),
    "Conv2d strided, reflect": (
        lambda: nn.Conv2d(6, 8, 3, 2, 1, padding_mode="reflect"), (6, 8, 8)
    ),
    "Conv2d circular, dilated": (
        lambda: nn.Conv2d(6, 8, 3, 1, 2, 2, padding_mode="circular"), (6, 8, 8)
    ),
    "Conv2d same, replicate, no bias": (
        lambda: nn.Conv2d(6, 8, (3, 5), padding="same", padding_mode="replicate", bias=False),
        (6, 8, 8),
    ),
    "Conv2d grouped": (lambda: nn.Conv2d(6, 8, 3, groups=2), (6, 8, 8)),
    "Conv2d depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (6, 8, 8)),
    "Conv3d": (lambda: nn.Conv3d(4, 8, 2), (4, 4, 4, 4)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(6, 8, 4, 2, 1), (6, 8)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 8, 3, 2, 1, 1), (6, 6, 6)),
    "ConvTranspose2d grouped": (lambda: nn.ConvTranspose2d(6, 8, 3, 2, groups=2), (6, 6, 6)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 4, 2, 2), (4, 3, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("behind", [None, nn.ReLU, nn.ReLU6, nn.SiLU])
@pytest.mark.parametrize(("make", "shape"), KINDS.values(), ids=KINDS)
def test_every_kind_of_layer_comes_closer_to_the_float_one(
    make: Callable[[], nn.Module], shape: tuple[int, ...], behind: type[nn.Module] | None
) -> None:
    model = nn.Sequential(make(), *[behind()] if behind else [])
    x = correlated(256, *shape)
    nearest, learned, _ = rounded(model, [x[:100], x[100:]], options=OPTIONS)
    new = correlated(256, *shape)
    assert error(model, learned, new) < 0.9 * error(model, nearest, new)
    result = layers(learned)["0"].rounding
    assert result is not None
    assert result.kept
    assert result.error_learned < result.error_nearest
    assert result.steps == OPTIONS.steps


@pytest.mark.parametrize(("make", "shape"), KINDS.values(), ids=KINDS)
def test_the_gram_matrix_brings_every_kind_of_layer_closer(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.ReLU())
    x = correlated(256, *shape)
    options = Reconstruction(samples=256, method="gram")
    nearest, learned, _ = rounded(model, [x[:100], x[100:]], options=options)
    new = correlated(256, *shape)
    assert error(model, learned, new) < 0.8 * error(model, nearest, new)
    layer = layers(learned)["0"]
    assert layer.rounding is not None
    assert (layer.rounding.method, layer.rounding.steps) == ("gram", 0)
    assert graph_text(learned).count("bits minmax gram") == 1
    assert layer.bias is not None  # learned where there was none


def test_adaquant_brings_most_kinds_of_layers_closer_and_none_away() -> None:
    ratios = []
    for make, shape in KINDS.values():
        torch.manual_seed(0)
        model, x = nn.Sequential(make(), nn.ReLU()), correlated(256, *shape)
        gm = fxquant.trace(model)
        reference = copy.deepcopy(gm)
        apply(QuantizeWeights(Recipe.minmax(weight_bits=3, activation_bits=None)), gm)
        options = Reconstruction(steps=200, samples=256, method="adaquant")
        ReconstructRounding(reference, [(x[:100],), (x[100:],)], options)(gm)
        result = layers(gm)["0"].rounding
        assert result is not None
        ratios.append(result.error_learned / result.error_nearest if result.kept else 1.0)
        assert ("adaquant" in graph_text(gm)) == result.kept
    assert max(ratios) <= 1
    assert sum(ratios) / len(ratios) < 0.6


@pytest.mark.parametrize("method", ["adaround", "gram", "adaquant"])
def test_one_scale_for_a_whole_weight_stays_one(method: Any) -> None:
    model, x = nn.Sequential(nn.Conv2d(6, 8, 3)), correlated(256, 6, 8, 8)
    gm = fxquant.trace(model)
    reference = copy.deepcopy(gm)
    weights = fxquant.TensorSpec(bits=3, symmetric=True)
    apply(QuantizeWeights(Recipe(weights=weights, activations=None)), gm)
    nearest = copy.deepcopy(gm)
    apply(ReconstructRounding(reference, [(x,)], Reconstruction(steps=99, method=method)), gm)
    assert layers(gm)["0"].weight_scale.dim() == 0
    assert error(model, gm, x) < 0.9 * error(model, nearest, x)


def test_layers_in_parallel_learn_from_the_float_networks_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = correlated(64, 3, 12, 12)
    results = {}
    for parallel in (False, True):
        options = Reconstruction(steps=99, parallel=parallel)
        results[parallel] = layers(rounded(model, [x], options=options)[1])
    assert torch.equal(results[True]["0"].weight_integers, results[False]["0"].weight_integers)
    assert not torch.equal(results[True]["2"].weight_integers, results[False]["2"].weight_integers)
    alone = nn.Sequential(model[2])
    options = Reconstruction(steps=99, parallel=True)
    _, learned, _ = rounded(alone, [F.relu(model[0](x)).detach()], options=options)
    assert layers(learned)["0"].rounding is not None


def test_text_shows_the_learned_layers_and_the_graph_is_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    nearest, learned, _ = rounded(model, [correlated(16, 3, 8, 8)], options=OPTIONS)
    expected = """\
input_1 = input()
_0 = self.0(input_1) # QuantizedConv2d 3 bits minmax
_1 = self.1(_0) # ReLU
_2 = self.2(_1) # QuantizedConv2d 3 bits minmax
return _2"""
    assert graph_text(nearest) == expected
    assert graph_text(learned) == expected.replace("bits minmax", "bits minmax adaround")


def test_a_second_run_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    _, learned, again = rounded(model, [correlated(16, 3, 8, 8)], options=OPTIONS)
    assert not apply(again, learned)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = correlated(64, 3, 12, 12)
    state = torch.get_rng_state()
    results = [
        rounded(model, [x], bits=2, options=Reconstruction(steps=99, pool_rows=512, seed=seed))[1]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    integers = [
        torch.cat([layer.weight_integers.flatten() for layer in layers(gm).values()])
        for gm in results
    ]
    assert torch.equal(integers[0], integers[1])
    assert not torch.equal(integers[0], integers[2])


def test_a_module_called_twice_is_learned_once_over_both_calls() -> None:
    head = nn.Conv2d(4, 4, 3, padding=1)
    model = Net(
        lambda m, x: (F.relu(m.head(m.a(x))), F.relu(m.head(m.b(x)))),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 4, 3, 2, 1),
        head=head,
    )
    x = correlated(32, 3, 8, 8)
    nearest, learned, _ = rounded(model, [x], options=OPTIONS)
    assert all(layer.rounding is not None for layer in layers(learned).values())
    for level in (0, 1):
        errors = [
            (outputs(gm, x)[level] - outputs(model, x)[level]).square().mean()
            for gm in (nearest, learned)
        ]
        assert errors[1] < errors[0]


def test_a_layer_behind_itself_is_learned_once() -> None:
    model = Net(lambda m, x: F.relu(m.a(F.relu(m.a(F.relu(m.a(x)))))), a=nn.Linear(6, 6))
    x = correlated(64, 6)
    nearest, learned, _ = rounded(model, [x], options=OPTIONS)
    assert error(model, learned, x) < error(model, nearest, x)


def test_keeps_nearest_rounding_where_learning_is_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fxquant.rounding.methods.learners.learn_rounding",
        lambda rounding, loss, schedule: rounding.affine.lowest.expand_as(rounding.weight).clone(),
    )
    model, x = nn.Sequential(nn.Linear(6, 4)), correlated(64, 6)
    gm, reference = fxquant.trace(model), fxquant.trace(model)
    apply(QuantizeWeights(Recipe.minmax(weight_bits=3)), gm)
    before = gm.get_buffer("0.weight_integers").clone()
    assert not apply(ReconstructRounding(reference, [(x,)], OPTIONS), gm)
    assert torch.equal(gm.get_buffer("0.weight_integers"), before)
    result = layers(gm)["0"].rounding
    assert result is not None
    assert not result.kept
    assert "nearest kept" in str(fxquant.report(gm))


def test_each_layer_of_both_graphs_runs_once_a_batch() -> None:
    counts = {"float": 0, "quantized": 0}
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(8)])
    gm, reference = fxquant.trace(model), fxquant.trace(model)
    apply(QuantizeWeights(Recipe.minmax(weight_bits=4)), gm)

    def count(side: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            counts[side] += 1

        return hook

    for side, graph in (("float", reference), ("quantized", gm)):
        for module in graph.modules():
            if isinstance(module, nn.Linear):  # of another module with hooks nothing is known
                module.register_forward_hook(count(side))
    batches = [(correlated(8, 6),) for _ in range(3)]
    apply(ReconstructRounding(reference, batches, Reconstruction(steps=5)), gm)
    assert counts == {"float": 8 * 3, "quantized": 7 * 3}  # the last layer need not run


def test_spilling_changes_no_weight() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
    )
    x = correlated(32, 3, 10, 10)
    results = [
        rounded(
            model, list(torch.split(x, 8)), options=Reconstruction(steps=20, max_bytes=max_bytes)
        )[1]
        for max_bytes in (None, 1, 10_000)
    ]
    for name, expected in layers(results[0]).items():
        for other in results[1:]:
            assert torch.equal(
                other.get_buffer(f"{name}.weight_integers"), expected.weight_integers
            )


def test_non_finite_data_names_the_layer() -> None:
    model = Net(lambda m, x: m.b(torch.log(m.a(x) - 10)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    with pytest.raises(CalibrationError, match=r"^ReconstructRounding: b: NaN or infin"):
        rounded(model, [torch.rand(8, 4)], options=OPTIONS)


def test_no_batches_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="`batches` is empty"):
        rounded(nn.Sequential(nn.Linear(4, 4)), [], options=OPTIONS)


def test_a_reference_of_another_model_is_an_error() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 4)))
    apply(QuantizeWeights(Recipe.minmax()), gm)
    other = fxquant.trace(Net(lambda m, x: m.a(x), a=nn.Linear(4, 4)))
    with pytest.raises(PassError, match="the reference has no node '_0'"):
        ReconstructRounding(other, [(torch.rand(2, 4),)])(gm)


def test_logs_one_line_a_layer(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fxquant"):
        rounded(nn.Sequential(nn.Linear(12, 8)), [correlated(256, 12)], options=OPTIONS)
    lines = [line for line in caplog.messages if line.startswith("0: ")]
    assert len(lines) == 1
    assert " dB, kept" in lines[0]


def test_the_bar_counts_layers_and_can_be_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, x = nn.Sequential(nn.Linear(12, 8)), correlated(256, 12)
    rounded(model, [x], options=OPTIONS, how=Run(progress=False))
    rounded(model, [x], options=OPTIONS)  # no terminal
    assert capsys.readouterr().err == ""
    rounded(model, [x], options=OPTIONS, how=Run(progress=True))
    assert "AdaRound 1 of 1 layers: 100%" in capsys.readouterr().err


def test_drop_observers_gives_back_the_graph() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    before, x = graph_text(gm), torch.randn(2, 3, 8, 8)
    expected = outputs(gm, x)
    assert not apply(DropObservers(), gm)
    apply(InsertObservers(Recipe.aciq()), gm)
    assert apply(DropObservers(), gm)
    assert [line.split(" # ")[0] for line in graph_text(gm).splitlines()] == [
        line.split(" # ")[0] for line in before.splitlines()
    ]
    assert not [name for name, _ in gm.named_modules() if "observers" in name]
    assert relative_error(outputs(gm, x), expected) == 0
    assert not apply(DropObservers(), gm)
