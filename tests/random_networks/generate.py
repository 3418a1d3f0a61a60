"""Makes random small networks, as program text, from a seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from .parts import PARTS
from .program import Program

_HEAD = """\
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from parts import *
"""

DTYPES = ("float64",) * 10 + ("float32",) * 6 + ("float16", "bfloat16") * 2
DEEPEST = 2  # times a map is halved


@dataclass
class _Map:
    var: str
    channels: int
    level: int = 0  # how often it was halved


@dataclass
class _Class:
    """A module class that is being written."""

    name: str
    now: _Map
    init: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    saved: list[_Map] = field(default_factory=list)
    count: int = 0

    def attribute(self, prefix: str, made: str) -> str:
        self.count += 1
        name = f"{prefix}{self.count}"
        self.init.append(f"self.{name} = {made}")
        return name

    def say(self, *lines: str) -> None:
        self.body += lines


class Generator:
    """One network."""

    def __init__(self, seed: int, *, dtype: str | None = None, short: bool = False) -> None:
        self.steps = 2 if short else 6
        self.rng = random.Random(seed)  # noqa: S311 (no secret)
        self.dtype = dtype or self.rng.choice(DTYPES)
        self.traced = self.rng.random() < 0.06  # a GraphModule: nothing that torch.fx cannot trace
        self.classes: list[str] = []
        self.extras: set[str] = set()
        self.after: dict[str, str | None] = {}
        self.marks = self.blocks = 0

    # --- small choices ---------------------------------------------------------------------------------------

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def mark(self, kind: str = "r") -> str:
        self.marks += 1
        return f"  # {kind}{self.marks}"

    # --- the whole -------------------------------------------------------------------------------------------

    def program(self) -> Program:
        net = _Class("Net", _Map("x", 3))
        for _ in range(self.rng.randint(2, self.steps)):
            self.step(net, depth=0)
        if net.now.level > 0 and self.chance(0.85):
            self.enlarge(net, to_input=True)
        self.classes.append(self.text(net, self.outputs(net), root=True))
        made = "torch.fx.symbolic_trace(Net())" if self.traced else "Net()"
        main = "\n\n".join([_HEAD, *sorted(self.extras), *self.classes, f"def network():\n    return {made}\n"])
        if self.traced:
            main = main.replace("import torch\n", "import torch\nimport torch.fx\n", 1)
        size, other = (self.size() for _ in range(2))
        return Program(main, PARTS, self.dtype, size, other, after=self.after, batch=self.rng.choice((1, 2, 2)))

    def size(self) -> tuple[int, int]:
        return self.rng.randint(8, 21), self.rng.randint(8, 21)

    def text(self, made: _Class, returned: list[str], signature: str = "x", *, root: bool = False) -> str:
        lines = [f"class {made.name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in made.init]
        lines += ["", f"    def forward(self, {signature}):"]
        if root:
            lines.append("        image = x")
        lines += [f"        {line}" for line in [*made.body, *returned]]
        return "\n".join(lines) + "\n"

    def outputs(self, net: _Class) -> list[str]:
        x = net.now.var
        others = [m.var for m in net.saved[:1]]
        kind = self.rng.choice(
            ("tensor", "tensor", "tuple", "dict", "ordered", "dataclass", "named", "list", "pooled")
        )
        if self.traced and kind in ("dataclass", "named", "ordered"):
            kind = "dict"
        y = others[0] if others else f"{x}.mean()"
        if kind == "dataclass":
            self.extras.add("@dataclass\nclass Output:\n    scores: Tensor\n    extra: Tensor\n")
            return [f"return Output(scores={x}, extra={y})"]
        if kind == "named":
            self.extras.add("class Both(NamedTuple):\n    scores: Tensor\n    extra: Tensor\n")
            return [f"return Both({x}, extra={y})"]
        return {
            "tensor": [f"return {x}"],
            "tuple": [f"return {x}, {y}"],
            "list": [f"return [{x}, {y}]"],
            "dict": [f'return {{"out": {x}, "aux": {y}}}'],
            "ordered": ["found = OrderedDict()", f'found["out"] = {x}', "return found"],
            "pooled": [f"pooled = {x}.mean((2, 3))", f"return {x}, pooled.softmax(dim=1)"],
        }[kind]

    # --- steps -----------------------------------------------------------------------------------------------

    def step(self, made: _Class, depth: int) -> None:
        """One more thing that a forward does."""
        choices: list[tuple[float, Callable[..., None]]] = [
            (5, self.conv),
            (3, self.block),
            (2, self.halve),
            (1.5, self.container),
            (1, self.in_place),
            (1, self.view),
            (1, self.gate),
            (0.7, self.functional),
            (1.2, self.save),
            (0.8, self.noise),
            (0.7, self.pool),
        ]
        if not self.traced:
            choices += [(1, self.type_test), (0.8, self.by_size), (0.6, self.by_mode), (0.8, self.checkpointed)]
            choices += [(0.8, self.looped)]
        if made.now.level > 0:
            choices.append((3.5, self.enlarge))
        if made.saved:
            choices.append((3, self.merge))
        if depth >= 2:
            choices = [c for c in choices if c[1] not in (self.block, self.container, self.checkpointed, self.looped)]
        weights = [w for w, _ in choices]
        chosen = self.rng.choices([c for _, c in choices], weights)[0]
        if chosen in (self.block, self.container, self.checkpointed, self.looped):
            chosen(made, depth)
        else:
            chosen(made)

    def activation(self, made: _Class, of: str) -> None:
        """An activation after the module `of`, as a module, a function or a method, or none."""
        x, key = made.now.var, f"{made.name}.{of}"
        kind = self.rng.choice(("module", "module", "function", "in place", "method", "none"))
        if kind == "module":
            name = made.attribute(
                "act", self.rng.choice(("nn.ReLU()", "nn.ReLU(inplace=True)", "nn.SiLU()", "nn.GELU()", "nn.Tanh()"))
            )
            made.say(f"{x} = self.{name}({x})")
            self.after[key] = name
        elif kind == "none":
            made.say(f"{x} = {x} * 1.5")
            self.after[key] = None
        else:
            mark = self.mark("t")
            call = {
                "function": self.rng.choice((f"F.relu({x})", f"torch.relu({x})", f"F.leaky_relu({x}, 0.1)")),
                "in place": f"F.relu({x}, inplace=True)",
                "method": self.rng.choice((f"{x}.relu()", f"{x}.sigmoid()")),
            }[kind]
            made.say(f"{x} = {call}{mark}")
            if not self.traced:  # a graph's code has no marks
                self.after[key] = mark.split()[-1]

    def conv(self, made: _Class) -> None:
        now = made.now
        out = self.rng.choice((now.channels, 2, 3, 4, 6))
        text, out = self.conv_text(now.channels, out, now.level)
        name = made.attribute("conv", text)
        call = self.rng.choice((f"self.{name}({now.var})",) * 4 + (f"self.{name}(input={now.var})",))
        made.say(f"{now.var} = {call}")
        now.channels = out
        if self.chance(0.3):
            norm = made.attribute("norm", self.rng.choice((f"nn.BatchNorm2d({out})", f"nn.GroupNorm(1, {out})")))
            made.say(f"{now.var} = self.{norm}({now.var})")
        self.activation(made, name)

    def conv_text(self, cin: int, cout: int, level: int) -> tuple[str, int]:
        """A convolution that keeps the size, and how many channels it gives."""
        options: list[str] = []
        kind = self.rng.choice(
            ("plain",) * 4
            + ("grouped", "depthwise", "dilated", "reflect", "circular", "replicate", "same", "1x1", "wide", "flat")
            + ("standardised", "padded", "own", "own with parts", "transposed")
            + (() if self.traced else ("weight_norm", "spectral"))
        )
        kernel, padding = "3", "1"
        if kind == "grouped":
            cout = cin
            options.append(f"groups={cin if cin % 2 else 2}")
        elif kind == "depthwise":
            cout = cin
            options.append(f"groups={cin}")
        elif kind == "dilated":
            padding = "2"
            options.append("dilation=2")
        elif kind in ("reflect", "circular", "replicate") and level < 2:
            options.append(f'padding_mode="{kind}"')
        elif kind == "same":
            padding = '"same"'
            options.append(f"dilation={self.rng.choice((1, 2))}")
        elif kind == "1x1":
            kernel, padding = "1", "0"
        elif kind == "wide":
            kernel, padding = "5", "2"
        elif kind == "flat":
            kernel, padding = self.rng.choice((("(1, 3)", "(0, 1)"), ("(3, 1)", "(1, 0)"), ("(3, 5)", "(1, 2)")))
        elif kind == "transposed":
            return f"nn.ConvTranspose2d({cin}, {cout}, 3, padding=1)", cout
        if self.chance(0.2):
            options.append("bias=False")
        given = ", ".join([f"{cin}, {cout}, {kernel}", f"padding={padding}", *options])
        if kind in ("own", "own with parts"):
            return f"{'Own' if kind == 'own' else 'OwnWithParts'}({cin}, {cout})", cout
        if kind == "padded":
            return f"Padded({cin}, {cout}, 3)", cout
        text = f"{'Standardised' if kind == 'standardised' else 'nn.Conv2d'}({given})"
        if kind == "weight_norm":
            text = f"parametrizations.weight_norm({text})"
        elif kind == "spectral":
            text = f"parametrizations.spectral_norm({text})"
        return text, cout

    def halve(self, made: _Class) -> None:
        now = made.now
        if now.level >= DEEPEST:
            return self.conv(made)
        if self.chance(0.6):
            self.store(made)
        kind = self.rng.choice(("strided", "strided", "max", "average", "function", "ceil", "resize"))
        x, c = now.var, now.channels
        now.level += 1
        if kind == "strided":
            out = self.rng.choice((c, 4))
            name = made.attribute("down", f"nn.Conv2d({c}, {out}, 3, stride=2, padding=1)")
            now.channels = out
            made.say(f"{x} = self.{name}({x})")
            return self.activation(made, name)
        if kind in ("max", "average", "ceil"):
            text = {
                "max": "nn.MaxPool2d(2)",
                "average": self.average(),
                "ceil": "nn.AvgPool2d(3, 2, ceil_mode=True)",
            }[kind]
            made.say(f"{x} = self.{made.attribute('pool', text)}({x})")
        elif kind == "function":
            made.say(f"{x} = F.avg_pool2d({x}, 2)")
        else:
            made.say(f"{x} = F.interpolate({x}, scale_factor=0.5){self.mark()}")
        return None

    def average(self) -> str:
        return self.rng.choice(
            ("nn.AvgPool2d(3, 2, padding=1)", "nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)")
        )

    def pool(self, made: _Class) -> None:
        x = made.now.var
        kind = self.rng.choice(("", ", count_include_pad=False", ", divisor_override=7"))
        made.say(f"{x} = self.{made.attribute('smooth', f'nn.AvgPool2d(3, 1, padding=1{kind})')}({x})")

    def save(self, made: _Class) -> None:
        self.store(made)
        self.conv(made)

    def store(self, made: _Class) -> None:
        made.count += 1
        name, now = f"skip{made.count}", made.now
        made.say(f"{name} = {now.var}" if self.chance(0.7) else f"{name} = {now.var} * 0.5")
        made.saved.append(_Map(name, now.channels, now.level))

    def merge(self, made: _Class) -> None:
        """Bring the map to the size of one that was kept, and put them together."""
        skip, now = self.rng.choice(made.saved), made.now
        x, y = now.var, skip.var
        ways = ["match", "match", "resize_to", "inline", "kwargs"]
        if not self.traced:
            ways += ["if", "other_way", "pyramid", "options"]
        way = self.rng.choice(ways)
        mode = self.rng.choice(("bilinear", "bilinear", "nearest"))
        corners = self.rng.choice(("", ", align_corners=True", ", align_corners=False")) if mode == "bilinear" else ""
        if self.traced and way == "match":
            way = "resize_to"
        if way == "match":
            made.say(f"{x} = match({x}, {y})")
        elif way == "resize_to":
            made.say(f"{x} = resize_to({x}, {y}.shape[-2:])")
        elif way == "inline":
            made.say(f'{x} = F.interpolate({x}, size={y}.shape[2:], mode="{mode}"{corners}){self.mark()}')
        elif way == "kwargs":
            size = f"({y}.shape[2], {y}.shape[3])"
            made.say(f'{x} = F.interpolate(input={x}, size={size}, mode="{mode}"{corners}){self.mark()}')
        elif way == "options":
            made.say(f'options = dict(size={y}.size()[2:], mode="{mode}"{corners})')
            made.say(f"{x} = F.interpolate({x}, **options){self.mark()}")
        elif way == "if":
            made.say(f"if {x}.shape[-2:] != {y}.shape[-2:]:")
            made.say(f'    {x} = F.interpolate({x}, {y}.shape[-2:], None, "{mode}"{corners}){self.mark()}')
        elif way == "other_way":
            made.say(f"{x}, {y} = to_larger({x}, {y})")
        elif way == "pyramid":
            made.say(f"{x} = torch.cat(at_size([{x}, {x} * 0.5], {y}), dim=1)")
            now.channels *= 2
        now.level = skip.level
        if now.channels == skip.channels and self.chance(0.7):
            made.say(self.rng.choice((f"{x} = {x} + {y}", f"{x} += {y}", f"{x} = torch.add({x}, {y})")))
        else:
            made.say(f"{x} = torch.cat([{x}, {y}], 1)")
            now.channels += skip.channels
        if now.channels > 6:
            name = made.attribute(
                "squeeze", f"nn.Conv2d({now.channels}, 4, {self.rng.choice(('1', '3, padding=1'))})"
            )
            made.say(f"{x} = self.{name}({x})")
            now.channels = 4

    def enlarge(self, made: _Class, *, to_input: bool = False) -> None:
        x, now = made.now.var, made.now
        if now.level == 0:
            return self.conv(made)
        if to_input or (made.name == "Net" and self.chance(0.3)):
            now.level = 0
            ways = (
                f'F.interpolate({x}, size=image.shape[-2:], mode="bilinear", align_corners=False)',
                f'F.interpolate({x}, image.shape[-2:], mode="bilinear", align_corners=True)',
                f'F.interpolate({x}, size=(image.shape[2], image.shape[3]), mode="nearest")',
                f"resize_to({x}, image.shape[-2:])",
                f"resize_to(size=image.shape[-2:], x={x})",
            )
            way = self.rng.choice(ways)
            made.say(f"{x} = {way}{self.mark()}")
            return None
        now.level -= 1
        kind = self.rng.choice(("module", "module", "function", "function", "function", "helper", "bilinear", "conv"))
        if kind == "module":
            text = self.rng.choice(
                (
                    'scale_factor=2, mode="bilinear", align_corners=False',
                    'scale_factor=2, mode="bilinear", align_corners=True',
                    'scale_factor=(2, 3), mode="bilinear"',
                    "scale_factor=2",
                    'scale_factor=2.0, mode="nearest-exact"',
                    'scale_factor=1.7, mode="bilinear", recompute_scale_factor=True',
                    'size=(23, 22), mode="bilinear"',
                )
            )
            made.say(f"{x} = self.{made.attribute('up', f'nn.Upsample({text})')}({x})")
        elif kind == "function":
            text = self.rng.choice(
                (
                    'scale_factor=2, mode="bilinear", align_corners=False',
                    'scale_factor=2.0, mode="bilinear", align_corners=True',
                    'scale_factor=(2.0, 2.0), mode="bilinear"',
                    'None, 2, "bilinear", False',
                    'scale_factor=1.5, mode="bilinear"',
                    'scale_factor=2.3, mode="bilinear", recompute_scale_factor=False',
                    'scale_factor=1.5, mode="bilinear", recompute_scale_factor=True',
                    'scale_factor=3, mode="nearest"',
                    "scale_factor=2",
                    f'size=({x}.shape[2] * 2 - 1, {x}.shape[3] * 2), mode="bilinear"',
                    f'({x}.size(2) * 2, {x}.size(-1) * 2), mode="bilinear", align_corners=True',
                )
            )
            made.say(f"{x} = F.interpolate({x}, {text}){self.mark()}")
        elif kind == "helper":
            helpers = ("double({x})", "twice({x})", "enlarged({x}, factor=2)", "enlarged({x}, 3)")
            made.say(f"{x} = {self.rng.choice(helpers).format(x=x)}")
        elif kind == "bilinear":
            made.say(f"{x} = self.{made.attribute('up', f'bilinear({now.channels})')}({x})")
        else:
            out = self.rng.choice((now.channels, 3))
            text = self.rng.choice(("3, stride=2, padding=1, output_padding=1", "3, 2, 1", "5, stride=2, padding=2"))
            name = made.attribute("up", f"nn.ConvTranspose2d({now.channels}, {out}, {text})")
            now.channels = out
            made.say(f"{x} = self.{name}({x})")
        return None

    # --- modules inside --------------------------------------------------------------------------------------

    def block_class(self, made: _Class, depth: int, *, keeps: bool) -> tuple[str, int, str]:
        """A new class of blocks: its name, the channels it gives, and how it is called."""
        self.blocks += 1
        name = f"Block{self.blocks}"
        inner = _Class(name, _Map("x", made.now.channels, made.now.level))
        self.store(inner)
        first = inner.saved[0]
        for _ in range(self.rng.randint(1, 3)):
            self.step(inner, depth + 1)
        now = inner.now
        if keeps and (now.channels != first.channels or now.level != first.level or self.chance(0.5)):
            if now.channels != first.channels:
                last = inner.attribute("last", f"nn.Conv2d({now.channels}, {first.channels}, 3, padding=1)")
                inner.say(f"x = self.{last}(x)")
            inner.say(f"x = resize_to(x, {first.var}.shape[-2:])")
            now.channels, now.level = first.channels, first.level
            if self.chance(0.6):
                inner.say(f"x = x + {first.var}" if self.chance(0.5) else f"x += {first.var}")
                if self.chance(0.5):
                    inner.say(f"x = self.{inner.attribute('act', 'nn.ReLU(inplace=True)')}(x)")
        style = "plain" if keeps else self.rng.choice(("plain", "plain", "keyword", "tuple", "dict", "flag"))
        returned = {"tuple": "return x, x.mean()", "dict": 'return {"x": x}'}.get(style, "return x")
        signature = {"keyword": "x, *, gain=1.0", "flag": "x, flag=True"}.get(style, "x")
        lines = {"keyword": ["x = x * gain"], "flag": ["if flag:", "    x = x * 0.9"]}.get(style, [])
        self.classes.append(self.text(inner, [*lines, returned], signature))
        call = {
            "plain": "self.{name}({x})",
            "keyword": self.rng.choice(("self.{name}({x})", "self.{name}({x}, gain=0.7)", "self.{name}(x={x})")),
            "tuple": "self.{name}({x})[0]",
            "dict": 'self.{name}({x})["x"]',
            "flag": self.rng.choice(("self.{name}({x})", "self.{name}({x}, False)")),
        }[style]
        made.now.level = now.level
        return name, now.channels, call

    def block(self, made: _Class, depth: int) -> None:
        repeated = self.chance(0.35)
        kind, out, call = self.block_class(made, depth, keeps=repeated)
        name, x = made.attribute("block", f"{kind}()"), made.now.var
        made.now.channels = out
        for _ in range(self.rng.choice((2, 2, 3)) if repeated else 1):
            made.say(f"{x} = {call.format(name=name, x=x)}")
        if repeated and self.chance(0.3):  # a second name for it
            again = made.attribute("again", f"self.{name}")
            made.say(f"{x} = {call.format(name=again, x=x)}")

    def looped(self, made: _Class, depth: int) -> None:
        kind, _, call = self.block_class(made, depth, keeps=True)
        count, x = self.rng.choice((2, 3)), made.now.var
        made.count += 1
        if self.chance(0.5):
            name = made.attribute("blocks", f"nn.ModuleList([{kind}() for _ in range({count})])")
            made.say(
                self.rng.choice(
                    (
                        f"for block in self.{name}:",
                        f"for block in self.{name}[1:]:",
                        f"for block in self.{name}[::-1]:",
                    )
                )
            )
            made.say(f"    {x} = block({x})")
        else:
            name = made.attribute("block", f"{kind}()")
            made.say(f"for i_{made.count} in range({count}):", f"    {x} = {call.format(name=name, x=x)}")

    def checkpointed(self, made: _Class, depth: int) -> None:
        kind, _, _ = self.block_class(made, depth, keeps=True)
        name, x = made.attribute("block", f"{kind}()"), made.now.var
        made.say(f"{x} = checkpoint(self.{name}, {x}, use_reentrant=False)")

    def container(self, made: _Class, depth: int) -> None:
        now, layers = made.now, []
        channels = now.channels
        for _ in range(self.rng.randint(2, 3)):
            text, channels = self.conv_text(channels, self.rng.choice((channels, 4)), now.level)
            layers.append(text)
            layers.append(self.rng.choice(("nn.ReLU()", "nn.ReLU(inplace=True)", f"nn.BatchNorm2d({channels})")))
        kinds = ("sequential", "iterated", "list", "dict") + (() if self.traced else ("sliced", "named"))
        kind = self.rng.choice(kinds)
        x, inside = now.var, ", ".join(layers)
        now.channels = channels
        if kind == "dict":
            keyed = ", ".join(f'"m{i}": {text}' for i, text in enumerate(layers))
            name = made.attribute("seq", f"nn.ModuleDict({{{keyed}}})")
            made.say(f"for key in self.{name}:", f"    {x} = self.{name}[key]({x})")
        elif kind == "named":
            keyed = ", ".join(f'("m{i}", {text})' for i, text in enumerate(layers))
            name = made.attribute("seq", f"nn.Sequential(OrderedDict([{keyed}]))")
            made.say(f"{x} = self.{name}.m0({x})", f"{x} = self.{name}[1:]({x})")
        elif kind == "list":
            name = made.attribute("seq", f"nn.ModuleList([{inside}])")
            made.say(f"for layer in self.{name}:", f"    {x} = layer({x})")
        else:
            name = made.attribute("seq", f"nn.Sequential({inside})")
            if kind == "sequential":
                made.say(f"{x} = self.{name}({x})")
            elif kind == "sliced":
                made.say(f"{x} = self.{name}[:2]({x})", f"{x} = self.{name}[2:]({x})")
            else:
                made.say(f"for layer in self.{name}:", f"    {x} = layer({x})")

    # --- statements ------------------------------------------------------------------------------------------

    def in_place(self, made: _Class) -> None:
        x = made.now.var
        ways = [
            (f"{x} = {x} * 1.0", f"{x} += 0.1"),
            (f"{x} = {x} + 0", f"{x}.mul_(0.8)"),
            (f"{x} = {x} * 1.0", f"{x}.clamp_(min=-2)"),
        ]
        if not self.traced:
            ways += [
                (f"{x} = {x}.clone()", f"{x}[:, :1] *= 1.3"),
                (f"{x} = {x}.clone()", f"{x}[:, 0] = {x}[:, 0].tanh()"),
                (f"{x} = {x}.clone()", f"{x}[..., 1:] -= 0.05"),
            ]
        made.say(*self.rng.choice(ways))

    def view(self, made: _Class) -> None:
        x, c = made.now.var, made.now.channels
        made.say(
            *self.rng.choice(
                (
                    (f"{x} = {x}.flatten(2).softmax(dim=1).view({x}.shape)",),
                    (f"a, b = {x}[:, :1], {x}[:, 1:]", f"{x} = torch.cat([b, a], dim=1)"),
                    (f"{x} = {x}.permute(0, 2, 3, 1)", f"{x} = ({x} * 0.7).permute(0, 3, 1, 2)"),
                    (f"{x} = {x}.flip(-1)",),
                    (f"{x} = torch.stack([{x}, {x} * 0.5]).sum(0)",),
                    (f"{x} = sum(torch.split({x}, 1, dim=1)).repeat(1, {c}, 1, 1)",)
                    if not self.traced
                    else (f"{x} = {x}.roll(1, 3)",),
                    (f"{x} = {x}.reshape({x}.shape[0], {c}, -1).reshape({x}.shape)",),
                    (f"{x} = {x}[:, torch.arange({c} - 1, -1, -1)]",),
                )
            )
        )

    def gate(self, made: _Class) -> None:
        x, c = made.now.var, made.now.channels
        if self.chance(0.5):
            made.say(f"{x} = {x} * torch.sigmoid({x}.mean((2, 3), keepdim=True))")
        else:
            name = made.attribute("gate", f"nn.Conv2d({c}, {c}, 1)")
            made.say(f"{x} = {x} * torch.sigmoid(self.{name}(F.adaptive_avg_pool2d({x}, 1)))")

    def functional(self, made: _Class) -> None:
        x, c = made.now.var, made.now.channels
        name = made.attribute("w", f"nn.Parameter(torch.randn({c}, {c}, 3, 3) * 0.2)")
        made.say(f"{x} = F.conv2d({x}, self.{name}, padding=1)")

    def noise(self, made: _Class) -> None:
        made.say(
            f"{made.now.var} = self.{made.attribute('drop', self.rng.choice(('nn.Dropout(0.3)', 'nn.Dropout2d(0.2)', 'nn.Identity()')))}({made.now.var})"
        )

    def type_test(self, made: _Class) -> None:
        x = made.now.var
        test = self.rng.choice(
            (
                f"isinstance({x}, torch.Tensor)",
                f"torch.is_tensor({x})",
                f"type({x}) is Tensor",
                f"isinstance({x}.shape, torch.Size)",
                f"isinstance({x}.shape[-1], int)",
                f"isinstance({x}.shape, tuple) and len({x}.shape) == 4",
                f"type({x}.shape[2]) == int",
                f"issubclass(type({x}), Tensor)",
                f"not isinstance({x}, (list, tuple))",
                f"{x}.__class__ is Tensor",
                f'hasattr({x}, "shape") and {x}.dim() == 4',
                f"{x}.is_floating_point()",
            )
        )
        made.say(f"if {test}:", f"    {x} = {x} * 0.6 + 0.3")

    def by_size(self, made: _Class) -> None:
        x = made.now.var
        test = self.rng.choice(
            (f"{x}.shape[-1] > 11", f"{x}.shape[2] % 2 == 0", f"{x}.size(3) >= {x}.size(2)", f"{x}.numel() > 600")
        )
        if made.now.level > 0 and self.chance(0.4):
            text = self.rng.choice(("scale_factor=2", f"size=({x}.shape[2] + 3, {x}.shape[3] + 3)"))
            made.say(f"if {test}:", f'    {x} = F.interpolate({x}, {text}, mode="bilinear"){self.mark()}')
        else:
            made.say(f"if {test}:", f"    {x} = {x} * 0.7 - 0.2")

    def by_mode(self, made: _Class) -> None:
        x = made.now.var
        made.say("if self.training:", f"    {x} = {x} * 1.25")
        if self.chance(0.5):
            made.say("else:", f"    {x} = {x}.tanh()")


def generate(seed: int, *, dtype: str | None = None, short: bool = False) -> Program:
    """The program of a seed; a short one where it takes long to look at."""
    return Generator(seed, dtype=dtype, short=short).program()
