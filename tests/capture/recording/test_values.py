"""With an example, Python is told sizes, ranks and types; sizes stay in the graph elsewhere."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import CaptureError
from fxquant.capture.recording.requirements import requirements
from tests.helpers import outputs

jit_isinstance: Any = torch.jit.isinstance


class Does(nn.Module):
    """A layer, and behind it what a function of the module and a tensor does."""

    def __init__(self, does: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.table = nn.Parameter(torch.randn(1, 32, 6))
        self.register_buffer("numbers", torch.arange(32.0))
        self.does = does

    def forward(self, x: Tensor) -> Any:
        return self.does(self, self.layer(x))


def as_tensor(m: Any, x: Tensor) -> Any:
    if isinstance(x, torch.Tensor):
        return x * 2
    return x


def by_int(m: Any, x: Tensor) -> Any:
    try:
        return x * int(x.shape[2])
    except TypeError:
        return x


def asserts(m: Any, x: Tensor) -> Any:
    torch._assert(x.shape[2] == 6, "six")
    assert x.ndim == 3, "three axes"
    return x + 1


def mask(m: Any, x: Tensor) -> Any:
    n = x.shape[1]
    made = torch.zeros(n, n, device=x.device, dtype=x.dtype)
    made = made + torch.arange(n)[:, None]
    return made.masked_fill(made > 4, -1e9).softmax(-1) @ x


def writes(m: Any, x: Tensor) -> Any:
    made = x.new_zeros(x.shape)
    made[:, 1:] = x[:, :-1]
    return made


def reshapes_in_place(m: Any, x: Tensor) -> Any:
    y, z = x.relu(), x.relu()  # equal calls
    y.unsqueeze_(1)
    return y.flatten(1) if y.ndim == 4 and z.ndim == 3 else z


def unbinds(m: Any, x: Tensor) -> Any:
    q, k = x.reshape(*x.shape[:2], 2, 3).unbind(2)
    return q * k


FREE: dict[str, Callable[[Any, Tensor], Any]] = {
    "isinstance": as_tensor,
    "torch.is_tensor": lambda m, x: x * 2 if torch.is_tensor(x) else x,
    "torch.jit.isinstance": lambda m, x: x * 2 if jit_isinstance(x, torch.Tensor) else x,
    "int in try": by_int,
    "rank": lambda m, x: x * 2 if x.ndim == 3 and x.dim() == len(x.shape) == 3 else x,
    "dtype": lambda m, x: x + torch.finfo(x.dtype).eps * x.is_floating_point(),
    "unpack shape": lambda m, x: x.reshape(*x.shape[:-1], 2, -1).flatten(2),
    "cat of expanded": lambda m, x: torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1),
    "slice of a parameter": lambda m, x: x + m.table[:, : x.shape[1]],
    "slice of a buffer": lambda m, x: x * m.numbers[: x.shape[1], None],
    "zeros and arange": mask,
    "interpolated table": lambda m, x: x + F.interpolate(m.table.mT, size=x.shape[1]).mT,
    "chunks": lambda m, x: sum(x.chunk(2, -1)),
    "list of chunks": lambda m, x: torch.cat(list(x.chunk(3, -1))[::-1], -1),
    "unbind": unbinds,
    "reshaped in place": reshapes_in_place,
    "numpy scalar": lambda m, x: np.float64(2) * x / np.sqrt(6),
    "math": lambda m, x: x / math.sqrt(x.shape[-1]) * math.ceil(x.shape[1] / 2),
    "item assignment": writes,
    "asserts": asserts,
    "module made in forward": lambda m, x: nn.Softmax(-1)(nn.ReLU()(x)),
    "torch.tensor of sizes": lambda m, x: x / torch.tensor([x.shape[1], 2]).prod(),
    "max": lambda m, x: x.max(-1).values + x.max(-1)[1],
}
FIXED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "branch": (lambda m, x: x * 2 if x.shape[1] == 5 else x, "layer.shape[1] == 5"),
    "branch not taken": (lambda m, x: x if x.size(1) < 5 else -x, "not (layer.size(1) < 5)"),
    "loop": (lambda m, x: sum(x[:, i] for i in range(x.shape[1])), "layer.shape[1] == 5"),
    "loop over a tensor": (lambda m, x: sum(y for y in x.transpose(0, 1)), ".shape[0] == 5"),
    "float": (lambda m, x: x * float(x.shape[1]), "layer.shape[1] == 5"),
    "text": (lambda m, x: x * len(f"{x.shape[1] * 1000}"), "layer.shape[1] * 1000 == 5000"),
}


@pytest.mark.parametrize("name", FREE)
def test_sizes_stay_free_where_python_does_not_need_them(name: str) -> None:
    torch.manual_seed(0)
    model = Does(FREE[name]).eval()
    gm = fxquant.trace(model, example_inputs=torch.randn(2, 5, 6))
    for shape in ((2, 5, 6), (3, 5, 6), (1, 7, 6)):
        x = torch.randn(shape)
        assert torch.equal(outputs(gm, x), outputs(model, x))


@pytest.mark.parametrize("name", FIXED)
def test_what_the_example_decided_holds_calls_to_it(name: str) -> None:
    torch.manual_seed(0)
    does, words = FIXED[name]
    model = Does(does).eval()
    gm = fxquant.trace(model, example_inputs=torch.randn(2, 5, 6))
    assert any(words in each for each in requirements(gm.graph))
    x = torch.randn(3, 5, 6)
    assert torch.equal(outputs(gm, x), outputs(model, x))
    with pytest.raises(CaptureError, match="traced with"):
        gm(torch.randn(3, 4, 6))


def test_a_call_of_another_rank_or_type_is_refused() -> None:
    gm = fxquant.trace(Does(FREE["rank"]), example_inputs=torch.randn(2, 5, 6))
    with pytest.raises(CaptureError, match=r"x.ndim == 3, but called with 2 in the place of 3"):
        gm(torch.randn(5, 6))
    gm = fxquant.trace(Does(FREE["dtype"]).double(), example_inputs=torch.randn(2, 5, 6).double())
    with pytest.raises(CaptureError, match=r"x\.dtype == torch.float64, but called with torch.f"):
        gm(torch.randn(2, 5, 6))


def test_a_decision_on_values_is_refused() -> None:
    def branches(m: Any, x: Tensor) -> Any:
        return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match="control flow"):
        fxquant.trace(Does(branches), example_inputs=torch.randn(2, 5, 6))


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, *xs: Tensor, scale: int = 2, mask: Any = None, **others: Any) -> Any:
        y = sum(self.layer(x) for x in xs) * scale
        if mask is not None:
            y = y * mask
        return [y + others["shift"]] if "shift" in others else [y]


def test_variable_arguments_are_bound_by_the_example() -> None:
    model, x = Many().eval(), torch.randn(2, 4)
    gm = fxquant.trace(model, example_inputs=(x, x))
    assert torch.equal(gm(x, x)[0], model(x, x)[0])
    with pytest.raises(CaptureError, match="argument 'mask' fixed at None, but called with a Tens"):
        gm(x, x, mask=x)
    with pytest.raises(CaptureError, match="argument 'scale' fixed at 2, but called with 3"):
        gm(x, x, scale=3)


@dataclass
class Result(dict):  # type: ignore[type-arg]
    first: Any = None
    second: Any = None

    def __post_init__(self) -> None:
        self.update({k: v for k, v in vars(self).items() if v is not None})


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, batch: dict[str, Any], pair: tuple[Tensor, Tensor]) -> Any:
        y = self.layer(batch["image"]) + sum(pair)
        if batch.get("mask") is not None:
            y = y * batch["mask"]
        return Result(first=y, second=[y for key in batch])


def test_containers_go_in_and_come_out_as_what_they_are() -> None:
    model, x = Containers().eval(), torch.randn(2, 4)
    gm = fxquant.trace(model, example_inputs=({"image": x, "mask": None}, (x, x)))
    found, wanted = (
        gm({"image": x, "mask": None}, (x, x)),
        model({"image": x, "mask": None}, (x, x)),
    )
    assert type(found) is Result
    assert type(found["second"]) is list
    assert len(found["second"]) == 2
    assert torch.equal(found.first, wanted.first)
    with pytest.raises(CaptureError, match="argument 'pair' of length 2, but called with 3"):
        gm({"image": x, "mask": None}, (x, x, x))
    with pytest.raises(CaptureError, match=r"\['mask'\] fixed at None, but called with a Tensor"):
        gm({"image": x, "mask": x}, (x, x))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inf: Tensor, nan: Tensor) -> Any:
        return (
            self.layer(inf).masked_fill(nan > 0, float("-inf")).softmax(-1).nan_to_num(float("nan"))
        )


@pytest.mark.parametrize("with_example", [False, True])
def test_an_argument_may_be_called_as_python_calls_infinity(with_example: bool) -> None:
    model, x = Named().eval(), torch.randn(2, 4)
    gm = fxquant.trace(model, example_inputs=(x, x) if with_example else None)
    assert torch.equal(gm(inf=x, nan=x).isnan(), model(x, x).isnan())
    assert torch.equal(gm(x, -x.abs()), model(x, -x.abs()))


@pytest.mark.parametrize("with_example", [False, True])
def test_hooks_and_an_own_forward_of_the_model_are_traced_as_they_run(with_example: bool) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4)
    model.register_forward_pre_hook(lambda module, args: (args[0] / 2,))
    model.register_forward_hook(lambda module, args, output: output.softmax(-1))
    plain: Any = model.forward
    vars(model)["forward"] = lambda x: -plain(x)
    gm = fxquant.trace(model, example_inputs=x if with_example else None)
    assert torch.equal(gm(x), model(x))


class KeepsAnchors(nn.Module):
    """Makes again what depends on the shape where that changed, as YOLO's head does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.shape: Any = None
        self.anchors: Any = torch.empty(0)

    def forward(self, x: Tensor) -> Any:
        shape = x.shape
        if self.shape != shape:
            self.anchors = torch.arange(shape[0] * shape[1]).reshape(shape[0], shape[1], 1)
            self.shape = shape
        return self.layer(x) + self.anchors


@pytest.mark.parametrize("called_before", [False, True])
def test_what_is_kept_for_a_shape_is_made_in_the_graph(called_before: bool) -> None:
    model, x = KeepsAnchors().eval(), torch.randn(2, 3, 4)
    if called_before:
        model(x)
    gm = fxquant.trace(model, example_inputs=x)
    for each in (x, torch.randn(1, 5, 4)):
        assert torch.equal(gm(each), copy.deepcopy(model)(each))


def test_autocast_inside_of_a_forward_is_not_left_out() -> None:
    def casts(m: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return m.layer(x)

    with pytest.raises(CaptureError, match="autocast inside of the forward"):
        fxquant.trace(Does(casts), example_inputs=torch.randn(2, 5, 6))


def test_arguments_are_given_as_the_example_gives_them() -> None:
    class Wrapped(Many):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{"scale": 3, **kwargs})

    model, x = Wrapped().eval(), torch.randn(2, 4)
    gm = fxquant.trace(model, example_inputs=(x,))
    assert torch.equal(gm(x)[0], model(x)[0])


@pytest.mark.parametrize("with_example", [False, True])
def test_a_function_that_the_model_holds_is_recorded_as_itself(with_example: bool) -> None:
    model: Any = Does(lambda m, x: m.act(x))
    model.act = F.relu6
    gm = fxquant.trace(model, example_inputs=torch.randn(2, 5, 6) if with_example else None)
    assert gm.graph.find_nodes(op="call_function", target=F.relu6)


def test_what_an_assertion_would_say_holds_no_size() -> None:
    def asserts(m: Any, x: Tensor) -> Any:
        torch._assert(x.dim() == 3, f"expected three axes, got {x.shape}")
        batch, length, _ = x.shape
        torch._assert(length == 5, f"expected 5 of {batch}, got {length}")
        return m.layer(x)

    gm = fxquant.trace(Does(asserts), example_inputs=torch.randn(2, 5, 6))
    assert requirements(gm.graph) == ("x.ndim == 3", "layer.shape[1] == 5")
    assert torch._assert.__module__ == "torch"


def test_a_size_in_a_name_is_held() -> None:
    def looks_up(m: Any, x: Tensor) -> Any:
        return m.layer(x) + {"table_5": 1.0}[f"table_{x.shape[1]}"]

    gm = fxquant.trace(Does(looks_up), example_inputs=torch.randn(2, 5, 6))
    assert requirements(gm.graph) == ("layer.shape[1] == 5",)


class Special(nn.Module):
    """Computes something else for one shape: that is no cache."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(4, 4), kept

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return y * 2 if y.shape == (self.kept or (2, 4)) else y


def test_a_shape_that_is_compared_with_a_constant_is_held() -> None:
    model, x = Special(None).eval(), torch.randn(2, 4)
    gm = fxquant.trace(model, example_inputs=x)
    assert torch.equal(gm(x), model(x))
    with pytest.raises(CaptureError, match=r"traced with layer.shape == \(2, 4\)"):
        gm(torch.randn(3, 4))


def test_a_kept_shape_that_the_forward_does_not_renew_is_no_cache() -> None:
    model, x = Special((2, 4)).eval(), torch.randn(2, 4)
    with pytest.raises(CaptureError, match=r"flow on a whole shape, compared with self\.kept"):
        fxquant.trace(model, example_inputs=x)
    prepared = fxquant.prepare(nn.Sequential(model), example_inputs=x, verify=False)
    for each in (x, torch.randn(3, 4)):
        assert torch.allclose(prepared(each), model(each), atol=1e-6)


@pytest.mark.parametrize("with_example", [False, True])
def test_assigned_items_are_recorded_and_pickled(with_example: bool) -> None:
    model, x = Does(writes).eval(), torch.randn(2, 5, 6)
    gm = fxquant.trace(model, example_inputs=x if with_example else None)
    for each in (gm, pickle.loads(pickle.dumps(gm))):
        assert torch.equal(each(x), model(x))
