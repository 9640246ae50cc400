"""Each state of a model × what PyTorch makes of models: it computes the same, or says why not."""

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from benchmarks.capture.torchvision_models import build
from fxquant import LoweringError
from tests.helpers import Net, needs_int8

STATES = ["prepared", "converted", pytest.param("lowered", marks=needs_int8), "to_qdq"]


def forward(m: Any, x: Any) -> Any:
    """Compute what is in integers, in float and in both: a transposed convolution, a LayerNorm."""
    y = F.relu(m.bn(m.a(x)))
    z = F.max_pool2d(F.silu(m.b(y)) + y, 2)
    z = torch.cat([m.up(z), y], 1)[:, :8]
    return m.fc(m.norm(F.avg_pool2d(z, 2).flatten(2).transpose(1, 2))).softmax(-1)


def odd() -> nn.Module:
    torch.manual_seed(0)
    return Net(
        forward, a=nn.Conv2d(3, 8, 3, padding=1), bn=nn.BatchNorm2d(8),
        b=nn.Conv2d(8, 8, 3, padding=1, groups=8), up=nn.ConvTranspose2d(8, 8, 2, 2),
        norm=nn.LayerNorm(8), fc=nn.Linear(8, 5),
    )  # fmt: skip


def in_state(state: str, model: nn.Module, x: Tensor) -> nn.Module:
    prepared = fxquant.prepare(model, example_inputs=x)
    fxquant.calibrate(prepared, [x])
    if state == "prepared":
        return prepared
    converted = fxquant.convert(prepared)
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        "converted": copy.deepcopy,
        "lowered": fxquant.lower,
        "to_qdq": fxquant.to_qdq,
    }
    return ways[state](converted)


@functools.cache
def odd_in_state(state: str) -> tuple[nn.Module, Tensor]:
    x = torch.randn(4, 3, 8, 8)
    return in_state(state, odd(), x), x


def stored(model: Any, x: Tensor, folder: Path) -> Any:
    fxquant.save(model, folder / "model.fxq")
    return fxquant.load(folder / "model.fxq")(x)


def through_torchscript(model: Any, x: Tensor, folder: Path) -> Any:
    jit: Any = torch.jit
    jit.save(jit.trace(model, x), folder / "model.pt")
    loaded = jit.load(folder / "model.pt")
    return torch.cat([loaded(x[:1]), loaded(x[1:])])


def exported(model: Any, x: Tensor, folder: Path) -> Any:
    batch = ({0: torch.export.Dim("batch", max=64)},)  # PyTorch 2.7 wants an end to it
    program = torch.export.export(model, (x,), dynamic_shapes=batch, strict=False).module()
    return torch.cat([program(torch.cat([x, x]))[: len(x) - 1], program(x)[-1:]])


def with_other_state(model: Any, x: Tensor, assign: bool) -> Any:
    copied = copy.deepcopy(model).to_empty(device="cpu")
    copied.load_state_dict(model.state_dict(), assign=assign)
    return copied(x)


def in_inference_mode(model: Any, x: Tensor, folder: Path) -> Any:
    with torch.inference_mode():
        return copy.deepcopy(model)(x)


def called_with_tensors(model: Any, x: Tensor, folder: Path) -> Any:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return torch.func.functional_call(model, tensors, (x,))


def compiled(model: Any, x: Tensor, folder: Path) -> Any:
    call: Any = torch.compile(model, backend="eager")
    return call(x)


CALLS: dict[str, Callable[[Any, Tensor, Path], Any]] = {
    "half": lambda model, x, folder: model.half()(x.half()),
    "bfloat16": lambda model, x, folder: model.to(torch.bfloat16)(x.bfloat16()),
    "double": lambda model, x, folder: model.double()(x.double()),
    "float": lambda model, x, folder: model.float()(x),
    "meta": lambda model, x, folder: model.to("meta")(x.to("meta")),
    "channels last": lambda model, x, folder: model.to(memory_format=torch.channels_last)(x),
    "shared memory": lambda model, x, folder: model.share_memory()(x),
    "train": lambda model, x, folder: model.train()(x),
    "deepcopy": lambda model, x, folder: copy.deepcopy(model)(x),
    "pickle": lambda model, x, folder: pickle.loads(pickle.dumps(model))(x),
    "save": stored,
    "state dict": lambda model, x, folder: with_other_state(model, x, assign=False),
    "state dict, assigned": lambda model, x, folder: with_other_state(model, x, assign=True),
    "functional_call": called_with_tensors,
    "inference mode": in_inference_mode,
    "torch.jit.trace": through_torchscript,
    "torch.export": exported,
    "torch.compile": compiled,
}
CANNOT_BE = "a model of integers has torch.float32 between them and cannot be "
REFUSED = {
    (state, call): f"{CANNOT_BE}{dtype}: cast its inputs"
    for state in ("lowered", "to_qdq")
    for call, dtype in (
        ("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64),
    )
}  # fmt: skip
QUIET = (
    "ignore:.*torch.jit",  # is deprecated
    "ignore::torch.jit.TracerWarning",
    "ignore:Dynamo does not know",  # of observers, which the compiled graph leaves to Python
)
CLOSE = {"half": 0.02, "bfloat16": 0.1}


def check(
    state: str, call: str, model: nn.Module, x: Tensor, folder: Path, close: float = 1e-5
) -> None:
    model = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(x)
        if (state, call) in REFUSED:
            before = copy.deepcopy(model.state_dict())
            with pytest.raises(LoweringError, match=REFUSED[state, call]):
                CALLS[call](model, x, folder)
            for name, value in model.state_dict().items():
                assert torch.equal(value, before[name])
            assert torch.equal(model(x), expected)
            return
        actual = CALLS[call](model, x, folder)
    if call == "meta":
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    else:
        worst = max(CLOSE.get(call, 0), close) * expected.abs().max()
        assert (actual.double() - expected.double()).abs().max() <= worst


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("call", CALLS)
def test_computes_the_same_or_says_why_not(state: str, call: str, tmp_path: Path) -> None:
    model, x = odd_in_state(state)
    check(state, call, model, x, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("state", STATES)
def test_a_resnet_does_as_well(state: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 32, 32)
    model = in_state(state, build("resnet18"), x)
    for call in CALLS.keys() - {"torch.compile"}:
        check(state, call, model, x, tmp_path, close=0.05)  # sums in another order: a step


@needs_int8
def test_nan_is_kept_or_told() -> None:
    x = torch.randn(4, 3, 8, 8)
    wrong = x.clone()
    wrong[0, 0, 0, :2] = torch.nan
    with torch.no_grad():
        assert in_state("converted", odd(), x)(wrong)[0].isnan().any()
        message = "2 of 768 values to be quantized are NaN: integers have none, and compute with 0"
        with pytest.warns(RuntimeWarning, match=message):
            actual = in_state("lowered", odd(), x)(wrong)
        assert torch.equal(actual, in_state("lowered", odd(), x)(wrong.nan_to_num()))
