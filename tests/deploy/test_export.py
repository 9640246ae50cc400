"""The ONNX file computes what the fake-quantized model does, and onnxruntime finds int8 kernels."""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from benchmarks.capture.torchvision_models import build
from fxquant import LoweringError, PassError, Recipe, StorageError, TensorSpec
from fxquant.deploy.exported_program import export_program
from fxquant.numerics.decibels import sqnr
from tests.helpers import Net

onnx: Any = pytest.importorskip("onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MINMAX = Recipe.minmax()
LEVELS = onnxruntime.GraphOptimizationLevel


class File:
    """An exported model, as onnxruntime runs it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = onnx.load(path)
        self.inputs = [each.name for each in self.model.graph.input]
        self.outputs = [each.name for each in self.model.graph.output]

    def run(self, *arguments: Tensor, optimize: bool = True) -> list[Tensor]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        if not optimize:
            options.graph_optimization_level = LEVELS.ORT_DISABLE_ALL
        options.optimized_model_filepath = str(self.path.with_suffix(".optimized"))
        session = onnxruntime.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )
        given = {name: x.numpy() for name, x in zip(self.inputs, arguments, strict=True)}
        return [torch.from_numpy(each) for each in session.run(None, given)]

    def kernels(self) -> Counter[str]:
        """Return how often each operator stands in the optimized model, if it computes."""
        self.run(*[torch.zeros(_shape(each)) for each in self.model.graph.input])
        optimized = onnx.load(self.path.with_suffix(".optimized"))
        moves = ("QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Squeeze")
        return Counter(node.op_type for node in optimized.graph.node if node.op_type not in moves)


def _shape(value: Any) -> list[int]:
    return [each.dim_value or 2 for each in value.type.tensor_type.shape.dim]


def quantized(model: nn.Module, x: Any, recipe: Recipe | None = None) -> nn.Module:
    return fxquant.quantize(model.eval(), [x], recipe or MINMAX, progress=False)


def exported(tmp_path: Path, model: nn.Module, x: Any, **options: Any) -> File:
    path = tmp_path / "model.onnx"
    fxquant.export_onnx(model, path, x, **options)
    return File(path)


def run(model: nn.Module, *arguments: Tensor) -> Any:
    with torch.no_grad():
        return model(*arguments)


def message(
    error: type[Exception], function: Callable[..., Any], *arguments: Any, **options: Any
) -> str:
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    return str(caught.value)


def convs(*channels: int, kernel: int = 3) -> list[nn.Module]:
    return [layer for pair in pairwise(channels) for layer in (nn.Conv2d(*pair, kernel), nn.ReLU())]


def plain() -> nn.Module:
    return nn.Sequential(
        *convs(3, 8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.AvgPool2d(2),
        *convs(8, 6, kernel=1),
        nn.Flatten(),
        nn.Linear(96, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )


def residual() -> nn.Module:
    return Net(
        lambda m, x: m.last((m.second(m.first(x).relu()) + x).relu()),
        first=nn.Conv2d(3, 3, 1), second=nn.Conv2d(3, 3, 1), last=nn.Conv2d(3, 2, 1),
    )  # fmt: skip


def concatenation() -> nn.Module:
    """One branch ends in a ReLU, one does not: on their grid 0 is in the middle."""
    return Net(
        lambda m, x: m.last(torch.cat([m.a(x).relu(), F.max_pool2d(m.b(x), 3, 1, 1)], 1)).relu(),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), last=nn.Conv2d(8, 2, 1),
    )  # fmt: skip


def squeeze_and_excitation() -> nn.Module:
    return Net(
        lambda m, x: m.last(m.first(x) * m.gate(m.first(x).mean((2, 3), True)).sigmoid()),
        first=nn.Conv2d(3, 4, 1), gate=nn.Conv2d(4, 4, 1), last=nn.Conv2d(4, 2, 1),
    )  # fmt: skip


def upsampling() -> nn.Module:
    return Net(
        lambda m, x: m.last(F.pad(F.interpolate(m.first(x).relu(), scale_factor=2.0), (1, 1))),
        first=nn.Conv2d(3, 4, 1), last=nn.Conv2d(4, 2, 1),
    )  # fmt: skip


IMAGE = (3, 12, 12)
SYMMETRIC = TensorSpec(symmetric=True)
PLAIN = {"QLinearConv": 3, "QLinearAveragePool": 1, "QGemm": 2, "Add": 1}
# model, its input, recipe, and what onnxruntime computes it with: in float "Conv" and "FusedConv"
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Recipe, dict[str, int]]] = {
    "plain": (plain, IMAGE, MINMAX, PLAIN),
    "4 bits": (
        plain,
        IMAGE,
        Recipe.minmax(weight_bits=4, activation_bits=4),
        PLAIN,
    ),
    "signed and unsigned, 3 bits": (
        plain,
        IMAGE,
        Recipe(activations=TensorSpec(bits=3, symmetric=True)),
        PLAIN,
    ),
    "all signed": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)),
        IMAGE,
        Recipe(activations=SYMMETRIC),
        {"QLinearConv": 1, "Conv": 1},
    ),
    "per-tensor weights": (plain, IMAGE, Recipe(weights=SYMMETRIC), PLAIN),
    "asymmetric weights": (plain, IMAGE, Recipe(weights=TensorSpec()), PLAIN),
    "per-channel activations": (
        lambda: nn.Sequential(*convs(3, 4), nn.AvgPool2d(2), nn.Conv2d(4, 2, 1)),
        IMAGE,
        Recipe(activations=TensorSpec(bits=4, per_channel=True)),
        {"FusedConv": 1, "Conv": 1},
    ),
    "weights only": (
        lambda: nn.Sequential(*convs(3, 4), nn.Flatten(), nn.Linear(400, 2)),
        IMAGE,
        Recipe.minmax(activation_bits=None),
        {"FusedConv": 1, "Gemm": 1},
    ),
    "residual": (residual, IMAGE, MINMAX, {"QLinearConv": 1, "FusedConv": 1, "Conv": 1}),
    "concatenation": (
        concatenation,
        IMAGE,
        MINMAX,
        {"QLinearConv": 2, "QLinearConcat": 1, "NhwcMaxPool": 1, "FusedConv": 1},
    ),
    "squeeze and excitation": (squeeze_and_excitation, IMAGE, MINMAX, {"Mul": 1}),
    "upsampling": (upsampling, IMAGE, MINMAX, {"QLinearConv": 1, "Resize": 1, "Conv": 1}),
    "1-D, transposed": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.ConvTranspose1d(8, 2, 3)),
        (3, 9),
        MINMAX,
        {"QLinearConv": 1, "ConvTranspose": 1},
    ),
    "3-D, transposed": (
        lambda: nn.Sequential(nn.Conv3d(3, 8, 2), nn.ReLU(), nn.ConvTranspose3d(8, 2, 2)),
        (3, 4, 4, 4),
        MINMAX,
        {"QLinearConv": 1, "ConvTranspose": 1},
    ),
    "transposed, grouped": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(8, 8, 3, stride=2, groups=4),
            nn.ReLU(),
            nn.Conv2d(8, 2, 3, padding=1, padding_mode="reflect"),
        ),
        (8, 5, 5),
        MINMAX,
        {"ConvTranspose": 1, "Pad": 1, "Conv": 1},
    ),
    "linear, three axes": (
        lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)),
        (5, 8),
        MINMAX,
        {"MatMulIntegerToFloat": 2},
    ),
}


@pytest.mark.parametrize(("make", "shape", "recipe", "kernels"), KINDS.values(), ids=KINDS)
def test_computes_what_the_model_does(
    tmp_path: Path,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    recipe: Recipe,
    kernels: dict[str, int],
) -> None:
    model = quantized(make(), torch.randn(8, *shape), recipe)
    file = exported(tmp_path, model, torch.randn(2, *shape))
    for batch in (1, 3):
        x = 1.5 * torch.randn(batch, *shape)
        expected = run(model, x)
        assert sqnr(expected, file.run(x, optimize=False)[0]) > 60
        assert sqnr(expected, file.run(x)[0]) > 25
    assert file.kernels().items() >= kernels.items()


def test_integers_differ_by_one_step_now_and_then(tmp_path: Path) -> None:
    model = quantized(nn.Sequential(*convs(16, 16), nn.Conv2d(16, 2, 1)), torch.randn(8, 16, 9, 9))
    file = exported(tmp_path, model, torch.randn(2, 16, 9, 9))
    hidden = [node for node in file.model.graph.node if node.op_type == "QuantizeLinear"][-1]
    file.model.graph.output.append(
        onnx.helper.make_tensor_value_info(hidden.output[0], onnx.TensorProto.UINT8, None)
    )
    onnx.save(file.model, file.path)
    x = torch.randn(64, 16, 9, 9)
    integers, expected = (file.run(x, optimize=each)[1].int() for each in (True, False))
    assert file.kernels()["QLinearConv"] == 1
    assert (integers - expected).abs().max() == 1
    assert (integers != expected).float().mean() < 0.002


def test_a_layer_left_in_float_between_integers_is_exact(tmp_path: Path) -> None:
    middle, last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
    with torch.no_grad():
        middle.weight[0] *= 100  # one scale for all channels would leave little of the others
        last.weight[:, 0] = 0
    net = Net(
        lambda m, x: m.last(m.middle(y := m.first(x)).relu()) + m.other(y).mean(),
        first=nn.Conv2d(3, 8, 3), middle=middle, last=last, other=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    x = torch.randn(4, *IMAGE)
    model = quantized(net, x, Recipe.minmax(skip=["middle"]))
    assert sqnr(run(model, x), exported(tmp_path, model, x).run(x)[0]) > 50


@pytest.mark.parametrize(
    ("first", "kind"),
    [(nn.Identity(), "INT8"), (nn.ReLU(), "UINT8")],
    ids=["all signed", "signed and unsigned"],
)
def test_activations_are_of_one_type(tmp_path: Path, first: nn.Module, kind: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), first, nn.Linear(4, 2))
    x = torch.randn(8, 3)
    file = exported(tmp_path, quantized(net, x, Recipe(activations=SYMMETRIC)), x)
    zero_points = {node.input[2] for node in file.model.graph.node if node.op_type[0] == "Q"}
    types = [each.data_type for each in file.model.graph.initializer if each.name in zero_points]
    assert set(types) == {onnx.TensorProto.DataType.Value(kind)}


def test_weights_stay_integers_and_nothing_is_noted_of_this_machine(tmp_path: Path) -> None:
    model = quantized(
        nn.Sequential(*convs(64, 128), nn.Conv2d(128, 8, 3)), torch.randn(2, 64, 9, 9)
    )
    file = exported(tmp_path, model, torch.randn(2, 64, 9, 9))
    num_weights = 9 * 128 * (64 + 8)
    weights = [each for each in file.model.graph.initializer if len(each.dims) > 1]
    assert [each.data_type for each in weights] == 2 * [onnx.TensorProto.INT8]
    assert file.path.stat().st_size < 1.1 * num_weights
    content = file.path.read_bytes()
    assert all(word not in content for word in (b"stack_trace", b".py", b"fxquant/"))


def test_packs_four_bits_into_half_a_byte(tmp_path: Path) -> None:
    x = torch.randn(2, 64, 9, 9)
    net = nn.Sequential(*convs(64, 128), nn.Conv2d(128, 8, 3))
    model = quantized(net, x, Recipe.minmax(weight_bits=4))
    file = exported(tmp_path, model, x, int4=True)
    assert file.path.stat().st_size < 0.6 * 9 * 128 * (64 + 8)
    assert file.model.opset_import[0].version == 21
    assert file.kernels() == {"QLinearConv": 1, "Conv": 1}
    assert sqnr(run(model, x), file.run(x)[0]) > 40


class TwoInputs(nn.Module):
    """Two inputs, two outputs, by names; one has the name of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(5, 4)

    def forward(self, image: Tensor, vector: Tensor) -> Any:
        maps = self.conv(image)
        return {"sum": [maps + self.fc(vector)[:, :, None, None]], "image": maps}


def test_takes_several_inputs_and_names_the_outputs(tmp_path: Path) -> None:
    example = {"image": torch.randn(2, *IMAGE), "vector": torch.randn(2, 5)}
    model = quantized(TwoInputs(), example)
    file = exported(tmp_path, model, example)
    assert (file.inputs, file.outputs) == (["image", "vector"], ["sum_0", "image_output"])
    image, vector = torch.randn(5, *IMAGE), torch.randn(5, 5)
    expected = run(model, image, vector)
    actual = file.run(image, vector)
    assert sqnr(expected["sum"][0], actual[0]) > 60
    assert sqnr(expected["image"], actual[1]) > 60


@pytest.mark.parametrize("batch", [1, 4])
def test_the_first_axis_is_dynamic(tmp_path: Path, batch: int) -> None:
    model = quantized(nn.Sequential(nn.Linear(3, 2)), torch.randn(8, 3))
    file = exported(tmp_path, model, torch.randn(batch, 3))
    (shape,) = (each.type.tensor_type.shape for each in file.model.graph.input)
    assert [each.dim_param or each.dim_value for each in shape.dim] == ["batch", 3]
    assert file.outputs == ["output"]
    x = torch.randn(7, 3)
    torch.testing.assert_close(file.run(x)[0], run(model, x))


def test_the_first_axis_is_fixed_where_that_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net = Net(lambda m, x: m.fc(x + m.offset), fc=nn.Linear(3, 2), offset=torch.ones(2, 3))
    model = quantized(net, torch.randn(2, 3))
    found = message(LoweringError, exported, tmp_path, model, torch.randn(2, 3))
    assert found == (
        "export_onnx: with a batch of another length the model fails: RuntimeError: The size of "
        "tensor a (4) must match the size of tensor b (2) at non-singleton dimension 0; "
        "dynamic_batch=False fixes the length of the batch"
    )
    assert list(tmp_path.iterdir()) == []
    file = exported(tmp_path, model, torch.randn(2, 3), dynamic_batch=False)
    assert capfd.readouterr() == ("", "")
    x = torch.randn(2, 3)
    torch.testing.assert_close(file.run(x)[0], run(model, x))


def test_a_batch_of_one_that_becomes_channels_is_fixed_where_that_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net = Net(lambda m, x: m.conv(torch.cat([x, x]).transpose(0, 1)), conv=nn.Conv2d(2, 4, 1))
    x = torch.randn(1, 3, 5, 5)
    model = quantized(net, x)
    capfd.readouterr()
    found = message(LoweringError, exported, tmp_path, model, x)
    assert "to have 2 channels, but got 4 channels instead" in found
    assert found.endswith("; dynamic_batch=False fixes the length of the batch, which may help")
    assert capfd.readouterr() == ("", "")
    assert sqnr(run(model, x), exported(tmp_path, model, x, dynamic_batch=False).run(x)[0]) > 60


@pytest.mark.skipif(torch.__version__ < "2.8", reason="PyTorch 2.7 is refused: names are lost")
@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_a_model_may_return_its_inputs(tmp_path: Path, dynamic_batch: bool) -> None:
    net = Net(lambda m, x: (x, m.fc(x), x, {"input": x}), fc=nn.Linear(3, 2))
    x = torch.randn(4, 3)
    model = quantized(net, x)
    file = exported(tmp_path, model, x, dynamic_batch=dynamic_batch)
    assert file.inputs == ["x"]
    assert file.outputs == ["output_0", "output_1", "output_2", "output_3_input"]
    assert torch.equal(file.run(x)[0], x)


def test_a_batch_that_becomes_an_axis_of_images_stays_free() -> None:
    model = Net(lambda m, x: m.fc(m.conv(x[None].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[0]))
    model.conv, model.fc = nn.Conv2d(8, 16, (1, 3)), nn.Linear(16, 8)
    gm = fx.symbolic_trace(model)
    program = export_program(gm, (torch.randn(3, 4, 8),), dynamic_batch=True)
    assert program.module()(torch.randn(5, 4, 8)).shape == (5, 2, 8)


def test_says_what_has_no_counterpart_in_onnx(tmp_path: Path) -> None:
    net = Net(lambda m, x: torch.matrix_exp(m.fc(x)), fc=nn.Linear(3, 3))
    model = quantized(net, torch.randn(2, 3, 3))
    found = message(LoweringError, exported, tmp_path, model, torch.randn(2, 3, 3))
    assert found.startswith("export_onnx: no counterpart in ONNX: ")
    assert "matrix_exp" in found
    assert list(tmp_path.iterdir()) == []


class Guarded(nn.Module):
    """Cannot be traced, but for `body`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Any:
        return self.body(x) if x.sum() > 0 else x


def test_a_region_is_exported_by_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = quantized(Guarded(), torch.rand(8, 3))
    capfd.readouterr()
    found = message(LoweringError, exported, tmp_path, model, torch.rand(2, 3))
    line = Guarded.forward.__code__.co_firstlineno + 1
    assert found == (
        "export_onnx: Python decides on what depends on values of the inputs, and a file would "
        f"hold what it decided on the example: test_export.py:{line} (return self.body(x) if "
        "x.sum() > 0 else x): decide with tensors, as torch.where does, decorate the function with "
        "torch.jit.script_if_tracing, or export each graph of Guarded, with "
        "export_onnx(model.get_submodule(name), …): body"
    )
    assert capfd.readouterr() == ("", "")
    body = model.get_submodule("body")
    x = torch.rand(5, 3)
    file = exported(tmp_path, body, torch.rand(2, 3))
    assert sqnr(run(body, x), file.run(x)[0]) > 40
    assert file.kernels() == {"QGemm": 2, "Add": 1}


@pytest.fixture
def linear() -> nn.Module:
    return quantized(nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3))


X = torch.zeros(2, 3)


def test_says_which_packages_are_missing(
    linear: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    assert message(LoweringError, fxquant.export_onnx, linear, tmp_path / "m.onnx", X) == (
        "export_onnx: onnxscript not installed: pip install fxquant[onnx]"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"opset": 17}, "opset=17: choose 18, which is PyTorch's least, or more"),
        ({"opset": 20, "int4": True}, "opset=20: choose 21, which is the first with INT4, or more"),
        ({"opset": 99}, "opset=99: the exporter wrote 18 instead"),
    ],
)
def test_says_which_opset_will_do(
    linear: nn.Module, tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "m.onnx"
    found = message(LoweringError, fxquant.export_onnx, linear, path, X, **options)
    assert found == f"export_onnx: {expected}"


def test_takes_converted_models_only(tmp_path: Path) -> None:
    model = fxquant.prepare(nn.Sequential(nn.Linear(3, 2)))
    assert message(PassError, fxquant.export_onnx, model, tmp_path / "m.onnx", X) == (
        "export_onnx: got a prepared model: give what fxquant.convert(prepared) returned"
    )


def test_takes_models_with_an_integer_form_only(tmp_path: Path) -> None:
    recipe = Recipe.minmax(activation_bits=16)
    model = quantized(nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3), recipe)
    found = message(LoweringError, fxquant.export_onnx, model, tmp_path / "m.onnx", X)
    assert found.startswith("export_onnx: the model has no integer form: 'quantizers.input_1'")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(
    linear: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        found = message(StorageError, fxquant.export_onnx, linear, path, X)
    assert found == (
        f"export_onnx: {path}: cannot be written: [Errno 28] No space left on device: free some "
        f"space: '{tmp_path}'"
    )
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    fxquant.export_onnx(linear, str(path), X)
    onnx.checker.check_model(str(path), full_check=True)


def test_exports_a_copy_in_eval_mode(tmp_path: Path) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model = quantized(net, torch.randn(8, 3), Recipe(activations=SYMMETRIC)).train()
    before = fxquant.text(model)
    file = exported(tmp_path, model, X)
    assert (fxquant.text(model), model.training) == (before, True)
    x = 2 + torch.randn(4, 3)
    assert sqnr(run(model.eval(), x), file.run(x)[0]) > 40


# name, kernels of onnxruntime
MODELS = [
    ("resnet18", {"QLinearConv": 12, "FusedConv": 8, "QGemm": 1}),
    ("mobilenet_v2", {"QLinearConv": 42, "FusedConv": 10, "QGemm": 1}),
    ("squeezenet1_1", {"QLinearConv": 25, "FusedConv": 1, "QLinearConcat": 8}),
    ("shufflenet_v2_x0_5", {"QLinearConv": 56, "QLinearConcat": 16, "QGemm": 1}),
    ("mobilenet_v3_small", {"QLinearConv": 18, "FusedConv": 16, "Conv": 18, "QGemm": 2}),
    ("deeplabv3_resnet50", {"QLinearConv": 43, "FusedConv": 17, "Conv": 1, "QLinearConcat": 1}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), MODELS, ids=[row[0] for row in MODELS])
def test_models_of_torchvision(tmp_path: Path, name: str, kernels: dict[str, int]) -> None:
    model = quantized(build(name), torch.randn(2, 3, 64, 64), Recipe.aciq())
    file = exported(tmp_path, model, torch.randn(2, 3, 64, 64))
    weights = sum(each.numel() for each in build(name).parameters() if each.dim() > 1)
    assert file.path.stat().st_size < 1.15 * weights + 200_000
    x = torch.randn(3, 3, 64, 64)
    expected = run(model, x)
    expected = expected["out"] if isinstance(expected, dict) else expected
    assert file.outputs == ["out" if name.startswith("deeplab") else "output"]
    assert sqnr(expected, file.run(x)[0]) > 25
    assert file.kernels().items() >= kernels.items()
