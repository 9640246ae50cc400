"""Multiply-adds of each kind of product, worked out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

from fxquant.calibration.counting import MultiplyAddCounter
from tests.layer_kinds import KINDS, make_input, make_layer

X = torch.ones(2, 5, 8)  # samples, steps, width
HEADS = torch.ones(2, 2, 5, 4)  # samples, heads, steps, width
LEFT_ALIGNED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Return the multiply-adds of a call."""
    counter = MultiplyAddCounter(nn.Module())
    with torch.no_grad():
        counter.start()
        try:
            function(*arguments)
        finally:
            counter.stop()
    return sum(counter.modules.values())


def attend(query: Tensor, key: Tensor, **options: Any) -> Callable[[], Tensor]:
    return lambda: F.scaled_dot_product_attention(query, key, key, **options)


def encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (torch.mm, (X[0], X[1].T), 5 * 5 * 8),
        (torch.matmul, (X, X.mT), 2 * 5 * 5 * 8),
        (torch.matmul, (X[0], X[0, 0]), 5 * 8),
        (torch.matmul, (X[0, 0], X[0, 0]), 8),
        (torch.addmm, (torch.ones(5), X[0], X[1].T), 5 * 5 * 8),
        (torch.baddbmm, (torch.ones(5), X, X.mT), 2 * 5 * 5 * 8),
        (torch.addbmm, (torch.ones(5, 5), X, X.mT), 2 * 5 * 5 * 8),
        (torch.addmv, (torch.ones(5), X[0], X[0, 0]), 5 * 8),
        (torch.einsum, ("bij,bkj->bik", X, X), 2 * 5 * 5 * 8),
        (torch.einsum, ("bij,oj->bio", X, torch.ones(3, 8)), 2 * 5 * 3 * 8),
        (torch.tensordot, (X, X, ([1, 2], [1, 2])), 2 * 2 * 40),
        (F.linear, (X, torch.ones(3, 8), torch.ones(3)), 2 * 5 * 3 * 8),
        (F.bilinear, (X, X[..., :4], torch.ones(3, 8, 4)), 2 * 5 * 3 * 8 * 4),
        (F.conv1d, (X, torch.ones(6, 5, 3)), 2 * 6 * 6 * 5 * 3),
        (F.conv1d, (X[0], torch.ones(6, 5, 3)), 6 * 6 * 5 * 3),
        (torch.conv_tbc, (X, torch.ones(1, 8, 4), torch.ones(4)), 2 * 5 * 8 * 4),
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (torch.ones(1, 4, 8, 8),), 4 * 4 * 6 * 2 * 9),
        (nn.Conv2d(4, 4, 3, padding="same", groups=4), (torch.ones(1, 4, 8, 8),), 64 * 4 * 9),
        (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (torch.ones(1, 4, 8, 8),), 64 * 4 * 3 * 9),
        (
            deform_conv2d,
            (torch.ones(1, 4, 8, 8), torch.zeros(1, 18, 6, 6), torch.ones(6, 4, 3, 3)),
            36 * 6 * 4 * 9,
        ),
        (attend(HEADS, HEADS), (), 2 * 2 * 5 * 5 * (4 + 4)),
        (attend(HEADS, HEADS[:, :, :3]), (), 2 * 2 * 5 * 3 * (4 + 4)),
        (attend(HEADS, HEADS[:, :1], enable_gqa=True), (), 2 * 2 * 5 * 5 * (4 + 4)),
        (attend(HEADS, HEADS, attn_mask=torch.ones(5, 5).bool()), (), 2 * 2 * 5 * 5 * (4 + 4)),
        (nn.LSTM(8, 6, 2, bidirectional=True), (X,), 10 * 2 * 24 * (8 + 6 + 12 + 6)),
        (nn.LSTM(8, 6, proj_size=3), (X,), 10 * (24 * (8 + 3) + 6 * 3)),
        (nn.GRU(8, 6), (X,), 10 * 18 * (8 + 6)),
        (nn.RNN(8, 6, batch_first=True), (X,), 10 * 6 * (8 + 6)),
        (nn.LSTMCell(8, 6), (X[0],), 5 * 24 * (8 + 6)),
        (nn.GRUCell(8, 6), (X[0],), 5 * 18 * (8 + 6)),
        (
            nn.MultiheadAttention(8, 2, batch_first=True).eval(),
            (X, X, X),
            10 * 4 * 64 + 2 * 2 * 25 * 8,
        ),
        (
            encoder_layer(),
            (X,),
            10 * (4 * 64 + 2 * 128) + 2 * 2 * 25 * 8,
        ),
        (
            nn.TransformerEncoder(encoder_layer(), 1).eval(),
            (X, None, LEFT_ALIGNED),  # one sample of 5 steps, one of 3
            8 * (4 * 64 + 2 * 128) + 2 * (25 + 9) * 8,
        ),
        (torch.outer, (X[0, 0], X[0, 0]), 0),
        (nn.BatchNorm1d(5).eval(), (X,), 0),
        (nn.Softmax(-1), (X,), 0),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_takes_what_the_formula_says(
    function: Callable[..., Any], arguments: tuple[Any, ...], expected: int
) -> None:
    assert count(function, *arguments) == expected


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_agrees_with_pytorchs_own_counter(kind: type[nn.Module], options: dict[str, Any]) -> None:
    layer = make_layer(kind, options)
    x = make_input(layer)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        layer(x)
    assert count(layer, x) == flops.get_total_flops() / 2 > 0


def test_inference_mode_hides_nothing() -> None:
    def run() -> None:
        with torch.inference_mode():
            x = X.clone()
            y = F.linear(x, torch.ones(3, 8))
            torch.einsum("bij,bkj->bik", x, x) @ y

    assert count(run) == 2 * 5 * 3 * 8 + 2 * 5 * 5 * 8 + 2 * 5 * 5 * 3
