"""Integers of 2 to 8 bits, packed without gaps.

    value i  =  bits [i·b, (i + 1)·b) of the bytes, read as one little-endian number

So n values of b bits take ceil(n·b/8) bytes. As many values as end on a byte together (8 of 3 bits
in 3 bytes, 2 of 4 bits in 1) make one word; all words are shifted at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def packed_size(num_values: int, bits: int) -> int:
    """Return how many bytes `num_values` integers take.

    >>> packed_size(5, bits=3)
    2
    """
    return -(-num_values * bits // 8)


def pack_bits(integers: Tensor, bits: int) -> Tensor:
    """Return the lowest `bits` bits of each value, as uint8, (ceil(n·bits/8),).

    Args:
        integers: int8 (two's complement) or uint8, any shape, of n values in row-major order.
        bits: of each, 2 to 8.

    >>> pack_bits(torch.tensor([-1, 1, -8], dtype=torch.int8), bits=4)
    tensor([31,  8], dtype=torch.uint8)
    """
    per_word, word_bytes, dtype = _word(bits)
    codes = integers.detach().reshape(-1).contiguous().view(torch.uint8)
    codes = _padded(codes, per_word).reshape(-1, per_word)
    words = torch.zeros(len(codes), dtype=dtype, device=codes.device)
    for place in range(per_word):
        words |= (codes[:, place] & (2**bits - 1)).to(dtype) << bits * place
    packed = codes.new_empty(len(words), word_bytes)
    for place in range(word_bytes):
        packed[:, place] = (words >> 8 * place) & 255
    return packed.reshape(-1)[: packed_size(integers.numel(), bits)]


def unpack_bits(packed: Tensor, bits: int, shape: Sequence[int], *, signed: bool = True) -> Tensor:
    """Return what was packed by `pack_bits`, of that shape: int8, or uint8 if not `signed`.

    Args:
        packed: uint8, (ceil(n·bits/8),).
        bits: of each value, 2 to 8.
        shape: of the result, n values.
        signed: the values are two's complement.

    Raises:
        ValueError: `packed` is of another size.

    >>> unpack_bits(torch.tensor([31, 8], dtype=torch.uint8), bits=4, shape=(3,))
    tensor([-1,  1, -8], dtype=torch.int8)
    """
    num_values = math.prod(shape)
    if packed.numel() != packed_size(num_values, bits):
        raise ValueError(
            f"{packed.numel()} bytes, where {num_values} integers of {bits} bits take "
            f"{packed_size(num_values, bits)}"
        )
    per_word, word_bytes, dtype = _word(bits)
    packed = _padded(packed, word_bytes).reshape(-1, word_bytes)
    words = torch.zeros(len(packed), dtype=dtype, device=packed.device)
    for place in range(word_bytes):
        words |= packed[:, place].to(dtype) << 8 * place
    codes = packed.new_empty(len(words), per_word)
    for place in range(per_word):
        codes[:, place] = (words >> bits * place) & (2**bits - 1)
    if signed:
        sign = 2 ** (bits - 1)
        codes = (codes ^ sign) - sign  # modulo 256, as int8 is
    codes = codes.reshape(-1)[:num_values].reshape(tuple(shape))
    return codes.view(torch.int8) if signed else codes


def axis_order(tensor: Tensor) -> list[int] | None:
    """Return the axes of a dense tensor as they lie in memory, the slowest first.

    None for rows, and where values share memory or leave gaps. Axes of length 1 count: PyTorch
    takes (4, 3, 1, 1) for channels-last by their strides alone.

    >>> axis_order(torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))
    [0, 2, 3, 1]
    """
    shape, strides = tensor.shape, tensor.stride()
    axes = list(range(tensor.dim()))
    order = sorted(axes, key=lambda axis: (-strides[axis], -shape[axis]))
    is_dense = tensor.numel() > 0 and tensor.permute(order).is_contiguous()
    return order if is_dense and order != axes else None


def in_order(tensor: Tensor, order: Sequence[int] | None = None) -> Tensor:
    """Return the same values with the axes in that order in memory, as `axis_order` tells it.

    Raises:
        RuntimeError: that is no order of the axes.
    """
    if order is None:
        return tensor
    back = sorted(range(len(order)), key=order.__getitem__)
    in_rows = tensor.permute(tuple(order)).clone(memory_format=torch.contiguous_format)
    return in_rows.permute(back)


def _word(bits: int) -> tuple[int, int, torch.dtype]:
    """Return how many values make a word, of how many bytes, and the dtype to compute it in."""
    common = math.gcd(bits, 8)
    word_bytes = bits // common
    dtype = torch.uint8 if word_bytes == 1 else torch.int32 if word_bytes <= 3 else torch.int64
    return 8 // common, word_bytes, dtype


def _padded(values: Tensor, multiple: int) -> Tensor:
    """Return `values`, (n,), with zeros behind to fill the last word."""
    missing = -len(values) % multiple
    return torch.cat([values, values.new_zeros(missing)]) if missing else values
