"""Every test starts from the same random numbers, and computes on one thread."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)  # on busy cores two threads take ten times as long for small tensors
