"""Steps without weights: activations, sums, concatenations, pools, moves, changes in place."""

from __future__ import annotations

from torch import Tensor

from benchmarks.graphs.draft import Draft, Impossible

_MODULES = (
    "ReLU()", "ReLU(inplace=True)", "ReLU6()", "SiLU()", "GELU()", "GELU('tanh')", "Sigmoid()",
    "Tanh()", "LeakyReLU(0.1)", "LeakyReLU(0.2, inplace=True)", "Hardswish()", "Hardsigmoid()",
    "ELU()", "CELU()", "SELU()", "PReLU()", "Softplus()", "Softsign()", "Mish()", "LogSigmoid()",
    "Hardtanh()", "Hardtanh(0, 4)", "Threshold(0.1, 0.0)", "Softshrink()", "Hardshrink()",
    "Tanhshrink()", "RReLU()", "Softmax(dim=1)", "LogSoftmax(dim=-1)", "GLU(dim=1)", "Identity()",
)  # fmt: skip
_FUNCTIONS = (
    "F.relu({0})", "torch.relu({0})", "{0}.relu()", "{0}.clamp(min=0)", "torch.clamp({0}, 0, 6)",
    "F.relu6({0})", "F.silu({0})", "{0} * torch.sigmoid({0})", "F.gelu({0})", "{0}.sigmoid()",
    "torch.tanh({0})", "F.leaky_relu({0}, 0.1)", "F.hardswish({0})", "F.elu({0})",
    "F.softplus({0})", "F.mish({0})", "{0}.abs()", "{0}.square()", "torch.exp(-{0}.abs())",
    "(-{0})", "torch.sqrt({0}.abs() + 1e-3)", "{0} * F.relu6({0} + 3) / 6", "F.softmax({0}, dim=1)",
    "torch.maximum({0}, torch.zeros_like({0}))", "F.normalize({0}, dim=1)",
    "F.threshold({0}, 0, 0)", "torch.sin({0})", "{0}.log_softmax(-1)", "F.hardtanh({0}, -2.0, 2.0)",
    "torch.sign({0})", "{0}.round()", "torch.where({0} > 0, {0}, 0.1 * {0})", "{0}.relu_()",
    "F.relu({0}, True)", "torch.clamp_({0}, -1, 1)", "torch.max({0}, dim=1, keepdim=True)[0]",
    "{0}.max(-1, keepdim=True).values", "{0}.sort(dim=-1).values", "torch.cumsum({0}, 1)",
    "{0}.amax(dim=1, keepdim=True)", "torch.topk({0}, 1, dim=1)[0]", "{0}.detach()",
    "{0}.contiguous()", "{0}.clone()", "{0}.to(torch.float32)", "{0}.type_as({0})",
)  # fmt: skip


def activation(d: Draft) -> None:
    """A function of each value, as a module or a function; some are in place."""
    x = d.value()
    if d.one_in(2):
        d.let(d.pick(_FUNCTIONS).format(x))
    else:
        d.let(f"{d.part('act', f'nn.{d.pick(_MODULES)}')}({x})")


def dropout(d: Draft) -> None:
    """Dropout, which does nothing here."""
    x = d.value()
    way = d.pick(("Dropout()", "Dropout2d()", "AlphaDropout()", "F", "F off"))
    if way in ("F", "F off"):
        d.let(f"F.dropout({x}, 0.5, training={'self.training' if way == 'F' else False})")
    else:
        d.let(f"{d.part('drop', f'nn.{way}')}({x})")


def addition(d: Draft) -> None:
    """A sum or difference of two tensors."""
    x, y = _two(d)
    forms = (
        "{0} + {1}", "torch.add({0}, {1})", "{0}.add({1})", "{0} - {1}",
        "torch.add({0}, {1}, alpha=2)", "F.relu({0} + {1})", "{0} + 0.5 * {1}",
        "operator.iadd({0}, {1})", "{0}.add_({1})", "({0} + {1}) / 2", "{0} + {1} + {0}",
    )  # fmt: skip
    d.let(d.pick(forms).format(x, y))


def addition_in_place(d: Draft) -> None:
    """`x += y`."""
    x, y = _two(d)
    d.line(d.pick(("{0} += {1}", "{0}.add_({1})", "{0} -= {1}")).format(x, y))


def with_number(d: Draft) -> None:
    """A tensor and a number, or a parameter."""
    x = d.value()
    channels = d.shape(x)[1:2] or (1,)
    ones = (1,) * max(len(d.shape(x)) - 2, 0)
    shape = ", ".join(map(str, (*channels, *ones)))
    way = d.pick(("number", "number", "buffer", "parameter", "scalar"))
    if way == "number":
        forms = (
            "{0} + 0.5",
            "{0} * 2",
            "{0} / 3",
            "1 - {0}",
            "{0} - 0.1",
            "{0} ** 2",
            "2.0 * {0} + 1",
        )
        d.let(d.pick(forms).format(x))
    elif way == "buffer":
        d.let(f"{x} {d.pick(('+', '*', '-'))} {d.buffer(f'torch.rand({shape}) + 0.5')}")
    elif way == "parameter":
        gain = d.part("gain", f"nn.Parameter(torch.rand({shape}) + 0.5)")
        d.let(f"{x} {d.pick(('*', '+'))} {gain}")
    else:
        d.attribute(f"self.factor = {d.pick((0.5, 2, 1.0))}")
        d.let(f"{x} * self.factor")


def multiplication(d: Draft) -> None:
    """A product of two tensors."""
    x, y = _two(d)
    d.let(d.pick(("{0} * {1}", "torch.mul({0}, {1})", "{0} * torch.sigmoid({1})")).format(x, y))


def squeeze_excite(d: Draft) -> None:
    """Channels scaled by what their averages say."""
    x = d.value(4)
    channels = d.shape(x)[1]
    pooled = d.pick(("F.adaptive_avg_pool2d({0}, 1)", "{0}.mean((2, 3), keepdim=True)"))
    squeezed = d.let(pooled.format(x))
    made = f"nn.Sequential(nn.Conv2d({channels}, 2, 1), nn.ReLU(), nn.Conv2d(2, {channels}, 1))"
    gate = d.let(f"{d.part('gate', made)}({squeezed})")
    d.let(f"{x} * {d.pick(('torch.sigmoid', 'F.hardsigmoid'))}({gate})")


def concatenation(d: Draft) -> None:
    """Two or three tensors in one."""
    x = d.value()
    shape = d.shape(x)
    axis = d.pick([*range(1, len(shape)), -1, 0] if len(shape) > 1 else [0])
    at = axis % len(shape)

    def fits(t: Tensor) -> bool:
        rest = [n for place, n in enumerate(t.shape) if place != at]
        return rest == [n for place, n in enumerate(shape) if place != at]

    others = [d.value(len(shape), where=fits) for _ in range(d.pick((1, 1, 2)))]
    listed = ", ".join([x, *others])
    stacked = all(d.shape(each) == shape for each in others) and d.one_in(4)
    forms = ("torch.cat([{0}], dim={1})", "torch.concat(({0}), {1})")
    d.let(f"torch.stack([{listed}], dim={axis})" if stacked else d.pick(forms).format(listed, axis))


def split(d: Draft) -> None:
    """Parts of a tensor, one or two of them used."""
    x = d.value()
    shape = d.shape(x)
    axis = d.pick(range(len(shape))[1:] or (0,))
    if shape[axis] < 2:
        raise Impossible
    half = (shape[axis] + 1) // 2
    rest = shape[axis] - half
    forms = (
        "torch.chunk({0}, 2, dim={1})", "{0}.chunk(2, {1})", "torch.split({0}, {2}, dim={1})",
        "torch.split({0}, [{2}, {3}], {1})", "{0}.unbind({1})",
        "torch.tensor_split({0}, 2, dim={1})",
    )  # fmt: skip
    parts = d.let(d.pick(forms).format(x, axis, half, rest))
    first = d.let(f"{parts}[{d.pick((0, 1, -1))}]")
    if d.one_in(2):
        second = d.let(f"{parts}[{d.pick((1, 0))}]")
        d.let(
            d.pick(("torch.sigmoid({0}) * {1}", "{0} + {1}", "F.relu({1})")).format(first, second)
        )


def part_of(d: Draft) -> None:
    """A slice, or picked places, of a tensor."""
    x = d.value(2, 3, 4, 5)
    forms = (
        "{0}[:, 1:]", "{0}[:, :2]", "{0}[..., ::2]", "{0}[:, 0]", "{0}[..., -1]", "{0}[:, [0, 0]]",
        "{0}.narrow(1, 0, 1)", "{0}.select(1, 0)",
        "torch.index_select({0}, 1, torch.tensor([1, 0]))", "{0}[:, None]", "{0}[:, :, 0]",
        "{0}[:1]", "{0}[0]", "{0}[:, -2:]", "{0}[:, ::2] + {0}[:, 1::2]",
    )  # fmt: skip
    d.let(d.pick(forms).format(x))


def pool(d: Draft) -> None:
    """A pool over windows, over all, or over channels."""
    x = d.value(3, 4, 5)
    rank = len(d.shape(x)) - 2
    forms = (
        f"F.max_pool{rank}d({{0}}, 2)", f"F.avg_pool{rank}d({{0}}, 2)",
        f"F.adaptive_avg_pool{rank}d({{0}}, 1)", f"F.adaptive_max_pool{rank}d({{0}}, 2)",
        f"F.avg_pool{rank}d({{0}}, 3, stride=2, padding=1, count_include_pad=False)",
        f"F.max_pool{rank}d({{0}}, 3, 1, 1)", f"F.max_pool{rank}d({{0}}, 2, ceil_mode=True)",
        f"F.adaptive_avg_pool{rank}d({{0}}, 3)", "{0}.mean(-1)", "{0}.mean(dim=(1,), keepdim=True)",
        "torch.mean({0}, dim=[-1, -2])", "{0}.sum(-1)", "{0}.mean()", "{0}.amax((-2, -1))",
        f"F.lp_pool{rank}d({{0}}.abs(), 2, 2)", f"F.max_pool{rank}d({{0}}, 2, dilation=2)",
        f"F.max_pool{rank}d({{0}}, 2, return_indices=True)[0]",
    )  # fmt: skip
    modules = (
        f"MaxPool{rank}d(2)", f"AvgPool{rank}d(2)", f"AdaptiveAvgPool{rank}d(1)",
        f"MaxPool{rank}d(3, stride=2, padding=1)", f"AdaptiveMaxPool{rank}d(2)",
        f"AvgPool{rank}d(3, 1, 1)", f"AvgPool{rank}d(2, ceil_mode=True)",
    )  # fmt: skip
    if d.one_in(2):
        d.let(d.pick(forms).format(x))
    else:
        d.let(f"{d.part('pool', f'nn.{d.pick(modules)}')}({x})")


def pad(d: Draft) -> None:
    """Padding with zeros, numbers, or what is there."""
    x = d.value(3, 4, 5)
    rank = len(d.shape(x)) - 2
    sides = ", ".join(str(d.pick((1, 0, 2))) for _ in range(2 * min(rank, 2)))
    forms = (
        f"F.pad({{0}}, ({sides}))", f"F.pad({{0}}, ({sides}), value=0.5)",
        f"F.pad({{0}}, ({sides}), 'constant', 0.0)", f"F.pad({{0}}, [{sides}], mode='replicate')",
        f"F.pad({{0}}, ({sides}), mode='reflect')", "F.pad({0}, (1, -1))",
        "F.pad({0}, (0, 0, 1, 0))", "F.pad({0}, (1, 1), 'circular')",
    )  # fmt: skip
    if d.one_in(3):
        kind = d.pick(("ZeroPad", "ReflectionPad", "ReplicationPad"))
        d.let(f"{d.part('pad', f'nn.{kind}{rank}d(1)')}({x})")
    else:
        d.let(d.pick(forms).format(x))


def move(d: Draft) -> None:
    """Another shape, or order of axes."""
    x = d.value(2, 3, 4, 5)
    shape = d.shape(x)
    half = max(each for each in (1, 2, 3) if shape[1] % each == 0)
    forms = (
        "torch.flatten({0}, 1)", "{0}.flatten(2)", "{0}.transpose(1, 2)", "{0}.transpose(-1, -2)",
        "{0}.reshape({0}.shape[0], -1)", "{0}.view({0}.size(0), -1)", "{0}.unsqueeze(1)",
        "{0}.squeeze()", "{0}.permute(0, 2, 3, 1)", "{0}.permute(0, 2, 1)",
        "{0}.repeat(1, 2, 1, 1)", "{0}.flatten()", "torch.roll({0}, 1, 1)", "{0}.flip(-1)",
        "{0}.movedim(1, -1)", "F.pixel_shuffle({0}, 2)", "F.pixel_unshuffle({0}, 2)",
        f"{{0}}.unflatten(1, ({half}, -1))", f"F.channel_shuffle({{0}}, {half})",
        "{0}.expand(-1, -1, 4)", "{0}.repeat_interleave(2, 1)", "{0}.reshape(-1, {0}.shape[-1])",
        "{0}.T", "{0}.mT", "{0}.swapaxes(1, 2)", "{0}.squeeze(-1)",
        "{0}[:, :, None].expand(-1, -1, 2)", "{0}.transpose(0, 1)", "torch.ravel({0})",
        "{0}.permute(0, 2, 1).contiguous()", "{0}.flatten(2).transpose(1, 2)",
        "{0}.unfold(1, 2, 1)", "{0}.view(*{0}.shape[:2], -1)", "nn.Flatten()({0})", "{0}.triu()",
    )  # fmt: skip
    d.let(d.pick(forms).format(x))


def resize(d: Draft) -> None:
    """Interpolation, to a multiple or to another tensor's size."""
    x = d.value(3, 4)
    way = d.pick(("scale", "like", "bilinear", "module", "size"))
    if way == "like":
        other = d.value(len(d.shape(x)))
        d.let(f"F.interpolate({x}, size={other}.shape[2:])")
    elif way == "module":
        d.let(f"{d.part('up', 'nn.Upsample(scale_factor=2)')}({x})")
    elif way == "size":
        d.let(f"F.interpolate({x}, size={(5,) * (len(d.shape(x)) - 2)})")
    elif way == "bilinear":
        d.let(f"F.interpolate({x}, scale_factor=2, mode='bilinear', align_corners=False)")
    else:
        d.let(f"F.interpolate({x}, scale_factor=2.0, mode='nearest')")


def change(d: Draft) -> None:
    """A part of a tensor changed in place, and perhaps a view of it from before used behind."""
    x = d.value(2, 3, 4)
    if d.one_in(2):
        x = d.let(f"{x}.clone()")
    elif d.one_in(2):
        d.let(
            d.pick(("{0}[:, :1]", "{0}.view(-1)", "{0}.transpose(0, 1)", "{0}.detach()")).format(x)
        )
    forms = (
        "{0}[:, 0] = 0", "{0}[:, :1] += 1", "{0}[:, 1:].mul_(2)", "{0}.mul_(0.5)",
        "{0}.clamp_(-1, 1)", "{0}[..., 0] = {0}[..., -1]", "{0}.masked_fill_({0} > 1, 0.0)",
        "{0}[:, :1].relu_()", "{0}.add_(1.0)", "{0}[0].zero_()", "{0}[:, ::2] = {0}[:, ::2] * 2",
        "F.relu_({0})", "{0}.copy_({0}.flip(-1))", "{0}[{0} > 1] = 1.0", "{0}.neg_()",
    )  # fmt: skip
    d.line(d.pick(forms).format(x))


def python(d: Draft) -> None:
    """What Python decides on shapes, types and modes; numbers that are passed along."""
    x = d.value()
    forms = (
        "{0} if {0}.shape[-1] > 2 else -{0}", "{0} * {0}.shape[-1] ** -0.5",
        "{0} * 2 if self.training else {0}", "{0} / {0}.numel()", "{0} + len({0}.shape)",
        "{0} * int({0}.size(-1) / 2 + 1)", "{0} + torch.arange({0}.shape[-1])",
        "{0} + torch.zeros({0}.shape[-1])", "{0} * torch.ones_like({0})", "sum([{0}, {0}])",
        "{0} + torch.tensor(0.5)", "{0} * torch.tensor([2.0], dtype={0}.dtype)", "{0} - {0}.mean()",
        "({0} - {0}.mean(-1, keepdim=True)) / ({0}.std(-1, keepdim=True) + 1)", "{0} * ({0} > 0)",
        "{0}.masked_fill({0} < -1, 0.0)", "{0}.double().float()",
        "torch.lerp({0}, {0}.flip(-1), 0.3)", "{0} + torch.full((1,), 0.25)",
        "torch.where({0}.isnan(), torch.zeros_like({0}), {0})",
        "{0}.new_ones({0}.shape[-1:]) + {0}",
    )  # fmt: skip
    d.let(d.pick(forms).format(x))


def counted(d: Draft) -> None:
    """A buffer that each call writes to."""
    d.line(f"{d.buffer('torch.zeros(1)')}.add_(1)")


def _two(d: Draft) -> tuple[str, str]:
    """Return two tensors of one shape, or of shapes that broadcast; perhaps one twice."""
    x = d.value()
    shape = d.shape(x)
    if not d.one_in(4):
        return x, d.value(len(shape), where=lambda t: tuple(t.shape) == shape)
    return x, d.value(where=lambda t: _broadcasts(tuple(t.shape), shape))


def _broadcasts(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return one != other and all(a == b or 1 in (a, b) for a, b in pairs)
