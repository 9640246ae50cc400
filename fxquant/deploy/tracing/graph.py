"""Verbs on ONNX models that came of tracing a call: from what that exporter leaves to the usual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fxquant.deploy.onnx_file import is_large
from fxquant.deploy.onnx_graph import replace_nodes
from fxquant.deploy.onnx_links import Links, is_a

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def gather_constants(model: ModelProto) -> None:
    """Let constants be initializers, and read them under one name.

    Before:  s = Constant(0.02); z_2 = Identity(z); q = QuantizeLinear(x, s, z_2)   # z: initializer
    After:   q = QuantizeLinear(x, s, z)                                    # s, z: initializers
    """
    links = Links(model)
    names: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in model.graph.node:
        is_result = any(name in links.outputs for name in node.output)
        tensor = links.constant(node.output[0]) if is_a(node, "Constant", "Identity") else None
        if tensor is None or is_result:
            kept.append(node)
        elif node.op_type == "Identity":
            names[node.output[0]] = names.get(node.input[0], node.input[0])
        else:
            tensor.name = node.output[0]
            model.graph.initializer.append(tensor)
    for node in links.nodes:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    replace_nodes(model, kept)


def describe_lengths(model: ModelProto) -> None:
    """Say of the outputs and between nodes what lengths are known, and name the others.

    The exporter says of some that they are as in the example, of all others nothing.
    """
    from onnx.shape_inference import infer_shapes

    for value in model.graph.output:
        for axis in value.type.tensor_type.shape.dim:
            axis.Clear()
    if not is_large(model):
        model.CopyFrom(infer_shapes(model))
    given = {
        axis.dim_param for value in model.graph.input for axis in value.type.tensor_type.shape.dim
    }
    names: dict[str, str] = {}
    for value in model.graph.output:
        for place, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.dim_param and axis.dim_param not in given:
                axis.dim_param = names.setdefault(axis.dim_param, f"{value.name}_{place}")


def fix_lengths(model: ModelProto, lengths: Mapping[str, Sequence[int]]) -> None:
    """Let inputs have these lengths, by name, and no others."""
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        for axis, length in zip(axes, lengths.get(value.name, ()), strict=False):
            axis.dim_value = length
