from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CocoDetection, ImageFolder, VOCSegmentation

from benchmarks.data import drawn_shapes
from benchmarks.data.drawn_shapes import SCENE_SHAPES, SHAPES, VOID, draw_mask


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_box_and_nothing_else(shape: str) -> None:
    mask = draw_mask(shape, (60, 50), (10, 8, 30, 24))
    outside = mask.copy()
    outside[8:33, 10:41] = False
    assert mask.any()
    assert not outside.any()
    drawn = drawn_shapes.Drawn(shape, mask)
    assert drawn.box[2] >= 27
    assert drawn.box[3] >= (7 if shape == "bar" else 21)


def test_all_shapes_differ() -> None:
    masks = [draw_mask(shape, (40, 40), (2, 2, 34, 34)) for shape in SHAPES]
    for number, one in enumerate(masks):
        for other in masks[:number]:
            assert (one != other).sum() > 60


def test_torchvision_reads_the_imagenet_folder(tmp_path: Path) -> None:
    drawn_shapes.write_imagenet(tmp_path / "drawn", train=10, val=20)
    folder = ImageFolder(str(tmp_path / "drawn" / "val"))
    assert folder.classes == [f"n{number:08d}" for number in range(len(SHAPES))]
    assert sorted(folder.targets) == sorted(list(range(10)) * 2)
    assert all(path.endswith(".JPEG") for path, _ in folder.samples)


def test_torchvision_reads_the_coco_folder(tmp_path: Path) -> None:
    drawn_shapes.write_coco(tmp_path / "drawn", train=2, val=8)
    annotations = tmp_path / "drawn" / "annotations" / "instances_val2017.json"
    data = CocoDetection(str(tmp_path / "drawn" / "val2017"), str(annotations))
    assert len(data) == 8
    for image, boxes in data:
        assert boxes
        for each in boxes:
            left, top, width, height = each["bbox"]
            assert 0 <= left < left + width <= image.width
            assert 0 <= top < top + height <= image.height
            assert 0 < each["area"] <= width * height
            assert each["category_id"] in range(1, len(SCENE_SHAPES) + 1)
    assert {each["name"] for each in data.coco.dataset["categories"]} == set(SCENE_SHAPES)


def test_torchvision_reads_the_voc_folder(tmp_path: Path) -> None:
    drawn_shapes.write_voc(tmp_path / "drawn", train=2, val=8)
    data = VOCSegmentation(str(tmp_path / "drawn"), year="2012", image_set="val")
    assert len(data) == 8
    for image, mask in data:
        assert mask.mode == "P"
        assert mask.size == image.size
        classes = np.unique(np.array(mask)).tolist()
        assert {0, VOID} < set(classes) <= {*range(len(SCENE_SHAPES) + 1), VOID}


def test_the_same_pictures_are_drawn_again_however_many_there_are_to_train_on(
    tmp_path: Path,
) -> None:
    for name, train in (("one", 1), ("other", 2)):
        drawn_shapes.write_coco(tmp_path / name, train=train, val=2)
    pictures = [np.array(Image.open(path)) for path in sorted(tmp_path.glob("*/val2017/*.jpg"))]
    assert len(pictures) == 4
    assert (pictures[0] == pictures[2]).all()
    assert (pictures[1] == pictures[3]).all()


def test_a_folder_that_was_cut_off_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(drawn_shapes, "draw_scene", interrupt)
        with pytest.raises(KeyboardInterrupt):
            drawn_shapes.write_voc(tmp_path / "drawn", train=1, val=1)
    assert not (tmp_path / "drawn").exists()
    drawn_shapes.write_voc(tmp_path / "drawn", train=1, val=1)
    assert len(list(tmp_path.iterdir())) == 1
