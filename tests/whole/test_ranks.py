"""Ranks do the same, or all end with one sentence: nobody waits, and no two models come out."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe
from fxquant.rounding.methods import adaround
from fxquant.streaming.identity import digest
from tests.processes import ranks

LEARNT = Recipe.adaround(steps=9, samples=8)
GIVE = "give all of them the same model, recipe and example_inputs"


class Picky(nn.Module):
    """Python that no graph shows, and that fails on large values."""

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 100:
            raise ArithmeticError("too large")
        return x


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), Picky(), nn.Flatten(), nn.Linear(64, 4)
    ).eval()  # fmt: skip


def share(rank: int, batches: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(4, 3, 6, 6, generator=generator) for _ in range(batches)]


def quantized(rank: int, recipe: Recipe = LEARNT, batches: Any = None, **options: Any) -> str:
    """Return a digest of the quantized model."""
    model = options.pop("model", None) or net()
    batches = share(rank) if batches is None else batches
    options = {"leaf_modules": [Picky], "progress": False, **options}
    made = fxquant.quantize(model, batches, recipe, **options)
    return digest(made.state_dict().values())


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Import here, once, what processes that are copies of this one would import each."""
    quantized(0)


def other_bits(rank: int, _: pytest.MonkeyPatch) -> object:
    return quantized(rank, Recipe.adaround(weight_bits=3 if rank else 4))


def other_steps(rank: int, _: pytest.MonkeyPatch) -> object:
    return quantized(rank, Recipe.adaround(steps=14 if rank else 12))


def other_rules(rank: int, _: pytest.MonkeyPatch) -> object:
    return quantized(rank, Recipe.aciq(skip=["4"] if rank else []))


def other_weights(rank: int, _: pytest.MonkeyPatch) -> object:
    model = net()
    if rank:
        model[0].get_parameter("weight").data[0, 0, 0, 0] += 1e-6
    return quantized(rank, model=model)


def other_layer(rank: int, _: pytest.MonkeyPatch) -> object:
    model = net()
    if rank:
        model[1] = nn.ReLU6()
    return quantized(rank, model=model)


def other_torch(rank: int, patch: pytest.MonkeyPatch) -> object:
    if rank:
        patch.setattr(torch, "__version__", "1.0")
    return quantized(rank)


DIFFERING: dict[Callable[[int, pytest.MonkeyPatch], object], str] = {
    other_bits: r"recipe\.weights\.bits is 4 on rank 0, 3 on rank 1",
    other_steps: r"recipe\.reconstruction\.steps is 12 on rank 0, 14 on rank 1",
    other_rules: r"recipe\.rules\[0\]\.match is missing on rank 0, '4' on rank 1 \(and 3 .* more\)",
    other_weights: r"model\.0\.weight is float32 \(4, 3, 3, 3\) with the digest .* on rank 0, .*",
    other_layer: r"model\.1 is ReLU\(\) on rank 0, ReLU6\(.*\) on rank 1",
    other_torch: r"torch is .* on rank 0, 1\.0 on rank 1",
}


def without_a_batch(rank: int, _: pytest.MonkeyPatch) -> object:
    return quantized(rank, batches=[] if rank else None)


def with_a_failing_loader(rank: int, _: pytest.MonkeyPatch) -> object:
    def load() -> Iterator[Tensor]:
        yield from share(rank, 1)
        raise ZeroDivisionError("a bad file\nin a long story")

    return quantized(rank, batches=load() if rank else None)


def with_a_failing_model(rank: int, _: pytest.MonkeyPatch) -> object:
    return quantized(
        rank, batches=[x * (1e6 if rank and n else 1) for n, x in enumerate(share(rank))]
    )


def with_nan(rank: int, _: pytest.MonkeyPatch) -> object:
    return quantized(rank, batches=[x * (torch.nan if rank else 1) for x in share(rank)])


def in_the_middle_of_a_step(rank: int, patch: pytest.MonkeyPatch) -> object:
    original, steps = adaround._Block.descend, iter(range(99))

    def descend(block: Any) -> None:
        if next(steps) == 5:
            raise MemoryError("no more")
        original(block)

    if rank:
        patch.setattr(adaround._Block, "descend", descend)
    return quantized(rank)


def between_layers(rank: int, patch: pytest.MonkeyPatch) -> object:
    original, layers = adaround.learn_rounding, iter(range(9))

    def learn(*arguments: Any) -> Tensor:
        learnt = original(*arguments)
        if next(layers) == 1:
            raise MemoryError("no more")
        return learnt

    if rank:
        patch.setattr("fxquant.rounding.methods.learners.learn_rounding", learn)
    return quantized(rank)


def in_adaquant(rank: int, patch: pytest.MonkeyPatch) -> object:
    if rank:
        patch.setattr("fxquant.rounding.methods.learners.learn_freely", lambda *_: [][1])
    return quantized(rank, Recipe.adaround(method="adaquant", steps=9))


def without_a_batch_in_a_loop(rank: int, _: pytest.MonkeyPatch) -> object:
    prepared = fxquant.prepare(net(), Recipe.minmax(), leaf_modules=[Picky])
    for batch in share(rank, 0 if rank else 2):
        prepared(batch)
    return str(fxquant.convert(prepared))


FAILING: dict[Callable[[int, pytest.MonkeyPatch], object], str] = {
    without_a_batch: "CalibrationError: quantize: `batches` is empty: give at least one batch",
    with_a_failing_loader: "ZeroDivisionError: a bad file",
    with_a_failing_model: "CalibrationError: batch 1 .* raised ArithmeticError: too large",
    with_nan: "CalibrationError: batch 0: NaN or infinity .*",
    in_the_middle_of_a_step: "MemoryError: ReconstructRounding: no more",
    between_layers: "MemoryError: ReconstructRounding: no more",
    in_adaquant: "IndexError: ReconstructRounding: list index out of range",
    without_a_batch_in_a_loop: "CalibrationError: none of the . observed tensors has seen a .*",
}


class Sized(nn.Module):
    """Decides on the size of its inputs, which each rank's first batch tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.relu() if x.shape[3] > 6 else y


def other_sizes(rank: int, _: pytest.MonkeyPatch) -> object:
    torch.manual_seed(0)
    batches = [torch.ones(2, 3, 6, 8 if rank else 6)]
    model = Sized().eval()
    return quantized(rank, Recipe.minmax(), batches, model=model, leaf_modules=())


def all_of_them(rank: int) -> dict[str, str]:
    """Return how each of the above ends, one after the other: ranks stay in step."""
    ended = {}
    for function in (*DIFFERING, *FAILING, other_sizes):
        with pytest.MonkeyPatch.context() as patch:
            try:
                ended[function.__name__] = str(function(rank, patch))
            except Exception as error:
                ended[function.__name__] = f"{type(error).__name__}: {error}"
    return {**ended, "in the end": quantized(rank)}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return ranks(2, all_of_them, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    ("function", "difference"), DIFFERING.items(), ids=[each.__name__ for each in DIFFERING]
)
def test_all_ranks_are_told_which_differs_in_what_before_any_work(
    function: Callable[..., object], difference: str, ended: list[dict[str, str]]
) -> None:
    told = f"RankError: quantize: the ranks do not have the same to work on: {difference}: {GIVE}"
    for each in ended:
        assert re.fullmatch(told, each[function.__name__])


@pytest.mark.parametrize(
    ("function", "cause"), FAILING.items(), ids=[each.__name__ for each in FAILING]
)
def test_a_rank_that_fails_ends_all_and_is_named_with_the_cause(
    function: Callable[..., object], cause: str, ended: list[dict[str, str]]
) -> None:
    first, second = (each[function.__name__] for each in ended)
    place = "(ReconstructRounding: )?rank 1 failed: (quantize|convert)"
    assert re.fullmatch(f"RankError: {place}: {cause}", first)
    assert re.match(cause, second)


def test_graphs_that_differ_by_what_they_were_traced_with_are_told(
    ended: list[dict[str, str]],
) -> None:
    for each in ended:
        assert re.fullmatch(
            r"RankError: quantize, once prepared: .*: line \d of the graph is .* on rank 0, .* on "
            rf"rank 1 \(and \d differences more\): {GIVE}",
            each["other_sizes"],
        )


def test_ranks_are_in_step_after_failures(ended: list[dict[str, str]]) -> None:
    first, second = (each["in the end"] for each in ended)
    assert first == second
    assert re.fullmatch("[0-9a-f]{32}", first)


def three(rank: int) -> tuple[str, str, str]:
    def ended(function: Callable[[], str]) -> str:
        try:
            return function()
        except fxquant.FxquantError as error:
            return str(error)

    bits = 4 if rank == 1 else 8
    return (
        ended(lambda: quantized(rank, Recipe.minmax(weight_bits=bits))),
        ended(lambda: quantized(rank, batches=[] if rank == 2 else None)),
        quantized(rank),
    )


def test_of_three_ranks_those_concerned_are_named(tmp_path: Path) -> None:
    differing, failed, made = zip(*ranks(3, three, tmp_path), strict=True)
    assert all("weights.bits is 8 on rank 0 and 2, 4 on rank 1:" in each for each in differing)
    assert failed[0] == failed[1]
    assert failed[0].startswith("rank 2 failed: quantize: CalibrationError: quantize: `batches`")
    assert len(set(made)) == 1


@pytest.mark.parametrize("number", [2, 3])
def test_moving_averages_are_those_of_one_process(number: int, tmp_path: Path) -> None:
    recipe = Recipe.minmax(activation_range="ema", activation_momentum=0.5)
    batches = share(0, 6)

    def scales(rank: int, number: int = number) -> list[float]:
        own = batches[len(batches) * rank // number : len(batches) * (rank + 1) // number]
        model = fxquant.quantize(net(), own, recipe, leaf_modules=[Picky], progress=False)
        return [
            float(value)
            for name, value in model.named_buffers()
            if "quantizers" in name and name.endswith(".scale")
        ]

    alone = scales(0, 1)
    assert len(alone) == 2
    for found in ranks(number, scales, tmp_path):
        assert found == pytest.approx(alone, rel=1e-6)


class Branching(nn.Module):
    """Two regions, of which large inputs alone reach the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        return self.second(y) if x.min() > 1 else y


def test_what_only_one_rank_called_is_quantized_on_all_or_an_error(tmp_path: Path) -> None:
    def end(rank: int) -> list[str]:
        batches = [torch.rand(8, 4) + 2 * rank for _ in range(2)]
        told = []
        for recipe in (Recipe.aciq(), LEARNT):
            try:
                model = fxquant.quantize(Branching(), batches, recipe, progress=False)
                told.append(f"{type(model.get_submodule('second.0')).__name__}")
            except fxquant.FxquantError as error:
                told.append(str(error))
        return told

    first, second = ranks(2, end, tmp_path)
    assert first[0] == second[0] == "QuantizedLinear"
    assert first[1].startswith("second: never called with this rank's share of the data, but on")
    assert second[1].endswith(f"rank 0 failed: quantize: CalibrationError: {first[1]}")


def test_other_calls_are_an_error_and_no_wait(tmp_path: Path) -> None:
    def call(rank: int) -> object:
        if rank:
            return quantized(rank)
        prepared = fxquant.prepare(net(), Recipe.minmax(), leaf_modules=[Picky])
        return fxquant.convert(fxquant.calibrate(prepared, share(rank)))

    for error in ranks(2, call, tmp_path):
        assert error == (
            "RankError: the ranks are out of step: rank 0 exchanges convert, rank 1 exchanges "
            "quantize: give all of them the same model and recipe, and let all make the same calls "
            "in the same order"
        )


@pytest.mark.parametrize("number", [2, 3])
def test_a_killed_rank_is_missed_and_named(number: int, tmp_path: Path) -> None:
    def dies(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killed(rank: int) -> str:
        if rank == 1:
            pytest.MonkeyPatch().setattr("fxquant.rounding.methods.learners.learn_rounding", dies)
        return quantized(rank)

    ended = ranks(number, killed, tmp_path)
    assert ended.pop(1) is None
    for error in ended:
        assert re.match(r"RankError: .*rank 1 \(process \d+ on .*\).* has ended: the others", error)


def test_a_checkpoint_that_rank_0_cannot_use_ends_all(tmp_path: Path) -> None:
    quantized(0, checkpoint=tmp_path / "run")
    (tmp_path / "run" / "identity.json").write_text("{")
    first, second = ranks(2, lambda rank: quantized(rank, checkpoint=tmp_path / "run"), tmp_path)
    for error in (first, second):
        assert f"checkpoint {tmp_path}/run: cannot be used: " in error
