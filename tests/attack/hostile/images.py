"""Pictures that are bombs, cut short or something else."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from hostile.archives import zeros_deflated
from hostile.samples import GIB, IMAGE, Sample


def image_bytes(kind, size=(24, 16), mode="RGB", **options):
    """A small photograph."""
    generator = np.random.default_rng(1)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = generator.integers(0, 255, (size[1], size[0], bands), dtype=np.uint8).squeeze()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def _png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width, height, data, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + b"".join(chunks)
    return start + _png_chunk(b"IDAT", data) + _png_chunk(b"IEND", b"")


def images():
    """Pictures that are bombs, cut short or something else."""
    made = []

    def add(name, suffix, content, *, refused=True):
        made.append(Sample(IMAGE, f"image {name}", suffix, content, refused))

    zeros = zlib.compress(bytes(2**20), 9)
    bomb = b"x\x9c" + zeros_deflated(2 * GIB) + bytes(4)
    add("of 10^9 pixels", ".png", _png(31_000, 31_000, bomb))
    add("of just under the limit", ".png", _png(9000, 9000, bomb), refused=False)
    add("of 2^31 columns", ".png", _png(2**31 - 1, 1, zeros))
    add("of no columns", ".png", _png(0, 10, zeros))
    add("with a text bomb", ".png", _png(8, 8, zeros, _png_chunk(b"zTXt", b"a\0\0" + bomb)), refused=False)
    add("with a profile bomb", ".png", _png(8, 8, zeros, _png_chunk(b"iCCP", b"a\0\0" + bomb)), refused=False)
    for kind, suffix in (("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("BMP", ".bmp"), ("TIFF", ".tif")):
        whole = image_bytes(kind)
        add(f"{kind} cut", suffix, whole[: len(whole) // 2])
        add(f"{kind} start alone", suffix, whole[:12])
        add(f"{kind} under another name", ".png", whole, refused=False)
    add("GIF", ".png", image_bytes("GIF", mode="L"), refused=False)
    add("EPS", ".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n")
    add("SVG", ".png", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>")
    add("text", ".jpg", b"hello")
    add("empty", ".jpg", b"")
    add("grey with alpha", ".png", image_bytes("PNG", mode="LA"), refused=False)
    add("one pixel", ".png", image_bytes("PNG", size=(1, 1)), refused=False)
    return made
