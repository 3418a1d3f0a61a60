"""Serve an exported network over HTTP: an image in, its labels in colour out. It takes neither PyTorch nor hotswap.

hotswap export swapped.safetensors -o network.onnx
python -m examples.serve network.onnx --port 8000
curl --data-binary @photo.jpg localhost:8000 > labels.png
"""

import argparse
import io
import warnings
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's; a network of another unit needs others
LARGEST = 20 * 2**20  # bytes of an image
_STRIDE = 32  # images are resized to multiples of it


def palette(classes: int) -> NDArray[np.uint8]:
    """Colours of labels as PASCAL VOC has them: [classes, 3], the bits of a label spread over red, green and blue."""
    labels = np.arange(classes)
    colours = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def predict(session: onnxruntime.InferenceSession, content: bytes) -> bytes:
    """A PNG of the highest label at every pixel, of the size of the image.

    Raises:
        ValueError: where the content is no image that can be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content)).convert("RGB")
    except Exception as error:  # a damaged image can make a decoder raise anything
        raise ValueError(f"the request must hold an image ({type(error).__name__})") from error
    (entry,) = session.get_inputs()
    size = [x if isinstance(x, int) else _multiple(n) for x, n in zip(entry.shape[2:], image.size[::-1], strict=True)]
    pixels = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR), np.float32) / 255
    batch = ((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)[None]
    scores = session.run(None, {entry.name: batch})[0][0]
    found = scores.argmax(0) if len(scores) > 1 else scores[0] > 0  # one channel is a binary logit
    labels = Image.fromarray(found.astype(np.uint8))
    labels = labels.resize(image.size, Image.Resampling.NEAREST)
    labels.putpalette(palette(256).tobytes())
    stream = io.BytesIO()
    labels.save(stream, "PNG")
    return stream.getvalue()


def server(network: Path, port: int) -> HTTPServer:
    """A server of one network on this machine; `serve_forever` starts it, and port 0 takes any that is free."""
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= LARGEST:
                self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "text/plain", b"an image of at most 20 MiB")
                return
            try:
                picture = predict(session, self.rfile.read(length))
            except ValueError as error:
                self._answer(HTTPStatus.BAD_REQUEST, "text/plain", str(error).encode())
                return
            self._answer(HTTPStatus.OK, "image/png", picture)

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return HTTPServer(("127.0.0.1", port), Handler)


def _multiple(size: int) -> int:
    return max(_STRIDE, round(size / _STRIDE) * _STRIDE)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description="Serve an exported network: POST an image, get its labels in colour."
    )
    parser.add_argument("network", type=Path, help="the .onnx file")
    parser.add_argument("--port", type=int, default=8000)
    chosen = parser.parse_args()
    with server(chosen.network, chosen.port) as running:
        print(f"http://127.0.0.1:{running.server_port}", flush=True)
        running.serve_forever()


if __name__ == "__main__":
    main()
