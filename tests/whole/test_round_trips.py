"""A stored model is the same in a fresh process, however it was stored.

By `fxquant.save`, `torch.save`, pickle and state dict, prepared and converted: the same outputs to
the bit, text, report, names, tensors, modes and hooks.
"""

from pathlib import Path

import pytest

from tests.stored_models import KINDS, check_in_fresh_process

LARGE = ("mobilenet_v2", "resnet18", "retinanet")


def test_small_models_are_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    check_in_fresh_process([kind for kind in KINDS if kind not in LARGE], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_a_large_model_is_the_same_in_a_fresh_process(kind: str, tmp_path: Path) -> None:
    check_in_fresh_process([kind], tmp_path)
