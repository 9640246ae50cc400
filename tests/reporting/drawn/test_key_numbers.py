"""Key numbers of a report, and shares of a whole."""

import torch
from torch import nn

import fxquant
from fxquant.display.figures import Tiles
from fxquant.reporting.coverage import Coverage
from fxquant.reporting.drawn.key_numbers import drawn_shares, drawn_tiles
from fxquant.reporting.sizes import Sizes

COVERAGE = Coverage(1e6, 0.75, products=0.0, weights_only=0.25, int8=None, left=())


def said(tiles: Tiles) -> dict[str, tuple[str, str]]:
    return {tile.label: (tile.value, tile.note) for tile in tiles.tiles}


def test_tiles_say_what_the_summary_says() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    rows = fxquant.report(fxquant.quantize(model, [torch.randn(4, 8)], progress=False)).rows
    tiles = said(drawn_tiles(rows, COVERAGE, Sizes(before=8_000_000, after=2_000_000)))
    assert tiles["Layers quantized"] == ("2 of 2", "")
    assert tiles["Multiply-adds quantized"] == ("75 %", "")
    assert tiles["Parameters, packed"] == ("2 MB", "25 % of 8 MB")
    weakest = min(row.weakest for row in rows if row.weakest is not None)
    assert tiles["Weakest"][0] == f"{weakest[0]:.1f} dB"


def test_what_is_not_known_has_no_tile_and_no_share() -> None:
    assert said(drawn_tiles([], None, None)) == {"Layers quantized": ("0 of 0", "")}
    assert list(drawn_shares(None, Sizes(before=8, after=8))) == []


def test_multiply_adds_are_shares_of_one_whole() -> None:
    (shares,) = drawn_shares(COVERAGE, None)
    found = [(share.label, share.amount, share.tone) for share in shares.stacks[0].shares]
    assert found == [
        ("weights and inputs quantized", 0.5, "main"),
        ("weights alone", 0.25, "second"),
        ("in float", 0.25, "rest"),
    ]


def test_of_a_lowered_model_they_say_what_runs_in_int8() -> None:
    lowered = Coverage(1e6, 0.75, products=0.0, weights_only=0.0, int8=0.5, left=())
    (shares,) = drawn_shares(lowered, None)
    assert [(share.label, share.amount) for share in shares.stacks[0].shares] == [
        ("in int8", 0.5), ("quantized, in float kernels", 0.25), ("in float", 0.25),
    ]  # fmt: skip


def test_bytes_before_and_after_are_two_bars() -> None:
    (shares,) = drawn_shares(None, Sizes(before=8_000_000, after=2_000_000))
    assert [stack.label for stack in shares.stacks] == ["before", "after"]
    assert [stack.shares[0].text for stack in shares.stacks] == ["8 MB", "2 MB"]
