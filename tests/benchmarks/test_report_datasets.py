import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.data.datasets import Coco, ImageNet, Voc, class_indices, fingerprint


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (30, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def write_coco(folder: Path, **changes: Any) -> Path:
    """Write two images, one of them in grey, with a box and a crowd; return the annotations."""
    save(folder / "val2017" / "1.jpg")
    save(folder / "val2017" / "2.jpg", "L", (15, 40))
    boxes = [
        {"id": 1, "image_id": 2, "category_id": 3, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 2, "file_name": "2.jpg"}, {"id": 1, "file_name": "1.jpg"}],
        "annotations": boxes,
        "categories": [{"id": 3, "name": "disc"}],
    }
    path = folder / "annotations" / "instances_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**content, **changes}))
    return path


def write_voc(base: Path, mask_mode: str = "P") -> None:
    save(base / "JPEGImages" / "2007_1.jpg", "CMYK")
    save(base / "SegmentationClass" / "2007_1.png", mask_mode)
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_1\n")


@pytest.mark.parametrize("given", ["", "val"])
def test_imagenet_is_the_folder_or_the_val_folder_in_it(tmp_path: Path, given: str) -> None:
    for name, mode in (("n1", "L"), ("n2", "CMYK")):
        save(tmp_path / "val" / name / "a.JPEG", mode)
    data = ImageNet(tmp_path / given, num_classes=2)
    assert [(image.mode, label) for image, label in (data[0], data[1])] == [("RGB", 0), ("RGB", 1)]


def test_imagenet_without_class_folders_says_what_is_there(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "val" / f"ILSVRC2012_val_{number}.JPEG")
    with pytest.raises(
        SystemExit, match=r"expected ImageNet's class folders.*found ILSVRC2012_val_0.* and 2 more$"
    ):
        ImageNet(tmp_path)
    with pytest.raises(SystemExit, match="nowhere: there is no such folder"):
        ImageNet(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="found an empty folder"):
        ImageNet(tmp_path / "empty")


def test_a_class_folder_that_the_list_lacks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "wnids.txt").write_text("n1\nn2\n")
    assert class_indices(tmp_path / "val", ["n2"]) == [1]
    with pytest.raises(SystemExit, match=r"wnids.txt: the class folder n3 of .*val is not in it"):
        class_indices(tmp_path / "val", ["n2", "n3"])


def test_coco_gives_images_in_the_order_of_their_ids(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = Coco(tmp_path)
    assert [(image.mode, image.size, number) for image, number in (data[0], data[1])] == [
        ("RGB", (30, 20), 1),
        ("RGB", (15, 40), 2),
    ]


def test_boxes_to_train_on_leave_out_crowds(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = Coco(tmp_path)
    assert data.boxes(2)["boxes"].tolist() == [[1, 2, 6, 8]]
    assert data.boxes(2)["labels"].tolist() == [3]
    assert data.boxes(1)["boxes"].shape == (0, 4)


def test_coco_in_another_layout_says_what_is_there(tmp_path: Path) -> None:
    save(tmp_path / "images" / "1.jpg")
    with pytest.raises(
        SystemExit,
        match=r"expected COCO's val2017/\*.jpg and annotations/instances_.*.json; found images/",
    ):
        Coco(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": []}, "there are no boxes in it"),
        ({"annotations": [{"id": 1, "image_id": 1, "caption": "a disc"}]}, "there are no boxes"),
        ({"categories": []}, "expected COCO's images and categories; it has no categories"),
        ({"images": []}, "expected COCO's images and categories; it has no images"),
        (
            {"images": [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2, 3)]},
            "1 of its 3 images are not in .*val2017, 3.jpg to begin with",
        ),
    ],
)
def test_annotations_that_cannot_be_used_are_an_error(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_coco(tmp_path, **changes)
    with pytest.raises(SystemExit, match=f"instances_val2017.json: {message}"):
        Coco(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_annotations_that_are_none_are_an_error(tmp_path: Path, content: str) -> None:
    write_coco(tmp_path).write_text(content)
    with pytest.raises(
        SystemExit, match=r"instances_val2017.json: (not JSON|expected a JSON object; found a list)"
    ):
        Coco(tmp_path)


@pytest.mark.parametrize("inside", ["VOCdevkit/VOC2012", "VOC2012", ""])
def test_voc_is_found_in_the_usual_places(tmp_path: Path, inside: str) -> None:
    write_voc(tmp_path / inside)
    image, mask = Voc(tmp_path)[0]
    assert image.mode == "RGB"
    assert mask.shape == (20, 30)


def test_voc_in_another_layout_says_what_is_there(tmp_path: Path) -> None:
    save(tmp_path / "VOC2012" / "JPEGImages" / "1.jpg")
    with pytest.raises(SystemExit, match=r"expected VOC's JPEGImages.*found JPEGImages/$"):
        Voc(tmp_path)


def test_voc_with_a_missing_mask_is_an_error(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "SegmentationClass" / "2007_1.png").unlink()
    with pytest.raises(SystemExit, match=r"val.txt: there is no .*2007_1.png"):
        Voc(tmp_path)


def test_masks_in_colours_are_an_error(tmp_path: Path) -> None:
    write_voc(tmp_path, mask_mode="RGB")
    with pytest.raises(SystemExit, match=r"2007_1.png: expected a palette image.*found mode RGB"):
        Voc(tmp_path)[0]


def test_the_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    write_voc(tmp_path)
    before = fingerprint(Voc(tmp_path))
    assert fingerprint(Voc(tmp_path)) == before
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "JPEGImages" / "2007_1.jpg")
    assert fingerprint(Voc(tmp_path)) != before
