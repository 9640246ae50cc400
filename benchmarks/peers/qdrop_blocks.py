"""Quantize MobileNetV2 by QDrop's authors' own code, block by block, and write down what it gives.

    git clone https://github.com/wimh966/QDrop
    python qdrop_blocks.py --repo QDrop --weights STATE.pt --images IMAGES.pt --test TEST.pt \
        --bits 4 --activation-bits 4 --steps 300 --out OUT.json

Run it by the interpreter of an environment that holds `easydict`, `pyyaml` and `scipy` beside
PyTorch; fxquant is not imported. The result is one JSON object, `Result` below.

What is called is what its `main_imagenet.py` calls, with its settings for MobileNetV2
(`exp/w2a4/mbv2/config.yaml`): batches of 32, half of the activations kept in float, λ 0.1, β from
20 to 2, warm start 20 %, ranges of the least squared error, first and last layer at 8 bits. It
takes 20,000 steps a block there, with Adam at 1e-3 for roundings and 4e-5 for scales; with fewer
steps `--learning-rate` and `--scale-rate` have to be higher. The search for ranges sees
`--range-images` images, 256 in the authors' script.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Result:
    """What was asked and what came out; times in seconds, top-1 in percent.

    `seconds` is the whole way from the float network to the quantized one, `calibrating` the search
    for ranges in it.
    """

    torch: str
    threads: int
    bits: int
    activation_bits: int
    steps: int
    num_images: int
    range_images: int
    learning_rate: float
    scale_rate: float
    seconds: float
    calibrating: float
    top1: float


def main() -> None:
    """Quantize, evaluate, write the result."""
    options = parse_options()
    torch.manual_seed(options.seed)
    sys.path[:0] = [str(options.repo), str(options.repo / "qdrop" / "solver")]
    images: Tensor = torch.load(options.images)
    test: dict[str, Tensor] = torch.load(options.test)
    begin = perf_counter()
    model = load_network(options.weights)
    quantize_model = import_module("main_imagenet").quantize_model
    grids = {"observer": "MSEObserver", "symmetric": False}
    model = quantize_model(
        model,
        SimpleNamespace(
            w_qconfig=SimpleNamespace(
                quantizer="AdaRoundFakeQuantize", bit=options.bits, ch_axis=0, **grids
            ),
            a_qconfig=SimpleNamespace(
                quantizer="LSQFakeQuantize", bit=options.activation_bits, ch_axis=-1, **grids
            ),
        ),
    ).eval()
    reference = deepcopy(model)
    state = import_module("qdrop.quantization.state")
    state.disable_all(reference)
    with torch.no_grad():
        state.enable_calibration_woquantization(model, quantizer_type="act_fake_quant")
        model(images[: options.range_images])
        state.enable_calibration_woquantization(model, quantizer_type="weight_fake_quant")
        model(images[:2])
    calibrating = perf_counter() - begin
    state.enable_quantization(model)
    learn_blocks(model, reference, images, options)
    state.enable_quantization(model)
    seconds = perf_counter() - begin
    logits = predict(model, test["images"])
    if options.outputs:
        torch.save(logits, options.outputs)
    result = Result(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        bits=options.bits,
        activation_bits=options.activation_bits,
        steps=options.steps,
        num_images=len(images),
        range_images=options.range_images,
        learning_rate=options.learning_rate,
        scale_rate=options.scale_rate,
        seconds=seconds,
        calibrating=calibrating,
        top1=100 * (logits.argmax(dim=1) == test["labels"]).float().mean().item(),
    )
    options.out.write_text(json.dumps(asdict(result), indent=2) + "\n")


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repo", type=Path, required=True, help="a clone of QDrop's repository")
    parser.add_argument("--weights", type=Path, required=True, help="torchvision's state, saved")
    parser.add_argument("--images", type=Path, required=True, help="tensor (N, 3, H, W)")
    parser.add_argument("--test", type=Path, required=True, help="dict(images=…, labels=…)")
    parser.add_argument("--bits", type=int, required=True, help="of the weights")
    parser.add_argument("--activation-bits", type=int, required=True)
    parser.add_argument("--outputs", type=Path, help="logits of --test")
    parser.add_argument("--steps", type=int, default=20_000, help="per block")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--scale-rate", type=float, default=4e-5)
    parser.add_argument("--range-images", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1005)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def load_network(weights: Path) -> nn.Module:
    """Return QDrop's MobileNetV2 with torchvision's weights, batch norms folded.

    Raises:
        SystemExit: the weights are of another network.
    """
    model: nn.Module = import_module("qdrop.model.mobilenetv2").mobilenetv2()
    own, given = model.state_dict(), torch.load(weights)
    shapes = [[tuple(each.shape) for each in state.values()] for state in (own, given)]
    if shapes[0] != shapes[1]:
        raise SystemExit(f"{weights}: not the weights of torchvision's mobilenet_v2")
    model.load_state_dict(dict(zip(own, given.values(), strict=True)))  # other names, same order
    import_module("fold_bn").search_fold_and_remove_bn(model)
    return model.eval()


def learn_blocks(
    model: nn.Module, reference: nn.Module, images: Tensor, options: argparse.Namespace
) -> None:
    """Reconstruct each block and single layer in turn, as `main_imagenet.main` does."""
    recon, modules = import_module("recon"), import_module("qdrop.quantization.quantized_module")
    settings = SimpleNamespace(
        batch_size=32,
        scale_lr=options.scale_rate,
        warm_up=0.2,
        weight=0.1,
        iters=options.steps,
        b_range=(20, 2),
        keep_gpu=True,
        round_mode="learned_hard_sigmoid",
        drop_prob=0.5,
    )
    own_adam: Any = torch.optim.Adam
    vars(torch.optim)["Adam"] = functools.partial(own_adam, lr=options.learning_rate)
    units = (modules.QuantizedLayer, modules.QuantizedBlock)

    def learn(module: nn.Module, floats: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, units):
                begin = perf_counter()
                counterpart = floats.get_submodule(name)
                recon.reconstruction(model, reference, child, counterpart, images, settings)
                print(f"{type(child).__name__} {name}: {perf_counter() - begin:.0f} s", flush=True)
            else:
                learn(child, floats.get_submodule(name))

    try:
        learn(model, reference)
    finally:
        vars(torch.optim)["Adam"] = own_adam


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits, (N, classes)."""
    return torch.cat([model(batch) for batch in torch.split(images, 50)])


if __name__ == "__main__":
    main()
