"""Programs compute what their graphs do, and step back where something is not as it was."""

import copy
import math
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.capture.naming import find_regions
from fxquant.int8 import Int8Layer, prepacking
from fxquant.programs import building, layers, programs_of, running, why_unavailable
from fxquant.programs.buffers import Lifetimes
from fxquant.programs.running import Programs
from fxquant.programs.steps import Own
from tests.detectors import BATCHES, assert_equal, detector
from tests.detectors import run as run_detector
from tests.helpers import Net, needs_int8

pytestmark = [
    needs_int8,
    pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable())),
]


def small() -> Net:
    return Net(
        lambda m, x: m.fc(m.b(m.pool(torch.relu(m.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 16, 3, padding=1),
        pool=nn.MaxPool2d(2),
        b=nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU6()),
        fc=nn.Linear(8, 5),
    )


def lowered(model: nn.Module, *inputs: Tensor, recipe: Any = "aciq") -> Any:
    quantized = fxquant.quantize(model.eval(), [inputs or images()], recipe, progress=False)
    return fxquant.lower(quantized)


def images(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def made(model: Any) -> int:
    """Return how many programs a model has."""
    programs = programs_of(model)
    assert programs is not None
    return sum(each is not None for each in programs._made.values())


def warmed(model: Any, x: Tensor) -> Tensor:
    """Return the graph's result, once the model has a program for inputs like these."""
    expected: Tensor = model.forward(x)
    model(x)
    assert made(model) > 0
    return expected


def test_the_first_call_makes_a_program() -> None:
    model, x = lowered(small()), images()
    expected = model.forward(x)
    assert made(model) == 0
    for _ in range(3):
        assert torch.equal(model(x), expected)
        assert made(model) == 1


def test_an_example_makes_it_at_once() -> None:
    quantized = fxquant.quantize(small().eval(), [images()], progress=False)
    model: Any = fxquant.lower(quantized, images())
    assert made(model) == 1
    assert torch.equal(model(images(seed=1)), model.forward(images(seed=1)))


def _branches(m: Any, x: Tensor) -> Any:
    a, b = m.a(x).relu().chunk(2, 1)
    return m.c(torch.cat([a, m.b(a) + b, F.interpolate(F.max_pool2d(b, 2), scale_factor=2)], 1))


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "small": lambda: (small(), (images(),)),
    "channels last": lambda: (small(), (images().to(memory_format=torch.channels_last),)),
    "one dimension": lambda: (
        Net(lambda m, x: m.b(m.a(x).relu()), a=nn.Conv1d(4, 8, 3), b=nn.Conv1d(8, 4, 3, 2)),
        (torch.randn(2, 4, 20),),
    ),
    "three dimensions": lambda: (
        Net(lambda m, x: m.b(m.a(x).relu()), a=nn.Conv3d(2, 8, 3), b=nn.Conv3d(8, 4, 1)),
        (torch.randn(2, 2, 6, 6, 6),),
    ),
    "groups and dilations": lambda: (
        Net(
            lambda m, x: m.c(m.b(m.a(x).relu()).relu()),
            a=nn.Conv2d(3, 16, 3, padding=2, dilation=2),
            b=nn.Conv2d(16, 16, 3, groups=16, stride=2, padding=1),
            c=nn.Conv2d(16, 8, 1, groups=4),
        ),
        (images(),),
    ),
    "residuals": lambda: (
        Net(
            lambda m, x: m.c((m.b((y := m.a(x).relu())) + y).relu()),
            a=nn.Conv2d(3, 8, 3, padding=1),
            b=nn.Conv2d(8, 8, 1),
            c=nn.Conv2d(8, 4, 1),
        ),
        (images(),),
    ),
    "branches": lambda: (
        Net(
            _branches,
            a=nn.Conv2d(3, 16, 3, padding=1),
            b=nn.Conv2d(8, 8, 3, padding=1),
            c=nn.Conv2d(24, 4, 1),
        ),
        (images(),),
    ),
    "activations": lambda: (
        Net(
            lambda m, x: m.c(F.hardswish(m.b(F.silu(m.a(x))))),
            a=nn.Conv2d(3, 8, 3),
            b=nn.Conv2d(8, 8, 1),
            c=nn.Conv2d(8, 8, 1),
        ),
        (images(),),
    ),
    "tokens": lambda: (
        Net(
            lambda m, x: m.d(m.norm(x + m.b(F.gelu(m.a(x))))).softmax(-1),
            a=nn.Linear(12, 24),
            b=nn.Linear(24, 12),
            d=nn.Linear(12, 6),
            norm=nn.LayerNorm(12),
        ),
        (torch.randn(2, 7, 12),),
    ),
    "changed in place": lambda: (
        Net(
            lambda m, x: m.b(m.a(x).relu_().mul_(2)).add_(1),
            a=nn.Linear(8, 8),
            b=nn.Linear(8, 8),
        ),
        (torch.randn(3, 8),),
    ),
    "sizes": lambda: (
        Net(
            lambda m, x: m.b(m.a(x).flatten(2).transpose(1, 2).reshape(x.shape[0], -1, 8)),
            a=nn.Conv2d(3, 8, 3),
            b=nn.Linear(8, 4),
        ),
        (images(),),
    ),
    "two inputs and a dict": lambda: (_Two(), (torch.randn(2, 8), torch.randn(2, 8))),
}


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        a, b = self.a(x), self.b(y)
        return {"sum": a + b, "both": (a, [b]), "x": x}


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [each for part in (result.values() if isinstance(result, dict) else result)
            for each in flat(part)]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_program_computes_what_its_graph_does(name: str) -> None:
    torch.manual_seed(1)
    model, inputs = MODELS[name]()
    low = lowered(model, *inputs)
    for scale in (1.0, 0.5, 2.0):
        given = [each * scale for each in inputs]
        kept = [each.clone() for each in given]
        expected = flat(low.forward(*given))
        for _ in range(3):
            found = flat(low(*given))
            assert [each.stride() for each in found] == [each.stride() for each in expected]
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == other.dtype
                error = (one - other).abs().max() / other.abs().max().clamp(min=1e-3)
                assert error < 0.02
        assert all(map(torch.equal, given, kept))
    assert made(low) == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_program_needs_no_result_of_the_call_before(name: str) -> None:
    torch.manual_seed(1)
    model, inputs = MODELS[name]()
    low = lowered(model, *inputs)
    for _ in range(2):
        low(*inputs)
    low(*(torch.full_like(each, 9.0) for each in inputs))
    assert all(map(torch.equal, flat(low(*inputs)), flat(low(*inputs))))


def test_results_are_the_callers_own() -> None:
    model, x = lowered(small()), images()
    expected = warmed(model, x).clone()
    first = model(x)
    first.fill_(7)
    assert torch.equal(model(x), expected)
    assert first.eq(7).all()


@dataclass
class Found:
    """What a model of others returns: a container of its own class."""

    features: Tensor
    scores: Any = None


def test_containers_of_results_are_the_callers_own() -> None:
    def forward(m: Any, x: Tensor) -> Found:
        features = m.a(x)
        return Found(features, m.b(features.sigmoid()))

    x = images()
    model = lowered(Net(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 1)))
    expected = model.forward(x)
    found = model(x)
    assert made(model) == 1
    model(images(seed=1))
    assert isinstance(found, Found)
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.scores, expected.scores)


class Box:
    """Holds a tensor where nobody sees it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def test_objects_in_which_tensors_may_hide_are_known() -> None:
    x = torch.ones(2)
    for seen in (x, None, 2.5, [x, (x, "name")], {"x": x}, Found(x), x.shape, torch.uint8):
        assert building._shows_its_tensors(seen)
    for hidden in (Box(x), [x, Box(x)], Found(x, Box(x)), iter([x])):
        assert not building._shows_its_tensors(hidden)


@pytest.mark.parametrize("way", ["copy_", "data", "scale", "bias", "attribute", "state", "numbers"])
def test_what_is_written_to_a_model_is_seen(way: str) -> None:
    torch.manual_seed(0)
    model, other, x = lowered(small()), lowered(small()), images()
    warmed(model, x)
    layer = model.a
    with torch.no_grad():
        if way == "copy_":
            layer.weight_integers.copy_(-layer.weight_integers)
        elif way == "data":
            layer.weight_integers.data = -layer.weight_integers
        elif way == "scale":
            layer.weight_scale.mul_(3)
        elif way == "bias":
            layer.bias.data = layer.bias + 1
        elif way == "attribute":
            model.a = copy.deepcopy(other.a)
        elif way == "state":
            model.load_state_dict(other.state_dict())
        else:
            numbers = {name: each * 2 for name, each in layer.numbers().items() if "scale" in name}
            layer.take_numbers({**layer.numbers(), **numbers})
    expected = model.forward(x)
    for _ in range(3):
        assert torch.equal(model(x), expected)


def test_a_graph_that_is_changed_and_compiled_anew_is_followed() -> None:
    model, x = lowered(small()), images()
    expected = warmed(model, x)
    output = next(iter(reversed(model.graph.nodes)))
    with model.graph.inserting_before(output):
        output.args = (model.graph.call_function(torch.neg, output.args),)
    model.recompile()
    for _ in range(3):
        assert torch.equal(model(x), -expected)


def test_hooks_run_at_every_call() -> None:
    model, x, calls = lowered(small()), images(), []
    expected = warmed(model, x)
    handles = [
        module.register_forward_hook(lambda *_: calls.append(1)) for module in (model, model.a)
    ]
    for _ in range(3):
        model(x)
    assert len(calls) == 6
    for handle in handles:
        handle.remove()
    assert torch.equal(model(x), expected)
    assert len(calls) == 6


def test_hooks_that_were_there_before_the_first_call_run_too() -> None:
    model, x, calls = lowered(small()), images(), []
    model.a.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        model(x)
    assert len(calls) == 3


def test_weights_on_another_device_are_refused_by_the_graph() -> None:
    model, x = lowered(small()), images()
    expected = warmed(model, x)
    state = model.state_dict()
    model.to("meta")
    for _ in range(2):
        with pytest.raises(fxquant.LoweringError, match="the weight is on meta"):
            model(x)
    model.load_state_dict(state, assign=True)
    assert torch.equal(model(x), expected)


def test_nan_is_told_as_by_the_graph() -> None:
    model, x = lowered(small()), images()
    warmed(model, x)
    broken = x.clone()
    broken[0, 0, 0, 0] = math.nan
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="1 of 384 values to be quantized are NaN"):
            found = model(broken)
    with pytest.warns(RuntimeWarning):
        assert torch.equal(found, model.forward(broken))
    assert torch.equal(model(x), model.forward(x))


def test_other_sizes_threads_and_types_have_programs_of_their_own() -> None:
    model, x = lowered(small()), images()
    warmed(model, x)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for size in (1, 2, 5):
                for _ in range(3):
                    torch.testing.assert_close(model(images(size)), model.forward(images(size)))
    finally:
        torch.set_num_threads(threads)
    assert made(model) <= 4
    assert model(x[:0]).shape == (0, 5)
    with pytest.raises(TypeError, match="int64"):
        model(x.long())


def test_sizes_that_differ_at_each_call_stay_with_the_graph() -> None:
    model = lowered(Net(lambda m, x: m.a(x), a=nn.Conv2d(3, 4, 3)))
    for size in range(8, 60):
        model(torch.randn(1, 3, size, size))
    assert made(model) == 4
    programs = programs_of(model)
    assert programs is not None
    assert programs._num_made == 16


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("mode", ["autocast", "inference", "grad", "functional", "meta"])
def test_modes_of_pytorch_are_kept(mode: str) -> None:
    model, x = lowered(small()), images()
    expected = warmed(model, x)
    if mode == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(x), model.forward(x))
    elif mode == "inference":
        with torch.inference_mode():
            found = model(x)
        assert found.is_inference()
        assert torch.equal(found, expected)
    elif mode == "grad":
        assert torch.equal(model(x.clone().requires_grad_()), expected)
    elif mode == "functional":
        found = torch.func.vmap(lambda each: model(each[None])[0])(x)
        torch.testing.assert_close(found, expected)
    else:
        assert model.to("meta")(x.to("meta")).shape == expected.shape


def test_copies_and_pickles_have_programs_of_their_own() -> None:
    model, x = lowered(small()), images()
    expected = warmed(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert made(other) == 0
        for _ in range(3):
            assert torch.equal(other(x), expected)
        assert made(other) == 1


def test_arguments_may_have_names() -> None:
    model, x = lowered(small()), images()
    expected = warmed(model, x)
    assert torch.equal(model(x=x), expected)
    with pytest.raises(TypeError):
        model(x, y=x)
    with pytest.raises(TypeError):
        model()


def test_threads_of_the_caller_do_not_meet() -> None:
    model = lowered(small())
    inputs = [images(seed=seed) for seed in range(8)]
    warmed(model, inputs[0])
    expected = [model.forward(x) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(30):
            if not torch.equal(model(inputs[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_regions_of_a_detector_have_programs() -> None:
    model = fxquant.quantize(detector(), BATCHES, progress=False)
    low: Any = fxquant.lower(model)
    regions = [each for each in find_regions(low).values() if programs_of(each) is not None]
    assert regions
    first, second = (run_detector(low, BATCHES[0]) for _ in range(2))
    assert_equal(first, second)
    assert all(made(region) > 0 for region in regions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "programs_of", lambda gm: None)
        assert_equal(run_detector(low, BATCHES[0]), first)


def test_programs_of_several_sizes_share_packed_weights() -> None:
    model = lowered(small())
    for count in (1, 2, 3):
        model(images(count))
    assert made(model) == 3
    for layer in (each for each in model.modules() if isinstance(each, Int8Layer)):
        assert 1 <= len(prepacking.forms_of(layer.weight_integers)) <= 2  # product, convolution
    model.a.weight_integers.neg_()
    assert torch.equal(model(images(1)), model.forward(images(1)))


@fx.wrap
def _counted(x: Tensor) -> Tensor:
    _COUNT.append(1)
    return x


_COUNT: list[int] = []


def test_code_that_may_count_its_calls_runs_once_a_call() -> None:
    model = lowered(Net(lambda m, x: _counted(m.a(x)), a=nn.Linear(8, 4)), torch.randn(2, 8))
    _COUNT.clear()
    for _ in range(3):
        model(torch.randn(2, 8))
    assert len(_COUNT) == 3
    assert made(model) == 0


def test_graphs_that_draw_random_numbers_draw_the_same_ones() -> None:
    model = lowered(
        Net(lambda m, x: m.a(x) + torch.rand_like(x), a=nn.Linear(8, 8)), torch.randn(2, 8)
    )
    x, drawn = torch.randn(2, 8), []
    for function in (model.forward, model, model):
        torch.manual_seed(3)
        drawn.append([function(x), function(x)])
    for each in drawn[1:]:
        assert all(map(torch.equal, each, drawn[0]))
    assert made(model) == 0


@pytest.mark.parametrize("kind", ["expanded", "negative", "sliced", "parameter"])
def test_inputs_of_all_kinds_are_taken(kind: str) -> None:
    model, x = lowered(small()), images()
    warmed(model, x)
    given = {
        "expanded": x[:1].expand(2, -1, -1, -1),
        "negative": torch.complex(torch.zeros(x.shape), -x).conj().imag,
        "sliced": torch.randn(2, 3, 8, 16)[..., ::2],
        "parameter": nn.Parameter(x),
    }[kind]
    for _ in range(3):
        assert torch.equal(model(given), model.forward(given))


def test_a_graph_that_changes_its_input_stays_a_graph() -> None:
    model, x = lowered(Net(lambda m, x: m.a(x.add_(1)), a=nn.Linear(8, 4)), torch.randn(2, 8)), None
    for _ in range(3):
        x = torch.zeros(2, 8)
        model(x)
        assert x.eq(1).all()
    assert made(model) == 0


def test_a_layer_whose_primitives_are_wrong_keeps_its_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = lowered(small()), images()
    monkeypatch.setattr(building, "_CHOSEN", {})
    monkeypatch.setattr(layers, "why_wrong", lambda *_: "wrong by 7 steps")
    expected = model.forward(x)
    for _ in range(3):
        assert torch.equal(model(x), expected)
    assert made(model) == 0
    assert "wrong by 7 steps: not used" in caplog.text


def kept(model: nn.Module) -> list[str]:
    """Return which way was fastest for each layer, at its last input."""
    found = (each for each in model.modules() if isinstance(each, Int8Layer))
    return [[*each.quickest.values()][-1] for each in found]


def test_a_file_keeps_which_way_was_fastest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, x = lowered(small()), images()
    expected = warmed(model, x)
    fxquant.save(model, tmp_path / "model.fxq")
    loaded = fxquant.load(tmp_path / "model.fxq")
    assert kept(loaded) == kept(model)
    monkeypatch.setattr(building, "_CHOSEN", {})
    fastest, why_wrong = layers.fastest, layers.why_wrong
    raced: list[int] = []
    checked: list[str | None] = []

    def race(ways: Any) -> Any:
        raced.append(len(ways))
        return fastest(ways)

    def check(*of: Any) -> str | None:
        checked.append(why_wrong(*of))
        return checked[-1]

    monkeypatch.setattr(layers, "fastest", race)
    monkeypatch.setattr(layers, "why_wrong", check)
    assert torch.equal(loaded(x), expected)
    assert raced == [1, 1, 1]
    assert checked == [None] * 3  # a file is not believed that a kernel is right


def test_what_a_file_says_of_other_machines_or_ways_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for spoil in (
        lambda ways: {key: "by hand" for key in ways},
        lambda ways: {f"{key} mk II": "by hand" for key in ways},
    ):
        model, x = lowered(small()), images()
        expected = warmed(model, x)
        for each in model.modules():
            if isinstance(each, Int8Layer):
                each.quickest = spoil(each.quickest)
        monkeypatch.setattr(building, "_CHOSEN", {})
        again = copy.deepcopy(model)
        assert torch.equal(again(x), expected)
        assert set(kept(again)) <= {"convolution", "product"}


def test_the_fastest_way_of_a_file_is_not_used_where_it_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = lowered(small()), images()
    expected = warmed(model, x)
    before = kept(model)
    monkeypatch.setattr(building, "_CHOSEN", {})
    seen: list[int] = []

    def why_wrong(primitive: Any, *_: Any) -> str | None:
        seen.append(1)
        return "wrong by 7 steps" if len(seen) == 2 else None  # what b's file calls the fastest

    monkeypatch.setattr(layers, "why_wrong", why_wrong)
    again = copy.deepcopy(model)
    torch.testing.assert_close(again(x), expected)
    assert kept(again)[1] != before[1]
    assert (kept(again)[0], kept(again)[2]) == (before[0], before[2])


def test_a_step_whose_primitive_is_wrong_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = lowered(small()), images()
    monkeypatch.setattr(building._Builder, "_is_right", lambda *_: False)
    assert torch.equal(warmed(model, x), model(x))


def test_memory_that_is_overwritten_before_it_is_read_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def function(m: Any, x: Tensor) -> Any:
        a = m.a(x).relu()
        return m.d(m.c(m.b(a).relu()).relu()) + m.b(a)  # a is read again behind b, c and d

    parts = {name: nn.Conv2d(3, 3, 1) for name in "abcd"}
    model, x = lowered(Net(function, **parts)), images()
    right = Lifetimes.end

    def too_soon(self: Any, node: Any) -> Any:
        """Free all memory but that of the node itself."""
        for place in set(self._buffers._used) - self._places[node]:
            self._buffers.release(place)
        for places in self._places.values():
            places.intersection_update(self._buffers._used)
        return right(self, node)

    monkeypatch.setattr(Lifetimes, "end", too_soon)
    expected = model.forward(x)
    with caplog.at_level("INFO"):
        assert torch.equal(model(x), expected)
    assert made(model) == 0
    assert "was overwritten before" in caplog.text


def test_a_program_that_is_wrong_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = lowered(small()), images()
    expected, right = model.forward(x), building._Builder.program

    def wrong(builder: Any) -> Any:
        program = right(builder)
        program._result = Own(torch.ones(2, 5))
        return program

    monkeypatch.setattr(building._Builder, "program", wrong)
    for _ in range(3):
        assert torch.equal(model(x), expected)
    assert made(model) == 0


def test_models_of_no_integers_have_none() -> None:
    model: Any = fxquant.prepare(small().eval())
    model(images())
    assert programs_of(model) is None


def test_memory_is_used_again() -> None:
    layers = {f"c{number}": nn.Conv2d(16, 16, 3, padding=1) for number in range(12)}

    def function(m: Any, x: Tensor) -> Tensor:
        for number in range(12):
            x = getattr(m, f"c{number}")(x).relu()
        return x

    x = torch.randn(1, 16, 32, 32)
    model = lowered(Net(function, **layers), x)
    warmed(model, x)
    programs: Programs | None = programs_of(model)
    assert programs is not None
    (program,) = (each for each in programs._made.values() if each is not None)
    assert program.buffers.num_bytes <= 4 * 16 * 32 * 32 + 4 * 16 * 32 * 32


def test_a_program_shows_its_steps() -> None:
    model, x = lowered(small()), images()
    warmed(model, x)
    programs = programs_of(model)
    assert programs is not None
    (program,) = (each for each in programs._made.values() if each is not None)
    assert "a: " in str(program)
