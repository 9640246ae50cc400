"""What PyTorch computes between the layers is recorded with the bits of the call, or not at all."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant.programs import why_unavailable
from fxquant.programs.buffers import Buffers
from fxquant.programs.recording import Unrecordable, record
from fxquant.programs.steps import Call, Write
from tests.helpers import Net, needs_int8
from tests.programs.made import program_of

pytestmark = [
    needs_int8,
    pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable())),
]


def replayed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Record a call, give its tensors other values, and return what the record makes of them."""
    result, calls = record(functools.partial(function, *tensors), Buffers())
    assert torch.equal(result, function(*tensors))
    for each in tensors:
        each.copy_(torch.randn(each.shape, generator=torch.Generator().manual_seed(7)))
    for call in calls:
        call()
    found: Tensor = result
    return found


RECORDED: dict[str, Callable[..., Tensor]] = {
    "product": lambda x: x * x[:, :, :1, :1],
    "number": lambda x: 2.5 * x,
    "several": lambda x: torch.sigmoid(x).mean((2, 3), keepdim=True) + 1.5 * x,
    "pooled": lambda x: F.adaptive_avg_pool2d(x.to(memory_format=torch.channels_last), 1),
    "resized": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "copied": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "reshaped": lambda x: x.transpose(1, 2).reshape(2, -1),
    "cast": lambda x: x.double() * 2,
    "softmax": lambda x: F.softmax(x, -1),
    "matrices": lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2),
    "a view behind": lambda x: torch.sigmoid(x)[:, 1:3].flatten(1),
    "a constant": lambda x: x + torch.arange(5.0),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_record_computes_what_the_call_does(name: str) -> None:
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        found = replayed(RECORDED[name], x)
        expected = RECORDED[name](x)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[x > 0],
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * x.max().item(),
        lambda x: x.clone().relu_(),
        lambda x: F.layer_norm(x, (5,)),  # PyTorch has no kernel that writes into a tensor
        lambda x: F.dropout(x),
        lambda x: torch.zeros_like(x),
    ],
    ids=["selects", "asks", "reads", "overwrites", "has no kernel", "draws", "is blank"],
)
def test_what_values_decide_or_no_kernel_writes_is_not_recorded(function: Any) -> None:
    state = torch.get_rng_state()
    with torch.no_grad(), pytest.raises(Unrecordable):
        record(lambda: function(torch.randn(4, 5)), Buffers())
    torch.set_rng_state(state)


class Gated(nn.Module):
    """A convolution, a gate for each of its channels, and a convolution of what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)
        self.pool, self.act = nn.AdaptiveAvgPool2d(1), nn.Hardtanh(-0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 4, H, W)."""
        x = F.silu(self.a(x))
        x = x * self.act(self.b(self.pool(x)))
        result: Tensor = self.c(x)
        return result


def lowered(model: nn.Module, x: Tensor) -> Any:
    quantized = fxquant.quantize(model.eval(), [x], progress=False)
    return fxquant.lower(quantized, x)


def test_a_gate_needs_no_call() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    model = lowered(Gated(), x)
    steps = program_of(model).steps
    assert sum(isinstance(step, Write) for step in steps) == 3  # pool, act, product
    assert not any(isinstance(step, Call) for step in steps)
    for seed in range(3):
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(model(x), model.forward(x))


def test_a_setting_of_a_recorded_module_may_change() -> None:
    x = torch.randn(2, 3, 12, 12)
    model = lowered(Gated(), x)
    before = model(x)
    model.act.max_val = 0.01
    assert torch.equal(model(x), model.forward(x))
    assert not torch.equal(model(x), before)


@pytest.mark.parametrize("early", [True, False])
def test_hooks_of_a_recorded_module_run(early: bool) -> None:
    x, calls = torch.randn(2, 3, 12, 12), []
    model = lowered(Gated(), x)
    if not early:
        model(x)
    model.act.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        model(x)
    assert len(calls) >= 3  # at a program's making too


def test_gradients_of_parameters_in_float_are_kept() -> None:
    x = torch.randn(2, 3, 12, 12)
    model = Net(
        lambda m, x: torch.sigmoid(m.a(x).flatten(2)) * m.weight,
        a=nn.Conv2d(3, 8, 3),
        weight=nn.Parameter(torch.randn(100)),
    )
    found = lowered(model, x)
    with torch.no_grad():
        assert not found(x).requires_grad
    for _ in range(2):
        y = found(x)
        assert y.requires_grad
        assert torch.equal(y, found.forward(x))
    y.sum().backward()
    assert next(found.parameters()).grad is not None
