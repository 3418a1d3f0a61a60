"""Exported files in runtimes other than onnxruntime, each where it is installed."""

import pytest
import torch
from test_lean import Convolving, Enlarging

import hotswap

NETWORKS = {"enlargement": (Enlarging, "resize", "input"), "convolution": (Convolving, "target", "guide")}


@pytest.fixture(params=NETWORKS)
def swapped(request):
    """A swapped network, an image, and what it makes of that."""
    kind, targets, guide = NETWORKS[request.param]
    torch.manual_seed(0)
    image = torch.rand(1, 3, 32, 48)
    net = hotswap.convert(kind().eval(), targets, guide, guide_scale=2.0, example_inputs=image)
    with torch.no_grad():
        return net, image, net(image)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_openvino(tmp_path, swapped, suffix):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    net, image, expected = swapped
    file = tmp_path / f"net{suffix}"
    hotswap.export(net, file, example_inputs=image, dynamic=False)
    model = openvino.convert_model(file if suffix == ".onnx" else torch.export.load(file))
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(compiled(image.numpy())[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_coreml_converts(tmp_path, swapped):
    """Predictions need a Mac."""
    coreml = pytest.importorskip("coremltools", reason="coremltools is not installed")
    net, image, _ = swapped
    file = tmp_path / "net.pt2"
    hotswap.export(net, file, example_inputs=image, dynamic=False)
    program = torch.export.load(file).run_decompositions({})
    model = coreml.convert(program, minimum_deployment_target=coreml.target.iOS17)
    assert model.get_spec().WhichOneof("Type") == "mlProgram"
