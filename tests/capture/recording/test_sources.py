"""The sources of graphs that are gone are forgotten; those of graphs that are there stay."""

import copy
import gc
import inspect
import linecache

import torch
from torch import fx, nn
from torch.fx import graph_module

import fxquant
from fxquant.capture.recording.sources import forget_sources


def num_sources() -> int:
    gc.collect()
    forget_sources()
    forget_sources()
    kept = {name for name in linecache.cache if name.startswith("<eval_with_key>")}
    assert kept <= set(graph_module._loader.eval_cache)
    return len(graph_module._loader.eval_cache)


def test_a_graph_that_is_there_keeps_its_source() -> None:
    before = num_sources()
    gm = fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.Sigmoid()))
    copied = copy.deepcopy(gm)
    assert num_sources() == before + 2
    for each in (gm, copied):
        assert "sigmoid" not in inspect.getsource(each.forward)
        assert 'getattr(self, "1")' in inspect.getsource(each.forward)
    gm.recompile()
    assert num_sources() == before + 2
    del copied, each
    assert num_sources() == before + 1
    assert 'getattr(self, "1")' in inspect.getsource(gm.forward)


def test_what_is_just_being_compiled_elsewhere_is_not_forgotten() -> None:
    num_sources()
    name = graph_module._loader.cache("pass", {})  # what a graph will run in a moment
    forget_sources()
    assert linecache.getline(name, 1) == "pass\n"
    forget_sources()
    assert linecache.getline(name, 1) == ""


def test_each_quantize_leaves_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    batches = [torch.randn(2, 3, 6, 6)]
    recipe = fxquant.Recipe.adaround(steps=2, batchnorm_tuning=True, samples=2)

    def kept() -> tuple[int, int]:
        gc.collect()
        return len(linecache.cache), len(gc.get_objects())

    def quantize(times: int) -> None:
        for _ in range(times):
            fxquant.quantize(model, batches, recipe, progress=False)

    quantize(2)
    (lines, objects), times = kept(), 4
    quantize(times)
    (more_lines, more_objects) = kept()
    assert more_lines - lines < times  # fx keeps 12 of each
    assert more_objects - objects < 10 * times
