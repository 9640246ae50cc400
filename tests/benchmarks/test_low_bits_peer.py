"""The table of peers at few bits: each judged on the images that none was calibrated on."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.rounding import low_bits_peer

Logits = tuple[Tensor, float]


def test_a_row_for_each_peer_and_for_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    ).eval()  # fmt: skip
    images, labels = torch.randn(40, 3, 8, 8), torch.arange(40) % 10

    def aimet(
        options: Namespace, model: nn.Module, images: Tensor, test: dict[str, Tensor]
    ) -> dict[str, Logits]:
        assert len(images) == len(test["images"]) == 20
        with torch.no_grad():
            return {column: (model(test["images"]), 7.0) for column in options.columns}

    def qdrop(
        options: Namespace, model: nn.Module, images: Tensor, test: dict[str, Tensor]
    ) -> Logits:
        assert options.qdrop == Path("clone")
        return torch.zeros(20, 10), 9.0

    monkeypatch.setattr(low_bits_peer, "load_images", lambda folder: (images, labels))
    monkeypatch.setattr(low_bits_peer, "load_network", lambda options, images: (model, images))
    monkeypatch.setattr(low_bits_peer, "keep_memory", lambda: None)
    monkeypatch.setattr(low_bits_peer, "run_aimet", aimet)
    monkeypatch.setattr(low_bits_peer, "run_qdrop", qdrop)
    monkeypatch.setattr(sys, "argv", ["low_bits_peer", "--data", "val", "--qdrop", "clone"])
    low_bits_peer.main()
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith(("AIMET", "QDrop", "fxquant"))]
    assert [line.split(",")[0] for line in found] == ["AIMET", "QDrop", "fxquant"]
    assert found[0].count("100.0  inf  7") == 2  # agrees with itself, at both widths
    assert found[1].endswith("0.0  9")
    assert len(found[2].split()) == 2 + 2 * 4
