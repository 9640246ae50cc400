"""The benchmarks of detection models and of ACIQ's figures, on small things."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

import fxquant
from benchmarks.capture import torchvision_detection
from benchmarks.capture.torchvision_detection import call, measure, quantized_and_all, run
from benchmarks.capture.torchvision_models import randomize
from benchmarks.ranges import aciq_figures
from benchmarks.ranges.aciq_figures import exact_clip, polynomial_clip, residual, tiao, tiao2
from fxquant.numerics.closed_clips import laplace_constant

RATIOS = torch.linspace(-3, 3, 61, dtype=torch.float64)


class Net(nn.Module):
    """A region of two layers, a layer, and a matrix product in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).flatten(2).transpose(1, 2)  # (1, 64, 4)
        if y.sum() > 1e9:  # cannot be traced
            y = -y
        scores: Tensor = self.head(y)
        return scores @ scores.transpose(1, 2)


@pytest.mark.parametrize("skip", [(), ("head",)])
def test_multiply_adds_are_those_counted_by_hand(skip: tuple[str, ...]) -> None:
    x = torch.randn(1, 3, 8, 8)
    quantized = fxquant.quantize(Net(), [x], fxquant.Recipe.aciq(skip=skip))
    _, counts = call(quantized, x)
    body, head, product = 64 * (3 * 4 + 4 * 4), 64 * 4 * 5, 64 * 5 * 64
    in_layers = body if skip else body + head
    assert quantized_and_all(quantized, counts) == (in_layers, body + head + product)
    assert quantized_and_all(quantized, counts, "body") == (body, body)
    assert "body.0" not in counts  # inside a region: its forward is never called
    assert quantized_and_all(quantized, counts, "body.0") == (body, body)
    assert quantized_and_all(quantized, counts, "head") == (0 if skip else head, head)
    assert quantized_and_all(quantized, counts, "nothing") == (0, 0)


class Backbone(nn.Sequential):
    """Two layers with batch norms."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip


def test_a_retinanet_gets_a_row_and_its_parts() -> None:
    model = RetinaNet(Backbone(), 3, 64, 64, anchor_generator=AnchorGenerator(((16,),), ((1.0,),)))
    nn.init.zeros_(model.head.classification_head.cls_logits.bias)
    measured = measure("retinanet_tiny", model.eval(), [torch.rand(3, 64, 64)])
    name, regions, layers, norms, _, percent, heads, _ = measured.row
    assert (name, regions, layers, norms, percent) == ("retinanet_tiny", 5, "12/12", 0, "100.0")
    head, scores, boxes = str(heads).split()
    assert head == "head"
    assert float(scores) > 20
    assert float(boxes) > 20
    assert [row[1:2] + row[3:] for row in measured.parts] == [
        ["backbone", "100.0"],
        ["backbone.fpn", ""],
        ["head.classification_head", "100.0"],
        ["head.regression_head", "100.0"],
    ]


def faster_rcnn(score_thresh: float = 0.0) -> nn.Module:
    model: nn.Module = FasterRCNN(
        Backbone(), 3, 64, 64,
        rpn_anchor_generator=AnchorGenerator(((16,),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_score_thresh=score_thresh, rpn_post_nms_top_n_test=20,
    )  # fmt: skip
    return model.eval()


def test_heads_on_regions_of_interest_look_at_the_boxes_they_are_given() -> None:
    model, images = faster_rcnn(), [torch.rand(3, 64, 64)]
    expected = run(model, images)
    assert list(expected.heads) == ["rpn", "box"]
    boxes = {"box": [expected.boxes["box"][0][:7]]}
    given = run(model, images, boxes)
    for all_of_them, few in zip(expected.heads["box"], given.heads["box"], strict=True):
        torch.testing.assert_close(few, all_of_them[:7])
    row = measure("fasterrcnn_tiny", model, images).row
    assert row[2] == "9/9"
    assert str(row[6]).startswith("rpn ")
    assert ", box " in str(row[6])


def test_a_model_that_returns_infinity_or_nothing_is_an_error() -> None:
    images = [torch.rand(3, 64, 64)]
    with pytest.raises(ValueError, match="nothing was detected"):
        measure("fasterrcnn_tiny", faster_rcnn(score_thresh=2.0), images)
    endless = faster_rcnn()
    endless.register_forward_hook(lambda *_: [{"boxes": torch.tensor([[0.0, math.inf]])}])
    with pytest.raises(ValueError, match="not finite"):
        measure("fasterrcnn_tiny", endless, images)


def test_frozen_batch_norms_compute_the_same() -> None:
    model, x = randomize(Backbone()).eval(), torch.rand(1, 3, 16, 16)
    expected = model(x)
    torchvision_detection.freeze_batchnorms(model)
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in model.modules()) == 2
    torch.testing.assert_close(model(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "raft_small"])
def test_a_model_of_torchvision_is_quantized_whole(name: str) -> None:
    measured = measure(name, torchvision_detection.build(name), torchvision_detection.example(name))
    quantized, of_all = str(measured.row[2]).split("/")
    assert quantized == of_all
    assert measured.row[3] == 0
    assert float(str(measured.row[5])) > 98


def test_the_script_knows_every_detection_and_flow_model() -> None:
    names = torchvision_detection.model_names()
    assert len(names) == len(set(names)) == 14
    assert set(names) == {
        *torchvision.models.list_models(torchvision.models.detection),
        *torchvision.models.list_models(torchvision.models.optical_flow),
    }


def test_polynomials_are_those_of_the_report() -> None:
    d = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    four = [0.00414, -0.92 * (0.996 + 0.011 + 0.001 - 0.0045), -0.92 * (-0.996 + 0.011 - 0.0035)]
    four += [-0.92 * (1.992 + 0.011 * 2**0.65 + 0.004 - 0.0045)]
    eight = [0.00712, -0.89 * (0.963 + 0.019 + 0.001 - 0.008), -0.89 * (-0.963 + 0.019 - 0.007)]
    eight += [-0.89 * (1.926 + 0.019 * 2**1.3 + 0.004 - 0.008)]
    torch.testing.assert_close(tiao(d), torch.tensor(four, dtype=torch.float64))
    torch.testing.assert_close(tiao2(d), torch.tensor(eight, dtype=torch.float64))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_exact_clip_leaves_no_residual(bits: int) -> None:
    assert residual(exact_clip(RATIOS, bits), RATIOS, bits).abs().max() < 1e-12


@pytest.mark.parametrize("bits", [4, 8])
def test_the_reports_functions_are_swapped_and_its_signs_right(bits: int) -> None:
    swapped = polynomial_clip(RATIOS, bits)
    least = residual(swapped, RATIOS, bits).abs().max()
    assert least < 0.07
    assert (swapped - exact_clip(RATIOS, bits)).abs().max() < 0.0125
    printed = polynomial_clip(RATIOS, bits, as_printed=True)
    assert 0.2 < (printed - exact_clip(RATIOS, bits)).abs().max() < 0.245
    constant = laplace_constant(bits + 1)
    for g, sign, turned in itertools.product((tiao, tiao2), (-1, 1), (-1, 1)):
        if (sign, turned) != (-1, 1):
            other = residual(constant + sign * g(turned * RATIOS), RATIOS, bits).abs().max()
            assert other > 13 * least


@pytest.mark.parametrize("bits", [4, 8])
def test_brute_force_is_no_worse_than_any_other_clip(bits: int) -> None:
    ratio = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)
    best = aciq_figures.best_clip(ratio, bits)
    least = aciq_figures.clip_error(ratio, best, bits)
    for other in (exact_clip(ratio, bits), polynomial_clip(ratio, bits), best - 0.1, best + 0.1):
        assert (aciq_figures.clip_error(ratio, other, bits) >= least * (1 - 1e-4)).all()
    shares = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000 - 0.5
    x = (2 - shares.sign() * (1 - 2 * shares.abs()).log()).relu()  # evenly: the tail is rare
    scale = best[2] / (2**bits - 1)
    rounded = (x / scale).round().clamp(max=2**bits - 1) * scale
    torch.testing.assert_close(
        (rounded - x).square().mean().item(), least[2].item(), rtol=0.02, atol=0
    )


def test_the_figures_are_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aciq_figures, "_CLIPS", 50)
    aciq_figures.main(["--results", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines if line.startswith(("4       0", "8       0"))] == [
        ["4", "0", "6.205", "6.198"],
        ["8", "0", "11.163", "11.159"],
    ]
    with Image.open(tmp_path / "aciq_figures.png") as picture:
        assert picture.size[0] > 500
