from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.data import pretrained
from benchmarks.data.pretrained import freeze_batchnorms, kind_of, load_model, read_state


def test_kinds_go_by_torchvisions_lists() -> None:
    assert kind_of("resnet50") == "classifier"
    assert kind_of("retinanet_resnet50_fpn") == "detector"
    assert kind_of("deeplabv3_resnet50") == "segmenter"
    with pytest.raises(SystemExit, match="resnet51: torchvision has no classifier, detector or"):
        kind_of("resnet51")


def test_the_weights_are_the_reports() -> None:
    assert pretrained.default_weights("resnet50").name == "IMAGENET1K_V1"
    assert pretrained.default_weights("resnet50").meta["_metrics"]["ImageNet-1K"]["acc@1"] == 76.13
    assert pretrained.default_weights("retinanet_resnet50_fpn").name == "COCO_V1"


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file_are_loaded(tmp_path: Path, suffix: str, wrap: bool) -> None:
    model = torchvision.models.squeezenet1_1().eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"model": model.state_dict()} if wrap else model.state_dict(), path)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(load_model("squeezenet1_1", path)(x), model(x))


def test_weights_of_another_architecture_name_the_first_keys(tmp_path: Path) -> None:
    state = torchvision.models.squeezenet1_1(num_classes=7).state_dict()
    renamed = {key.replace("features.3.", "stage."): value for key, value in state.items()}
    torch.save(renamed, tmp_path / "other.pth")
    with pytest.raises(SystemExit) as error:
        load_model("squeezenet1_1", tmp_path / "other.pth")
    assert str(error.value) == (
        f"{tmp_path}/other.pth: not the weights of squeezenet1_1: "
        "missing: features.3.squeeze.weight, features.3.squeeze.bias, features.3.expand1x1.weight "
        "and 3 more; unexpected: stage.squeeze.weight, stage.squeeze.bias, stage.expand1x1.weight "
        "and 3 more; of another shape: classifier.1.weight (7, 512, 1, 1) for (1000, 512, 1, 1), "
        "classifier.1.bias (7,) for (1000,)"
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_holds_no_weights_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(SystemExit, match="cannot read weights: "):
        read_state(path)
    path.write_bytes(b"no weights at all")
    with pytest.raises(SystemExit, match="cannot read weights: "):
        read_state(path)


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(SystemExit, match="expected a state dict; found a list"):
        read_state(tmp_path / "list.pth")


def test_without_a_network_a_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(SystemExit, match=r"cannot download https.*no route.*give --weights FILE"):
        load_model("resnet50", None)


def test_frozen_norms_compute_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1)).train()
    model(torch.randn(8, 3, 9, 9) + 2)
    nn.init.uniform_(model.get_parameter("1.weight"))
    x = torch.randn(2, 3, 9, 9)
    expected = model.eval()(x)
    assert isinstance(freeze_batchnorms(model)[1], FrozenBatchNorm2d)  # type: ignore[index]
    torch.testing.assert_close(model(x), expected)


def test_a_detector_gets_the_norms_of_torchvisions_weights() -> None:
    def epsilons(name: str, state: dict[str, torch.Tensor]) -> set[float]:
        model = pretrained._build(name, state)
        assert not any(isinstance(each, nn.BatchNorm2d) for each in model.modules())
        return {each.eps for each in model.modules() if isinstance(each, FrozenBatchNorm2d)}

    counter = {"backbone.body.bn1.num_batches_tracked": torch.zeros(())}
    assert epsilons("retinanet_resnet50_fpn", counter) == {0.0}
    assert 0.0 not in epsilons("fasterrcnn_mobilenet_v3_large_320_fpn", {})


def test_a_segmenter_has_the_auxiliary_head_of_its_file() -> None:
    key = "aux_classifier.4.weight"
    state = torchvision.models.get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None
    ).state_dict()
    assert pretrained._build("lraspp_mobilenet_v3_large", state) is not None
    model = pretrained._build("fcn_resnet50", {key: torch.zeros(21, 256, 1, 1)})
    assert key in model.state_dict()
    assert key not in pretrained._build("fcn_resnet50", {}).state_dict()
