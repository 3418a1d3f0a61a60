"""Pictures of what a swap does: differences of outputs, and which neighbours count."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from hotswap.colours import Pixels
from recipes.dependencies import installed_file
from recipes.pictures import CAPTION, INK, MARGIN, TITLE, WHITE, font, page, pixels, resize

Place = tuple[int, int]  # row and column of a pixel

RED, BLUE = (200, 30, 30), (30, 70, 200)
MARKS = ((255, 40, 40), (40, 200, 60), (40, 140, 255), (255, 170, 0), (220, 60, 220))

_NOTES = """\
surroundings: the window of the convolution, one field a tap; taps lie {step} pixels apart.
K over the window: the weight of each neighbour. White, 1.00: it counts in full, as in
the plain convolution. Black, 0.00: it does not count.
{steps} steps composed: whom the pixel hears from when it averages with these weights {steps}
times. With K = 1 everywhere it would be a round blob; edges of the guide stop it."""


def photograph(name: str) -> Tensor:
    """A photograph of scikit-image's wheel, such as "astronaut": [1, 3, H, W], RGB in 0..1.

    Raises:
        FileNotFoundError: where scikit-image is not installed, or its wheel has no such PNG.
    """
    path = installed_file("scikit-image", f"skimage/data/{name}.png", install="pip install scikit-image")
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def difference(plain: Tensor, swapped: Tensor) -> tuple[Pixels, int]:
    """Where two maps in 0..1 differ: white where equal, red where `swapped` is larger, blue where it is smaller.

    Args:
        plain: [1, H, W].
        swapped: [1, H, W].

    Returns:
        The picture, and the factor by which differences were amplified: of 1, 2, 5, 10, 20, ... the largest
        that keeps 99 % of the pixels below full colour.
    """
    change = (swapped - plain).detach().cpu()[0]
    gain = _round_gain(change.abs().quantile(0.99).item())
    strength = (change * gain).clamp(-1, 1)[..., None]
    full = torch.where(strength > 0, torch.tensor(RED), torch.tensor(BLUE))
    mixed = 255 + (full - 255) * strength.abs()
    return mixed.round().byte().numpy(), gain


def capture_kernel(model: nn.Module, target: str, image: Tensor) -> Tensor:
    """The adapting kernel K that a swapped convolution uses for an image: [B, 1, kh, kw, Ho, Wo], 0..1.

    Args:
        model: a converted network.
        target: path of a swapped convolution in it.
        image: what the network takes.
    """
    module = model.get_submodule(target)
    kernels: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        # A swapped convolution is called with its input and, by keyword, its guides.
        kernels.append(module.adapting_kernel(module.distance(*args, **keywords)))  # type: ignore[operator]

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    return kernels[0]


def spread(kernel: Tensor, place: Place, steps: int) -> Tensor:
    """Which pixels a pixel hears from when the adapting kernel is applied over and over.

    Each step is an average over the window, weighted by K; with K = 1 the result is a round blob.

    Args:
        kernel: [1, kh, kw, H, W], of stride and dilation 1 with "same" padding.
        place: row and column in the kernel's map.
        steps: how often it is applied.

    Returns:
        [H, W], the share of every pixel, summing to 1.
    """
    _, kh, kw, height, width = kernel.shape
    padding = (kh // 2, kw // 2)
    inside = F.unfold(torch.ones(1, 1, height, width), (kh, kw), padding=padding)
    weights = kernel.detach().cpu().float().reshape(1, kh * kw, -1) * inside
    weights = weights / weights.sum(dim=1, keepdim=True)
    share = torch.zeros(1, 1, height * width)
    share[0, 0, place[0] * width + place[1]] = 1
    for _ in range(steps):
        share = F.fold(share * weights, (height, width), (kh, kw), padding=padding).reshape(1, 1, -1)
    return share.reshape(height, width)


def kernel_sheet(title: str, photo: Tensor, kernel: Tensor, places: Sequence[Place], steps: int = 12) -> Image.Image:
    """The photograph with marked pixels, and for each: its surroundings, its K, and K applied `steps` times.

    Args:
        title: stands above.
        photo: [3, H, W], RGB in 0..1.
        kernel: K of one target for this photo, [1, kh, kw, h, w].
        places: row and column of at most five pixels of the photo.
        steps: see `spread`; also the radius shown, in pixels of the kernel's map.

    Raises:
        ValueError: where a place lies outside the photo, or there are more than colours to mark them with.
    """
    outside = [place for place in places if not (0 <= place[0] < photo.shape[1] and 0 <= place[1] < photo.shape[2])]
    if outside:
        raise ValueError(f"places must lie in the photo, {photo.shape[1]} rows by {photo.shape[2]}, got {outside}")
    if len(places) > len(MARKS):
        raise ValueError(f"at most {len(MARKS)} places can be marked, got {len(places)}")
    cell, gap, left_width = 210, MARGIN, 640
    whole = resize(Image.fromarray(pixels(photo)), left_width)
    row_height = cell + CAPTION + 10 + gap
    notes = _NOTES.format(step=round(photo.shape[2] / kernel.shape[-1]), steps=steps)
    notes_height = (CAPTION + 6) * (notes.count("\n") + 1) + gap
    content = max(whole.height + CAPTION + 10 + notes_height, len(places) * row_height)
    canvas, top = page(title, left_width + 3 * (cell + gap) + 2 * gap, content)
    draw = ImageDraw.Draw(canvas)
    below = (gap, top + CAPTION + 10 + whole.height + gap)
    draw.multiline_text(below, notes, fill=INK, font=font(CAPTION), spacing=6)
    draw.text((gap, top), "the photograph, with the pixels looked at", fill=INK, font=font(CAPTION))
    canvas.paste(whole, (gap, top + CAPTION + 10))
    zoom = left_width / photo.shape[2]
    for index, (place, colour) in enumerate(zip(places, MARKS, strict=False)):
        x, y = gap + place[1] * zoom, top + CAPTION + 10 + place[0] * zoom
        _mark(draw, x, y, str(index + 1), colour)
        at = _in_map(place, photo, kernel)
        line = top + index * row_height
        shown = (
            ("surroundings and window", _surroundings(photo, kernel, at, steps, colour)),
            ("K over the window", _grid(kernel[0, :, :, at[0], at[1]], cell)),
            (f"K, {steps} steps composed", _heat(photo, kernel, at, steps)),
        )
        for column, (caption, image) in enumerate(shown):
            left = 2 * gap + left_width + column * (cell + gap)
            draw.text((left, line), f"{index + 1}: {caption}", fill=INK, font=font(CAPTION))
            canvas.paste(image.resize((cell, cell), Image.Resampling.LANCZOS), (left, line + CAPTION + 10))
            outline = (left - 2, line + CAPTION + 8, left + cell + 1, line + CAPTION + 10 + cell + 1)
            draw.rectangle(outline, outline=colour, width=2)
    return canvas


def _round_gain(change: float) -> int:
    """Of 1, 2, 5, 10, 20, ... the largest whose product with `change` is at most 1; 1 where nothing changed."""
    gains = [m * 10**e for e in range(9) for m in (1, 2, 5)]
    return max((gain for gain in gains if 0 < change * gain <= 1), default=1)


def _in_map(place: Place, photo: Tensor, kernel: Tensor) -> Place:
    """The pixel of the kernel's map that holds a pixel of the photo."""
    return (
        place[0] * kernel.shape[-2] // photo.shape[1],
        place[1] * kernel.shape[-1] // photo.shape[2],
    )


def _crop(image: Image.Image, kernel: Tensor, at: Place, radius: int, cell: int) -> Image.Image:
    """The square of `radius` map pixels around one, each `cell` pixels wide, from a picture of the whole map."""
    row, column = at
    box = ((column - radius) * cell, (row - radius) * cell, (column + radius + 1) * cell, (row + radius + 1) * cell)
    resized = image.resize((kernel.shape[-1] * cell, kernel.shape[-2] * cell), Image.Resampling.LANCZOS)
    return resized.crop(box)  # black beyond the photo's border


def _surroundings(photo: Tensor, kernel: Tensor, at: Place, radius: int, colour: tuple[int, int, int]) -> Image.Image:
    cell = 10
    crop = _crop(Image.fromarray(pixels(photo)), kernel, at, radius, cell)
    draw = ImageDraw.Draw(crop)
    kh, kw = kernel.shape[1:3]
    for i in range(kh):
        for j in range(kw):
            x, y = (radius - kw // 2 + j) * cell, (radius - kh // 2 + i) * cell
            draw.rectangle((x, y, x + cell, y + cell), outline=colour)
    return crop


def _heat(photo: Tensor, kernel: Tensor, at: Place, steps: int) -> Image.Image:
    """The surroundings, darkened, with the composed weights glowing on top."""
    share = spread(kernel, at, steps)
    glow = (share / share.max()).sqrt()  # the square root keeps small shares visible
    cell = 10
    dim = pixels(photo.mean(dim=0, keepdim=True) * 0.5)
    under = np.asarray(_crop(Image.fromarray(dim), kernel, at, steps, cell), dtype=np.float32)
    mask = _crop(Image.fromarray(pixels(glow[None])), kernel, at, steps, cell)
    alpha = np.asarray(mask, dtype=np.float32) / 255
    mixed = under * (1 - alpha) + np.array([255, 205, 40], dtype=np.float32) * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))


def _grid(weights: Tensor, size: int) -> Image.Image:
    """K of one window as grey fields with the numbers written in them: white is 1, black is 0."""
    kh, kw = weights.shape
    image = Image.new("RGB", (size, size), WHITE)
    draw = ImageDraw.Draw(image)
    for i in range(kh):
        for j in range(kw):
            value = weights[i, j].item()
            shade = round(255 * min(max(value, 0.0), 1.0))
            box = (j * size // kw, i * size // kh, (j + 1) * size // kw - 1, (i + 1) * size // kh - 1)
            draw.rectangle(box, fill=(shade, shade, shade), outline=(128, 128, 128))
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            ink = INK if shade > 127 else WHITE
            draw.text(middle, f"{value:.2f}", fill=ink, font=font(size // (kw * 4)), anchor="mm")
    return image


def _mark(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: tuple[int, int, int]) -> None:
    """A ring around a place, with a number beside it."""
    draw.ellipse((x - 7, y - 7, x + 7, y + 7), outline=WHITE, width=5)
    draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=colour, width=3)
    draw.text((x + 11, y - 9), text, fill=colour, font=font(TITLE), stroke_width=3, stroke_fill=WHITE)
