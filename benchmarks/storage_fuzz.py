"""Files that someone changed, loaded and called: what came of it.

    python -m benchmarks.storage_fuzz [--files 100000] [--seed 0] [--processes 2]

A file of a small model is read by hand, something in it is replaced (a part of the tree by another
part, by a number or a name that may do harm, by nothing; an entry of a tensor; a byte), and its
digest is computed anew. Then `fxquant.load` reads it, and what it returns is called. Counted are
the refusals (`StorageError`), what loads, and what must not be: other errors of `load`, anything
that reaches a file, a process or the network (as Python's audit events tell), loads of more than
10 s or 1 GB, deaths of the process. Each seed is one file: `--files 1 --seed N` repeats one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import zlib
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

import fxquant
from fxquant.storage.known_functions import known_attributes, known_functions, known_methods
from fxquant.stored_names import stored_names

MAX_SECONDS, MAX_BYTES = 10, 2**30
_WRITES = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "shutil.")
_CHUNK = 500  # files a process: what one leaves behind is not that of 100,000


@dataclass
class Parts:
    """A file, taken apart by hand."""

    fields: dict[str, Any]
    """What fxquant keeps among the metadata, but the tree."""
    model: Any
    entries: Any
    blocks: dict[str, Tensor]


def take_apart(content: bytes) -> Parts:
    """Return the parts of a file that `fxquant.save` wrote."""
    size = int.from_bytes(content[:8], "little")
    fields = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["fxquant"])
    tree = json.loads(zlib.decompress(b64decode(fields.pop("tree"))))
    return Parts(fields, tree["model"], tree["tensors"], safetensors.torch.load(content))


def put_together(parts: Parts) -> bytes:
    """Return a file of these parts, with its digest."""
    tree = json.dumps({"model": parts.model, "tensors": parts.entries})
    packed = b64encode(zlib.compress(tree.encode(), 1)).decode()
    fields = {**parts.fields, "sha256": "0" * 64, "tree": packed}
    blocks = {name: block.contiguous() for name, block in parts.blocks.items()}
    return with_digest(safetensors.torch.save(blocks, {"fxquant": json.dumps(fields)}), "0" * 64)


def with_digest(content: bytes, stated: str) -> bytes:
    """Return a file with the digest of what it holds now in the place of the one that it states."""
    blank = content.replace(stated.encode(), b"0" * 64)
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


class Residual(nn.Module):
    """A block of a network, its head, and a part that asks for the sizes of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores, (N, 5)."""
        y = torch.relu(self.norm(self.conv(x)))
        y = torch.cat([y, self.depthwise(y) + y], dim=1).clamp(-3, 3)[:, 2:6]
        tokens = y.flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        scores: Tensor = self.fc(tokens.mean(1)).softmax(-1)
        return scores


class Branching(nn.Module):
    """A model that is traced in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of scores."""
        y = self.stem(x)
        maps: Tensor = self.head(y) if float(y.sum()) > 0 else self.head(-y)
        return maps


def originals() -> list[Parts]:
    """Return the files that are changed: of models of each stage, whole and in parts."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    prepared = fxquant.calibrate(fxquant.prepare(Residual().eval()), [x])
    converted = fxquant.convert(prepared)
    models = [prepared, converted, fxquant.to_qdq(converted)]
    with contextlib.suppress(fxquant.LoweringError):  # no processor of x86
        models.append(fxquant.lower(converted))
    recipe = fxquant.Recipe.adaround(steps=2, weight_bits=4)
    models.append(fxquant.calibrate(fxquant.prepare(Branching().eval(), recipe), [x]))
    models.append(fxquant.quantize(Branching().eval(), [x], fxquant.Recipe.aciq(weight_bits=3)))
    with tempfile.TemporaryDirectory() as folder:
        path, files = Path(folder) / "model.fxq", list[Parts]()
        for model in models:
            fxquant.save(model, path)
            files.append(take_apart(path.read_bytes()))
    return files


_NAMES = [
    *(f"fxquant:{name}" for name in stored_names()), *known_functions(), *known_methods(),
    *known_attributes(), "os:system", "builtins:eval", "builtins:open", "torch:load",
    "torch.hub:load", "subprocess:Popen", "torchvision.models.resnet:ResNet18_Weights",
    "torch.nn.modules.linear:Linear", "torch.nn.modules.container:Sequential", "fxquant:FirstCalls",
    "torch.nn.modules.conv:Conv2d", "torchvision.models.detection.rpn:RegionProposalNetwork",
    "torch.ops:aten.relu.default",
    "torch.ops:aten._unsafe_index.Tensor", "torch.ops:onednn.qconv_pointwise.default", "forward",
    "__call__", "__class__", "__dict__", "__globals__", "_modules", "_parameters", "modules",
    "weight", "recompile", "to_folder", "_compiled_call_impl", "stride", "groups", "self", "x",
    "spec", "bits",
]  # fmt: skip
_SCALARS = [
    None, True, 0, 1, -1, 2, 7, 255, 2**31, 2**63, -(2**63), 10**40, 0.0, 1e38, 1e-45, "", "0", ".",
    ["float", "inf"], ["float", "nan"], ["torch", "torch.float32"], ["device", "cuda:7"], ["..."],
]  # fmt: skip
_WRAPPED: list[Callable[[Any, random.Random], Any]] = [
    lambda part, _: ["list", part],
    lambda part, _: ["partial", ["function", "builtins:getattr"], ["tuple", part], ["dict", {}]],
    lambda part, _: ["method", part, "fxquant:FirstCalls.end"],
    lambda part, rng: ["again", rng.randrange(40)],
    lambda part, rng: ["tensor", rng.randrange(40)],
    lambda part, rng: ["function", rng.choice(_NAMES)],
    lambda part, rng: ["type", rng.choice(_NAMES)],
    lambda part, rng: ["object", rng.choice(_NAMES), {"state": part}],
    lambda part, _: ["dict", {"a": part}],
    lambda part, _: ["weakref", part],
    lambda part, _: ["set", part, _again(part)],
]


def changed(files: list[Parts], seed: int) -> bytes:
    """Return a file in which something is other than `fxquant.save` writes it."""
    rng = random.Random(seed)
    parts = _copied(rng.choice(files))
    if rng.random() < 0.1:
        return _changed_bytes(put_together(parts), rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        where = rng.random()
        if where < 0.75:
            _change_tree(parts.model, rng.choice(files).model, rng)
        elif where < 0.9:
            _change_tree(parts.entries, rng.choice(files).entries, rng)
        elif parts.blocks:
            name = rng.choice(sorted(parts.blocks))
            block = parts.blocks.pop(name)
            kept = block.reshape(-1)[: rng.randrange(block.numel() + 1)] if block.numel() else block
            parts.blocks[rng.choice([name, rng.choice(_NAMES)])] = kept.to(
                rng.choice([block.dtype, torch.float32, torch.int8])
            )
    return put_together(parts)


def _changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return a file with some bytes changed, most of them in the header; its digest is right."""
    size = 8 + int.from_bytes(content[:8], "little")
    stated = json.loads(json.loads(content[8:size])["__metadata__"]["fxquant"])["sha256"]
    altered = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 20))):
        altered[rng.randrange(size if rng.random() < 0.8 else len(content))] = rng.randrange(256)
    if rng.random() < 0.2:
        del altered[rng.randrange(len(altered)) :]
    return with_digest(bytes(altered), stated)


def _copied(parts: Parts) -> Parts:
    fields, model, entries = map(_again, (parts.fields, parts.model, parts.entries))
    return Parts(fields, model, entries, dict(parts.blocks))


def _again(tree: Any) -> Any:
    return json.loads(json.dumps(tree))


def _change_tree(tree: Any, other: Any, rng: random.Random) -> None:
    """Replace, drop, or put in twice one part of a tree."""
    if not tree:
        return
    holder, key = _some_place(tree, rng)
    part, how = holder[key], rng.random()
    if how < 0.3:
        holder[key] = _again(rng.choice(_SCALARS))
    elif how < 0.5:
        place, foreign = _some_place(other, rng)
        holder[key] = _again(place[foreign])
    elif how < 0.65:
        holder[key] = rng.choice(_WRAPPED)(part, rng)
    elif how < 0.85 and isinstance(part, str):
        holder[key] = rng.choice(_NAMES)
    elif how < 0.9:
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, _again(part))
    else:
        holder[rng.choice(_NAMES)] = _again(part)


def _some_place(tree: Any, rng: random.Random) -> tuple[Any, Any]:
    """Return what holds some part of a tree, and its key there: near the end of a way down."""
    way, part = list[tuple[Any, Any]](), tree
    while isinstance(part, (list, dict)) and part:
        keys = list(range(len(part))) if isinstance(part, list) else list(part)
        inner = [key for key in keys if isinstance(part[key], (list, dict))]
        key = rng.choice(inner if inner and rng.random() < 0.9 else keys)
        way.append((part, key))
        part = part[key]
    return way[max(0, len(way) - rng.choice((1, 1, 2, 3, 5)))]


class Watch:
    """Tells what reached out of the process, by Python's audit events."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._is_on = False
        sys.addaudithook(self._note)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Watch inside the context."""
        self.seen, self._is_on = [], True
        try:
            yield
        finally:
            self._is_on = False

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._is_on:
            return
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or event.startswith(_WRITES):
            self.seen.append(f"{event} {args!r:.200}")


def outcome(path: Path, watch: Watch, x: Tensor) -> str:
    """Return what came of loading a file, and of calling what it holds."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with watch.on():
        try:
            model = fxquant.load(path, custom=[Branching])
        except fxquant.StorageError:
            result = "refused"
        except Exception as error:
            result = f"raw error: {type(error).__name__}: {error!s:.200}"
        else:
            result = "loaded"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        seconds = time.perf_counter() - start
        if result == "loaded":
            # fx prints what was wrong in the code of a graph
            with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
                model(x)
                result = "loaded and runs"
    if watch.seen:
        return f"reached out: {watch.seen[0]}"
    if seconds > MAX_SECONDS or grown > MAX_BYTES:
        return f"too much: {seconds:.1f} s, {grown / 2**30:.2f} GiB"
    return result


def run(seeds: range, note: Callable[[int, str], None]) -> None:
    """Load the files of some seeds in this process, and note what came of each."""
    files, watch, x = originals(), Watch(), torch.randn(2, 3, 6, 6)
    logger = logging.getLogger("fxquant")
    logger.disabled = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.fxq"
        for seed in seeds:
            path.write_bytes(changed(files, seed))
            note(seed, outcome(path, watch, x))
    logger.disabled = False


def _run_in_child(seeds: range, results: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30,) * 2)
    torch.set_num_threads(1)
    signal.alarm(60)  # kills a process that is stuck in one file
    run(seeds, lambda seed, text: (signal.alarm(60), results.put((seed, text)))[0])  # type: ignore


def main() -> None:
    """Print how many files came to what, and all that must not be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    counts, faults = Counter[str](), dict[int, str]()
    context = multiprocessing.get_context("spawn")
    waiting = list(range(options.seed, options.seed + options.files))
    results: Any = context.Queue()
    with tqdm(total=options.files, unit="file") as progress:
        running: dict[Any, list[int]] = {}
        while waiting or running:
            while waiting and len(running) < options.processes:
                seeds, waiting = waiting[:_CHUNK], waiting[_CHUNK:]
                child = context.Process(
                    target=_run_in_child, args=(range(seeds[0], seeds[-1] + 1), results)
                )
                child.start()
                running[child] = seeds
            while not results.empty():
                seed, text = results.get()
                counts[text.partition(":")[0]] += 1
                if ":" in text:
                    faults[seed] = text
                for seeds in running.values():
                    if seed in seeds:
                        seeds.remove(seed)
                progress.update()
            for child in [child for child in running if not child.is_alive()]:
                child.join()
                left = running.pop(child)
                if left and results.empty():
                    counts["process died"] += 1
                    faults[left[0]] = f"process died, exit code {child.exitcode}"
                    waiting = left[1:] + waiting
                    progress.update()
                elif left:
                    running[child] = left
            time.sleep(0.05)
    print(tabulate(counts.most_common(), ["outcome", "files"]))
    for seed, text in faults.items():
        print(f"--files 1 --seed {seed}: {text}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
