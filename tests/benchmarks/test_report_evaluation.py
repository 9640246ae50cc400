import pytest
import torch
from pycocotools.coco import COCO
from torch import Tensor

from benchmarks.judging.evaluation import (
    AVERAGE_PRECISIONS,
    average_precisions,
    count_pixels,
    mean_iou,
    share_matched,
    top_k_hits,
)

# A small object, a medium and a large one: left, top, right, bottom.
BOXES = torch.tensor([[0.0, 0, 20, 20], [30, 30, 80, 80], [100, 100, 220, 220]])
LABELS = torch.tensor([1, 2, 1])


def ground_truth(boxes: Tensor = BOXES, labels: Tensor = LABELS) -> COCO:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 7, "width": 240, "height": 240}],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [
            {
                "id": number,
                "image_id": 7,
                "category_id": label,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
            for number, ((x0, y0, x1, y1), label) in enumerate(
                zip(boxes.tolist(), labels.tolist(), strict=True), start=1
            )
        ],
    }
    truth.createIndex()
    return truth


def detections(boxes: Tensor = BOXES, labels: Tensor = LABELS) -> dict[str, Tensor]:
    return {"boxes": boxes, "labels": labels, "scores": torch.linspace(0.9, 0.8, len(boxes))}


def test_top_k_counts_the_label_among_the_k_greatest() -> None:
    logits = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3]])
    labels = torch.tensor([0, 2, 0])
    assert [top_k_hits(logits, labels, k) for k in (1, 2, 3, 4)] == [1, 1, 2, 3]
    assert top_k_hits(logits, labels, 5) == 3  # of four classes


def test_mean_iou_of_a_hand_worked_case() -> None:
    labels = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]])
    predicted = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 2]])
    confusion = count_pixels(predicted, labels, 3)
    assert confusion.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    # class 0: 2 of 4 pixels; class 1: 2 of 4; class 2 was predicted where nothing is known only
    assert mean_iou(confusion) == pytest.approx(50.0)


def test_mean_iou_counts_a_class_that_was_predicted_but_is_not_there() -> None:
    confusion = count_pixels(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 0, 0]), 4)
    assert mean_iou(confusion) == pytest.approx((75 + 0) / 2)


def test_a_mask_of_a_class_that_the_model_does_not_have_is_an_error() -> None:
    with pytest.raises(SystemExit, match="a pixel of class 21; the model has classes 0 to 20"):
        count_pixels(torch.tensor([0]), torch.tensor([21]), 21)


def test_perfect_boxes_have_an_ap_of_100_at_every_size() -> None:
    figures = average_precisions(ground_truth(), {7: detections()})
    assert list(figures) == list(AVERAGE_PRECISIONS)
    assert list(figures.values()) == pytest.approx([100.0] * 6)


def test_no_detection_is_an_ap_of_0(capsys: pytest.CaptureFixture[str]) -> None:
    none = detections(torch.empty(0, 4), torch.empty(0, dtype=torch.long))
    truth = ground_truth()
    capsys.readouterr()
    assert list(average_precisions(truth, {7: none}).values()) == [0.0] * 6
    assert capsys.readouterr().out == ""


def test_sizes_that_no_object_has_have_no_ap() -> None:
    figures = average_precisions(ground_truth(BOXES[:1], LABELS[:1]), {7: detections()})
    assert figures["APS"] == pytest.approx(100.0)
    assert figures["APM"] is None
    assert figures["APL"] is None


def test_ap_of_boxes_that_are_off_a_little() -> None:
    # IoU of each with its object: 0.8, so it counts at the thresholds 0.5 to 0.75 and at 0.8.
    shrunk = BOXES.clone()
    shrunk[:, 2] = BOXES[:, 0] + 0.81 * (BOXES[:, 2] - BOXES[:, 0])
    figures = average_precisions(ground_truth(), {7: detections(shrunk)})
    assert figures["AP"] == pytest.approx(70.0)  # 7 of 10 thresholds
    assert figures["AP50"] == figures["AP75"] == pytest.approx(100.0)


def test_ap_of_a_wrong_class_is_0_for_both_classes() -> None:
    figures = average_precisions(ground_truth(), {7: detections(labels=3 - LABELS)})
    assert figures["AP50"] == 0.0


def test_matches_are_of_one_class_near_and_looked_for_only_if_sure() -> None:
    expected = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [0, 0, 9, 9]]),
        "labels": torch.tensor([1, 1, 1, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.3]),  # the last one is not sure enough
    }
    found = {
        "boxes": torch.tensor([[0.0, 0, 10, 9.5], [20, 20, 30, 28.9], [40, 40, 50, 50]]),
        "labels": torch.tensor([1, 1, 2]),
        "scores": torch.tensor([0.1, 0.9, 0.9]),
    }
    # IoU 0.95: matched; IoU 0.89: too far; IoU 1, but another class
    assert share_matched([expected], [found]) == pytest.approx(100 / 3)
    assert share_matched([expected], [expected]) == 100.0
    nothing = {name: value[:0] for name, value in found.items()}
    assert share_matched([expected], [nothing]) == 0.0
    assert share_matched([nothing], [found]) is None
