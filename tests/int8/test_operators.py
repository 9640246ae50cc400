"""The kernels as operators: what they tell PyTorch is true; exported graphs compute the same."""

import copy
import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import LoweringError, Recipe
from fxquant.int8 import checked, kernels, operators, prepacking
from fxquant.int8.operands import Geometry, Result, Uint8, Weight
from tests.helpers import Net, needs_int8, outputs

pytestmark = needs_int8
NO_BOUNDS = (-math.inf, math.inf)
RESULTS: tuple[tuple[Any, ...], ...] = ((0.5, 9, 9, 200), (None, 0, *NO_BOUNDS))


def integers(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def layer(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return an int8 weight, its scales, and a bias."""
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    return weight, 0.01 * torch.rand(shape[0]), torch.randn(shape[0])


def conv_arguments(dims: int) -> tuple[Any, ...]:
    geometry = ([2] * dims, [1] * dims, [1] * dims, 2)
    return integers(2, 4, *[7] * dims), 0.02, 3, *layer(6, 2, *[3] * dims), *geometry


def calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return calls of all operators, by what they try."""
    torch.manual_seed(0)
    own = torch.ops.fxquant
    x, y = integers(2, 6, 4, 4), integers(2, 6, 4, 4)
    found: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "conv_add": (own.conv_add, (*conv_arguments(2), x, 0.1, 4, 0.5, 7, 7, 255)),
        "add": (own.add, (x, 0.1, 4, y, 0.2, 5, 0.5, 7, 7, 255)),
        "add, broadcast": (own.add, (x, 0.1, 4, y[:1, :, :1, :1], 0.2, 5, 0.5, 7, 7, 255)),
        "add, two layouts": (
            own.add,
            (x, 0.1, 4, y.contiguous(memory_format=torch.channels_last), 0.2, 5, 0.5, 7, 7, 255),
        ),
        "linear, strided": (
            own.linear,
            (integers(3, 8, 5).transpose(1, 2), 0.02, 3, *layer(6, 8), "none", *RESULTS[0]),
        ),
    }
    for result in RESULTS:
        kind = "float32" if result[0] is None else "uint8"
        for dims in (1, 2, 3):
            found[f"conv{dims}d, {kind}"] = own.conv, (*conv_arguments(dims), "none", *result)
        for shape in ((5, 8), (2, 3, 8), (8,)):
            arguments = (integers(*shape), 0.02, 3, *layer(6, 8), "gelu", *result)
            found[f"linear of {shape}, {kind}"] = own.linear, arguments
    return found


def as_records(name: str, arguments: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Return the kernel of an operator, and what it takes in place of the operator's arguments."""
    if name == "add":
        a, b, result = arguments[:3], arguments[3:6], arguments[6:]
        return kernels.add, [Uint8(*a), Uint8(*b), Result(*result)]
    layer: list[Any] = [Uint8(*arguments[:3]), Weight(*arguments[3:6])]
    if name == "linear":
        return checked.linear, [*layer, arguments[6], Result(*arguments[7:])]
    stride, padding, dilation = map(tuple, arguments[6:9])
    layer.append(Geometry(stride, padding, dilation, arguments[9]))
    if name == "conv":
        return checked.conv, [*layer, arguments[10], Result(*arguments[11:])]
    return checked.conv_add, [*layer, Uint8(*arguments[10:13]), Result(*arguments[13:])]


SCHEMAS = {
    "conv": "Tensor x, float x_scale, int x_zero_point, Tensor weight, Tensor weight_scale, "
    "Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, str activation, "
    "float? y_scale, int y_zero_point, float y_min, float y_max, bool verify=True",
    "conv_add": "Tensor x, float x_scale, int x_zero_point, Tensor weight, Tensor weight_scale, "
    "Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, Tensor other, "
    "float other_scale, int other_zero_point, float y_scale, int y_zero_point, float y_min, "
    "float y_max, bool verify=True",
    "linear": "Tensor x, float x_scale, int x_zero_point, Tensor weight, Tensor weight_scale, "
    "Tensor? bias, str activation, float? y_scale, int y_zero_point, float y_min, float y_max, "
    "bool verify=True",
    "add": "Tensor a, float a_scale, int a_zero_point, Tensor b, float b_scale, int b_zero_point, "
    "float y_scale, int y_zero_point, float y_min, float y_max",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_exported_files_find_the_arguments_that_they_name(name: str) -> None:
    schema = getattr(torch.ops.fxquant, name).default._schema
    assert str(schema) == f"fxquant::{name}({SCHEMAS[name]}) -> Tensor"


@pytest.mark.parametrize("name", calls())
def test_an_operator_keeps_what_its_schema_and_its_fake_promise(name: str) -> None:
    operator, arguments = calls()[name]
    torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("name", calls())
def test_an_operator_computes_what_its_kernel_does_and_changes_nothing(name: str) -> None:
    operator, arguments = calls()[name]
    before = [each.clone() if isinstance(each, Tensor) else each for each in arguments]
    y = operator(*arguments)
    for one, other in zip(arguments, before, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    kernel, records = as_records(operator.__name__, arguments)
    assert torch.equal(y, kernel(*records))
    kernel, records = as_records(operator.__name__, before)
    assert torch.equal(y, operators.call(kernel, *records))


def conv(inputs: int = 4, outputs: int = 4, width: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, width, padding=width // 2)


def images() -> Tensor:
    return torch.randn(3, 4, 8, 8)


MODELS: dict[str, tuple[Any, Any]] = {
    "linear layers": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)),
        lambda: torch.randn(3, 8),
    ),
    "pools and averages": (
        lambda: nn.Sequential(
            conv(), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.AvgPool2d(2), conv(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        ),
        images,
    ),
    "additions": (
        lambda: Net(
            lambda m, x: m.c((m.b(y := m.a(x).relu()) + y).relu() + F.max_pool2d(y, 3, 1, 1)),
            a=conv(), b=conv(), c=conv(),
        ),
        images,
    ),
    "an addition that broadcasts": (
        lambda: Net(
            lambda m, x: m.c((m.b(y := m.a(x).relu()) + y.mean((2, 3), True)).relu()),
            a=conv(), b=conv(), c=conv(),
        ),
        images,
    ),
    "float between integers": (
        lambda: Net(
            lambda m, x: m.b(F.pad(torch.cat([m.a(x), x], 1), (1, 1, 1, 1), mode="reflect"))
            * m.c(x).sigmoid().mean((2, 3), True),
            a=conv(), b=conv(8), c=conv(),
        ),
        images,
    ),
    "shapes": (
        lambda: Net(
            lambda m, x: m.b(m.a(x).relu().view(x.size(0), -1)), a=conv(), b=nn.Linear(256, 3)
        ),
        images,
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 3, 2)),
        lambda: torch.randn(3, 4, 9),
    ),
    "three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(4, 4, 3), nn.ReLU(), nn.Conv3d(4, 3, 2)),
        lambda: torch.randn(3, 4, 6, 6, 6),
    ),
    "kernels that would be wrong": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 16, (1, 8), (1, 3), groups=4), nn.ReLU(),
            nn.Conv2d(16, 16, (1, 15), padding=(0, 7), groups=16), nn.ReLU6(),
            nn.Conv2d(16, 32, 3, padding=3, groups=16),
        ),
        images,
    ),
}  # fmt: skip


def lowered(name: str) -> tuple[fx.GraphModule, Tensor]:
    make_model, make_input = MODELS[name]
    x = make_input()
    model = fxquant.lower(fxquant.quantize(make_model(), [x], Recipe.minmax()))
    assert isinstance(model, fx.GraphModule)
    return model, x


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_graph_takes_any_batch_and_survives_a_file(name: str) -> None:
    model, x = lowered(name)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
    assert any("fxquant" in str(node.target) for node in exported.graph.nodes)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for inputs in (x, torch.cat([x, x + 1])):
        expected = outputs(model, inputs)
        assert torch.equal(outputs(exported.module(), inputs), expected)
        assert torch.equal(outputs(loaded.module(), inputs), expected)


def test_another_device_is_refused_and_meta_gives_shapes() -> None:
    model, x = lowered("additions")
    expected = outputs(model, x)
    on_meta = copy.deepcopy(model).to("meta")
    assert outputs(on_meta, x.to("meta")).shape == expected.shape
    with pytest.raises(LoweringError) as raised:
        on_meta(x)
    assert str(raised.value) == (
        "int8 kernels run on the CPU, and the weight is on meta: move the model with .cpu(), or, "
        'from "meta", load a state with assign=True'
    )
    on_meta.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(outputs(on_meta, x), expected)


class _Elsewhere:
    """What `call` looks at of a tensor on another device."""

    is_cpu, device = False, torch.device("cuda:0")


def test_a_tensor_on_another_device_is_named() -> None:
    elsewhere: Any = _Elsewhere()
    with pytest.raises(LoweringError) as raised:
        operators.call(kernels.add, Uint8(elsewhere, 1.0, 0), Uint8(elsewhere, 1.0, 0))
    assert str(raised.value) == (
        "int8 kernels run on the CPU, and got a tensor on cuda:0: move model and input with "
        ".cpu(), or run there what fxquant.convert returned, or fxquant.to_qdq of it"
    )


def test_an_exported_graph_packs_each_weight_once() -> None:
    model, x = lowered("additions")
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=False).module()
    outputs(exported, x)
    names = [name for name, _ in exported.named_buffers() if name.endswith("weight_integers")]
    packed = [prepacking._PACKED[exported.get_buffer(name)].forms for name in names]
    assert len(packed) == 3
    before = [dict(each) for each in packed]
    outputs(exported, x)
    for kept, known in zip(packed, before, strict=True):
        assert kept.keys() == known.keys() != set()
        assert all(kept[key] is known[key] for key in known)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pools and averages", "additions", "kernels that would be wrong"])
def test_compiles_as_one_graph_for_any_batch(name: str) -> None:
    model, x = lowered(name)
    compiled = torch.compile(model, fullgraph=True)
    for inputs in (x, torch.cat([x, x + 1])):
        torch.testing.assert_close(compiled(inputs), outputs(model, inputs), rtol=0, atol=1e-5)
