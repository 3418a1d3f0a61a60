"""Pages of pictures: panels under their captions."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hotswap.colours import Pixels, from_tensor

Panel = tuple[str, Pixels]  # a caption and its picture

MARGIN = 16
CAPTION = 15  # height of the letters in pixels; titles are larger
TITLE = 20
WHITE, INK = (255, 255, 255), (25, 25, 25)


def pixels(image: Tensor) -> Pixels:
    """[3, H, W] or [1, H, W] in 0..1 (clipped) as RGB pixels."""
    return from_tensor(image, 0.0, 1.0)


def sheet(title: str, rows: Sequence[Sequence[Panel]], width: int = 420) -> Image.Image:
    """Panels in rows under a title, each with its caption, scaled to `width` pixels."""
    scaled = [[(caption, resize(Image.fromarray(p), width)) for caption, p in row] for row in rows]
    heights = [max(image.height for _, image in row) + CAPTION + 10 for row in scaled]
    columns = max(len(row) for row in scaled)
    canvas, top = page(title, columns * (width + MARGIN) + MARGIN, sum(heights) + MARGIN * len(heights))
    draw = ImageDraw.Draw(canvas)
    for row, height in zip(scaled, heights, strict=True):
        for i, (caption, image) in enumerate(row):
            left = MARGIN + i * (width + MARGIN)
            draw.text((left, top), caption, fill=INK, font=font(CAPTION))
            canvas.paste(image, (left, top + CAPTION + 10))
        top += height + MARGIN
    return canvas


def page(title: str, width: int, height: int) -> tuple[Image.Image, int]:
    """A white page with a title and space for content of a size, and the row where the content starts."""
    top = MARGIN + TITLE + MARGIN
    canvas = Image.new("RGB", (width, top + height + MARGIN), WHITE)
    ImageDraw.Draw(canvas).text((MARGIN, MARGIN - 2), title, fill=INK, font=font(TITLE))
    return canvas, top


def resize(image: Image.Image, width: int) -> Image.Image:
    """Scale a picture to `width` pixels."""
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font at a height in pixels."""
    return ImageFont.load_default(size)
