"""Steps with weights: convolutions, linear layers, norms, attention, recurrence, embeddings."""

from __future__ import annotations

from torch import nn

from benchmarks.graphs.draft import Draft, Impossible

_MOST_CHANNELS = 24


def convolution(d: Draft) -> None:
    """A convolution in 1-D to 3-D, as a module or a function."""
    x = d.value(3, 4, 5)
    channels, *sides = d.shape(x)[1:]
    if channels > _MOST_CHANNELS:
        raise Impossible
    rank = len(sides)
    groups = d.pick([each for each in (1, channels, 2, 4) if channels % each == 0])
    outputs = groups * d.pick((4, 1, 2, 8, 3) if groups == 1 else (1, 2))
    kernel = _numbers(d, rank, (1, 3, 2, 5), sides)
    stride = _numbers(d, rank, (1, 2, 3))
    dilation = _numbers(d, rank, (1, 2))
    padding: object = d.pick((0, 1, 2, "same", "valid"))
    bias = d.pick((True, False))
    if d.one_in(4):
        weight = _weight(d, (outputs, channels // groups, *_each(kernel, rank)))
        term = d.part("bias", f"nn.Parameter(torch.randn({outputs}))") if bias else None
        given = f"stride={stride}, padding={padding!r}, dilation={dilation}, groups={groups}"
        d.let(f"F.conv{rank}d({x}, {weight}, {term}, {given})")
        return
    mode = d.pick(("zeros", "zeros", "reflect", "replicate", "circular"))
    made = (
        f"nn.Conv{rank}d({channels}, {outputs}, {kernel}, stride={stride}, padding={padding!r}, "
        f"dilation={dilation}, groups={groups}, bias={bias}, padding_mode={mode!r})"
    )
    made = f"weight_norm({made})" if d.one_in(12) else made
    _normed(d, x, d.part("conv", made), f"nn.BatchNorm{rank}d({outputs})")


def transposed(d: Draft) -> None:
    """A transposed convolution."""
    x = d.value(3, 4, 5)
    channels, *sides = d.shape(x)[1:]
    if channels > _MOST_CHANNELS:
        raise Impossible
    rank = len(sides)
    groups = d.pick([each for each in (1, channels, 2) if channels % each == 0])
    outputs = groups * d.pick((4, 1, 2))
    stride = d.pick((1, 2))
    options = (
        f"stride={stride}, padding={d.pick((0, 1))}, output_padding={d.pick((0, stride - 1))}, "
        f"groups={groups}, bias={d.pick((True, False))}, dilation={d.pick((1, 2))}"
    )
    kernel = d.pick((2, 3, 1))
    made = f"nn.ConvTranspose{rank}d({channels}, {outputs}, {kernel}, {options})"
    _normed(d, x, d.part("up", made), f"nn.BatchNorm{rank}d({outputs})")


def linear(d: Draft) -> None:
    """A linear layer, as a module, a function or a product."""
    x = d.value(2, 3, 4, 1)
    inputs = d.shape(x)[-1]
    if inputs > 256:
        raise Impossible
    outputs = d.pick((4, 6, 8, inputs))
    bias = d.pick((True, False))
    way = d.pick(("module", "module", "module", "function", "matmul", "addmm", "einsum", "own"))
    if way == "module":
        made = d.part("fc", f"nn.Linear({inputs}, {outputs}, bias={bias})")
        _normed(d, x, made, f"nn.BatchNorm1d({outputs})", norms=len(d.shape(x)) == 2)
    elif way == "function":
        term = d.part("bias", f"nn.Parameter(torch.randn({outputs}))") if bias else None
        d.let(f"F.linear({x}, {_weight(d, (outputs, inputs))}, {term})")
    elif way == "own":  # a weight that belongs to another layer
        layers = [
            name
            for name in d.modules()
            if isinstance(module := d.module(name), nn.Linear) and module.in_features == inputs
        ]
        d.let(f"F.linear({x}, {d.pick(layers)}.weight)")
    else:
        weight = _weight(d, (inputs, outputs))
        term = d.part("bias", f"nn.Parameter(torch.randn({outputs}))")
        forms = {
            "matmul": d.pick((f"{x} @ {weight} + {term}", f"torch.matmul({x}, {weight})")),
            "addmm": f"torch.addmm({term}, {x}, {weight})",
            "einsum": f'torch.einsum("...i,ij->...j", {x}, {weight})',
        }
        d.let(forms[way])


def norm(d: Draft) -> None:
    """A norm: of the batch, groups, instances, layers."""
    x = d.value(2, 3, 4, 5)
    shape = d.shape(x)
    channels, rank = shape[1], max(len(shape) - 2, 1)
    kind = d.pick(("batch", "layer", "group", "instance", "local", "function", "no statistics"))
    if kind == "batch":
        options = d.pick(("", ", affine=False", ", momentum=None", ", eps=1e-3"))
        d.let(f"{d.part('norm', f'nn.BatchNorm{rank}d({channels}{options})')}({x})")
    elif kind == "no statistics":  # in eval mode too it takes those of the batch
        d.let(
            f"{d.part('norm', f'nn.BatchNorm{rank}d({channels}, track_running_stats=False)')}({x})"
        )
    elif kind == "layer":
        over = d.pick(((shape[-1],), shape[-2:], shape[1:]))
        way = d.pick(("module", "function", "rms"))
        if way == "function":
            d.let(f"F.layer_norm({x}, {over})")
        else:
            made = "RMSNorm" if way == "rms" else "LayerNorm"
            d.let(f"{d.part('norm', f'nn.{made}({over})')}({x})")
    elif kind == "group":
        groups = d.pick([each for each in (1, 2, channels) if channels % each == 0])
        d.let(f"{d.part('norm', f'nn.GroupNorm({groups}, {channels})')}({x})")
    elif kind == "instance":
        affine = d.pick((False, True))
        made = f"nn.InstanceNorm{rank}d({channels}, affine={affine})"
        d.let(f"{d.part('norm', made)}({x})")
    elif kind == "local":
        d.let(f"{d.part('norm', 'nn.LocalResponseNorm(2)')}({x})")
    else:
        mean = d.buffer(f"torch.randn({channels})")
        variance = d.buffer(f"torch.rand({channels}) + 0.5")
        weight = d.part("gain", f"nn.Parameter(torch.rand({channels}) + 0.5)")
        d.let(f"F.batch_norm({x}, {mean}, {variance}, {weight}, training=self.training)")


def shared(d: Draft) -> None:
    """A module that was called before, called again."""
    d.let(f"{d.pick(d.modules())}({d.value()})")


def of_constants(d: Draft) -> None:
    """A layer that works on a constant, and its result added."""
    x = d.value(2, 3, 4)
    width = d.shape(x)[-1]
    constant = d.buffer(f"torch.randn(1, {width})")
    layer = d.part("fc", f"nn.Linear({width}, {width})")
    d.let(f"{x} + {d.let(f'{layer}({constant})')}")


def block(d: Draft) -> None:
    """Layers in a container, which may be called in parts too."""
    x = d.value(4)
    channels = d.shape(x)[1]
    if channels > _MOST_CHANNELS:
        raise Impossible
    outputs = d.pick((channels, 4, 8))
    act = d.pick(
        ("nn.ReLU()", "nn.ReLU(inplace=True)", "nn.SiLU()", "nn.ReLU6()", "nn.Hardswish()")
    )
    layers = (
        f"nn.Conv2d({channels}, {outputs}, 3, padding=1, bias=False), nn.BatchNorm2d({outputs})"
    )
    made = d.part("block", f"nn.Sequential({layers}, {act})")
    y = d.let(f"{made}({x})")
    way = d.pick(("whole", "whole", "residual", "part too", "listed"))
    if way == "residual":
        d.let(f"{y} + {x}")
    elif way == "part too":
        d.let(f"{y} + {made}[0]({x})")
    elif way == "listed":
        layers = ", ".join([f"nn.Conv2d({outputs}, {outputs}, 1)"] * 2)
        stack = d.part("layers", f"nn.ModuleList([{layers}])")
        d.let(f"{stack}[1]({stack}[0]({y}))")


def attention(d: Draft) -> None:
    """Attention over a sequence, (N, T, D)."""
    x = d.value(3, where=lambda t: t.shape[1] <= 32 and t.shape[2] <= 32)
    width = d.shape(x)[2]
    way = d.pick(("products", "fused", "multi-head", "encoder"))
    if way == "products":
        q, k, v = (d.let(f"{d.part('fc', f'nn.Linear({width}, 8)')}({x})") for _ in range(3))
        scores = d.let(f"({q} @ {k}.transpose(-2, -1)) / math.sqrt(8)")
        weights = d.pick((f"{scores}.softmax(-1)", f"F.softmax({scores}, dim=-1)"))
        d.let(f"{d.let(weights)} @ {v}")
    elif way == "fused":
        qkv = d.let(f"{d.part('qkv', f'nn.Linear({width}, 24)')}({x})")
        heads = d.let(
            f"{qkv}.reshape({qkv}.shape[0], {qkv}.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4)"
        )
        d.let(f"F.scaled_dot_product_attention({heads}[0], {heads}[1], {heads}[2])")
    elif width % 2:
        raise Impossible
    elif way == "multi-head":
        made = d.part("attention", f"nn.MultiheadAttention({width}, 2, batch_first=True)")
        d.let(f"{made}({x}, {x}, {x})[0]")
    else:
        options = (
            f"{width}, 2, 16, dropout=0.1, batch_first=True, norm_first={d.pick((True, False))}"
        )
        d.let(f"{d.part('encoder', f'nn.TransformerEncoderLayer({options})')}({x})")


def recurrent(d: Draft) -> None:
    """A recurrent layer over a sequence."""
    x = d.value(3, where=lambda t: t.shape[1] <= 32 and t.shape[2] <= 32)
    kind = d.pick(("GRU", "LSTM", "RNN"))
    options = d.pick(("", ", bidirectional=True", ", num_layers=2"))
    made = d.part("rnn", f"nn.{kind}({d.shape(x)[2]}, 4, batch_first=True{options})")
    d.let(f"{made}({x})[0]")


def embedding(d: Draft) -> None:
    """Rows of a table: of the tokens, if the model gets any, or of places."""
    tokens = [name for name, x in d.values.items() if name == "tokens"]
    width = d.pick((4, 8))
    table = d.part("table", f"nn.Embedding(12, {width})")
    if tokens and not d.one_in(3):
        d.let(f"{table}(tokens)")
        return
    x = d.value(3, where=lambda t: t.shape[1] <= 12 and t.shape[2] == width)
    places = d.pick(
        (f"torch.arange({x}.shape[1])", f"torch.arange({x}.size(1), device={x}.device)")
    )
    d.let(f"{x} + {table}({places})")


def bilinear(d: Draft) -> None:
    """A bilinear layer, which is left in float."""
    x = d.value(2)
    width = d.shape(x)[1]
    if width > 32:
        raise Impossible
    y = d.value(2, where=lambda t: t.shape[1] <= 32)
    made = d.part("bilinear", f"nn.Bilinear({width}, {d.shape(y)[1]}, 4)")
    d.let(f"{made}({x}, {y})")


def _numbers(
    d: Draft, rank: int, options: tuple[int, ...], most: list[int] | None = None
) -> int | tuple[int, ...]:
    """Return one number for all axes, or one for each."""
    if not d.one_in(4):
        return d.pick(options)
    return tuple(d.pick(options) for _ in range(rank))


def _each(numbers: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (numbers,) * rank if isinstance(numbers, int) else numbers


def _weight(d: Draft, shape: tuple[int, ...]) -> str:
    """Return a weight: a parameter, a buffer, or computed of one."""
    made = f"torch.randn({', '.join(map(str, shape))}) * 0.3"
    if d.one_in(5):
        return d.buffer(made)
    weight = d.part("weight", f"nn.Parameter({made})")
    return d.pick((weight, weight, f"{weight} / {weight}.norm()", f"({weight} * 2)"))


def _normed(d: Draft, x: str, layer: str, norm: str, norms: bool = True) -> None:
    """Call a layer, and the batch norm that is often behind."""
    y = d.let(f"{layer}({x})")
    if norms and d.one_in(3):
        y = d.let(f"{d.part('norm', norm)}({y})")
        if d.one_in(2):
            d.let(f"F.relu({y}, inplace={d.pick((False, True))})")
