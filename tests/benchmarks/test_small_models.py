from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.networks import small_models
from benchmarks.networks.small_models import PLANS, load_small, weights_file
from benchmarks.networks.small_training import Plan, prepare_picture


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLANS:
        plan = Plan(train=10, val=10, epochs=1, batch_size=5, learning_rate=1e-3)
        monkeypatch.setitem(PLANS, name, plan)


@pytest.mark.usefixtures("short")
def test_the_detectors_norms_are_frozen_with_the_statistics_of_training(tmp_path: Path) -> None:
    model = load_small("small_retinanet", tmp_path)
    norms = [each for each in model.modules() if isinstance(each, FrozenBatchNorm2d)]
    assert norms
    assert not any(isinstance(each, nn.BatchNorm2d) for each in model.modules())
    for norm in norms:
        assert isinstance(norm.running_mean, torch.Tensor)
        assert isinstance(norm.running_var, torch.Tensor)
        assert norm.running_mean.abs().max() > 1e-3
        assert (norm.running_var - 1).abs().max() > 1e-2


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", sorted(PLANS))
def test_a_trained_model_comes_back_from_the_cache(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_small(name, tmp_path)
    monkeypatch.setattr(small_models, "_train", None)
    loaded = load_small(name, tmp_path)
    assert not loaded.training
    for one, other in zip(trained.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("short")
def test_training_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    load_small("small_resnet", tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_plan_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_file("small_deeplabv3", tmp_path)
    plan = Plan(train=10, val=10, epochs=1, batch_size=5, learning_rate=1e-3)
    monkeypatch.setitem(PLANS, "small_resnet", plan)  # where the segmenter starts from
    assert weights_file("small_deeplabv3", tmp_path) != before


def test_pictures_are_prepared_as_in_training() -> None:
    picture = Image.new("RGB", (60, 50), (255, 0, 0))
    assert prepare_picture("small_resnet", picture).shape == (3, 48, 48)
    assert prepare_picture("small_deeplabv3", picture).shape == (3, 50, 60)
    assert prepare_picture("small_retinanet", picture)[:, 0, 0].tolist() == [1.0, 0.0, 0.0]
