"""What a newcomer types wrong, call by call, and what the error must say: where, what, the way out.

Mistakes in recipes are in `tests/recipe`.
"""

import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxquant
from fxquant import CalibrationError, CaptureError, FxquantError, PassError, Recipe, StorageError
from fxquant.errors import LoweringError, RecipeError
from fxquant.passes import FoldBatchNorm
from fxquant.recipe.budget import Budget
from tests.helpers import needs_int8


class Classifier(nn.Module):
    """Takes images of 8×8."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.flatten(torch.relu(self.bn1(self.conv1(x))), 1))


class Encoder(nn.Module):
    """Takes sentences of up to 16 of 100 words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(100, 8), nn.Embedding(16, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Any = None) -> Any:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.fc(self.words(input_ids) + self.positions(places))


class Detector(nn.Module):
    """Takes a list of images, in a loop that stays in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, images: Any) -> Any:
        found = [self.backbone(image[None]).mean((2, 3)) for image in images]
        return self.head(torch.cat(found))


class Strict(nn.Module):
    """Says itself what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        if x.shape[0] > 4:
            raise LookupError(f"at most 4 samples, got {x.shape[0]}")
        return self.fc(x)


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (4, 3, 8, 8)))


def bytes_of_images() -> Tensor:
    return torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)


def arrays() -> Any:
    return np.zeros((4, 3, 8, 8), np.float32)


def picture() -> Any:
    return Image.fromarray(np.zeros((8, 8, 3), np.uint8))


def ids(rows: int = 2, length: int = 5, value: int = 7) -> Tensor:
    return torch.full((rows, length), value)


def prepared(recipe: Recipe | None = None) -> nn.Module:
    return fxquant.prepare(Classifier(), recipe)


def calibrated(recipe: Recipe | None = None) -> nn.Module:
    return fxquant.calibrate(prepared(recipe), [images()])


@functools.cache
def float_model() -> nn.Module:
    return Classifier().eval()


@functools.cache
def quantized() -> nn.Module:
    return fxquant.quantize(float_model(), [images()])


@functools.cache
def lowered() -> nn.Module:
    return fxquant.lower(quantized())


def learned() -> Recipe:
    return Recipe.adaround(weight_bits=4, steps=1)


Make = Callable[[], object]
MISTAKES: list[Any] = []


def mistake(error: type[Exception], *says: str, needs: Any = ()) -> Callable[[Make], Make]:
    """Put the function below into the table, with what it raises and what that must say."""

    def note(make: Make) -> Make:
        MISTAKES.append(pytest.param(make, error, says, id=make.__name__, marks=needs))
        return make

    return note


def on(
    name: str, batches: Callable[[], Any], *says: str, model: Callable[[], nn.Module] = Classifier
) -> None:
    """Put two rows into the table: what `calibrate` and `quantize` say of `batches`."""

    def calibrate() -> object:
        return fxquant.calibrate(fxquant.prepare(model()), batches())

    def quantize() -> object:
        return fxquant.quantize(model(), batches())

    for call in (calibrate, quantize):
        row = pytest.param(call, CalibrationError, says, id=f"{call.__name__}: {name}")
        MISTAKES.append(row)


# Batches that the model cannot take: which, of what type and shape, the layer, the way out.


on(
    "uint8",
    lambda: [bytes_of_images()],
    "batch 0 (uint8 4×3×8×8): conv1 (Conv2d 3→8) raised RuntimeError: ",
    ": the model takes float32: convert and normalize, as in training: x.float() / 255",
)
on(
    "channels last",
    lambda: [images(4, 8, 8, 3)],
    "batch 0 (float32 4×8×8×3): conv1 (Conv2d 3→8) raised ",
    "conv1 takes (batch, 3, height, width), and the channels are last: x.permute(0, 3, 1, 2)",
)
on(
    "uint8 channels last",
    lambda: [bytes_of_images().permute(0, 2, 3, 1)],
    "batch 0 (uint8 4×8×8×3): conv1 (Conv2d 3→8) raised ",
    "x.permute(0, 3, 1, 2); the model takes float32: convert and normalize",
)
on(
    "grey images",
    lambda: [images(), images(4, 1, 8, 8)],
    "batch 1 (float32 4×1×8×8): conv1 (Conv2d 3→8) raised ",
    "and got 1 channel: convert grey images to RGB, or x.expand(-1, 3, -1, -1)",
)
on(
    "colour images",
    lambda: [images()],
    "batch 0 (float32 4×3×8×8): conv1 (Conv2d 1→8) raised ",
    "and got 3 channels: convert images to grey",
    model=lambda: Classifier(1),
)
on(
    "transparent images",
    lambda: [images(4, 4, 8, 8)],
    "batch 0 (float32 4×4×8×8): conv1 (Conv2d 3→8) raised ",
    'and got 4 channels: the fourth may be opacity: image.convert("RGB"), or x[:, :3]',
)
on(
    "images without channels",
    lambda: [images(4, 8, 8)],
    "batch 0 (float32 4×8×8): conv1 (Conv2d 1→8) raised ",
    "the axis of the one channel is missing: x.unsqueeze(1)",
    model=lambda: Classifier(1),
)
on(
    "labels first",
    lambda: [(torch.arange(4), images())],
    "batch 0 (int64 4, float32 4×3×8×8): conv1 (Conv2d 3→8) raised ",
    "inputs come first: give (x, labels), or forward=lambda model, batch: model(batch[1])",
)
on(
    "float labels first",
    lambda: [[torch.rand(4), images()]],
    "batch 0 [float32 4, float32 4×3×8×8]: conv1 (Conv2d 3→8) raised ",
    "inputs come first: give (x, labels)",
)
on(
    "single images",
    lambda: [image for image in images()],
    "batch 0 (float32 3×8×8): bn1 (BatchNorm2d 8), given float32 8×8×8, raised ",
    "conv1 takes (batch, 3, height, width), and this is one sample: x[None]; a "
    "DataLoader(dataset, batch_size=32) makes batches",
)
on(
    "single images with labels",
    lambda: [(image, 3) for image in images()],
    "batch 0 (float32 3×8×8, 3): bn1 (BatchNorm2d 8)",
    "this is one sample: x[None]; a DataLoader(dataset, batch_size=32) makes batches",
)
on(
    "single images channels last",
    lambda: [images(8, 8, 3)],
    "batch 0 (float32 8×8×3): conv1 (Conv2d 3→8) raised ",
    "this is one sample, channels last: x.permute(2, 0, 1)[None]",
)
on(
    "rows of pixels",
    lambda: [images(4, 192)],
    "batch 0 (float32 4×192): conv1 (Conv2d 3→8) raised ",
    "conv1 takes (batch, 3, height, width), 4 axes, and got 2",
)
on(
    "images for a linear layer",
    lambda: [images(4, 1, 2, 4)],
    "batch 0 (float32 4×1×2×4): 0 (Linear 8→2) raised ",
    "0 takes 8 features: x.flatten(1)",
    model=lambda: nn.Sequential(nn.Linear(8, 2)),
)
on(
    "too few features",
    lambda: [images(4, 7)],
    "batch 0 (float32 4×7): 0 (Linear 8→2) raised ",
    "0 takes 8 features, and the last axis has 7",
    model=lambda: nn.Sequential(nn.Linear(8, 2)),
)
on(
    "float64",
    lambda: [images().double()],
    "batch 0 (float64 4×3×8×8): conv1 (Conv2d 3→8) raised ",
    "the model takes float32, and arrays of NumPy are often float64: x.float()",
)
on(
    "half",
    lambda: [images().half()],
    "batch 0 (float16 4×3×8×8): conv1 (Conv2d 3→8) raised ",
    "the model takes float32: x.float()",
)
on(
    "floats for a half model",
    lambda: [images()],
    "batch 0 (float32 4×3×8×8): conv1 (Conv2d 3→8) raised ",
    "the model takes float16: x.half(), or give model.float()",
    model=lambda: Classifier().half(),
)
on(
    "integers",
    lambda: [images().long()],
    "batch 0 (int64 4×3×8×8): conv1 (Conv2d 3→8) raised ",
    "the model takes float32: x.float()",
)
on(
    "on meta",
    lambda: [images().to("meta")],
    "batch 0 (float32 4×3×8×8 on meta): ",
    " raised ",
    "tensors on meta hold no values: give batches of data",
)
on(
    "a model on meta",
    lambda: [images()],
    "batch 0 (float32 4×3×8×8): ",
    " raised ",
    "the model is on meta, where tensors hold no values: load its weights first",
    model=lambda: Classifier().to("meta"),
)
on(
    "larger images",
    lambda: [images(4, 3, 16, 16)],
    "batch 0 (float32 4×3×16×16): fc (Linear 512→10), given float32 4×2048, raised ",
    "fc takes 512 features: 16×16 is another size of images than it was made for",
)
on(
    "smaller images than a window",
    lambda: [images(4, 3, 2, 2)],
    "batch 0 (float32 4×3×2×2): 0 (Conv2d 3→8) raised ",
    "images of 2×2 are too small for the model",
    model=lambda: nn.Sequential(nn.Conv2d(3, 8, 5)),
)


# Words.


on(
    "fractions for words",
    lambda: [torch.rand(2, 5)],
    "batch 0 (float32 2×5): words (Embedding 100→8) raised ",
    "words takes ids of int64 from 0 to 99, and got fractions",
    model=Encoder,
)
on(
    "words in floats",
    lambda: [ids().float()],
    "batch 0 (float32 2×5): words (Embedding 100→8) raised ",
    "words takes ids of int64 from 0 to 99: x.long()",
    model=Encoder,
)
on(
    "unknown words",
    lambda: [{"input_ids": ids(value=100)}],
    "batch 0 {input_ids: int64 2×5}: words (Embedding 100→8) raised IndexError",
    "words takes ids of int64 from 0 to 99, and got 100: is the tokenizer",
    model=Encoder,
)
on(
    "padding below zero",
    lambda: [ids(value=-100)],
    "batch 0 (int64 2×5): words (Embedding 100→8) raised IndexError",
    "words takes ids of int64 from 0 to 99, and got -100",
    model=Encoder,
)
on(
    "long sentences",
    lambda: [{"input_ids": ids(length=20), "attention_mask": None}],
    "batch 0 {input_ids: int64 2×20, attention_mask: None}: positions (Embedding",
    "positions (Embedding 16→8) has 16 positions, and the sequence has 20: cut it to x[:, :16]",
    model=Encoder,
)
on(
    "one sentence",
    lambda: [ids()[0]],
    "batch 0 (int64 5): the model's own forward (Encoder; test_mistakes.py:",
    "words takes ids (batch, length), and this is one sequence: x[None]",
    model=Encoder,
)
on(
    "labels among keywords",
    lambda: [{"input_ids": ids(), "labels": torch.zeros(2)}],
    "batch 0 {input_ids: int64 2×5, labels: float32 2}: ",
    "labels",
    "input_ids, attention_mask",
    "leave out what it does not take, or pass forward=lambda model",
    model=Encoder,
)
on(
    "other keywords",
    lambda: [{"tokens": ids(), "mask": None}],
    "batch 0 {tokens: int64 2×5, mask: None}: ",
    "none of its keys is an argument of forward(input_ids, attention_mask): give dicts with these",
    model=Encoder,
)


# Batches that hold no tensors, and models that stay in Python.


on(
    "array batches",
    lambda: [arrays()],
    "batch 0 (a NumPy array float32 4×3×8×8): give tensors: torch.from_numpy(x)",
)
on(
    "float64 arrays with labels",
    lambda: [(arrays().astype(np.float64), np.zeros(4))],
    "batch 0 (a NumPy array float64 4×3×8×8, a NumPy array float64 4): ",
    "give tensors: torch.from_numpy(batch[0]).float()",
)
on(
    "lists of arrays",
    lambda: [list(arrays())],
    "batch 0 [a NumPy array float32 3×8×8, ",
    "torch.from_numpy(numpy.stack(batch))",
)
on(
    "pictures",
    lambda: [picture()],
    "batch 0 (a PIL image RGB 8×8): ",
    "transforms.ToTensor()",
    "DataLoader(dataset",
)
on(
    "pictures with labels",
    lambda: [(picture(), 3)],
    "batch 0 (a PIL image RGB 8×8, 3): ",
    "transforms.ToTensor()",
)
on(
    "paths",
    lambda: ["cat.jpg", "dog.jpg"],
    "batch 0 ('cat.jpg'): read the files into tensors",
    "DataLoader(dataset, batch_size=32)",
)
on(
    "nones",
    lambda: [None],
    "batch 0 (None): give tensors, tuples or lists that start with one, or dicts",
)
on(
    "a dict of another name",
    lambda: [{"image": images(), "label": 3}],
    "batch 0 {image: float32 4×3×8×8, label: 3}: ",
    "none of its keys is an argument of forward(x): give batch['image'], or {'x': ",
)
on(
    "bytes for a detector",
    lambda: [list(bytes_of_images())],
    "batch 0 [uint8 3×8×8, uint8 3×8×8, uint8 3×8×8, uint8 3×8×8]: backbone.0 "
    "(Conv2d 3→8), given uint8 1×3×8×8, raised ",
    "the model takes float32: convert and normalize",
    model=Detector,
)
on(
    "grey images for a detector",
    lambda: [list(images(2, 1, 8, 8))],
    "batch 0 [float32 1×8×8, float32 1×8×8]: backbone.0 (Conv2d 3→8), "
    "given float32 1×1×8×8, raised ",
    "backbone.0 takes (batch, 3, height, width), and got 1 channel",
    model=Detector,
)
on(
    "more samples than a model wants",
    lambda: [images(5, 4)],
    "batch 0 (float32 5×4): the model's own forward (Strict; test_mistakes.py:",
    "raised LookupError: at most 4 samples, got 5",
    model=Strict,
)


# What is given as batches, and is none.


def a_generator_gone_through() -> Any:
    batches = (images() for _ in range(2))
    assert len(list(batches)) == 2
    return batches


def an_iterator_gone_through() -> Iterator[Any]:
    batches = iter([images()])
    next(batches)
    return batches


on(
    "a tensor",
    lambda: images(),
    ": `batches` is a tensor, float32 4×3×8×8, and its rows would be the batches: give [x], ",
    "or x.split(32)",
)
on(
    "an array",
    lambda: arrays(),
    ": `batches` is a NumPy array float32 4×3×8×8: give tensors in a list",
)
on(
    "a path",
    lambda: "photos/train",
    ": `batches` is a path, 'photos/train': give a loader",
    "DataLoader(ImageFolder(path",
)
on(
    "a path object",
    lambda: Path("photos"),
    ": `batches` is a path, 'photos': give a loader of what is there",
)
on("a number", lambda: 4, ": `batches` is 4: give a loader, or a list of batches")
on("nothing", lambda: None, ": `batches` is None: give a loader, or a list of batches")
on(
    "a dataset",
    lambda: TensorDataset(images(), torch.arange(4)),
    ": `batches` is a TensorDataset, which gives single samples: give DataLoader(dataset, ",
)
on(
    "loaders by name",
    lambda: {"train": [images()], "val": [images()]},
    ": `batches` is {train: [float32 4×3×8×8], val: [float32 4×3×8×8]}: give one of ",
    "such as batches['train']",
)
on(
    "one batch",
    lambda: {"x": images()},
    ": `batches` is a dict, {x: float32 4×3×8×8}: if it is one batch, give [batch]",
)
on("a function", lambda: lambda: [images()], ": `batches` is a function: give a loader, called")
on("a recipe", lambda: Recipe.aciq(), ": `batches` is a Recipe, which comes behind the batches: ")
on("no batch", lambda: [], ": `batches` is empty: give at least one batch")
on(
    "batches of no sample",
    lambda: [images(0, 3, 8, 8)],
    "calibrate: no sample in 1 batch, (float32 0×3×8×8): see what the loader ",
)
on(
    "a loader that drops all",
    lambda: DataLoader(TensorDataset(images()), batch_size=32, drop_last=True),
    ": `batches` is empty: a DataLoader with batch_size=32 and drop_last=True",
)
on(
    "a generator gone through",
    a_generator_gone_through,
    ": `batches` is a generator that has been gone through: give a list",
)
on(
    "an iterator gone through",
    an_iterator_gone_through,
    ": `batches` is empty: a list_iterator gives its batches once",
)


# Calls of `forward`.


@mistake(
    CalibrationError,
    "batch 0 (float32 4×3×8×8): the call",
    "raised TypeError: ",
    "it is called as forward(model, batch)",
)
def forward_of_one_argument() -> object:
    wrong: Any = lambda model: model  # noqa: E731
    return fxquant.calibrate(prepared(), [images()], forward=wrong)


@mistake(
    CalibrationError,
    "batch 0 {image: float32 4×3×8×8}: the call (test_mistakes.py:",
    'model(batch["images"])',
    "raised KeyError: 'images'",
)
def forward_that_fails() -> object:
    batches = [{"image": images()}]
    return fxquant.quantize(
        Classifier(), batches, forward=lambda model, batch: model(batch["images"])
    )


@mistake(CalibrationError, "calibrate: forward='predict': give a function that calls the model")
def forward_by_name() -> object:
    wrong: Any = "predict"
    return fxquant.calibrate(prepared(), [images()], forward=wrong)


# The example.


@mistake(
    CalibrationError,
    "example_inputs (uint8 4×3×8×8): conv1 (Conv2d 3→8) raised ",
    "the model takes float32: convert and normalize",
)
def example_of_bytes() -> object:
    return fxquant.prepare(Classifier(), example_inputs=bytes_of_images())


@mistake(
    CalibrationError,
    "example_inputs (float32 1×8×8×3): conv1 (Conv2d 3→8) raised ",
    "the channels are last: x.permute(0, 3, 1, 2)",
)
def example_with_channels_last() -> object:
    return fxquant.prepare(Classifier(), example_inputs=images(1, 8, 8, 3), verify=False)


@mistake(CalibrationError, "example_inputs (1, 3, 8, 8): ", "give torch.randn(1, 3, 8, 8)")
def shape_as_example() -> object:
    return fxquant.prepare(Classifier(), example_inputs=(1, 3, 8, 8))


@mistake(
    CalibrationError,
    "example_inputs (a NumPy array float32 4×3×8×8): ",
    "give tensors: torch.from_numpy(x)",
)
def array_as_example() -> object:
    return fxquant.prepare(Classifier(), example_inputs=arrays())


@mistake(CalibrationError, "example_inputs (a DataLoader): ", "next(iter(loader))")
def loader_as_example() -> object:
    return fxquant.prepare(Classifier(), example_inputs=DataLoader(TensorDataset(images())))


@mistake(CalibrationError, "example_inputs {image: float32 4×3×8×8}: ", "batch['image']")
def example_of_another_name() -> object:
    return fxquant.prepare(Classifier(), example_inputs={"image": images()})


# What is given as a model.


@mistake(
    CaptureError, "model is a RecursiveScriptModule, compiled by torch.jit: give the torch.nn."
)
def scripted_model() -> object:
    script: Any = torch.jit.script
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # torch.jit is on its way out
        scripted = script(Classifier().eval())
    return fxquant.quantize(scripted, [images()])


@mistake(
    CaptureError,
    "model is a state dict ('conv1.weight', 'conv1.bias', 'bn1.weight', …): ",
    "load it with load_state_dict",
)
def state_dict() -> object:
    wrong: Any = Classifier().state_dict()
    return fxquant.prepare(wrong)


@mistake(CaptureError, "model is the class Classifier: give an instance, Classifier(…)")
def class_of_model() -> object:
    wrong: Any = Classifier
    return fxquant.prepare(wrong)


@mistake(CaptureError, "model is 'resnet18.pt', a str: load the model, and give the module")
def path_of_model() -> object:
    wrong: Any = "resnet18.pt"
    return fxquant.quantize(wrong, [images()])


@mistake(CaptureError, "model is an Image: give a torch.nn.Module")
def image_as_model() -> object:
    wrong: Any = picture()
    return fxquant.prepare(wrong)


@mistake(CaptureError, "model is None: give a torch.nn.Module")
def no_model() -> object:
    wrong: Any = None
    return fxquant.prepare(wrong)


@mistake(CaptureError, "ReLU has nothing to quantize: 0 convolution, linear and addition calls")
def model_without_layers() -> object:
    return fxquant.prepare(nn.ReLU())


@mistake(
    PassError,
    "prepare: the model is prepared already: 'observers.x' is an Observer; ",
    "give the float model",
)
def prepared_twice() -> object:
    return fxquant.prepare(prepared())


@mistake(PassError, "prepare: the model is converted already: 'conv1' is a QuantizedConv2d; ")
def quantized_twice() -> object:
    return fxquant.quantize(quantized(), [images()])


@mistake(CaptureError, "leaf_modules='fc': give a list: ['fc']")
def one_leaf_module() -> object:
    return fxquant.prepare(Classifier(), leaf_modules="fc")


@mistake(CaptureError, "leaf_modules: 'head' is no submodule of Classifier; it has conv1, bn1, fc")
def unknown_leaf_module() -> object:
    return fxquant.prepare(Classifier(), leaf_modules=["head"])


@mistake(CaptureError, "regions='backbone': give a list of names: ['backbone']")
def one_region() -> object:
    return fxquant.prepare(Detector(), regions="backbone")


@mistake(CaptureError, "regions: 'back' is no submodule: ", "; it has backbone, head")
def unknown_region() -> object:
    return fxquant.prepare(Detector(), regions=["back"])


# calibrate, convert.


@mistake(PassError, "calibrate: got a Classifier: give what fxquant.prepare(model) returned")
def calibrated_unprepared() -> object:
    return fxquant.calibrate(Classifier(), [images()])


@mistake(PassError, "calibrate: got a list: give what fxquant.prepare(model) returned")
def calibrated_with_arguments_swapped() -> object:
    wrong: Any = [images()]
    return fxquant.calibrate(wrong, prepared())  # type: ignore[arg-type]


@mistake(PassError, "calibrate: got a converted model: give what fxquant.prepare(model) returned")
def calibrated_converted() -> object:
    return fxquant.calibrate(quantized(), [images()])


@mistake(
    CalibrationError,
    "none of the 2 observed tensors has seen a batch: ",
    "run fxquant.calibrate(prepared, batches)",
)
def converted_uncalibrated() -> object:
    return fxquant.convert(prepared())


@mistake(
    CalibrationError,
    "batch 1 (float32 4×1×8×8): conv1 (Conv2d 3→8) raised ",
    "and got 1 channel: convert grey images to RGB",
)
def converted_on_grey_images() -> object:
    return fxquant.convert(calibrated(learned()), [images(), images(4, 1, 8, 8)])


@mistake(
    CalibrationError, "convert: `batches` is a tensor, float32 4×3×8×8, and its rows would be "
)
def converted_on_a_tensor() -> object:
    return fxquant.convert(calibrated(learned()), images())


@mistake(CalibrationError, "convert: `batches` is empty: a list_iterator gives its batches once")
def converted_on_what_calibration_used_up() -> object:
    batches = iter([images()])
    return fxquant.convert(fxquant.calibrate(prepared(learned()), batches), batches)


@mistake(
    CalibrationError, "batch 0: NaN or infinity first in the result of 'x', then in 2 observed"
)
def calibrated_on_nan() -> object:
    return fxquant.calibrate(prepared(), [images() * float("nan")])


# lower, export_onnx, to_qdq.


@mistake(PassError, "lower: got a Classifier: give what fxquant.convert(prepared) returned")
def lowered_float() -> object:
    return fxquant.lower(Classifier())


@mistake(PassError, "lower: got a prepared model: give what fxquant.convert(prepared) returned")
def lowered_unconverted() -> object:
    return fxquant.lower(calibrated())


@mistake(PassError, "lower: got a model that is lowered already: ", needs=needs_int8)
def lowered_twice() -> object:
    return fxquant.lower(lowered())


@mistake(
    CalibrationError,
    "lower: example_inputs (4): ",
    "give one batch: a tensor, a tuple of ",
    needs=needs_int8,
)
def lowered_to_four_bits() -> object:
    return fxquant.lower(quantized(), 4)


@mistake(LoweringError, "lower: backend 'cuda': choose one of x86")
def lowered_for_another_backend() -> object:
    return fxquant.lower(quantized(), backend="cuda")


@mistake(
    CalibrationError,
    "lower: example_inputs (uint8 4×3×8×8): quantize raised TypeError: ",
    "the model takes float32: convert and normalize",
    needs=needs_int8,
)
def lowered_with_bytes() -> object:
    return fxquant.lower(quantized(), bytes_of_images())


@mistake(
    CalibrationError,
    "lower: example_inputs (float32 1×8×8×3): conv1 (Int8Conv 3→8) raised ",
    "the channels are last: x.permute(0, 3, 1, 2)",
    needs=needs_int8,
)
def lowered_with_channels_last() -> object:
    return fxquant.lower(quantized(), images(1, 8, 8, 3))


@mistake(PassError, "export_onnx: got a Classifier: give what fxquant.convert(prepared) returned")
def exported_float() -> None:
    fxquant.export_onnx(Classifier(), "model.onnx", images())


@mistake(StorageError, "export_onnx: path is a Tensor: give the path of the file, then example_inp")
def exported_with_arguments_swapped() -> None:
    fxquant.export_onnx(quantized(), images(), "model.onnx")  # type: ignore[arg-type]


@mistake(
    CalibrationError,
    "export_onnx: example_inputs (uint8 4×3×8×8): conv1 (QuantizedConv2d 3→8)",
    "the model takes float32: convert and normalize",
)
def exported_with_bytes() -> None:
    fxquant.export_onnx(quantized(), "model.onnx", bytes_of_images())


@mistake(CalibrationError, "export_onnx: example_inputs (1, 3, 8, 8): ", "torch.randn(1, 3, 8, 8)")
def exported_with_a_shape() -> None:
    fxquant.export_onnx(quantized(), "model.onnx", (1, 3, 8, 8))


@mistake(CalibrationError, "export_onnx: example_inputs (None): ", "give one batch: a tensor, ")
def exported_with_nothing() -> None:
    fxquant.export_onnx(quantized(), "model.onnx", None)


@mistake(LoweringError, "export_onnx: opset=11: choose 18, which is PyTorch's least, or more")
def exported_in_an_old_opset() -> None:
    fxquant.export_onnx(quantized(), "model.onnx", images(), opset=11)


@mistake(PassError, "to_qdq: got a Classifier: give what fxquant.convert(prepared) returned")
def standard_operators_of_a_float_model() -> object:
    return fxquant.to_qdq(Classifier())


# report, compare, text, trace.


@mistake(PassError, "report: got a Classifier, which has no graph: give what prepare, convert or ")
def report_of_a_float_model() -> object:
    return fxquant.report(Classifier())


@mistake(
    PassError, "report: got a str, which has no graph: give what prepare, convert or lower made"
)
def report_of_a_path() -> object:
    wrong: Any = "model.fxq"
    return fxquant.report(wrong)


@mistake(CalibrationError, "report: `reference` without `batches`: give both, and outputs are comp")
def report_without_batches() -> object:
    return fxquant.report(quantized(), reference=float_model())


@mistake(
    PassError,
    "report: the weight of 'conv1' in the float model is not what was quantized: ",
    "give the model that was quantized",
)
def report_against_another_model() -> object:
    torch.manual_seed(1)
    return fxquant.report(quantized(), reference=Classifier(), batches=[images()])


@mistake(
    CalibrationError,
    "batch 1 (uint8 4×3×8×8): conv1 (Conv2d 3→8) raised ",
    "the model takes float32: convert and normalize",
)
def report_on_bytes() -> object:
    batches = [images(), bytes_of_images()]
    return fxquant.report(quantized(), reference=float_model(), batches=batches)


@mistake(CalibrationError, "report: `batches` is a tensor, float32 4×3×8×8, ", "give [x]")
def report_on_a_tensor() -> object:
    return fxquant.report(quantized(), reference=float_model(), batches=images())


@mistake(
    CalibrationError,
    "batch 1 (float32 4×3×16×16): fc (QuantizedLinear 512→10), given ",
    "another size of images than it was made for",
    needs=needs_int8,
)
def comparison_on_larger_images() -> object:
    return fxquant.compare(quantized(), lowered(), [images(), images(4, 3, 16, 16)])


@mistake(PassError, "compare: got a Classifier, which has no graph: give what prepare, convert, ")
def comparison_of_float_models() -> object:
    return fxquant.compare(Classifier(), Classifier(), [images()])


@mistake(
    PassError,
    "compare: 'fc' is QuantizedLinear 512→10 in the one model, and ",
    "8→2",
    "give two forms of one model",
)
def comparison_of_two_models() -> object:
    flat = nn.Sequential()
    flat.add_module("fc", nn.Linear(8, 2))
    other = fxquant.quantize(flat, [images(4, 8)])
    return fxquant.compare(quantized(), other, [images()])


@mistake(
    PassError, "text: got a Classifier, which has no graph: text(fxquant.trace(model)) prints "
)
def text_of_a_float_model() -> object:
    return fxquant.text(Classifier())


@mistake(PassError, "text: got a Report, which has no graph: ")
def text_of_a_report() -> object:
    wrong: Any = fxquant.report(quantized())
    return fxquant.text(wrong)


@mistake(
    PassError, "FoldBatchNorm works on a GraphModule, got Classifier: make one with fxquant.tr"
)
def pass_over_a_float_model() -> object:
    wrong: Any = Classifier()
    return FoldBatchNorm()(wrong)


# save, load.


@mistake(StorageError, "save: model is a str: give a torch.nn.Module")
def saved_with_arguments_swapped() -> None:
    wrong: Any = "model.fxq"
    fxquant.save(wrong, quantized())  # type: ignore[arg-type]


@mistake(StorageError, "save: /none/model.fxq: cannot be written: ", "make the folder first")
def saved_into_no_folder() -> None:
    fxquant.save(quantized(), "/none/model.fxq")


@mistake(StorageError, "load: /none/model.fxq: there is no such file")
def loaded_from_nowhere() -> object:
    return fxquant.load("/none/model.fxq")


@mistake(StorageError, "load: path is a BytesIO: give the path of a file")
def loaded_from_an_open_file() -> object:
    wrong: Any = io.BytesIO()
    return fxquant.load(wrong)


@mistake(StorageError, "weights.pt: it is not an fxquant file: ", "try torch.load")
def loaded_from_torch() -> object:
    torch.save(Classifier().state_dict(), "weights.pt")
    return fxquant.load("weights.pt")


# search, measure_sensitivities.


@mistake(CalibrationError, "batch 1 (float32 4×1×8×8): conv1 (Conv2d 3→8) raised ")
def search_on_grey_images() -> object:
    return fxquant.search(Classifier(), [images(), images(4, 1, 8, 8)])


@mistake(CalibrationError, "search: 1 batch: give at least two, one to judge by, or `evaluate`")
def search_on_one_batch() -> object:
    return fxquant.search(Classifier(), [images()])


@mistake(
    CalibrationError, "search: `evaluate` returned None for the float model: return one number"
)
def search_by_no_score() -> object:
    wrong: Any = lambda model: None  # noqa: E731
    return fxquant.search(Classifier(), [images()], evaluate=wrong)


@mistake(RecipeError, "search: evaluate=93.5: give a function that takes a model and returns its ")
def search_by_a_number() -> object:
    wrong: Any = 93.5
    return fxquant.search(Classifier(), [images()], evaluate=wrong)


@mistake(RecipeError, "search: a Recipe among the rungs: give Rung(name, recipe)")
def search_among_recipes() -> object:
    wrong: Any = [Recipe.aciq()]
    return fxquant.search(Classifier(), [images()] * 2, rungs=wrong)


@mistake(RecipeError, "search: max_drop=-1: give 0 or a positive number")
def search_for_less_than_nothing() -> object:
    return fxquant.search(Classifier(), [images()] * 2, max_drop=-1)


@mistake(
    CalibrationError,
    "batch 0 (uint8 4×3×8×8): conv1 (Conv2d 3→8) raised ",
    "the model takes float32: convert and normalize",
)
def sensitivities_on_bytes() -> object:
    budget = Budget(average_bits=4)
    return fxquant.measure_sensitivities(calibrated(), [bytes_of_images()], budget)


@mistake(CalibrationError, "measure_sensitivities: `batches` is a Budget: give a loader, or a list")
def sensitivities_with_arguments_swapped() -> object:
    wrong: Any = Budget(average_bits=4)
    return fxquant.measure_sensitivities(calibrated(), wrong, [images()])  # type: ignore[arg-type]


@pytest.mark.parametrize(("make", "error", "says"), MISTAKES)
def test_a_mistake_is_told_with_its_place_its_values_and_the_way_out(
    make: Make,
    error: type[Exception],
    says: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with pytest.raises(error) as raised:
        make()
    text = str(raised.value)
    for part in says:
        assert part in text
    assert isinstance(raised.value, FxquantError)
    assert "\n" not in text
    assert len(text) < 600
    if " raised " in text:
        cause = raised.value.__cause__
        assert cause is not None
        assert f" raised {type(cause).__name__}" in text
    assert "Traceback" not in capfd.readouterr().err
