"""Integer kernels, and the modules and nodes that call them."""

from fxquant.int8.arrangements import Shapes, as_result, in_float, why_not_direct
from fxquant.int8.integers import (
    affine_of,
    dequantize,
    drop_unused_dequantize,
    integers_behind,
    is_quantize,
    mark_integers,
    quantize,
    replace_chain,
)
from fxquant.int8.kernel_arguments import kernel_activation, max_pool2d_arguments
from fxquant.int8.modules import Int8Add, Int8Conv, Int8Layer, Int8Linear, Int8Module, why_not_int8
from fxquant.int8.onednn import why_unavailable
from fxquant.int8.operands import Clamp, Geometry, Result, Uint8, Weight
from fxquant.int8.samples import Sample, random_integers

__all__ = [
    "Clamp",
    "Geometry",
    "Int8Add",
    "Int8Conv",
    "Int8Layer",
    "Int8Linear",
    "Int8Module",
    "Result",
    "Sample",
    "Shapes",
    "Uint8",
    "Weight",
    "affine_of",
    "as_result",
    "dequantize",
    "drop_unused_dequantize",
    "in_float",
    "integers_behind",
    "is_quantize",
    "kernel_activation",
    "mark_integers",
    "max_pool2d_arguments",
    "quantize",
    "random_integers",
    "replace_chain",
    "why_not_direct",
    "why_not_int8",
    "why_unavailable",
]
