"""The scripts run on data that they, or the test, make in the real formats."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import digits
from benchmarks.judging.comparison import activation_recipes, compare, table
from benchmarks.networks.cifar_resnet import CifarResNet
from benchmarks.ranges import cifar10, imagenet


def test_the_main_job_trains_quantizes_prints_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--epochs", "2", "--cache", f"{tmp_path}/net.pt", "--results", f"{tmp_path}/out"]
    digits.main(arguments)
    printed = capsys.readouterr().out
    for bits in ("32/32", "8/8", "4/8", "4/4"):
        assert bits in printed
    assert "bn1 = self.bn1(conv1)" in printed
    assert "QuantizedConv2d 8 bits minmax · folded: bn1 · fused: relu" in printed
    assert (tmp_path / "out" / "digits.txt").read_text() in printed
    with Image.open(tmp_path / "out" / "digits.png") as picture:
        assert picture.size[0] > 500
    cached = (tmp_path / "net.pt").stat().st_mtime_ns
    images, labels, _, _ = digits.load_data()
    digits.trained_model(images, labels, tmp_path / "net.pt", epochs=2)
    assert (tmp_path / "net.pt").stat().st_mtime_ns == cached


def test_cifar_weights_load_by_their_usual_names(tmp_path: Path) -> None:
    net = CifarResNet(20)
    state = {name.replace("fc.", "linear."): value for name, value in net.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    loaded = cifar10.load_model(tmp_path / "net.safetensors")
    x = cifar10.normalize(np.zeros((2, 32, 32, 3), dtype=np.uint8))
    torch.testing.assert_close(loaded(x), net.eval()(x))
    assert x[0, :, 0, 0].tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-4)


def write_imagenet(folder: Path, classes: list[str]) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        pixels = np.full((40 + number, 60, 3), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{name}_0.JPEG")


def test_an_imagenet_folder_is_read_with_the_indices_of_its_list(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "val", ["n02", "n05"])
    (tmp_path / "wnids.txt").write_text("n00\nn05\nn02\n")
    images, labels = imagenet.load_images(tmp_path / "val")
    assert images.shape == (2, 3, 224, 224)
    brightness = {
        label: image.mean().item() for image, label in zip(images, labels.tolist(), strict=True)
    }
    assert brightness.keys() == {1, 2}
    assert brightness[1] > brightness[2]  # n05 is the brighter one


def test_an_imagenet_folder_without_a_list_must_have_all_classes(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "val", ["n02", "n05"])
    with pytest.raises(SystemExit, match=r"expected 1,000 class folders.*found 2 folders"):
        imagenet.load_images(tmp_path / "val")


def test_comparing_gives_a_row_for_float_and_one_for_each_recipe() -> None:
    model = digits.DigitsNet()
    x = torch.rand(8, 1, 8, 8)
    recipes = activation_recipes([(8, 8)])
    results = compare(model, recipes, x, x, torch.zeros(8, dtype=torch.long))
    assert [each.method for each in results] == ["float", *[name for _, name, _ in recipes]]
    assert all(each.agreement == 100 for each in results[:1])
    assert results[1].weight_bytes < results[0].weight_bytes / 3
    assert len(table(results).splitlines()) == len(results) + 2
