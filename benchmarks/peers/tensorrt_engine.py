"""TensorRT's side of a race: build the ONNX file as it stands, run it on images on the GPU.

    python -m benchmarks.peers.tensorrt_engine build --model MODEL.onnx --inputs FILE …

Speaks `benchmarks.peers.serving`. Networks are strongly typed (an option of TensorRT 10, always so
in 11): the file's QuantizeLinear and DequantizeLinear alone say what runs in int8. The images lie
on the GPU before a run; its results are copied back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.serving import Images, Ready, Refused, Task, serve


def prepare(task: Task) -> Ready:
    """Build the engine; say how many of its convolutions read int8."""
    import tensorrt  # type: ignore[import-not-found]

    trt: Any = tensorrt
    logger = keeping_logger(trt)
    shape = task.batches[0].shape
    engine = trt.Runtime(logger).deserialize_cuda_engine(build(trt, logger, task.model, shape))
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    modes = {name: engine.get_tensor_mode(name) for name in names}
    source, *others = [name for name, mode in modes.items() if mode == trt.TensorIOMode.INPUT]
    if others:
        raise Refused(f"the file has {1 + len(others)} inputs: {source}, {', '.join(others)}")
    context.set_input_shape(source, shape)
    results = {
        name: torch.empty(tuple(context.get_tensor_shape(name)), device="cuda")
        for name in names
        if name != source
    }
    images = {id(batch): torch.from_numpy(batch).cuda() for batch in task.batches}
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(batch: Images) -> list[np.ndarray[Any, Any]]:
        context.set_tensor_address(source, images[id(batch)].data_ptr())
        for name, result in results.items():
            context.set_tensor_address(name, result.data_ptr())
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return [result.cpu().numpy() for result in results.values()]

    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    integer, total = integer_convolutions(layers)
    return Ready(run, f"{integer} of {total} convolutions in int8, TensorRT {trt.__version__}")


def build(trt: Any, logger: Any, path: Path, shape: tuple[int, ...]) -> Any:
    """Return the serialized engine of an ONNX file for inputs of that shape.

    Raises:
        Refused: the parser does not take the file, or the builder finds no kernels.
    """
    builder = trt.Builder(logger)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise Refused(f"its parser: {parser.get_error(0).desc() if parser.num_errors else 'no'}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, shape, shape, shape)
    config.add_optimization_profile(profile)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise Refused(f"its builder: {logger.errors[-1] if logger.errors else 'no engine'}")
    return serialized


def keeping_logger(trt: Any) -> Any:
    """Return a logger that keeps TensorRT's errors as `errors`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message.splitlines()[0])

    return Logger()


def integer_convolutions(layers: list[Any]) -> tuple[int, int]:
    """Return how many convolutions of an engine read int8, and how many there are.

    Args:
        layers: what the engine's inspector says of each: a dict, or a name where it knows no more.
    """
    convolutions = [each for each in layers if isinstance(each, dict) and _is_convolution(each)]
    return sum(_reads_integers(each) for each in convolutions), len(convolutions)


def _is_convolution(layer: dict[str, Any]) -> bool:
    kinds = (layer.get("LayerType", ""), layer.get("ParameterType", ""))
    return any("conv" in kind.lower() for kind in kinds)


def _reads_integers(layer: dict[str, Any]) -> bool:
    types = [each.get("Format/Datatype", "") for each in layer.get("Inputs", [])]
    weights = layer.get("Weights")
    types += [weights.get("Type", "")] if isinstance(weights, dict) else []
    return any("int8" in each.lower() for each in types)


if __name__ == "__main__":
    serve(prepare)
