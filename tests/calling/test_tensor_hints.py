"""Types and devices are told where they are at fault, and not blamed for other errors.

What they say in whole messages is in `tests/test_mistakes.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tests.calling.hints import hint
from tests.helpers import Net


def test_a_layer_inside_is_told_its_own_type() -> None:
    model = nn.Sequential(nn.Linear(4, 4).double(), nn.Linear(4, 2))
    assert hint(model, torch.zeros(2, 4)).startswith("the model takes float64: x.double()")
    model = nn.Sequential(nn.Flatten(), Net(lambda m, x: m.fc(x.half()), fc=nn.Linear(4, 2)))
    assert hint(model, torch.zeros(2, 4)) == "1.fc has weights of float32, and is given float16"


def test_a_function_of_the_callers_is_told_the_type_of_the_model() -> None:
    model = Net(lambda m, x: nn.functional.linear(x, m.fc.weight), fc=nn.Linear(4, 2))
    assert hint(model, torch.zeros(2, 4).double()).endswith(": x.float()")


def test_devices_are_not_blamed_for_other_errors() -> None:
    def fail(m: Any, x: Tensor) -> Any:
        return torch.zeros(2)[5] + x

    assert hint(Net(fail, fc=nn.Linear(4, 2)), torch.zeros(2, 4, device="meta")) == ""


def test_ids_are_not_taken_for_inputs_of_another_type() -> None:
    def fail(m: Any, x: Tensor) -> Any:
        raise_dtype: Any = torch.zeros(2).view(torch.float32)
        return raise_dtype.bitwise_and(m.words(x).shape[0])

    model = Net(fail, words=nn.Embedding(9, 4))
    assert "x.float()" not in hint(model, torch.zeros(2, 4, dtype=torch.int64))
