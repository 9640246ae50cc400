"""A network in ExecuTorch, on its XNNPACK delegate: as it was exported, or quantized by its own.

Variants: "exported" of a program that `torch.export.save` wrote, "pt2e" of a float module, which
`XNNPACKQuantizer` quantizes as its tutorial has it: int8 activations, int8 weights with a scale for
each output channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # the operators of the programs
from torch import Tensor, fx

from benchmarks.peers.serving import Images, Ready, Refused, Run, Task, brief, serve

# By name: mypy complains of `import` differently where they are installed and where they are not.
exir: Any = import_module("executorch.exir")
partitioner: Any = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
quantizer: Any = import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
runtime: Any = import_module("executorch.runtime")
bindings: Any = import_module("executorch.extension.pybindings.portable_lib")
quantize_pt2e: Any = import_module("torchao.quantization.pt2e.quantize_pt2e")
import_module("executorch.kernels.quantized")  # what is not delegated needs them

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_LAYERS = ("convolution", "linear", "addmm", "mm")
_ACTIVATIONS = ("relu", "hardtanh")


def prepare(task: Task) -> Ready:
    """Return the network in ExecuTorch's runtime, and what became of its layers."""
    torch.set_num_threads(task.threads)
    bindings._unsafe_reset_threadpool(task.threads)
    program, example = read(task), torch.from_numpy(task.batches[0])
    lowered = lower(program)
    run = in_runtime(lowered.to_executorch().buffer)
    layers = layers_in_integers(lowered.exported_program().graph_module)
    return Ready(run, f"{layers}, {steps_in_place(program, example):.0f}")


def lower(program: Any) -> Any:
    """Return the program with what XNNPACK takes of it as delegates."""
    return exir.to_edge_transform_and_lower(program, partitioner=[partitioner.XnnpackPartitioner()])


def read(task: Task) -> Any:
    """Return the quantized network as a program of `torch.export`."""
    if task.variant == "exported":
        return torch.export.load(task.model)
    example = (torch.from_numpy(task.batches[0]),)
    try:
        program = torch.export.export(torch.load(task.model, weights_only=False), example)
    except Exception as error:  # whatever torch.export says of this network
        raise Refused(f"cannot capture: torch.export: {brief(error)}") from error
    config = quantizer.get_symmetric_quantization_config(is_per_channel=True)
    prepared = quantize_pt2e.prepare_pt2e(
        program.module(), quantizer.XNNPACKQuantizer().set_global(config)
    )
    for batch in task.calibration:
        prepared(torch.from_numpy(batch))
    return torch.export.export(quantize_pt2e.convert_pt2e(prepared), example)


def in_runtime(buffer: bytes) -> Run:
    """Return what runs the bytes of a .pte file."""
    program = runtime.Runtime.get().load_program(buffer)
    # The program holds the bytes, which its methods read: without it they crash.
    return partial(_run, (program, program.load_method("forward")))


def _run(loaded: tuple[Any, Any], images: Images) -> list[np.ndarray]:
    _, method = loaded
    return [each.numpy() for each in method.execute([torch.from_numpy(images)])]


def layers_in_integers(lowered: fx.GraphModule) -> str:
    """Return how many layers the delegates run in integers, as "20 of 21"."""
    modules: list[Any] = list(lowered.children())
    delegates: list[fx.GraphModule] = [
        module.original_module.graph_module
        for module in modules
        if hasattr(module, "original_module")
    ]
    layers = [layer for gm in (lowered, *delegates) for layer in _layers(gm)]
    inside = [layer for gm in delegates for layer in _layers(gm) if _is_between_integers(layer)]
    return f"{len(inside)} of {len(layers)}"


def _layers(gm: fx.GraphModule) -> Iterator[fx.Node]:
    for node in gm.graph.nodes:
        if _name(node) in _LAYERS:
            yield node


def _is_between_integers(layer: fx.Node) -> bool:
    """Say whether it reads dequantized tensors, and its one reader quantizes what it gives."""
    (reader, *others) = layer.users
    if _name(reader) in _ACTIVATIONS and len(reader.users) == 1:
        (reader,) = reader.users
    reads = [_name(each).startswith("dequantize") for each in layer.all_input_nodes[:2]]
    return all(reads) and not others and _name(reader).startswith("quantize")


def _name(node: fx.Node) -> str:
    """Return "convolution" of `aten.convolution.default`."""
    parts = getattr(node.target, "__name__", "").split(".")
    return parts[-2] if len(parts) > 1 else ""


def steps_in_place(program: Any, example: Tensor) -> float:
    """Return by how many steps a quantized tensor differs most from what PyTorch computes.

    For each tensor PyTorch gets what ExecuTorch has computed up to there, so that differences do
    not add up.
    """
    gm: fx.GraphModule = program.module()
    gm.graph.set_codegen(fx.graph.CodeGen())  # a tuple comes out, whatever came out before
    quantized = list(gm.graph.find_nodes(op="call_function", target=_QUANTIZE))
    output = next(iter(gm.graph.find_nodes(op="output")))
    with gm.graph.inserting_before(output):
        seen = [gm.graph.call_function(_DEQUANTIZE, (q, *q.args[1:])) for q in quantized]
    output.args = (tuple(seen),)
    gm.recompile()
    lowered = lower(torch.export.export(gm, (example,)))
    values = in_runtime(lowered.to_executorch().buffer)(example.numpy())
    comparison = Comparison(gm, dict(zip(quantized, map(torch.from_numpy, values), strict=True)))
    with torch.no_grad():
        comparison.run(example)
    return comparison.most


class Comparison(fx.Interpreter):
    """Computes a graph with each quantized tensor replaced by what a runtime made of it.

    Args:
        gm: the graph.
        values: of its quantize operators, dequantized.
    """

    def __init__(self, gm: fx.GraphModule, values: dict[fx.Node, Tensor]) -> None:
        super().__init__(gm)
        self.values = values
        self.most = 0.0
        """The greatest difference so far, in steps."""

    def run_node(self, n: fx.Node) -> Any:
        """Return the runtime's integers in the place of PyTorch's."""
        result = super().run_node(n)
        if n not in self.values:
            return result
        known: Any = n.args
        integers = (self.values[n] / known[1]).round() + known[2]
        self.most = max(self.most, (integers - result.float()).abs().max().item())
        return integers.to(result.dtype)


if __name__ == "__main__":
    serve(prepare)
