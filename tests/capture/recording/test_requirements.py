"""What the example decided is held by calls in the graph, and can be read."""

import pytest
import torch
from torch import fx

from fxquant import CaptureError
from fxquant.capture.recording.requirements import in_words, require, requirements


def test_an_expression_reads_as_it_was_written() -> None:
    gm = fx.symbolic_trace(lambda x: (x.shape[2] + 6) // 7 > x.relu().shape[-1])
    output = gm.graph.output_node().args[0]
    assert in_words(output) == "((x.shape[2] + 6) // 7) > relu.shape[-1]"


def test_a_requirement_stays_and_refuses_what_contradicts_it() -> None:
    gm = fx.symbolic_trace(lambda x: x * x.shape[0])
    size = gm.graph.find_nodes(op="call_function", target=getattr)[0].next
    with gm.graph.inserting_after(size):
        gm.graph.call_function(require, (size, 3, in_words(size) + " == 3"))
    gm.graph.eliminate_dead_code()
    gm.recompile()
    assert requirements(gm.graph) == ("x.shape[0] == 3",)
    assert torch.equal(gm(torch.ones(3)), torch.full((3,), 3.0))
    with pytest.raises(CaptureError, match=r"traced with x.shape\[0\] == 3, but called with 2 "):
        gm(torch.ones(2))


def test_a_tensor_is_no_none() -> None:
    require(None, None, "mask is None")
    with pytest.raises(CaptureError, match="mask is None, but called with a Tensor in the place"):
        require(torch.ones(1), None, "mask is None")
