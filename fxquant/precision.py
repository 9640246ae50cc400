"""Where bfloat16 matrix products are worth it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_LARGE = 1 << 15  # weights; below, converting costs what multiplying saves


def product_dtype(inputs: Tensor, num_outputs: int) -> torch.dtype:
    """Return the dtype in which products of `inputs` (groups, rows, in) and weights are fastest.

    bfloat16 where the processor or GPU multiplies it in hardware, 2.5 times as fast as float32 on
    AVX-512, and the weight is large enough; else float32.
    """
    is_large = inputs.shape[0] == 1 and inputs.shape[2] * num_outputs >= _LARGE
    return (
        torch.bfloat16 if is_large and _multiplies_bfloat16(inputs.device.type) else torch.float32
    )


@cache
def _multiplies_bfloat16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
