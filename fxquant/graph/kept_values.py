"""Which calls hand on the values of their input, and so its quantization parameters."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxquant.graph.operations import SPLITS, argument, calls, is_average, is_split, module_of

_CHANNEL_WISE = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.Identity, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
    nn.UpsamplingNearest2d, nn.Upsample, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_COMPARES_OR_PADS: tuple[Any, ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, F.max_pool1d, F.max_pool2d,
    F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
    torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
)  # fmt: skip
_PASSTHROUGH: tuple[Any, ...] = (
    *_COMPARES_OR_PADS,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.UpsamplingNearest2d,
    F.pixel_shuffle,
    F.pixel_unshuffle,
    F.channel_shuffle,
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.amax,
    torch.narrow,
    *SPLITS,
    "amax",
    "contiguous",
    "expand",
    "flatten",
    "narrow",
    "permute",
    "repeat",
    "reshape",
    "squeeze",
    "swapaxes",
    "transpose",
    "unflatten",
    "unsqueeze",
    "view",
)


def keeps_values(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether every value of the node's result is 0 or a value of its input.

    Such a call hands its input's quantization parameters on.
    """
    if node.op == "call_function" and node.target is operator.getitem:
        source, index = node.args
        if isinstance(source, fx.Node) and is_split(source):
            return isinstance(index, int)
        return not isinstance(index, (int, str, fx.Node))
    if node.op == "call_function" and node.target is F.pad:
        constant = argument(node, 2, "mode", "constant") == "constant"
        return not constant or argument(node, 3, "value") in (None, 0)
    if node.op == "call_function" and node.target is F.interpolate:
        return str(argument(node, 3, "mode", "nearest")).startswith("nearest")
    module = module_of(gm, node)
    if getattr(module, "return_indices", False):
        return False
    if isinstance(module, nn.Upsample):
        return str(module.mode).startswith("nearest")
    if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        return not module.training
    if node.target is F.dropout:
        return argument(node, 2, "training", True) is False
    return calls(gm, node, _PASSTHROUGH)


def moves_values(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a call that keeps values only moves or selects them, whatever their type."""
    return (
        keeps_values(gm, node)
        and node.target is not F.pad
        and not calls(gm, node, _COMPARES_OR_PADS)
    )


def keeps_channels(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether each channel of the result is made of the same channel of the input alone.

    Of the calls that keep values or average them; not reshapes, slices, or padding of channels.
    """
    if is_average(gm, node):
        return node.target not in (torch.mean, "mean")
    if not keeps_values(gm, node):
        return False
    if node.target is F.pad:
        return len(argument(node, 1, "pad")) <= 4
    if node.target in (F.interpolate, F.dropout, "contiguous"):
        return True
    module = module_of(gm, node)
    if module is not None:
        return isinstance(module, _CHANNEL_WISE)
    return "max_pool" in str(getattr(node.target, "__name__", ""))
