"""Ways out that a layer's facts support, and none where they do not.

What they say in whole messages is in `tests/test_mistakes.py`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import CalibrationError
from fxquant.calling.explanation import explained
from fxquant.calling.layer_hints import Taken
from tests.helpers import Net


def hint(model: nn.Module, x: Any) -> str:
    """Return what is said behind the error's own first line; "" if nothing is."""
    with pytest.raises(CalibrationError) as raised, explained("batch 0", x):
        model(x)
    first = str(raised.value.__cause__).partition("\n")[0]
    said = str(raised.value)
    return said[said.index(first[:100]) + len(first) :].removeprefix(": ") if first else said


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3))


def test_axes_are_permuted_only_where_that_gives_the_channels() -> None:
    assert hint(conv(), torch.zeros(2, 8, 8, 3)).endswith(": x.permute(0, 3, 1, 2)")
    assert "permute" not in hint(conv(), torch.zeros(2, 8, 8, 5))


def test_sequences_and_volumes_have_their_own_orders() -> None:
    sequences = nn.Sequential(nn.Conv1d(3, 8, 3))
    assert hint(sequences, torch.zeros(2, 8, 3)).endswith(": x.permute(0, 2, 1)")
    volumes = nn.Sequential(nn.Conv3d(3, 8, 3))
    assert hint(volumes, torch.zeros(2, 8, 8, 8, 3)).endswith(": x.permute(0, 4, 1, 2, 3)")


def test_a_layer_inside_is_not_told_how_to_change_the_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(3, 8, 3))
    assert (
        hint(model, torch.zeros(2, 3, 8, 8))
        == "1 takes (batch, 3, height, width), and got 1 channel"
    )


def test_a_layer_inside_is_told_its_own_type() -> None:
    model = nn.Sequential(nn.Linear(4, 4).double(), nn.Linear(4, 2))
    assert hint(model, torch.zeros(2, 4)).startswith("the model takes float64: x.double()")
    model = nn.Sequential(nn.Flatten(), Net(lambda m, x: m.fc(x.half()), fc=nn.Linear(4, 2)))
    assert hint(model, torch.zeros(2, 4)) == "1.fc has weights of float32, and is given float16"


def test_a_function_of_the_callers_is_told_the_type_of_the_model() -> None:
    model = Net(lambda m, x: nn.functional.linear(x, m.fc.weight), fc=nn.Linear(4, 2))
    assert hint(model, torch.zeros(2, 4).double()).endswith(": x.float()")


def test_sizes_are_not_blamed_where_no_image_is_given() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 2))
    assert hint(model, torch.zeros(2, 4)) == ""


def test_devices_are_not_blamed_for_other_errors() -> None:
    def fail(m: Any, x: Tensor) -> Any:
        return torch.zeros(2)[5] + x

    assert hint(Net(fail, fc=nn.Linear(4, 2)), torch.zeros(2, 4, device="meta")) == ""


def test_what_a_convolution_takes_is_read_off_it() -> None:
    assert str(Taken.by(nn.ConvTranspose2d(3, 8, 2))) == "(batch, 3, height, width)"
    assert Taken.by(nn.Linear(4, 2)) is None
    assert Taken.by(None) is None
