"""Packing loses nothing and wastes nothing."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxquant.numerics.packing import axis_order, in_order, pack_bits, packed_size, unpack_bits

BITS = range(2, 9)


def draw(bits: int, size: int, *, signed: bool) -> Tensor:
    """Return integers over the whole range of `bits`."""
    low = -(2 ** (bits - 1)) if signed else 0
    dtype = torch.int8 if signed else torch.uint8
    return torch.randint(low, low + 2**bits, (size,)).to(dtype)


def packed_by_hand(values: list[int], bits: int) -> list[int]:
    """Return the bytes of one long binary number, the first value in its lowest bits."""
    number = sum((value & (2**bits - 1)) << bits * place for place, value in enumerate(values))
    return list(number.to_bytes(math.ceil(len(values) * bits / 8), "little"))


@given(st.integers(2, 8), st.integers(0, 40), st.booleans(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_unpacking_gives_back_what_was_packed(
    bits: int, size: int, signed: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    integers = draw(bits, size, signed=signed)
    packed = pack_bits(integers, bits)
    assert packed.dtype is torch.uint8
    assert packed.shape == (packed_size(size, bits),) == (math.ceil(size * bits / 8),)
    unpacked = unpack_bits(packed, bits, (size,), signed=signed)
    assert unpacked.dtype is integers.dtype
    assert torch.equal(unpacked, integers)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [1, 7, 8, 9, 17])
def test_the_bytes_are_one_long_binary_number(bits: int, size: int) -> None:
    integers = draw(bits, size, signed=True)
    assert pack_bits(integers, bits).tolist() == packed_by_hand(integers.tolist(), bits)


@pytest.mark.parametrize("bits", BITS)
def test_both_ends_of_the_grid_survive(bits: int) -> None:
    ends = torch.tensor([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0, -1], dtype=torch.int8)
    assert torch.equal(unpack_bits(pack_bits(ends, bits), bits, (4,)), ends)


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_keeps_its_shape_and_order_whatever_its_strides(bits: int) -> None:
    weight = draw(bits, 120, signed=True).reshape(2, 3, 4, 5)
    for strided in (weight, weight.transpose(0, 3), weight.to(memory_format=torch.channels_last)):
        unpacked = unpack_bits(pack_bits(strided, bits), bits, strided.shape)
        assert torch.equal(unpacked, strided)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3, 1, 1), (4, 1, 5, 5), (1, 1, 2, 1), (1, 1)])
def test_the_order_of_axes_gives_the_strides_back(shape: tuple[int, ...]) -> None:
    for axes in permutations(range(len(shape))):
        values = torch.randn([shape[axis] for axis in axes])
        tensor = values.permute([axes.index(axis) for axis in range(len(shape))])
        in_rows = tensor.clone(memory_format=torch.contiguous_format)
        restored = in_order(in_rows, axis_order(tensor))
        assert (restored.shape, restored.stride()) == (shape, tensor.stride())
        assert torch.equal(restored, tensor)
    assert axis_order(torch.randn(shape)) is None


def test_eight_bits_are_the_bytes_themselves() -> None:
    integers = torch.tensor([-128, -1, 0, 127], dtype=torch.int8)
    assert torch.equal(pack_bits(integers, 8), integers.view(torch.uint8))


def test_packed_bytes_share_no_memory_with_the_integers() -> None:
    integers = torch.tensor([1, 2], dtype=torch.int8)
    packed = pack_bits(integers, 8)
    integers.zero_()
    assert packed.tolist() == [1, 2]


def test_another_number_of_bytes_is_an_error_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"^4 bytes, where 6 integers of 3 bits take 3$"):
        unpack_bits(torch.zeros(4, dtype=torch.uint8), 3, (2, 3))
