"""Models are drawn again by the same choices, what breaks is found, and made small."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from benchmarks.graphs import random_graphs
from benchmarks.graphs.choices import Choices, Steps, shrink
from benchmarks.graphs.drawing import MOST_STEPS, STEPS, Subject, draw, subject_of
from benchmarks.graphs.invariants import Finding, check
from benchmarks.graphs.layer_steps import convolution, linear
from benchmarks.graphs.noise import Noise, with_noise
from benchmarks.graphs.other_steps import activation
from benchmarks.graphs.random_graphs import Found, least, main, subject_of_seed, table
from fxquant import Recipe, TensorSpec
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.decibels import sqnr
from tests.helpers import Net

PLAIN = [[], [], [], [STEPS.index(convolution)], [STEPS.index(activation)], [STEPS.index(linear)]]


def plain() -> Subject:
    return draw(Choices(PLAIN))


def broken(findings: list[Finding]) -> dict[str, str]:
    return {each.invariant: each.words for each in findings if each.verdict == "broken"}


def test_choices_that_were_recorded_draw_the_same_again() -> None:
    for seed in range(5):
        subject, steps = subject_of_seed(seed)
        assert draw(Choices(steps)).code == subject.code
    assert len({subject_of_seed(seed)[0].code for seed in range(5)}) == 5


def test_choices_that_are_missing_are_the_plainest() -> None:
    choices = Choices([[3, 7]])
    assert choices.next_step()
    assert (choices.below(5), choices.pick("abc"), choices.one_in(2)) == (3, "b", False)
    assert choices.steps == [[3, 1, 0]]
    assert not choices.next_step()


def test_what_fails_is_shrunk_to_the_least() -> None:
    def fails(steps: Steps) -> bool:
        return any(number >= 7 for step in steps[1:] for number in step)

    assert shrink([[4], [1, 2], [3, 90, 8], [9]], fails, fixed=1) == [[], [0, 0, 7]]


def test_steps_that_do_not_matter_are_drawn_as_before_without_one() -> None:
    subject, steps = subject_of_seed(3)
    fewer = draw(Choices(steps[:-1]))
    assert fewer.code != subject.code
    assert fewer.recipe == subject.recipe


def test_the_code_of_a_model_makes_it_again() -> None:
    subject = plain()
    again = subject_of(subject.code)
    assert subject.code.count("self.conv") == 2
    with torch.no_grad():
        one, other = (each.model(**each.batches[0]) for each in (subject, again))
    assert torch.equal(one, other)


def test_a_plain_model_holds_all_that_is_asked() -> None:
    findings = check(plain())
    assert {each.verdict for each in findings} == {"held"}
    assert {each.invariant for each in findings} >= {
        *("prepare", "inputs", "convert", "report", "to_qdq", "caller", "passes"),
        *("save prepared", "save converted", "save standard"),
    }


def test_every_kind_of_step_can_be_made() -> None:
    made: set[str] = set()

    def noting(step: Any) -> Any:
        def run(draft: Any) -> None:
            step(draft)
            made.add(step.__name__)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.graphs.drawing.STEPS", [noting(each) for each in STEPS])
        for seed in range(60):
            subject_of_seed(seed)
    assert {each.__name__ for each in STEPS} - made == set()


class Doubled(nn.Module):
    """Gives twice what it should."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return 2 * self.model(x)


def doubling(name: str, patch: pytest.MonkeyPatch) -> None:
    right = getattr(fxquant, name)
    patch.setattr(fxquant, name, lambda *args, **kwargs: Doubled(right(*args, **kwargs)))


@pytest.mark.parametrize(("name", "invariant"), [("prepare", "prepare"), ("to_qdq", "to_qdq")])
def test_a_form_that_gives_something_else_is_found(
    name: str, invariant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubling(name, monkeypatch)
    assert broken(check(plain(), passes=False))[invariant].startswith("batch 0: ")


def test_scales_that_are_too_coarse_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = fxquant.convert

    def coarse(*args: Any, **kwargs: Any) -> nn.Module:
        model = convert(*args, **kwargs)
        for module in model.modules():
            if isinstance(module, FakeQuantize):
                module.scale *= 64
        return model

    monkeypatch.setattr(fxquant, "convert", coarse)
    assert "where noise in the place of rounding leaves" in broken(check(plain()))["convert"]


def test_a_file_that_gives_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    load = fxquant.load

    def other(*args: Any, **kwargs: Any) -> nn.Module:
        model = load(*args, **kwargs)
        with torch.no_grad():
            next(iter(model.parameters())).add_(0.1)
        return model

    monkeypatch.setattr(fxquant, "load", other)
    assert broken(check(plain(), passes=False))["save prepared"] == "batch 0: the outputs differ"


def test_a_model_of_the_callers_that_changes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = fxquant.prepare

    def writing(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        prepared = prepare(model, *args, **kwargs)
        next(iter(model.parameters())).data.zero_()
        return prepared

    monkeypatch.setattr(fxquant, "prepare", writing)
    assert broken(check(plain(), passes=False))["caller"].startswith("the model has other values")


def test_a_pass_that_is_never_done_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxquant.passes.MarkFusedRelu, "run", lambda self, gm: True)
    assert broken(check(plain()))["passes"] == "MarkFusedRelu: a second run finds something"


def test_an_error_that_is_none_of_fxquants_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr(fxquant, "report", failing)
    assert broken(check(plain(), passes=False))["report"] == "raises KeyError: 'x'"


def test_what_breaks_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_sums(subject: Subject, **options: Any) -> list[Finding]:
        is_broken = "torch.add(" in subject.code
        return [Finding("sums", "broken" if is_broken else "held", "found 3 'x'")]

    monkeypatch.setattr(random_graphs, "check", without_sums)
    seed = next(n for n in range(200) if "torch.add(" in subject_of_seed(n)[0].code)
    subject, _ = least(seed, Finding("sums", "broken", "found 17 'y'"))
    lines = subject.code.partition("def forward")[2].partition("torch.manual_seed")[0].split("\n")
    assert len([line for line in lines if " = " in line]) <= 2


def test_noise_in_the_place_of_rounding_costs_what_rounding_does() -> None:
    subject = plain()
    prepared = fxquant.prepare(subject.model, subject.recipe)
    x = torch.randn(64, 3, 8, 8)
    fxquant.calibrate(prepared, [x])
    converted = fxquant.convert(prepared)
    with torch.no_grad():
        expected = copy.deepcopy(subject.model)(x)
        rounded = sqnr(expected, converted(x))
        noisy = sqnr(expected, with_noise(prepared, converted, [{"x": x}])(x))
    assert noisy == pytest.approx(rounded, abs=3)


def _noise_of_two_batches(spec: TensorSpec, values: Tensor, high: float) -> Tensor:
    """Return what noise makes of `values`, where ±8 was seen, and 0 to `high` is kept."""
    scale = torch.tensor(high / 255)
    noise = Noise(spec, Affine(scale, torch.tensor(0, dtype=torch.int32), Grid(0, 255)))
    noise(torch.tensor([-8.0, 8.0]))
    made = noise(values)
    assert isinstance(made, Tensor)
    return made


def test_noise_is_as_wide_as_a_step_over_all_batches() -> None:
    values = torch.zeros(1000)
    noise = _noise_of_two_batches(TensorSpec(), values, 8.0)
    assert noise.abs().max() == pytest.approx(16 / 255 / 2, rel=0.05)


@pytest.mark.parametrize(
    ("spec", "high", "kept"),
    [
        (TensorSpec(), 5.0, 8.0),
        (TensorSpec(range="aciq"), 5.0, 5.0),
        (TensorSpec(range="aciq"), 1.0, 4.0),
        (TensorSpec(range="percentile"), 1.0, 1.0),
    ],
    ids=["minmax", "aciq", "aciq of too little", "percentile"],
)
def test_noise_clips_what_ranges_are_to_clip(spec: TensorSpec, high: float, kept: float) -> None:
    made = _noise_of_two_batches(spec, torch.full((100,), 8.0), high)
    assert float(made.mean()) == pytest.approx(kept, abs=0.05)


@pytest.mark.parametrize(("size", "verdict"), [(1, "explained"), (9, "broken")])
def test_a_correction_of_biases_takes_no_account_of_padding(
    size: int, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = fxquant.convert

    def shifted(*args: Any, **kwargs: Any) -> nn.Module:
        model = convert(*args, **kwargs)
        with torch.no_grad():
            model.get_parameter("conv.bias").add_(1)
        return model

    monkeypatch.setattr(fxquant, "convert", shifted)
    torch.manual_seed(0)
    subject = Subject(
        "",
        Net(lambda m, x: m.conv(x), conv=nn.Conv2d(2, 2, 2, padding=2)).eval(),
        [{"x": torch.randn(2, 2, size, size)} for _ in range(2)],
        Recipe.minmax(bias_correction=True), True, [],
    )  # fmt: skip
    verdicts = {each.invariant: each.verdict for each in check(subject, passes=False)}
    assert verdicts["convert"] == verdict


def test_a_value_may_jump_over_a_threshold_in_one_draw_of_weights_of_many() -> None:
    fc = nn.Linear(2, 1, bias=False)
    fc.weight.data = torch.tensor([[1.29, 0.501]])  # rounded to 49 steps of 1.29/127, below 0.5
    model = Net(lambda m, x: F.hardshrink(m.fc(x)), fc=fc).eval()
    recipe = Recipe.minmax(activation_bits=None, bias_correction=False)
    subject = Subject("", model, [{"x": torch.eye(2)}] * 2, recipe, True, [])
    verdicts = {each.invariant: each.verdict for each in check(subject, passes=False)}
    assert verdicts["convert"] == "explained"


def test_the_table_counts_and_names_reasons_and_seeds() -> None:
    found = [
        Found(0, Finding("prepare", "held")),
        Found(1, Finding("prepare", "broken", "batch 0: 3 of 'x'")),
        Found(2, Finding("prepare", "broken", "batch 1: 4 of 'y'")),
    ]
    text = table(found)
    assert text.splitlines()[2].split() == ["prepare", "1", "0", "0", "2"]
    assert text.splitlines()[-1].split()[-3:] == ["2", "1", "2"]


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--graphs", "1", "--seed", "2"])
    assert "invariant" in capsys.readouterr().out
    assert MOST_STEPS > 3
