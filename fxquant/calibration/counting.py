"""Count multiply-adds while a model runs, by node of its graphs, or by module outside of them.

A dispatch mode sees each of PyTorch's operators, and the Python stack tells for whom it runs: the
line of a graph's code, or the node that an interpreter runs; outside of graphs the innermost module
whose method it is in.
"""

from __future__ import annotations

import inspect
from collections import Counter
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from fxquant.calibration.products import formula_of
from fxquant.capture.naming import find_regions
from fxquant.modules.own import own_modules

_RUN_NODE = fx.Interpreter.run_node.__code__


class MultiplyAddCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiply-adds of a model from `start` to `stop`.

    Observers are left out: they take far more operators than the model itself, and each takes a
    dispatch mode 20 µs.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: Counter[fx.Node] = Counter()
        self.modules: Counter[nn.Module] = Counter()
        """What ran outside of graphs."""
        self.inputs: dict[fx.Node, tuple[int, ...]] = {}
        """The shapes of what convolutions read."""
        self._model = model
        self._known = set(model.modules())
        graphs = list(find_regions(model).values())
        self._graphs = {id(gm.graph) for gm in graphs}
        # By identity: regions of one layer have equal code.
        self._by_code = {id(type(gm).forward.__code__): gm for gm in graphs}
        self._lines: dict[int, dict[int, fx.Node]] = {}
        self._opaque: set[Any] = set()
        """Operators that cannot be taken apart."""
        self._is_on = False
        self._handles: list[RemovableHandle] = []

    def start(self) -> None:
        """Count from here on."""
        for _, module in own_modules(self._model):
            if module.watches:
                self._handles.append(module.register_forward_pre_hook(self._pause))
                self._handles.append(module.register_forward_hook(self._go_on, always_call=True))
        self._go_on()

    def stop(self) -> None:
        """Count no more."""
        self._pause()
        for handle in self._handles:
            handle.remove()

    def _go_on(self, *_: Any) -> None:
        self._is_on = True
        self.__enter__()  # type: ignore[no-untyped-call]

    def _pause(self, *_: Any) -> None:
        if self._is_on:
            self._is_on = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = formula_of(func)
        if formula is None and func not in self._opaque and hasattr(func, "decompose"):
            with self:  # in inference mode a linear layer arrives whole
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            self._opaque.add(func)
        result = func(*args, **kwargs)
        if formula is not None:
            is_convolution = func is torch.ops.aten.convolution.default
            self._add(formula(args, result), tuple(args[0].shape) if is_convolution else None)
        return result

    def _add(self, number: int, input_shape: tuple[int, ...] | None) -> None:
        frame = inspect.currentframe()
        node = self._find_node(frame)
        if node is not None:
            self.nodes[node] += number
            if input_shape is not None:
                self.inputs[node] = input_shape
        else:
            self.modules[self._find_module(frame)] += number

    def _find_node(self, frame: FrameType | None) -> fx.Node | None:
        """Return the node that is running, None outside of graphs."""
        while frame is not None:
            gm = self._by_code.get(id(frame.f_code))
            if gm is not None:
                return self._node_at(gm, frame.f_lineno)
            if frame.f_code is _RUN_NODE:
                node: fx.Node = frame.f_locals["n"]
                if id(node.graph) in self._graphs:
                    return node
            frame = frame.f_back
        return None

    def _node_at(self, gm: fx.GraphModule, line: int) -> fx.Node:
        """Return the node that a line of the graph's code computes: `relu = torch.relu(conv)`."""
        if id(gm) not in self._lines:
            nodes = {node.name: node for node in gm.graph.nodes}
            firsts = (text.split(maxsplit=1)[:1] for text in gm.code.splitlines())
            self._lines[id(gm)] = {
                number: nodes[first[0]]
                for number, first in enumerate(firsts, 1)
                if first and first[0] in nodes
            }
        return self._lines[id(gm)][line]

    def _find_module(self, frame: FrameType | None) -> nn.Module:
        """Return the innermost module whose method is running."""
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and owner in self._known:
                return owner
            frame = frame.f_back
        return self._model
