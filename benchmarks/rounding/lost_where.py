"""Quantize groups of a network's tensors to few bits, nothing learned; print what each costs.

    python -m benchmarks.rounding.lost_where --data imagenet/val --weights mobilenet_v2.safetensors
    python -m benchmarks.rounding.lost_where --data imagenet/val --network efficientnet_lite0

The groups are the inputs of layers, by the layer that reads them: of the first layer (the image),
of depthwise convolutions (expanded channels), of the layer behind one (depthwise outputs), of other
convolutions (block inputs), of linear layers (pooled features). Each row names what has `--bits`;
all else has 8, weights included. Ranges are those of least squared error, biases are corrected, and
the placement is the literature's.
"""

from __future__ import annotations

from tabulate import tabulate
from torch import fx, nn

import fxquant
from benchmarks.judging.comparison import compare
from benchmarks.rounding.low_bits import load_images, load_network, network_parser, split
from benchmarks.running.allocator import keep_memory
from fxquant import Recipe, Rule
from fxquant.graph import call_name, is_layer, layer_of

GROUPS = ("image", "block inputs", "expanded", "depthwise outputs", "pooled")


def groups_of(model: nn.Module) -> dict[str, list[str]]:
    """Return the layers that read the tensors of each group, in the order of execution."""
    found: dict[str, list[str]] = {name: [] for name in GROUPS}
    gm, was_depthwise = fxquant.prepare(model, "minmax"), False  # functions are layers then
    assert isinstance(gm, fx.GraphModule)
    for node in gm.graph.nodes:
        if not is_layer(gm, node):
            continue
        layer, name = layer_of(gm, node), call_name(gm, node)
        if isinstance(layer, nn.Linear):
            found["pooled"].append(name)
        if not isinstance(layer, nn.Conv2d):
            continue
        is_depthwise = layer.groups == layer.in_channels > 1
        if is_depthwise:
            group = "expanded"
        elif was_depthwise:
            group = "depthwise outputs"
        else:
            group = "block inputs" if found["image"] else "image"
        found[group].append(name)
        was_depthwise = is_depthwise
    missing = [group for group, layers in found.items() if not layers]
    if missing:
        raise SystemExit(f"no layer reads {', '.join(missing)}: the rows would say nothing")
    return found


def recipes_of(model: nn.Module, bits: int) -> list[tuple[str, str, Recipe]]:
    """Return a recipe for each row."""
    groups = groups_of(model)

    def recipe(weights: int, asked: dict[str, int], others: int = 8) -> Recipe:
        rules = [
            Rule(layer, activations=few) for group, few in asked.items() for layer in groups[group]
        ]
        least = fxquant.TensorSpec(bits=weights, range="mse", per_channel=True, symmetric=True)
        return Recipe.aciq(
            activation_bits=others,
            activation_range="mse",
            rules=(Rule("*", weights=least), *rules),
            target="layers",
        )

    rows = [("nothing", recipe(8, {})), ("weights", recipe(bits, {}))]
    rows += [("all activations", recipe(8, {}, bits))]
    rows += [(f"{group} alone", recipe(8, {group: bits})) for group in GROUPS]
    rows += [(f"all activations but {group}", recipe(8, {group: 8}, bits)) for group in GROUPS]
    return [(f"{bits}", name, each) for name, each in rows]


def main() -> None:
    """Print the table."""
    parser = network_parser(__doc__)
    parser.add_argument("--bits", type=int, default=4)
    options = parser.parse_args()
    keep_memory()
    images, labels = load_images(options.data)
    model, images = load_network(options, images)
    calibrated, judged = split(len(images), draw=0)
    asked = recipes_of(model, options.bits)
    found = compare(model, asked, images[calibrated], images[judged], labels[judged])
    rows = [
        (each.method, f"{each.top1:.1f}", f"{each.agreement:.1f}", f"{each.logit_sqnr:.1f}")
        for each in found
    ]
    heads = [f"at {options.bits} bits", "top-1 %", "agrees %", "logits dB"]
    print(tabulate(rows, heads, disable_numparse=True))


if __name__ == "__main__":
    main()
