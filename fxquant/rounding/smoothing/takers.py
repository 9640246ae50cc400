"""What rescales a tensor in front of layers: who made it, or a call of its own.

* the layer before, where a ReLU, a clip, or pooling is all that lies between: `PairTaker`;
* the layer norm before: `NormTaker`;
* a `ChannelAffine`, on floats: `OwnCall`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import fx, nn

from fxquant.graph.chains import insert_after
from fxquant.graph.operations import module_of, readers, source_of
from fxquant.graph.pairs import Pair, move_clips, rescale_outputs
from fxquant.graph.submodules import Submodules, free_name
from fxquant.modules.by_channel import ChannelAffine
from fxquant.modules.overrides import why_overridden
from fxquant.rounding.smoothing.scales import Smoothing


@dataclass(frozen=True, eq=False)
class PairTaker:
    """The layer before makes its channels 1/s as large; there is no shift through a ReLU.

    Where a clip is between, as a ReLU6, channels are clipped at bounds of their own from then on.
    An observer in front of it, which knows of one pair of bounds, is moved behind it.
    """

    pair: Pair
    observed: fx.Node
    clip: fx.Node | None
    """The last one behind the observer."""
    shifts = False

    @property
    def layer(self) -> fx.Node | None:
        """The one whose outputs are rescaled."""
        return self.pair.first

    def write(self, gm: fx.GraphModule, smoothing: Smoothing, submodules: Submodules) -> None:
        """Rescale the layer's outputs, and what clips them."""
        if self.clip is not None:
            self._move_behind(self.clip)
        rescale_outputs(self.pair, smoothing.scale, submodules)
        move_clips(gm, self.pair, smoothing.scale, submodules)

    def _move_behind(self, clip: fx.Node) -> None:
        watched = source_of(self.observed)
        self.observed.replace_all_uses_with(watched)
        clip.replace_all_uses_with(self.observed)
        clip.append(self.observed)
        self.observed.replace_input_with(watched, clip)


@dataclass(frozen=True, eq=False)
class NormTaker:
    """The layer norm has γ/s and (β - c)/s."""

    watched: fx.Node
    shifts = True
    layer = None

    def write(self, gm: fx.GraphModule, smoothing: Smoothing, submodules: Submodules) -> None:
        """Give the norm other parameters."""
        norm = submodules.own(str(self.watched.target))
        scale, shift = smoothing.scale.to(norm.weight), smoothing.shift.to(norm.weight)
        norm.weight = nn.Parameter(norm.weight.detach() / scale, requires_grad=False)
        bias = -shift if norm.bias is None else norm.bias.detach() - shift
        norm.bias = nn.Parameter(bias / scale, requires_grad=False)


@dataclass(frozen=True, eq=False)
class OwnCall:
    """A call computes (x - c)/s."""

    watched: fx.Node
    observed: fx.Node
    container: str
    """Under which the module will stand."""
    shifts = True
    layer = None

    def write(self, gm: fx.GraphModule, smoothing: Smoothing, submodules: Submodules) -> None:
        """Put the call between the tensor and its observer."""
        path = free_name(gm, f"{self.container}.{self.watched.name}")
        scale, shift = smoothing.scale, smoothing.shift
        submodules.put(path, ChannelAffine(1 / scale, -shift / scale))
        with insert_after(self.watched):
            call = gm.graph.call_module(path, (self.watched,))
        call.name = f"smoothed_{self.watched.name}"
        self.observed.replace_input_with(self.watched, call)


Taker: TypeAlias = PairTaker | NormTaker | OwnCall


def norm_taker(gm: fx.GraphModule, watched: fx.Node, observed: fx.Node) -> NormTaker | None:
    """Return the layer norm whose result nothing but the observer reads; None if there is none."""
    norm = module_of(gm, watched)
    is_taker = (
        type(norm) is nn.LayerNorm
        and norm.weight is not None
        and norm.weight.dim() == 1
        and why_overridden(norm) is None
        and len(Submodules(gm).users.get(norm, [])) == 1
        and readers(gm, watched) == [observed]
    )
    return NormTaker(watched) if is_taker else None
