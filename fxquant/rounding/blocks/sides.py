"""What goes into blocks and what should come out, from the two graphs side by side."""

from __future__ import annotations

from torch import fx

from fxquant.graph.operations import source_of
from fxquant.rounding.blocks.find import Block, is_quantizer
from fxquant.rounding.blocks.forward import BlockForward
from fxquant.rounding.blocks.region import Path
from fxquant.rounding.blocks.samples import Samples
from fxquant.rounding.blocks.windows import Windows
from fxquant.rounding.side_by_side import SideBySide


class BlocksSideBySide(SideBySide[Block]):
    """Samples of blocks: the quantized graph's input, the float graph's input and output."""

    def samples(self, block: Block, number: int) -> Samples:
        """Return what goes into the block and what should come out."""
        total = sum(self._sizes) * len(block.paths)
        found = Samples(block.name, total, self.lesson.options, number)
        forward = BlockForward(block, self.gm, self.lesson.reference)
        takes_any: dict[Path, bool] = {}
        windows: dict[object, Windows | None] = {}
        quantized = self._quantized.values(*self._inputs(block))
        floats = self._float.values(*self._float_nodes(block))
        for size, inputs, wanted in zip(self._sizes, quantized, floats, strict=True):
            remaining = iter(inputs)
            ends = zip(wanted[::2], wanted[1::2], strict=True)
            for path, (entry, target) in zip(block.paths, ends, strict=True):
                x = entry if path.is_ahead else next(remaining)
                context = [next(remaining) for _ in path.context]
                if path not in takes_any:
                    takes_any[path] = x.dim() == 0 or forward.takes_any_number(path, x, context)
                shape = (path, *x.shape[1:])
                if shape not in windows:
                    windows[shape] = (
                        forward.windows(path, entry[:1], target[:1]) if takes_any[path] else None
                    )
                one_by_one = size if takes_any[path] else None
                found.add(path, x, entry, target, one_by_one, windows[shape], context)
        found.close()
        return found

    def _inputs(self, block: Block) -> list[fx.Node]:
        """Return, of each path, the entry if it is final, and the context."""
        return [
            node
            for path in block.paths
            for node in (*([] if path.is_ahead else [path.entry]), *path.context)
        ]

    def _float_nodes(self, block: Block) -> list[fx.Node]:
        """Return the entry and the exit of each path."""
        return [self._counterparts.of(node) for node in ends_in_float(self.gm, block)]


def ends_in_float(gm: fx.GraphModule, block: Block) -> list[fx.Node]:
    """Return the nodes of `gm` whose float values a block learns from: two of each path.

    In place of an entry that is a quantizer that is what it rounds.
    """
    return [end for path in block.paths for end in (_before_rounding(gm, path.entry), path.exit)]


def _before_rounding(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    while is_quantizer(gm, node):
        node = source_of(node)
    return node
