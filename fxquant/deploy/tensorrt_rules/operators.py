"""Which operators TensorRT's parser takes, and with which attributes.

Source: docs/operators.md of onnx-tensorrt for TensorRT 10.15, column "Restrictions" where an
attribute alone decides; "ONNX Opset Guide" of the documentation for the opsets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fxquant.deploy.onnx_links import PAIR, Links, attribute, is_a, is_standard
from fxquant.deploy.tensorrt_rules.violation import Violation, name_of

if TYPE_CHECKING:
    from onnx import ModelProto

_OPSETS = range(9, 25)
_TAKEN = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape
    Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum
    Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If
    ImageScaler InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad
    ParametricSoftplus Pow QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike
    RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RoiAlign RotaryEmbedding Round STFT ScaledTanh Scan Scatter ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
"""
_UNDILATED = {"dilations": ([1], [1, 1], [1, 1, 1])}
_ATTRIBUTES: dict[str, dict[str, tuple[Any, ...]]] = {
    "AveragePool": _UNDILATED,
    "LpPool": _UNDILATED,
    "MaxPool": _UNDILATED,
    "BatchNormalization": {"training_mode": (0,)},
    "Resize": {
        "mode": (b"nearest", b"linear"),
        "antialias": (0,),
        "keep_aspect_ratio_policy": (b"stretch",),
    },
    "ScatterND": {"reduction": (b"none",)},
    "TopK": {"sorted": (1,)},
}
"""For some operators the attributes and those of their values that are taken, if given at all."""
_FIRST_RESULT_ONLY = ("BatchNormalization", "LayerNormalization", "MaxPool")
_CASTS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT32", "INT64", "UINT8", "BOOL")


def opset(model: ModelProto) -> Iterator[Violation]:
    """Find a version of ONNX's operators that TensorRT does not take: 10.15 takes up to 24."""
    for each in model.opset_import:
        if each.domain in ("", "ai.onnx") and each.version not in _OPSETS:
            yield Violation(
                "",
                "opset",
                f"opset {each.version}",
                f"write opset {_OPSETS[0]} to {_OPSETS[-1]}; 20 is what every TensorRT 10 takes",
            )


def _unknown(links: Links) -> Iterator[Violation]:
    """Find operators that need a plugin, such as QLinearConv, MatMulInteger or Unique."""
    taken = set(_TAKEN.split())
    for node in links.nodes:
        if is_standard(node) and node.op_type in taken:
            continue
        if node.op_type in links.functions or node.op_type.startswith("TRT_"):
            continue
        domain = "" if is_standard(node) else f"{node.domain}."
        yield Violation(
            name_of(node),
            "operators",
            f"{domain}{node.op_type} is no operator of TensorRT's",
            "compute it in others, outside, or in a plugin",
        )


def _restricted(links: Links) -> Iterator[Violation]:
    """Find attributes and results that are not taken."""
    for node in links.nodes:
        for name, taken in _ATTRIBUTES.get(node.op_type, {}).items():
            value = attribute(node, name, taken[0])
            if value not in taken:
                yield Violation(
                    name_of(node),
                    "attributes",
                    f"{node.op_type} with {name}={_shown(value)}",
                    f"TensorRT takes {name}={' or '.join(_shown(each) for each in taken)}",
                )
        if node.op_type in _FIRST_RESULT_ONLY and any(node.output[1:]):
            yield Violation(
                name_of(node),
                "attributes",
                f"{node.op_type} with {len(node.output)} results",
                "TensorRT gives the first one only",
            )


def _shown(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _casts(links: Links) -> Iterator[Violation]:
    """Find casts to and from quantized types: these come from QuantizeLinear alone.

    Constants that are cast to be zero-points are taken (parser).
    """
    from onnx import TensorProto

    for node in links.nodes:
        if not is_a(node, "Cast") or _is_zero_point(links, node.output[0]):
            continue
        source, to = links.element_type(node.input[0]), attribute(node, "to")
        for each in (to, source):
            if each is not None and (name := TensorProto.DataType.Name(each)) not in _CASTS:
                direction = "to" if each == to else "from"
                yield Violation(
                    name_of(node),
                    "casts",
                    f"Cast {direction} {name}",
                    "store INT8, and quantize by QuantizeLinear",
                )
                break


def _is_zero_point(links: Links, name: str) -> bool:
    """Say whether a value is a constant that is read as a zero-point alone."""
    readers = links.readers(name)
    return links.constant(name) is not None and all(
        is_a(reader, *PAIR) and list(reader.input).index(name) == 2 for reader in readers
    )


OPERATORS = (_unknown, _restricted, _casts)
