"""The served example answers as the network would."""

import io
import threading
import urllib.error
import urllib.request

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from examples import serve


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server of a network whose scores are the image's three channels, of any size."""
    path = tmp_path_factory.mktemp("serve") / "network.onnx"
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["scores"])], "net", [image], [scores])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    with serve.server(path, 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def post(address, content):
    request = urllib.request.Request(address, data=content, method="POST")  # noqa: S310 (our own)
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return answer.headers["Content-Type"], answer.read()


def test_an_image_comes_back_as_its_labels_in_colour(address):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :32, 0] = pixels[:, 32:64, 1] = pixels[:, 64:, 2] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    kind, body = post(address, stream.getvalue())
    answer = Image.open(io.BytesIO(body))
    assert (kind, answer.mode, answer.size) == ("image/png", "P", (96, 64))
    assert np.unique(np.asarray(answer)[:, [16, 48, 80]], axis=0).tolist() == [[0, 1, 2]]
    assert answer.convert("RGB").getpixel((48, 10)) == (128, 0, 0)


@pytest.mark.parametrize(("content", "status"), [(b"no image", 400), (b"", 413)])
def test_what_is_no_image_is_refused(address, content, status):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(address, content)
    assert caught.value.code == status


def test_colours_are_those_of_voc():
    assert serve.palette(22)[[0, 1, 2, 15, 21]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [128, 64, 128],
    ]
