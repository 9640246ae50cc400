"""Layer norms and attention of programs: other kernels than PyTorch's, as near as float32 is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant.programs import kinds, layers, moves, why_unavailable
from fxquant.programs.steps import Call
from tests.helpers import Net, needs_int8
from tests.programs.made import program_of

pytestmark = [
    needs_int8,
    pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable())),
]
_LENGTH, _HEADS, _WIDTH = 48, 4, 64


def encoder(**options: Any) -> Net:
    """Return a model of (N, 48, 64): attention with `options`, a sum, a layer norm."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(-1, _LENGTH, _HEADS, _WIDTH // _HEADS).transpose(1, 2)
            for layer in (m.q, m.k, m.v)
        )
        given = {name: each(m) if callable(each) else each for name, each in options.items()}
        y = F.scaled_dot_product_attention(q, k, v, **given).transpose(1, 2)
        result: Tensor = m.c(m.norm(m.o(y.reshape(-1, _LENGTH, _WIDTH)) + x))
        return result

    torch.manual_seed(0)
    parts = {name: nn.Linear(_WIDTH, _WIDTH) for name in "qkvoc"}
    mask = torch.randn(_LENGTH, _LENGTH)
    return Net(forward, **parts, norm=nn.LayerNorm(_WIDTH), mask=nn.Parameter(mask))


def lowered(model: nn.Module, x: Tensor) -> Any:
    model.requires_grad_(False)
    quantized = fxquant.quantize(model.eval(), [x], progress=False)
    return fxquant.lower(quantized, x)


def tokens(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, _LENGTH, _WIDTH, generator=torch.Generator().manual_seed(seed))


def calls(model: Any) -> list[str]:
    return [str(step) for step in program_of(model).steps if isinstance(step, Call)]


@pytest.fixture
def always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the race out: on a busy machine anyone may win."""
    monkeypatch.setattr(layers, "soonest", lambda *_, **__: 0.0)


@pytest.mark.usefixtures("always_faster")
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"dropout_p": 0.0, "is_causal": False}])
def test_a_program_is_within_rounding_of_its_graph(options: dict[str, Any]) -> None:
    model = lowered(encoder(**options), tokens())
    assert not [each for each in calls(model) if "attention" in each or "norm" in each.lower()]
    step = model.c.numbers()["input_scale"]
    for seed in range(4):
        x = tokens(seed=seed)
        found, expected = model(x), model.forward(x)
        weight = model.c.weight.abs().max().item()
        assert (found - expected).abs().max() <= 3 * step * weight
        assert (found - expected).square().mean() < 1e-4 * expected.square().mean()


@pytest.mark.usefixtures("always_faster")
@pytest.mark.parametrize(
    "options",
    [{"is_causal": True}, {"attn_mask": lambda m: m.mask}],
    ids=["causal", "a mask with fewer axes"],
)
def test_attention_of_other_kinds_is_pytorchs(options: dict[str, Any]) -> None:
    model, x = lowered(encoder(**options), tokens()), tokens(seed=1)
    assert len([each for each in calls(model) if "attention" in each]) == 1
    torch.testing.assert_close(model(x), model.forward(x), rtol=0, atol=0.05)


def masks(count: int, kind: str) -> Tensor:
    """Return a mask of padding, for each sample another one."""
    lengths = torch.arange(20, 20 + count)
    mask = (torch.arange(_LENGTH) < lengths[:, None])[:, None, None]
    if kind == "whole":
        mask = mask.expand(-1, _HEADS, _LENGTH, -1).contiguous()
    return torch.where(mask, 0.0, -1e30) if kind == "float" else mask


class Masked(nn.Module):
    """Attention of (N, 48, 64) with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return (N, 48, 64)."""
        q, k, v = (
            layer(x).view(-1, _LENGTH, _HEADS, _WIDTH // _HEADS).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        result: Tensor = self.o(y.reshape(-1, _LENGTH, _WIDTH))
        return result


@pytest.mark.usefixtures("always_faster")
@pytest.mark.parametrize("kind", ["bool", "float", "whole"])
def test_masks_may_differ_at_each_call(kind: str) -> None:
    torch.manual_seed(0)
    batch = {"x": tokens(), "mask": masks(2, kind)}
    model: Any = fxquant.lower(fxquant.quantize(Masked().eval(), [batch], progress=False))
    model(**batch)
    assert not [each for each in calls(model) if "attention" in each]
    for seed in range(3):
        x, mask = tokens(seed=seed), masks(2, kind).roll(seed, 0)
        torch.testing.assert_close(model(x, mask), model.forward(x, mask), rtol=0, atol=0.05)
    if kind == "bool":  # PyTorch makes 0 of what sees nothing
        mask = mask.clone()
        mask[1] = False
        assert torch.equal(model(tokens(), mask), model.forward(tokens(), mask))


def test_attention_over_long_sequences_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_MOST_SCORES", 1000)
    model = lowered(encoder(), tokens())
    assert len([each for each in calls(model) if "attention" in each]) == 1


def test_what_is_slower_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(1000, 0, -1))
    monkeypatch.setattr(layers, "soonest", lambda *_, **__: float(next(seconds)))
    model, x = lowered(encoder(), tokens()), tokens(seed=1)
    assert len([each for each in calls(model) if "attention" in each or "Norm" in each]) == 2
    assert torch.equal(model(x), model.forward(x))


@pytest.mark.usefixtures("always_faster")
def test_what_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = moves.softmax
    monkeypatch.setattr(moves, "softmax", lambda x: right(x[..., :2, :]))
    model, x = lowered(encoder(), tokens()), tokens(seed=1)
    assert len([each for each in calls(model) if "attention" in each]) == 1
    torch.testing.assert_close(model(x), model.forward(x), rtol=0, atol=0.05)


@pytest.mark.usefixtures("always_faster")
def test_weights_of_a_norm_may_be_written_to() -> None:
    model, x = lowered(encoder(), tokens()), tokens(seed=1)
    before = model(x)
    model.norm.weight.data.mul_(0.5)
    after = model(x)
    torch.testing.assert_close(after, model.forward(x), rtol=0, atol=0.05)
    assert not torch.allclose(after, before, atol=0.1)


@pytest.mark.usefixtures("always_faster")
def test_what_overflows_is_told_as_by_the_graph() -> None:
    model, x = lowered(encoder(), tokens()), tokens(seed=1) * 1e30
    for run in (model, model.forward):
        with pytest.warns(RuntimeWarning, match="values to be quantized are NaN"):
            run(x)
