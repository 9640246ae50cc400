"""Round a network with AIMET's own AdaRound and write down how long each layer took.

    python aimet_adaround.py --model MODEL.pt --images IMAGES.pt --bits 3 --steps 200 --out OUT.json

Run it by the interpreter of an environment that holds `aimet-torch` (2.42.0 is what it was written
against); fxquant is not imported. The result is one JSON object, `Result` below.

What is timed is what AIMET's manual tells a user to call, from the float network to the rounded
one: `prepare_model` (modules for functions, so that its AdaRound sees the ReLUs; copies of reused
ones), `fold_all_batch_norms`, `Adaround.apply_adaround`. Its defaults are kept: Adam at 1e-3,
λ 0.01, β from 20 to 2, warm start 20 %, activations in memory wherever they fit, and weight scales
by "post_training_tf_enhanced": a search for the least squared error, clipping counted three times.
Its per-channel configuration is taken, since the default one is per tensor. Imports, reading files
and the evaluation are not timed.

`--equalize` puts AIMET's cross-layer equalization first, as its manual advises for MobileNets.

Not taken: `apply_adaround_with_cache`, which runs one block at a time instead of the network up to
the layer. It needs blocks that are called as modules, and `prepare_model` leaves none.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import aimet_torch  # type: ignore[import-not-found]
import torch
import torchvision
from aimet_torch._base.adaround import (  # type: ignore[import-not-found]
    activation_sampler,
    adaround_optimizer,
)
from aimet_torch.adaround.adaround_weight import (  # type: ignore[import-not-found]
    Adaround,
    AdaroundParameters,
    AdaroundSupportedModules,
)
from aimet_torch.batch_norm_fold import (  # type: ignore[import-not-found]
    fold_all_batch_norms,
)
from aimet_torch.common.defs import QuantScheme  # type: ignore[import-not-found]
from aimet_torch.common.quantsim_config.utils import (  # type: ignore[import-not-found]
    get_path_for_per_channel_config,
)
from aimet_torch.cross_layer_equalization import equalize_model  # type: ignore[import-not-found]
from aimet_torch.model_preparer import prepare_model  # type: ignore[import-not-found]
from aimet_torch.quantsim import QuantizationSimModel  # type: ignore[import-not-found]
from aimet_torch.utils import remove_activation_quantizers  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.utils.data import DataLoader

SCHEME = QuantScheme.post_training_tf_enhanced  # apply_adaround's default
PREFIX = "adaround"  # of the encodings file that apply_adaround writes


@dataclass
class LayerTime:
    """What one layer took, in seconds.

    `optimizing` is the loop over the steps, `collecting` all the rest: running both networks up to
    the layer, and the error before and after on one batch. `cached` says whether the layer's
    activations were kept in memory; if not, the loop runs both networks in every step, and
    `optimizing` holds that.
    """

    name: str
    seconds: float = 0.0
    collecting: float = 0.0
    optimizing: float = 0.0
    cached: bool = False


@dataclass
class Result:
    """What was asked and what came out; times in seconds, top-1 in percent.

    `seconds` is the whole way from the float network to the rounded one: `preparing` (prepare_model
    and the folding), `collecting` and `optimizing` over all rounded layers, and what AIMET does
    between them (weight scales, graphs, export). `seconds_per_step` is the mean over the layers.
    """

    aimet: str
    torch: str
    threads: int
    network: str
    bits: int
    activation_bits: int | None
    steps: int
    batch_size: int
    num_images: int
    scheme: str
    folded_batchnorms: int
    num_layers: int
    num_supported_layers: int
    seconds: float
    preparing: float
    collecting: float
    optimizing: float
    seconds_per_step: float
    float_top1: float | None
    top1: float | None
    decibels: float | None
    """SQNR of the rounded network's outputs on `--test`, or on the first images, if asked."""
    layers: list[LayerTime]


def main() -> None:
    """Round, evaluate, write the result."""
    options = parse_options()
    torch.manual_seed(options.seed)
    model = load_network(options).to(options.device)
    images: Tensor = torch.load(options.images).to(options.device)
    test = torch.load(options.test) if options.test else None
    float_top1 = top1(model, test) if test else None
    with tempfile.TemporaryDirectory() as folder:
        begin = perf_counter()
        model, folded_batchnorms = prepare(model, images[:1], options.equalize)
        preparing = perf_counter() - begin
        supported = names_of_supported(model)
        layers = time_layers(model, choose_layers(supported, options.layers))
        rounded = adaround(model, images, options, folder)
        seconds = perf_counter() - begin
        if not layers:
            raise SystemExit("AIMET rounded no layer, or no longer by AdaroundOptimizer")
        judged = test["images"] if test else images[: options.judged_images]
        if options.outputs and test:
            outputs = {
                bits: predict(quantize(rounded, images, bits, options, folder), test["images"])
                for bits in options.activation_bits
            }
            torch.save(outputs, options.outputs)
        rounded_top1, decibels = None, None
        if len(judged):
            (bits,) = options.activation_bits[:1] or (None,)
            quantized = quantize(rounded, images, bits, options, folder)
            rounded_top1 = top1(quantized, test) if test else None
            decibels = sqnr(model, quantized, judged)
    optimizing = sum(layer.optimizing for layer in layers)
    result = Result(
        aimet=aimet_torch.__version__,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        network=options.network or options.model.name,
        bits=options.bits,
        activation_bits=next(iter(options.activation_bits), None),
        steps=options.steps,
        batch_size=options.batch_size,
        num_images=len(images),
        scheme=SCHEME.name,
        folded_batchnorms=folded_batchnorms,
        num_layers=len(layers),
        num_supported_layers=len(supported),
        seconds=seconds,
        preparing=preparing,
        collecting=sum(layer.collecting for layer in layers),
        optimizing=optimizing,
        seconds_per_step=optimizing / (options.steps * len(layers)),
        float_top1=float_top1,
        top1=rounded_top1,
        decibels=decibels,
        layers=layers,
    )
    options.out.write_text(json.dumps(asdict(result), indent=2) + "\n")


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--model", type=Path, help="a whole float module, torch.save'd")
    network.add_argument("--network", help="cifar_resnet20, torchvision:resnet18, …")
    parser.add_argument("--weights", type=Path, help="state dict for --network; else random")
    parser.add_argument("--images", type=Path, required=True, help="tensor (N, 3, H, W)")
    parser.add_argument("--test", type=Path, help="dict(images=…, labels=…)")
    parser.add_argument("--bits", type=int, required=True, help="of the weights")
    parser.add_argument(
        "--activation-bits", type=int, nargs="*", default=[], help="for the evaluation; else float"
    )
    parser.add_argument("--equalize", action="store_true", help="across layers, first")
    parser.add_argument("--outputs", type=Path, help="logits of --test, by --activation-bits")
    parser.add_argument("--steps", type=int, required=True, help="per layer")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--layers", help="names, comma-separated; the others round to nearest")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--judged-images", type=int, default=0, help="to compare the outputs on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.model and options.weights:
        parser.error("--weights goes with --network; --model holds its own")
    return options


def load_network(options: argparse.Namespace) -> nn.Module:
    """Return the float network in eval mode."""
    if options.model:
        model: nn.Module = torch.load(options.model, weights_only=False)
        return model.eval()
    family, _, name = options.network.partition(":")
    if family == "torchvision":
        model = torchvision.models.get_model(name, weights=None)
    elif family.startswith("cifar_resnet"):
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        depth = int(family.removeprefix("cifar_resnet"))
        model = import_module("benchmarks.networks.cifar_resnet").CifarResNet(depth)
    else:
        raise SystemExit(f"--network {options.network}: neither cifar_resnet… nor torchvision:…")
    if options.weights:
        model.load_state_dict(torch.load(options.weights))
    return model.eval()


def prepare(model: nn.Module, dummy_input: Tensor, equalize: bool) -> tuple[nn.Module, int]:
    """Return the network as AIMET wants it, batch norms folded, and how many those were."""
    prepared: nn.Module = prepare_model(model).eval()
    if equalize:  # which folds the batch norms itself
        norms = sum(isinstance(each, nn.BatchNorm2d) for each in prepared.modules())
        equalize_model(prepared, dummy_input=dummy_input)
        return prepared, norms
    pairs = fold_all_batch_norms(prepared, tuple(dummy_input.shape), dummy_input=dummy_input)
    return prepared, len(pairs)


def names_of_supported(model: nn.Module) -> list[str]:
    """Return the names of the layers that AIMET's AdaRound can round."""
    modules = model.named_modules()
    return [name for name, module in modules if isinstance(module, AdaroundSupportedModules)]


def choose_layers(supported: list[str], asked: str | None) -> set[str]:
    """Return the layers to round: those asked for, else all."""
    if asked is None:
        return set(supported)
    unknown = set(asked.split(",")) - set(supported)
    if unknown:
        raise SystemExit(f"--layers: no {sorted(unknown)} among {', '.join(supported)}")
    return set(asked.split(","))


def time_layers(model: nn.Module, chosen: set[str]) -> list[LayerTime]:
    """Make AIMET time its layers; return the list that fills as it rounds them.

    A layer that is not chosen is left out of the optimization only. Its quantizer stays, at nearest
    rounding, so that collecting the data of a chosen layer costs what it would in a full run;
    AIMET's own `ignore_quant_ops_list` would leave it in float, which is faster.
    """
    optimizer = adaround_optimizer.AdaroundOptimizer
    sampler = activation_sampler.ActivationSampler
    names = {module: name for name, module in model.named_modules()}
    round_layer = optimizer.adaround_module
    run_steps = optimizer._optimize_rounding
    collect = sampler.sample_and_place_all_acts_on_cpu
    layers: list[LayerTime] = []
    steps_begin = 0.0

    def timed_round_layer(module: nn.Module, *args: Any) -> None:
        if names[module] not in chosen:
            return
        layer = LayerTime(names[module])
        layers.append(layer)
        begin = perf_counter()
        round_layer(module, *args)
        layer.seconds = perf_counter() - begin
        layer.collecting = layer.seconds - layer.optimizing

    def timed_run_steps(*args: Any) -> None:
        nonlocal steps_begin
        steps_begin = perf_counter()
        run_steps(*args)
        layers[-1].optimizing = perf_counter() - steps_begin

    def timed_collect(*args: Any) -> tuple[Tensor, Tensor]:
        nonlocal steps_begin
        inputs, outputs = collect(*args)
        layers[-1].cached = True
        steps_begin = perf_counter()  # _optimize_rounding collects first, then loops
        return inputs, outputs

    optimizer.adaround_module = timed_round_layer
    optimizer._optimize_rounding = timed_run_steps
    sampler.sample_and_place_all_acts_on_cpu = timed_collect
    return layers


def adaround(
    model: nn.Module, images: Tensor, options: argparse.Namespace, folder: str
) -> nn.Module:
    """Return AIMET's rounded network; its weight encodings go to a file in `folder`."""
    adaround_optimizer.BATCH_SIZE = options.batch_size  # the loader's only sets the collecting
    loader: DataLoader[Tensor] = DataLoader(images, options.batch_size)  # type: ignore[arg-type]
    rounded: nn.Module = Adaround.apply_adaround(
        model,
        images[:1],
        AdaroundParameters(loader, len(loader), default_num_iterations=options.steps),
        path=folder,
        filename_prefix=PREFIX,
        default_param_bw=options.bits,
        default_quant_scheme=SCHEME,
        default_config_file=get_path_for_per_channel_config(),
    )
    return rounded


def quantize(
    rounded: nn.Module,
    images: Tensor,
    activation_bits: int | None,
    options: argparse.Namespace,
    folder: str,
) -> nn.Module:
    """Return the rounded network with its weights on the grid, and its activations if asked.

    AIMET's own second step: what `apply_adaround` returns holds softly rounded weights, which only
    the quantizers with the encodings that it wrote bring onto the grid.
    """
    sim = QuantizationSimModel(
        rounded,
        dummy_input=images[:1],
        quant_scheme=SCHEME,
        default_output_bw=activation_bits or 8,
        default_param_bw=options.bits,
        config_file=get_path_for_per_channel_config(),
    )
    sim.set_and_freeze_param_encodings(str(Path(folder) / f"{PREFIX}.encodings"))
    if activation_bits:
        sim.compute_encodings(lambda model: [model(batch) for batch in torch.split(images, 250)])
    else:
        remove_activation_quantizers(sim.model)
    quantized: nn.Module = sim.model
    return quantized


@torch.no_grad()
def sqnr(model: nn.Module, quantized: nn.Module, images: Tensor) -> float:
    """Return the power of the float network's outputs over that of the error, in dB."""
    expected = predict(model, images)
    error = predict(quantized, images) - expected
    return 10 * math.log10(expected.square().sum().item() / error.square().sum().item())


@torch.no_grad()
def top1(model: nn.Module, test: dict[str, Tensor]) -> float:
    """Return how many percent of the test images get their label."""
    classes = predict(model, test["images"]).argmax(dim=1)
    return 100 * (classes == test["labels"]).float().mean().item()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits, (N, classes)."""
    return torch.cat([model(batch) for batch in torch.split(images, 250)])


if __name__ == "__main__":
    main()
