"""A window of an image gives what the whole image gives, and blocks that need the whole keep it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe
from fxquant.passes import QuantizeWeights
from fxquant.rounding.blocks.find import find_blocks
from fxquant.rounding.blocks.forward import BlockForward
from fxquant.rounding.blocks.windows import Windows
from tests.helpers import Net, apply


def windows_of(model: nn.Module, x: Tensor) -> Windows | None:
    """Return how images of the model's only block may be cut up."""
    gm = fxquant.trace(model)
    reference = copy.deepcopy(gm)
    apply(QuantizeWeights(Recipe.minmax(activation_bits=None)), gm)
    (block,) = find_blocks(gm)
    with torch.no_grad():
        return BlockForward(block, gm, reference).windows(block.paths[0], x, reference(x))


def conv(kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel, **{"padding": kernel // 2, **options})


def inverted(stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 1),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, stride, padding=1, groups=8),
        nn.ReLU6(),
        nn.Conv2d(8, 6, 1),
    )


BLOCKS: dict[str, tuple[nn.Module, int, int]] = {
    "residual": (Net(lambda m, x: F.relu(m.b(F.relu(m.a(x))) + x), a=conv(), b=conv()), 1, 4),
    "inverted": (inverted(1), 1, 2),
    "inverted, strided": (inverted(2), 2, 2),
    "strided, with a way around": (
        Net(
            lambda m, x: m.b(m.a(x).relu()) + m.c(x),
            **{"a": conv(stride=2), "b": conv(), "c": conv(1, stride=2)},
        ),
        2,
        4,
    ),
    "dilated": (Net(lambda m, x: m.a(x) + x, a=conv(5, dilation=2, padding=4)), 1, 8),
    "pooled": (Net(lambda m, x: m.p(m.a(x)) + x, a=conv(), p=nn.AvgPool2d(3, 1, 1)), 1, 4),
}  # fmt: skip


@pytest.mark.parametrize(("model", "stride", "border"), BLOCKS.values(), ids=BLOCKS)
def test_every_window_gives_what_the_whole_image_gives(
    model: nn.Module, stride: int, border: int
) -> None:
    x = torch.randn(2, 4, 40 * stride, 36 * stride)
    windows = windows_of(model, x)
    assert windows == Windows(40, 36, stride, border)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        expected = model(x)
        for cut in [windows.at(0, 0), windows.at(26, 22), *(windows.draw(generator) for _ in "ab")]:
            found = cut.of_outputs(model(cut.of_inputs(x)))
            assert found.shape[2:] == (14, 14)
            torch.testing.assert_close(found, cut.of_targets(expected), rtol=1e-4, atol=1e-4)


NEEDS_WHOLE: dict[str, Callable[[], nn.Module]] = {
    "squeeze and excitation": lambda: Net(
        lambda m, x: m.a(x) * x.mean((2, 3), keepdim=True).sigmoid() + x, a=conv()
    ),
    "a padding of another size": lambda: nn.Sequential(conv(padding=2)),
    "channels of one mean": lambda: Net(
        lambda m, x: F.instance_norm(m.a(x)) + x, a=conv()
    ),
    "a functional pooling": lambda: Net(
        lambda m, x: F.max_pool2d(m.a(x), 9, 1, 4) + x, a=conv(1)
    ),
    "numbers that are written in it": lambda: Net(
        lambda m, x: m.a(x.reshape(-1, 4, 40, 40)) + x, a=conv()
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", NEEDS_WHOLE.values(), ids=NEEDS_WHOLE)
def test_what_depends_on_more_than_its_surroundings_stays_whole(
    make: Callable[[], nn.Module],
) -> None:
    assert windows_of(make(), torch.randn(2, 4, 40, 40)) is None


def test_small_images_and_other_tensors_stay_whole() -> None:
    model = BLOCKS["residual"][0]
    assert windows_of(model, torch.randn(2, 4, 22, 40)) is None
    assert windows_of(model, torch.randn(2, 4, 23, 40)) is not None
    assert windows_of(nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 4, 40, 8)) is None
