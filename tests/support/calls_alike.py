"""Networks that call `F.interpolate` more than once, one of them the right call: that with align_corners=True."""

import functools

import torch
import torch.nn.functional as F
from code_elsewhere import doubled, through, to_size
from torch import nn

import hotswap
import pac_ops

SCALE = 3.0
RIGHT = {"align_corners": True}
SIZES = [(32, 32), (34, 38), (37, 29), (18, 18), (64, 30)]


def image(height=32, width=32, batch=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def oracle(net, x):
    """What the plain network gives where the calls marked as right are guided by the image."""
    plain, guided = F.interpolate, 0

    def interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None, **rest):
        nonlocal guided
        output = plain(input, size, scale_factor, mode, align_corners, **rest)
        if not align_corners or output.shape == input.shape:
            return output
        guided += 1
        at_size = F.adaptive_avg_pool2d(x, output.shape[2:])
        return pac_ops.pacresize2d(input, at_size, tuple(output.shape[2:]), None, True, scale=SCALE)

    F.interpolate = interpolate
    try:
        with torch.no_grad():
            return net(x), guided
    finally:
        F.interpolate = plain


def convert(net, targets, **options):
    torch.manual_seed(0)
    options = {"example_inputs": image(), "guide_scale": SCALE} | options
    return hotswap.convert(net, targets, "input", footprint=2, **options)


class Base(nn.Module):
    """Maps of 1/2 and of about 1/4: the second is a pixel short of the first, doubled, at many sizes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.head = nn.Conv2d(4, 2, 3, 1, 1)

    def maps(self, x):
        fine = torch.tanh(self.first(x))
        return fine, self.up(F.max_pool2d(self.other(fine), 2))

    def resized(self, x, like, **options):
        if x.shape[2:] == like.shape[2:]:
            return x
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", **options)


class Helper(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        return to_size(self.head(fine + to_size(short, fine)), x, **RIGHT)


class HelperWithinHelper(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        return through(self.head(fine + through(short, fine)), x, **RIGHT)


class MethodOfBase(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        return self.resized(self.head(fine + self.resized(short, fine)), x, **RIGHT)


class OneLine(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        return to_size(self.head(fine + to_size(short, fine)), x, **RIGHT) + to_size(fine.mean(1, True), x)


class OneLineOfCalls(Base):
    def forward(self, x):
        f = self.first(x)
        a, b = (
            F.interpolate(f, x.shape[2:], mode="bilinear"),
            F.interpolate(f, x.shape[2:], mode="bilinear", **RIGHT),
        )
        return a + 2 * b if x.shape[2] > 1 else a


class Branch(Base):
    """The same helper in branches, of which a size takes one."""

    def forward(self, x):
        fine, short = self.maps(x)
        if fine.shape != short.shape:
            fine = fine + to_size(short, fine)
        elif x.shape[2] < 20:
            fine = fine + to_size(self.other(F.avg_pool2d(fine, 2)), fine)
        return to_size(self.head(fine), x, **RIGHT)


class Lambda(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        up = (lambda y, z, **o: y if y.shape == z.shape else F.interpolate(y, z.shape[2:], mode="bilinear", **o),)[0]
        fine = fine + up(short, fine)
        return up(self.head(fine), x, **RIGHT)


class Partial(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        to_fine, to_image = functools.partial(to_size, like=fine), functools.partial(to_size, like=x, **RIGHT)
        return to_image(self.head(fine + to_fine(short)))


class Decorated(Base):
    @doubled
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        fine, short = self.maps(x)
        return self.last(self.head(fine + doubled(to_size)(short, fine)), x)

    @doubled
    @torch.enable_grad()
    def last(self, y, x):
        return to_size(y, x, **RIGHT)


class Recursion(Base):
    """From a map to the image in several steps, the last of which is the right one."""

    def grown(self, y, x, last=True):
        if 2 * y.shape[2] < x.shape[2]:
            y = self.grown(y, F.avg_pool2d(x, 2), last=False)
        return to_size(y, x, align_corners=last)

    def forward(self, x):
        return self.grown(self.head(F.avg_pool2d(self.first(x), 2)), x)


class TrainingOnly(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        if self.training:
            fine = fine + to_size(F.avg_pool2d(fine, 2), fine)
        fine = fine + to_size(short, fine)
        return to_size(self.head(fine), x, **RIGHT)


class Pyramid(Base):
    """As torchvision's: a loop over levels, each enlarged to the next. The right one is the last but one."""

    def __init__(self, levels=4):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(levels - 1))
        self.lateral = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(levels))

    def forward(self, x):
        maps = [torch.tanh(self.first(x))]
        for down in self.down:
            maps.append(down(maps[-1]))
        last = self.lateral[-1](maps[-1])
        for i in range(len(maps) - 2, -1, -1):
            side = self.lateral[i](maps[i])
            if last.shape[2:] != side.shape[2:] or x.shape[3] < 2:
                last = F.interpolate(last, size=side.shape[2:], mode="bilinear", align_corners=i == 1)
            last = side + last
        return last


class Uper(Pyramid):
    """All lateral maps first, and the loop after them."""

    def forward(self, x):
        maps = [torch.tanh(self.first(x))]
        for down in self.down:
            maps.append(down(maps[-1]))
        maps = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + to_size(maps[i], maps[i - 1], align_corners=i == 2)
        return torch.cat([to_size(m, maps[0]) for m in maps], 1)


class LoopOverMaps(Pyramid):
    """A loop between whose turns nothing is called: only what is enlarged tells them apart."""

    def maps(self, x):
        maps = [torch.tanh(self.first(x))]
        for down in self.down:
            maps.append(down(maps[-1]))
        return maps

    def forward(self, x):
        like, *maps = self.maps(x)
        for i, y in enumerate(maps):
            if y.shape[2:] != like.shape[2:]:
                y = F.interpolate(y, size=like.shape[2:], mode="bilinear", align_corners=i == 1)
            like = like + y
        return like


class Comprehension(LoopOverMaps):
    def forward(self, x):
        maps = self.maps(x)
        return sum([to_size(y, maps[0], align_corners=i == 2) for i, y in enumerate(maps)])


class Generator(LoopOverMaps):
    def forward(self, x):
        maps = self.maps(x)
        return sum(to_size(y, maps[0], align_corners=i == 2) for i, y in enumerate(maps))


class Mapped(LoopOverMaps):
    def forward(self, x):
        maps = self.maps(x)
        return sum(map(lambda i, y: to_size(y, maps[0], align_corners=i == 2), range(4), maps))


KINDS = {
    Helper: "resize_1",
    HelperWithinHelper: "resize_1",
    MethodOfBase: "resize_1",
    OneLine: "resize_1",
    OneLineOfCalls: "resize_2",
    Branch: "resize_1",
    Lambda: "resize_1",
    Partial: "resize_1",
    Decorated: "resize_1",
    Recursion: "resize_2",
    TrainingOnly: "resize_1",
    Pyramid: "resize_2",
    Uper: "resize_2",
    LoopOverMaps: "resize_2",
    Comprehension: "resize_2",
    Generator: "resize_2",
    Mapped: "resize_2",
}


def assert_right(converted, net, sizes=SIZES):
    for size in sizes:
        with torch.no_grad():
            torch.testing.assert_close(converted(image(*size)), oracle(net, image(*size))[0])
