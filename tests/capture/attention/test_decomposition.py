"""What computes something else than PyTorch's own stays as it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant.capture.attention.decomposition import decomposed
from tests.capture.attention.test_multi_head import assert_same


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)


class OwnBlock(nn.TransformerEncoderLayer):
    def _ff_block(self, x: Tensor) -> Tensor:
        return super()._ff_block(x) * 2


class OwnMerging(nn.MultiheadAttention):
    def merge_masks(self, *masks: Any) -> Any:
        return super().merge_masks(*masks)


def with_(module: nn.Module, **parts: Any) -> nn.Module:
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, inputs, output: output)
    return module


WHOLE = {
    "hooks": hooked(nn.MultiheadAttention(8, 2)),
    "a forward of its own": with_(nn.MultiheadAttention(8, 2), forward=lambda x: x),
    "masks merged its way": OwnMerging(8, 2, batch_first=True),
    "a block of its own": OwnBlock(8, 2, 16, batch_first=True),
    "another activation": with_(layer(), activation=F.silu),
    "the other gelu": layer(activation=nn.GELU("tanh")),
    "another norm": with_(layer(), norm1=with_(nn.RMSNorm(8), eps=1e-5)),
    "another part": with_(layer(), linear1=nn.Sequential(nn.Linear(8, 16))),
}


@pytest.mark.parametrize("why", WHOLE)
def test_it_stays_whole(why: str) -> None:
    assert decomposed(WHOLE[why].eval()) is None


@pytest.mark.parametrize(
    "module",
    [
        nn.MultiheadAttention(8, 2),
        layer(activation=nn.GELU()),
        OwnBlock(8, 2, 16),  # batch_first=False: PyTorch never takes its fast path
        with_(layer(), norm_first=True),
        nn.TransformerEncoder(layer(), 1),
        nn.TransformerDecoderLayer(8, 2, 16),
        nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
    ],
    ids=lambda module: type(module).__name__,
)
def test_it_is_decomposed(module: nn.Module) -> None:
    assert decomposed(module.eval()) is not None


@pytest.mark.parametrize("part", ["self_attn", "linear1", "norm2"])
def test_a_layer_with_hooks_in_it_runs_them(part: str) -> None:
    model = nn.Sequential(layer().eval())
    double = lambda module, inputs, output: (  # noqa: E731
        (output[0] * 2, None) if isinstance(output, tuple) else output * 2
    )
    model.get_submodule(f"0.{part}").register_forward_hook(double)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        assert_same(fxquant.trace(model)(x), model(x))


def test_hooks_of_the_output_projection_do_not_run() -> None:  # PyTorch reads its weight
    model = nn.Sequential(layer(norm_first=True, bias=False).eval())
    projection = model.get_submodule("0.self_attn.out_proj")
    projection.register_forward_hook(lambda module, inputs, output: output * 2)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        assert_same(fxquant.trace(model)(x), model(x))


class ByFunction(nn.Module):
    """A call of `F.multi_head_attention_forward` with its own parameters."""

    def __init__(self, is_self: bool, **options: Any) -> None:
        super().__init__()
        self.attention, self.is_self = nn.MultiheadAttention(8, 2, **options), is_self

    def forward(self, query: Any, key: Any) -> Any:
        own = self.attention
        key = query if self.is_self else key
        return F.multi_head_attention_forward(
            query, key, key, 8, 2, own.in_proj_weight, own.in_proj_bias, own.bias_k, own.bias_v,
            own.add_zero_attn, 0.5, own.out_proj.weight, own.out_proj.bias, training=self.training,
        )  # fmt: skip


@pytest.mark.parametrize("is_self", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False, "add_bias_kv": True}])
def test_the_function_is_decomposed_too(is_self: bool, options: Any) -> None:
    model = ByFunction(is_self, **options).eval()
    gm = fxquant.trace(model)
    called = {node.target for node in gm.graph.nodes}
    assert F.linear in called
    assert F.multi_head_attention_forward not in called
    for shape in ((3, 2, 8), (3, 8)):
        query, key = torch.randn(shape), torch.randn(shape)
        with torch.no_grad():
            assert_same(gm(query, key), model(query, key))
