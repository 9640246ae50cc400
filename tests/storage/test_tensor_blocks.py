"""Tensors come back to the bit, with what they share, and take no more room than they need."""

import json
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fxquant.errors import StorageError
from fxquant.storage.tensor_blocks import MAX_FILLED, read_tensors, split_into_blocks

CPU = torch.device("cpu")


def through(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return `tensors` after they were JSON and bytes."""
    entries, blocks = split_into_blocks(tensors, [f"t{n}" for n in range(len(tensors))])
    in_rows = torch.contiguous_format
    blocks = {name: block.clone(memory_format=in_rows) for name, block in blocks.items()}
    return read_tensors(json.loads(json.dumps(entries)), list(blocks), blocks.__getitem__, CPU)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3), torch.randn(2, 3, dtype=torch.float64), torch.randn(3).bfloat16(),
        torch.randn(3).half(), torch.tensor([True, False]), torch.arange(5), torch.empty(0, 3),
        torch.tensor(-0.0), torch.tensor([torch.nan, torch.inf]), torch.randn(2) * 1j,
        torch.randn(2, dtype=torch.cfloat).conj(), torch.randn(4, 6).t(), torch.randn(8)[::2],
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.zeros(4, 5),
        torch.randn(4, 1, 1, 3).permute(0, 3, 1, 2),
        torch.randn(4, 1, 5, 5).to(memory_format=torch.channels_last),
        torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.full((3,), torch.nan), torch.ones(3).expand(2, 3),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}",
)  # fmt: skip
def test_a_tensor_comes_back_to_the_bit(tensor: Tensor) -> None:
    restored = through([tensor])[0]
    assert type(restored) is Tensor
    if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() > 0:
        assert restored.stride() == tensor.stride()
    assert (restored.dtype, restored.shape) == (tensor.dtype, tensor.shape)
    bits = [each.resolve_conj().contiguous().reshape(-1) for each in (restored, tensor)]
    assert torch.equal(*(each.view(torch.uint8) for each in bits))


def test_parameters_stay_parameters_and_keep_requires_grad() -> None:
    values = [
        nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2), requires_grad=False),
        torch.randn(2, requires_grad=True), torch.randn(2),
    ]  # fmt: skip
    for value, restored in zip(values, through(values), strict=True):
        assert type(restored) is type(value)
        assert restored.requires_grad == value.requires_grad
        assert torch.equal(restored, value)


def test_tensors_that_share_memory_still_do() -> None:
    whole = torch.arange(12.0)
    parameter = nn.Parameter(whole.reshape(3, 4))
    restored = through([parameter, whole[2:6], whole.view(torch.int32), torch.ones(2)])
    assert torch.equal(restored[0], parameter)
    assert restored[1].tolist() == [2, 3, 4, 5]
    restored[1].fill_(7)
    assert restored[0].flatten()[2:6].tolist() == [7] * 4
    assert torch.equal(restored[2].view(torch.float32), restored[0].detach().flatten())


def test_memory_that_is_shared_is_stored_once_and_one_value_in_no_block() -> None:
    whole = torch.arange(100.0)
    tensors = [whole, whole[:50], torch.zeros(1000), torch.tensor(3.0), torch.arange(2)]
    entries, blocks = split_into_blocks(tensors, ["a", "b", "c", "d", "e"])
    assert {name: block.nbytes for name, block in blocks.items()} == {"memory.0": 400, "e": 16}
    assert [entry[0] for entry in entries] == [
        "memory.0", "memory.0", "=00000000", "=00004040", "e",
    ]  # fmt: skip


def test_a_tensor_that_is_wider_than_its_memory_is_stored_whole() -> None:
    row = torch.arange(3.0)
    entries, blocks = split_into_blocks([row, row.expand(4, 3)], ["row", "rows"])
    assert [entry[0] for entry in entries] == ["memory.0", "rows"]
    assert blocks["rows"].shape == (4, 3)


def test_more_of_one_value_than_files_may_ask_for_is_stored_whole() -> None:
    _, blocks = split_into_blocks([torch.zeros(MAX_FILLED // 4 + 1)], ["zeros"])
    assert list(blocks) == ["zeros"]


def test_blocks_have_names_of_their_own() -> None:
    tensors = [torch.arange(2) for _ in range(4)]
    _, blocks = split_into_blocks(tensors, ["a", "a", "__metadata__", "=00"])
    assert list(blocks) == ["a", "a'", "__metadata__'", "00'"]


def test_what_safetensors_does_not_hold_is_bytes_there() -> None:
    _, blocks = split_into_blocks([torch.randn(2) * 1j], ["a"])
    assert (blocks["a"].dtype, blocks["a"].shape) == (torch.uint8, (16,))


def test_one_value_of_any_stride_is_stored() -> None:
    assert through([torch.tensor(2.0).expand(1).clone()[:]])[0].tolist() == [2.0]
    assert through([torch.tensor(2.0).expand(1, 1)])[0].tolist() == [[2.0]]


@pytest.mark.parametrize("order", [[0, 0, 1, 2], [0, 1, 2], [0, 1, 2, 9]])
def test_an_order_that_is_none_is_an_error(order: list[int]) -> None:
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    entries, blocks = split_into_blocks([tensor], ["a"])
    entries[0][5] = order
    with pytest.raises((RuntimeError, IndexError)):
        read_tensors(entries, ["a"], blocks.__getitem__, CPU)


def test_a_block_too_few_or_too_many_is_an_error() -> None:
    entries, blocks = split_into_blocks([torch.arange(3.0)], ["a"])
    with pytest.raises(StorageError, match="no tensor of its model is 'b'"):
        read_tensors(entries, ["a", "b"], blocks.__getitem__, CPU)
    with pytest.raises(StorageError, match="it holds no tensor 'a'"):
        read_tensors(entries, [], blocks.__getitem__, CPU)
