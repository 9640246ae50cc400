"""Ranges of activations without any data, from the statistics that batch norms keep.

Behind a batch norm channel c is taken as Gauss(β_c, γ_c²); the range is β ± 6γ over all channels,
and what the ReLU lets through of it (Nagel et al., "Data-free quantization through weight
equalization and bias correction", 2019, 5; the report's I.E names it).

Where more lies between, means and variances travel on, channel by channel: a ReLU rectifies them,
an addition adds them as if its operands were independent, a concatenation lines them up, pooling
keeps them. What comes from the model's input alone is not known.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor, fx

from fxquant.graph.operations import batchnorm_of, data_input, operation_of
from fxquant.graph.records import record
from fxquant.modules.batchnorm import output_moments, why_not_affine

Moments: TypeAlias = tuple[Tensor, Tensor]
"""Mean and standard deviation of each channel."""


_SIGMAS = 6.0


def channel_moments_of(gm: fx.GraphModule) -> dict[fx.Node, Moments]:
    """Return the moments of each node's result where batch norms tell them."""
    moments: dict[fx.Node, Moments] = {}
    for node in gm.graph.nodes:
        found = _moments(gm, node, moments)
        if found is not None:
            moments[node] = found
    return moments


def range_of(
    moments: Moments, clamp: tuple[float, float] | None, *, per_channel: bool
) -> tuple[Tensor, Tensor]:
    """Return the range (low, high) of a tensor: () each, or (channels,) each.

    Args:
        moments: of the tensor, or of what is before its ReLU.
        clamp: bounds of that ReLU.
        per_channel: a range for each channel.
    """
    mean, sigma = moments
    low, high = mean - _SIGMAS * sigma, mean + _SIGMAS * sigma
    if not per_channel:
        low, high = low.min(), high.max()
    return (low, high) if clamp is None else (low.clamp(*clamp), high.clamp(*clamp))


def _moments(gm: fx.GraphModule, node: fx.Node, moments: dict[fx.Node, Moments]) -> Moments | None:
    known = record(node).moments
    if known is not None:
        return known
    operation = operation_of(gm, node)
    if operation.kind == "batchnorm":
        batchnorm = batchnorm_of(gm, node)
        return None if why_not_affine(batchnorm) else output_moments(batchnorm)
    inputs = operation.concatenated or node.all_input_nodes
    found = [moments[each] for each in inputs if each in moments]
    if len(found) < len(inputs) or not found:
        return None
    if operation.bounds is not None:
        return rectified(found[0], operation.bounds)
    if operation.kind == "add":
        (mean, sigma), (other_mean, other_sigma) = found[0], found[-1]
        if len(mean) != len(other_mean):
            return None
        return mean + other_mean, torch.hypot(sigma, other_sigma)
    if operation.concatenated:
        means, sigmas = zip(*found, strict=True)
        return torch.cat(means), torch.cat(sigmas)
    is_single = data_input(node) is not None and len(inputs) == 1
    keeps = operation.keeps_channels or operation.kind == "channel_clamp"  # at most: it clips
    return found[0] if is_single and keeps else None


def rectified(moments: Moments, bounds: tuple[float, float]) -> Moments:
    """Return the moments of a Gaussian behind a clamp to `bounds`, of which the first is 0.

    >>> mean, sigma = rectified((torch.zeros(1), torch.ones(1)), (0.0, math.inf))
    >>> round(mean.item(), 4), round(sigma.item(), 4)  # 1/√(2π), √(1/2 - 1/(2π))
    (0.3989, 0.5838)
    """
    mean, sigma = moments[0].to(torch.float64), moments[1].to(torch.float64).clamp(min=1e-30)
    top = torch.full_like(mean, bounds[1])
    low, high = -mean / sigma, (top - mean) / sigma
    inside = torch.special.ndtr(high) - torch.special.ndtr(low)
    density_low, density_high = _density(low), _density(high)
    above = 1 - torch.special.ndtr(high)
    capped = torch.where(torch.isinf(top), torch.zeros_like(top), top)  # nothing is above infinity
    first = mean * inside + sigma * (density_low - density_high) + capped * above
    second = (
        (mean.square() + sigma.square()) * inside
        + sigma * (mean * density_low - (mean + capped) * density_high)
        + capped.square() * above
    )
    variance = (second - first.square()).clamp(min=0)
    return first.to(moments[0].dtype), variance.sqrt().to(moments[1].dtype)


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
