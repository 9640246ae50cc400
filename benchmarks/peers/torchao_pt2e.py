"""PT2E quantization of torchao for x86: export, X86InductorQuantizer, then the faster lowering.

That is `torch.compile` with freezing, as its tutorial has it, or `lower_pt2e_quantized_to_x86`
without a compiler. The network and its inputs are channels-last throughout, as there. The export is
the strict one: on graphs of the other one this quantizer fails on each residual addition
("Input partition has more than one output node"; torchao 0.18, PyTorch 2.15).
"""

from __future__ import annotations

from typing import Any

import torch
import torch._inductor.config
from torchao.quantization.pt2e import (  # type: ignore[import-not-found]
    move_exported_model_to_eval,
)
from torchao.quantization.pt2e.lowering import (  # type: ignore[import-not-found]
    lower_pt2e_quantized_to_x86,
)
from torchao.quantization.pt2e.quantize_pt2e import (  # type: ignore[import-not-found]
    convert_pt2e,
    prepare_pt2e,
)
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (  # type: ignore[import-not-found]
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from benchmarks.peers.serving import Images, Ready, Refused, Run, Task, brief, faster_of, serve
from benchmarks.peers.torch_arrays import as_run, as_tensor


def prepare(task: Task) -> Ready:
    """Return the network in int8."""
    torch.set_num_threads(task.threads)
    torch.set_grad_enabled(False)
    torch._inductor.config.freezing = True
    model: Any = torch.load(task.model, weights_only=False)
    model = model.to(memory_format=torch.channels_last)
    examples = (as_tensor(task.batches[0], torch.channels_last),)
    try:
        exported = torch.export.export(model, examples, strict=True).module()
    except Exception as error:  # whatever torch.export says of this network
        raise Refused(f"cannot capture: torch.export: {brief(error)}") from error
    converted = quantize(exported, task.calibration)
    compiled = as_run(torch.compile(converted), torch.channels_last)
    compiled(task.batches[0])
    ways = {"compiled": compiled}
    lowered = lower(converted, examples)
    if lowered is not None:
        ways["lowered, not compiled"] = lowered
    return faster_of(ways, task.batches[0])


def quantize(exported: Any, calibration: list[Images]) -> Any:
    """Return the converted graph, with its quantize and dequantize operators."""
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    for batch in calibration:
        prepared(as_tensor(batch, torch.channels_last))
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return converted


def lower(converted: Any, examples: tuple[torch.Tensor, ...]) -> Run | None:
    """Return the graph on oneDNN's kernels without a compiler; None: this lowering fails."""
    try:
        lowered = as_run(lower_pt2e_quantized_to_x86(converted, examples), torch.channels_last)
        lowered(examples[0].numpy())
    except Exception as error:
        print(f"lower_pt2e_quantized_to_x86: {brief(error)}")
        return None
    return lowered


if __name__ == "__main__":
    serve(prepare)
