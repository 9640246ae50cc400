"""Files made by hand, one of each kind, are refused, and do nothing else."""

import json
import os
import time
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import fxquant
from benchmarks.storage_fuzz import (
    Branching,
    Parts,
    Watch,
    originals,
    put_together,
    run,
    take_apart,
    with_digest,
)
from fxquant import StorageError

Change = Callable[[Parts], object]
X = ["node", 0]
SYSTEM = ["function", "os:system"]
RELU = ["function", "torch:relu"]
PARTIAL = ["partial", RELU, ["tuple"], ["dict", {}]]
LARGE = ["=00000000", "torch.int32", [2**29], "tensor", False]
LINEAR = "torch.nn.modules.linear:Linear"
METHOD = ["method", ["again", 0], "fxquant:FirstCalls.end"]
WEIGHTS = "torchvision.models.resnet:ResNet18_Weights"


class Small(nn.Module):
    """Holds a convolution, a linear layer, and tensors that share memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 2)
        table = torch.arange(6.0)
        self.table: Tensor
        self.start: Tensor
        self.register_buffer("table", table)
        self.register_buffer("start", table[:2])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x)).mean((2, 3))
        scores: Tensor = (self.fc(y) * self.start).sum() * self.table
        return scores


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of files that nobody changed."""
    torch.manual_seed(0)
    x = torch.randn(2, 1, 5, 5)
    recipe = fxquant.Recipe.minmax(weight_bits=4)
    prepared = fxquant.calibrate(fxquant.prepare(Small().eval(), recipe), [x])
    models = {"prepared": prepared, "converted": fxquant.convert(prepared)}
    path, files = tmp_path_factory.mktemp("files") / "model.fxq", {}
    for name, model in models.items():
        fxquant.save(model, path)
        files[name] = path.read_bytes()
    return files


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("files") / "model.fxq"
    try:
        model = fxquant.lower(fxquant.quantize(Small().eval(), [torch.randn(2, 1, 5, 5)]))
    except fxquant.LoweringError as error:
        pytest.skip(str(error))
    fxquant.save(model, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def named(tree: Any, name: str) -> Any:
    """Return the state of the first object or module of a class, by the end of its name."""
    for part in tree if isinstance(tree, list) else tree.values() if isinstance(tree, dict) else ():
        if (
            isinstance(part, list)
            and part[:1] in (["module"], ["object"])
            and part[1].endswith(name)
        ):
            return part[2]
        found = named(part, name)
        if found is not None:
            return found
    return None


def state(parts: Parts) -> Any:
    """Return the attributes of the graph's module."""
    return parts.model[2]


def modules(parts: Parts) -> Any:
    return state(parts)["_modules"][1]


def conv(parts: Parts) -> Any:
    return named(parts.model, "QuantizedConv2d")


def of_conv(name: str, value: Any) -> Change:
    return lambda parts: conv(parts).update({name: value})


def own(name: str, value: Any) -> Change:
    return lambda parts: state(parts).update({name: value})


def node(*written: Any) -> Change:
    """Let the graph hold a node behind its input."""
    return lambda parts: parts.model[3].insert(1, [*written, {}, {}])


def call(function: str, *args: Any, **kwargs: Any) -> Change:
    return lambda parts: parts.model[3].insert(
        1, ["call_function", "y", function, list(args), kwargs, {}]
    )


def entry(name: str, change: Callable[[list[Any]], object]) -> Change:
    """Change what is known of a tensor."""
    return lambda parts: change(next(each for each in parts.entries if each[0].endswith(name)))


def put(place: int, value: Any) -> Callable[[list[Any]], object]:
    return lambda known: known.__setitem__(place, value)


def block(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    """Change a tensor, and what is known of it."""

    def write(parts: Parts) -> None:
        known = next(each for each in parts.entries if each[0].endswith(name))
        tensor = parts.blocks[known[0]] = change(parts.blocks[known[0]])
        known[1:3] = [str(tensor.dtype), list(tensor.shape)]

    return write


def twice(known: list[Any]) -> None:
    known[0], known[2] = "fc.bias", [2]


def hook(number: Any, value: Any, kind: str = "_forward_hooks") -> Change:
    return own(kind, ["ordered", [number, value]])


RUNS_CODE: list[tuple[str, Change]] = [
    ("the name of a method", own("modules", PARTIAL)),
    ("names the method", own("a", ["method", ["again", 0], "torch.fx:GraphModule.to_folder"])),
    ("the name of a method", own("recompile", RELU)),
    ("the name of a method", own("forward", RELU)),
    ("the name of a method", own("_call_impl", RELU)),
    ("the name of a method", own("_compiled_call_impl", RELU)),
    ("the name of a method", own("_wrapped_call", PARTIAL)),
    ("the name of a method", own("_compiled_call_impl", ["again", 0])),
    ("the name of a method", own("graph", RELU)),
    ("what fx makes itself", own("_code", "import os")),
    ("what fx makes itself", own("_graph", RELU)),
    ("no bool | None", own("_is_full_backward_hook", RELU)),
    ("such a name", own("__deepcopy__", RELU)),
    ("such a name", own("__call__", RELU)),
    ("such a name", own("a b", 1)),
    ("the name of a method", of_conv("extra_repr", RELU)),
    ("the name of a method", of_conv("weight", ["tensor", 0])),
    ("no dict[str, ", own("_modules", ["dict", {"fc": RELU}])),
    ("no dict[str, ", own("_modules", ["dict", {"fc": PARTIAL}])),
    ("no dict[str, ", own("_modules", ["dict", {"fc": ["type", LINEAR]}])),
    ("no dict[str, ", own("_modules", ["dict", {"fc": ["tensor", 0]}])),
    ("such a name", own("_modules", ["dict", {"modules": None}])),
    ("such a name", own("_modules", ["dict", {"a.b": None}])),
    ("_modules of ", own("_modules", ["again", 1])),
    ("_modules of ", own("_modules", ["list"])),
    ("no dict[str, ", own("_parameters", ["dict", {"w": RELU}])),
    ("no dict[str, ", own("_parameters", ["dict", {"w": ["again", 0]}])),
    ("no dict[str, ", own("_buffers", ["dict", {"w": ["again", 0]}])),
    ("no hook of fxquant's", hook(0, RELU)),
    ("no hook of fxquant's", hook(0, PARTIAL)),
    ("no hook of fxquant's", hook(0, ["again", 0])),
    ("the method 'fxquant:FirstCalls.end' of a ", hook(0, METHOD)),
    ("such a number", hook(-1, ["object", "fxquant:NotePart", {}])),
    ("such a number", hook(2**40, ["object", "fxquant:NotePart", {}])),
    ("no dict[int, ", hook(["float", "inf"], ["object", "fxquant:NotePart", {}])),
    ("no dict[int, bool]", hook(0, "yes", "_forward_hooks_with_kwargs")),
    ("no NoneType", hook(0, RELU, "_backward_hooks")),
    ("no NoneType", hook(0, RELU, "_state_dict_hooks")),
    ("no NoneType", hook(0, RELU, "_load_state_dict_pre_hooks")),
    ("names the class", own("weights", ["enum", WEIGHTS, "DEFAULT"])),
    ("of what is no object", own("a", ["method", ["enum", WEIGHTS, "DEFAULT"], "get_state_dict"])),
    ("names the class", own("a", ["object", "torchvision.models._api:Weights", {}])),
    ("names the class", own("a", ["object", "subprocess:Popen", {}])),
    ("names the class", own("a", ["object", "fxquant:Checkpoint", {}])),
    ("names the class", own("a", ["module", "torchvision.transforms.v2._misc:Lambda", {}])),
    ("names the class", own("a", ["module", "torch.nn.parallel.data_parallel:DataParallel", {}])),
    ("names the class", own("a", ["module", "torch.fx.graph_module:GraphModule", {}])),
    ("as an object", own("a", ["object", LINEAR, {}])),
    ("a file holds no model", own("a", ["module", "fxquant:FirstCalls", {
        "held": ["tuple", ["again", 0], RELU, ["list"]], "seen": ["list"], "places": ["set"],
        "_expected": None}])),
    ("as a value", own("a", ["function", "builtins:getattr"])),
    ("a partial call", own("a", ["partial", ["again", 0], ["tuple"], ["dict", {}]])),
    ("names the function", own("a", SYSTEM)),
    ("names the function", own("a", ["function", "torchvision.ops.roi_align:lazy_compile"])),
    ("names the function", call("os:system", "true")),
    ("names the function", call("torch.hub:load", "a", "b")),
    ("names the function", call("torch.ops:aten._unsafe_index.Tensor", X)),
    ("names the function", call("torch.ops:onednn.qlinear_pointwise.default", X)),
    ("names the function", call("torch.ops:quantized.linear.default", X)),
    ("names the function", call("fxquant:FirstCalls.begin", X)),
    ("names the function", call("torch:sparse_csr_tensor", X)),
    ("a look at the attribute '__globals__'", call("builtins:getattr", X, "__globals__")),
    ("a look at the attribute 'func'", call("builtins:getattr", X, "func")),
    ("max(key=…)", call("builtins:max", X, key=X)),
    ("a call of the method 'new'", node("call_method", "y", "new", [X])),
    ("a call of the method 'data_ptr'", node("call_method", "y", "data_ptr", [X])),
    ("a call of the method 'to_folder'", node("call_method", "y", "to_folder", [X, "here"])),
    ("get_attr of 'forward'", node("get_attr", "y", "forward", [])),
    ("get_attr of 'fc'", node("get_attr", "y", "fc", [])),
    ("a node 'self'", node("call_method", "self", "relu", [X])),
    ("a node 'x; import os'", node("call_method", "x; import os", "relu", [X])),
    ("a node that does 'exec'", node("exec", "y", "relu", [X])),
    ("IndexError", node("call_method", "y", "relu", [["node", 99]])),
    ("a field that the class has not", lambda parts: parts.model[3][0][5].update(meta=RELU)),
    ("no bool", lambda parts: parts.model[3][0][5].update(skipped=RELU)),
]  # fmt: skip
LIES: list[tuple[str, Change]] = [
    ("bits=1", lambda parts: named(parts.model, "TensorSpec").update(bits=1)),
    ("bits=64", lambda parts: named(parts.model, "TensorSpec").update(bits=64)),
    ("no int", lambda parts: named(parts.model, "TensorSpec").update(bits=8.0)),
    ("has no attribute", lambda parts: named(parts.model, "Grid").clear()),
    ("the class has not", lambda parts: named(parts.model, "Recipe").update(other=1)),
    ("stride is a tuple: not positive", of_conv("stride", ["tuple", 0, 1])),
    ("groups is 0: not positive", of_conv("groups", 0)),
    ("dilation is a tuple: not positive", of_conv("dilation", ["tuple", -1, 1])),
    ("kernel_size is a tuple: not positive", of_conv("kernel_size", ["tuple", 0, 0])),
    ("a weight of", of_conv("out_channels", 100_000)),
    ("bytes, where", of_conv("weight_shape", ["tuple", 2**40, 1, 3, 3])),
    ("scales of shape (2,)", block("conv.weight_scale", lambda scale: scale[:2])),
    ("not all positive", block("conv.weight_scale", lambda scale: scale * torch.nan)),
    ("not all positive", block("conv.weight_scale", lambda scale: -scale)),
    ("scales of torch.float64", block("conv.weight_scale", lambda scale: scale.double())),
    ("bias of (3,)", block("conv.bias", lambda bias: bias[:3])),
    ("bytes, where", block("conv.weight_packed", lambda packed: packed[:5])),
    ("is no grid", lambda parts: named(parts.model, "Grid").update(quant_max=2**40)),
    ("bytes of one value", lambda parts: parts.entries.append(LARGE)),
    ("describes no tensor", entry("conv.bias", put(1, "torch.strided"))),
    ("describes no tensor", entry("conv.bias", put(2, [-4]))),
    ("describes no tensor", entry("conv.bias", put(0, 3))),
    ("'conv.bias' is torch.float32", entry("conv.bias", put(2, [2**40]))),
    ("'conv.bias' is torch.float32", entry("conv.bias", put(1, "torch.float16"))),
    ("it holds no tensor 'other'", entry("conv.bias", put(0, "other"))),
    ("two tensors are 'fc.bias'", entry("conv.bias", twice)),
    ("is no view of 'memory.0'", entry("memory.0", put(2, [2**40]))),
    ("is no view of 'memory.0'", entry("memory.0", put(5, [-1]))),
    ("out of bounds", entry("memory.0", put(6, 5))),
    ("no tensor of its model", lambda parts: parts.blocks.update(more=torch.ones(1))),
    ("it holds int, not a model", lambda parts: setattr(parts, "model", 3)),
    ("it holds Tensor, not a model", lambda parts: setattr(parts, "model", ["tensor", 0])),
    ("the number -1", lambda parts: setattr(parts, "model", ["tensor", -1])),
    ("keys in a set", own("a", ["set", *((2**61 - 1) * n for n in range(20_000))])),
    ("is of format version 99", lambda parts: parts.fields.update(version=99)),
    ("torch is wrong", lambda parts: parts.fields.update(torch=3)),
    ("custom is wrong", lambda parts: parts.fields.update(custom=[3])),
    ("it names system, which a file may", lambda parts: parts.fields.update(custom=["os:system"])),
]  # fmt: skip


def refusal(content: bytes, path: Path, watch: Watch) -> str:
    """Return why a file was not read; it must have done nothing else."""
    path.write_bytes(content)
    start = time.perf_counter()
    tracemalloc.start()
    with watch.on(), pytest.raises(StorageError) as caught:
        fxquant.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not watch.seen
    assert time.perf_counter() - start < 10
    assert peak < 2**30
    message = str(caught.value)
    assert message.startswith(f"load: {path}: ")
    return message.removeprefix(f"load: {path}: ")


@pytest.mark.parametrize(("reason", "change"), RUNS_CODE + LIES)
def test_a_file_made_by_hand_is_refused(
    reason: str, change: Change, contents: dict[str, bytes], tmp_path: Path, watch: Watch
) -> None:
    parts = take_apart(contents["converted"])
    change(parts)
    assert reason in refusal(put_together(parts), tmp_path / "model.fxq", watch)


def test_the_file_that_is_changed_loads(contents: dict[str, bytes], tmp_path: Path) -> None:
    for content in contents.values():
        (tmp_path / "model.fxq").write_bytes(put_together(take_apart(content)))
        fxquant.load(tmp_path / "model.fxq")


def of_int8(**fields: Any) -> Change:
    """Change the fields of a convolution on integers, and its geometry, which says some again."""

    def write(parts: Parts) -> None:
        known = named(parts.model, "Int8Conv")
        known.update(fields)
        known["geometry"][2:] = [
            known[each] for each in ("stride", "padding", "dilation", "groups")
        ]

    return write


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("Geometry.stride is a tuple: not positive", of_int8(stride=["tuple", 0, 1])),
        ("Geometry.dilation is a tuple: not positive", of_int8(dilation=["tuple", 1, -1])),
        ("for 2 axes", of_int8(padding=["tuple", -1, 0])),
        ("for 2 axes", of_int8(stride=["tuple", 1], padding=["tuple", 1], dilation=["tuple", 1])),
        ("4 outputs in 3 groups", of_int8(groups=3)),
        ("is right", lambda parts: named(parts.model, "Int8Conv")["result"].__setitem__(3, 1000)),
        ("no int", lambda parts: named(parts.model, "Int8Conv")["result"].__setitem__(3, 1.5)),
        ("that are not all on", lambda parts: named(parts.model, "Numbers").update(zero_point=900)),
        ("not all positive", lambda parts: named(parts.model, "Numbers").update(scale=0.0)),
        ("that are no uint8", lambda parts: named(parts.model, "Grid").update(quant_max=999)),
        ("scales of shape (2,)", block("conv.weight_scale", lambda scale: scale[:2])),
        ("a bias of torch.float32, (3,)", block("conv.bias", lambda bias: bias[:3])),
        ("a weight of torch.int16", block("conv.weight_integers", lambda each: each.short())),
    ],
)
def test_a_lowered_model_whose_kernels_would_read_elsewhere_is_refused(
    reason: str, change: Change, lowered: bytes, tmp_path: Path, watch: Watch
) -> None:
    parts = take_apart(lowered)
    change(parts)
    assert reason in refusal(put_together(parts), tmp_path / "model.fxq", watch)


def test_an_observer_of_other_sizes_is_refused(
    contents: dict[str, bytes], tmp_path: Path, watch: Watch
) -> None:
    parts = take_apart(contents["prepared"])
    block("counts", lambda counts: counts[:7])(parts)
    message = refusal(put_together(parts), tmp_path / "model.fxq", watch)
    assert "(7,) counts, where 16384 are right" in message


def with_tree(parts: Parts, packed: bytes) -> bytes:
    """Return a file whose tree is other bytes."""
    fields = {**parts.fields, "sha256": "0" * 64, "tree": b64encode(packed).decode()}
    metadata = {"fxquant": json.dumps(fields)}
    return with_digest(safetensors.torch.save(parts.blocks, metadata), "0" * 64)


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (zlib.compress(b"0" * 2**30, 1), "longer than 67108864 bytes"),
        (zlib.compress(b"[" + b"[]," * 2**23 + b"0]"), "where a file has room for"),
        (zlib.compress(b"[" * 200_000), "RecursionError"),
        (zlib.compress(b"{"), "its header is none: JSONDecodeError"),
        (zlib.compress(b'{"model": 1}')[:-4], "no whole one"),
        (b"no zlib", "its header is none: error"),
        (zlib.compress(b'{"model": 1}'), "KeyError: 'tensors'"),
        (zlib.compress(b"9" * 5000), "its header is none"),
    ],
    ids=["bomb", "many", "nested", "torn", "cut", "other", "without tensors", "long number"],
)
def test_a_tree_that_is_none_is_refused(
    packed: bytes, reason: str, contents: dict[str, bytes], tmp_path: Path, watch: Watch
) -> None:
    content = with_tree(take_apart(contents["converted"]), packed)
    assert reason in refusal(content, tmp_path / "model.fxq", watch)


@pytest.mark.parametrize("place", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(place: str, tmp_path: Path, watch: Watch) -> None:
    path = {"device": Path("/dev/zero"), "folder": tmp_path}.get(place, tmp_path / "pipe")
    if place == "pipe":
        os.mkfifo(path)
    with pytest.raises(
        StorageError, match="not a file with content, but a folder, a pipe or a dev"
    ):
        fxquant.load(path)


def test_no_hook_number_of_a_file_ends_the_numbers_of_the_process(
    contents: dict[str, bytes], tmp_path: Path, watch: Watch
) -> None:
    parts = take_apart(contents["converted"])
    hook(["float", "inf"], ["object", "fxquant:NotePart", {}])(parts)
    refusal(put_together(parts), tmp_path / "model.fxq", watch)
    nn.Linear(1, 1).register_forward_hook(lambda *_: None).remove()


@pytest.fixture(scope="module")
def outcomes() -> dict[int, str]:
    found: dict[int, str] = {}
    run(range(2_000), found.__setitem__)
    return found


def test_of_2000_changed_files_none_does_harm_or_raises_something_else(
    outcomes: dict[int, str],
) -> None:
    assert {text for text in outcomes.values() if ":" in text} == set()
    assert len(outcomes) == 2_000
    counts = [list(outcomes.values()).count(each) for each in ("refused", "loaded and runs")]
    assert counts[0] > 1_500  # the changes reach what is checked
    assert counts[1] > 20  # and some leave a model as good as before


def test_the_originals_load(tmp_path: Path) -> None:
    for parts in originals():
        (tmp_path / "model.fxq").write_bytes(put_together(parts))
        fxquant.load(tmp_path / "model.fxq", custom=[Branching])
