"""Models that only a traced call captures become files with integer weights, or are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fxquant
from fxquant import LoweringError, Recipe, StorageError
from fxquant.deploy import onnx_file
from fxquant.numerics.decibels import sqnr
from tests.helpers import Net

onnx: Any = pytest.importorskip("onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Detector(nn.Module):
    """Takes a list of images, returns for each what is left of its boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            nn.ReLU(),
        )
        self.scores, self.boxes = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 4, 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.detect(self.body(image[None] - 0.5)) for image in images]

    def detect(self, features: Tensor) -> dict[str, Tensor]:
        scores, labels = (4 * self.scores(features))[0].flatten(1).sigmoid().max(0)
        height, width = features.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers = torch.stack([columns, rows, columns, rows], 0).flatten(1)
        edges = self.boxes(features)[0].flatten(1).abs() * torch.tensor([[-9], [-9], [9], [9]])
        boxes = (centers + edges).t()
        kept = scores > 0.5
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        best = torchvision.ops.nms(boxes, scores, 0.3)
        return {"boxes": boxes[best], "labels": labels[best], "scores": scores[best]}


def quantized(
    model: nn.Module, example: Any, recipe: Recipe | None = None, **options: Any
) -> nn.Module:
    prepared = fxquant.prepare(model.eval(), recipe or Recipe.minmax(), **options)
    fxquant.calibrate(prepared, [example], progress=False)
    return fxquant.convert(prepared)


REGIONS: dict[str, Any] = {"regions": ["body", "scores", "boxes"]}


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.rand(3, *size) for size in sizes]


def session(path: Path, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, *arguments: Tensor) -> dict[str, Tensor]:
    loaded = session(path)
    names = [each.name for each in loaded.get_outputs()]
    given = {each.name: x.numpy() for each, x in zip(loaded.get_inputs(), arguments, strict=True)}
    results = loaded.run(None, given)
    return {name: torch.from_numpy(x) for name, x in zip(names, results, strict=True)}


def lengths(path: Path) -> list[list[Any]]:
    inputs = onnx.load(path).graph.input
    shapes = [each.type.tensor_type.shape.dim for each in inputs]
    return [[axis.dim_param or axis.dim_value for axis in shape] for shape in shapes]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_detector_is_one_file(tmp_path: Path, bits: int) -> None:
    recipe = Recipe.minmax(weight_bits=bits)
    model = quantized(Detector(), images((24, 32), (32, 24)), recipe, **REGIONS)
    path = tmp_path / "detector.onnx"
    fxquant.export_onnx(model, path, images((24, 32), (20, 20)), int4=bits == 4)
    assert lengths(path) == [
        [3, f"images_{number}_height", f"images_{number}_width"] for number in (0, 1)
    ]
    for batch in (images((24, 32), (20, 20)), images((32, 20), (40, 48))):
        with torch.no_grad():
            expected = model(batch)
        actual = run(path, *batch)
        assert len(actual) == 6
        for number, boxes in enumerate(expected):
            assert len(boxes["scores"]) > 3
            for name, each in boxes.items():
                # In any order: boxes of one score may come in either.
                found, value = (x.sort(0)[0] for x in (actual[f"output_{number}_{name}"], each))
                torch.testing.assert_close(found, value, rtol=0, atol=0.02)


def test_the_file_of_a_detector_holds_integers_that_onnxruntime_works_on(tmp_path: Path) -> None:
    model = quantized(Detector(), images((24, 32)), **REGIONS)
    path = tmp_path / "detector.onnx"
    fxquant.export_onnx(model, path, images((24, 32)))
    weights = [each for each in onnx.load(path).graph.initializer if len(each.dims) == 4]
    assert [each.data_type for each in weights] == 4 * [onnx.TensorProto.INT8]
    session(path, tmp_path / "optimized")
    kernels = [node.op_type for node in onnx.load(tmp_path / "optimized").graph.node]
    assert kernels.count("QLinearConv") == 1  # behind it float stays float: two layers read it
    assert b".py" not in path.read_bytes()


def test_a_large_detector_has_its_tensors_in_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "_MAX_BYTES", 1000)
    model = quantized(Detector(), images((24, 32)), **REGIONS)
    path = tmp_path / "m.onnx"
    fxquant.export_onnx(model, path, images((24, 32)))
    assert {each.name for each in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert lengths(path) == [[3, "images_0_height", "images_0_width"]]
    assert len(run(path, *images((40, 32)))["output_0_scores"]) > 3


def padded(m: Any, xs: list[Tensor]) -> Tensor:
    x = xs[0][None]
    return m.conv(nn.functional.pad(x, (0, 1)) if x.shape[3] % 2 else x)  # type: ignore[no-any-return]


def test_sizes_stay_fixed_where_python_decides_on_them(tmp_path: Path) -> None:
    model = quantized(Net(padded, conv=nn.Conv2d(3, 4, 3)), images((8, 7)), regions=["conv"])
    path = tmp_path / "model.onnx"
    fxquant.export_onnx(model, path, images((8, 7)))
    assert lengths(path) == [[3, 8, 7]]


def test_sizes_stay_fixed_where_nothing_proves_them_free(tmp_path: Path) -> None:
    model = quantized(Detector(), images((24, 32)), **REGIONS)
    path = tmp_path / "model.onnx"
    fxquant.export_onnx(model, path, images((24, 32)), verify=False)
    assert lengths(path) == [[3, 24, 32]]


def by_rows(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.fc(row[None]) for row in x])


def of_one(m: Any, x: Tensor) -> Tensor:
    return m.fc(x) if len(x) > 1 else -m.fc(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", [by_rows, of_one])
def test_refuses_decisions_on_the_length_of_the_batch(
    tmp_path: Path, function: Callable[[Any, Tensor], Tensor]
) -> None:
    model = quantized(Net(function, fc=nn.Linear(3, 2)), torch.rand(4, 3), regions=["fc"])
    with pytest.raises(LoweringError) as caught:
        fxquant.export_onnx(model, tmp_path / "m.onnx", torch.rand(4, 3))
    assert str(caught.value) == (
        "export_onnx: Python decides on the length of the batch; dynamic_batch=False fixes the "
        "length of the batch, which may help"
    )
    fxquant.export_onnx(model, tmp_path / "m.onnx", torch.rand(4, 3), dynamic_batch=False)
    x = torch.rand(4, 3)
    assert sqnr(model(x).detach(), run(tmp_path / "m.onnx", x)["output"]) > 40


def test_the_batch_of_a_model_in_regions_is_free(tmp_path: Path) -> None:
    net = Net(lambda m, x: m.last(m.first(x)), first=nn.Linear(3, 8), last=nn.Linear(8, 2))
    model = quantized(net, torch.rand(8, 3), regions=["first", "last"])
    path = tmp_path / "m.onnx"
    fxquant.export_onnx(model, path, torch.rand(1, 3))
    assert lengths(path) == [["batch", 3]]
    x = torch.rand(5, 3)
    assert sqnr(model(x).detach(), run(path, x)["output"]) > 40


def test_says_which_opsets_tracing_can_write(tmp_path: Path) -> None:
    model = quantized(Detector(), images((24, 32)), **REGIONS)
    with pytest.raises(LoweringError, match="opset=22: the model is exported by tracing a call"):
        fxquant.export_onnx(model, tmp_path / "m.onnx", images((24, 32)), opset=22)


def test_says_what_fails_while_a_call_is_traced(tmp_path: Path) -> None:
    net = Net(lambda m, x: torch.matrix_exp(m.fc(x)), fc=nn.Linear(3, 3))
    model = quantized(net, torch.rand(2, 3, 3), regions=["fc"])
    with pytest.raises(LoweringError) as caught:
        fxquant.export_onnx(model, tmp_path / "m.onnx", torch.rand(2, 3, 3))
    assert str(caught.value).startswith("export_onnx: tracing a call fails: UnsupportedOperator")
    assert str(caught.value).endswith(
        "; export each graph of Net, with export_onnx(model.get_submodule(name), …): fc"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_detector_of_torchvision_is_one_file(tmp_path: Path) -> None:
    build = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    model = quantized(build(weights=None, weights_backbone=None), [images((96, 128))])
    path = tmp_path / "m.onnx"
    fxquant.export_onnx(model, path, [images((96, 128))])
    actual = run(path, *images((96, 128)))
    assert {name: len(value) for name, value in actual.items()} == {
        "output_0_boxes": 300, "output_0_labels": 300, "output_0_scores": 300
    }  # fmt: skip
    assert path.stat().st_size < 6e6


def test_no_folder_for_temporary_files_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = images((21, 21))
    model = quantized(Detector(), batch, **REGIONS)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(
        StorageError, match=r"nowhere.*: free some space, or set TMPDIR to a folder"
    ):
        fxquant.export_onnx(model, tmp_path / "model.onnx", batch)
    assert list(tmp_path.iterdir()) == []
