"""Ways out that a layer's facts support, and none where they do not.

What they say in whole messages is in `tests/test_mistakes.py`.
"""

import torch
from torch import nn

from fxquant.calling.layer_hints import Taken
from tests.calling.hints import hint


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


def test_sizes_are_not_blamed_where_no_image_is_given() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 2))
    assert hint(model, torch.zeros(2, 4)) == ""


def test_what_a_convolution_takes_is_read_off_it() -> None:
    assert str(Taken.by(nn.ConvTranspose2d(3, 8, 2))) == "(batch, 3, height, width)"
    assert Taken.by(nn.Linear(4, 2)) is None
    assert Taken.by(None) is None
