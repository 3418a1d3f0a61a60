"""What PyTorch's exporter decomposes on the way to ONNX computes what the network does, in-place writes too."""

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from sampled import sampled
from torch import nn

import hotswap
from hotswap.exporting.sizes import difference, tensors


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), function
        nn.init.normal_(self.norm.running_mean)

    def forward(self, image):
        return self.function(self, image)


def run(function, file):
    torch.manual_seed(0)
    network, image = Net(function).eval(), torch.randn(2, 3, 12, 14)
    made = hotswap.export(network, file, example_inputs=image)
    assert made.inputs == (("batch", 3, "height", "width"),)
    other = torch.randn(3, 3, 17, 11)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    with torch.no_grad():
        assert difference([torch.from_numpy(y) for y in found], tensors(network(other.clone()))) < 1e-5


def read_again(net, image):
    x = net.norm(net.conv(image))
    y = F.relu_(x)
    return x + 2 * y.sigmoid()


def of_a_chain(net, image):
    x = net.conv(image)
    before = x.sigmoid()
    x.clamp_(-1, 1).add_(1)
    return before, x * 2


def transposed(net, image):
    weight = net.conv.weight.detach()
    x = F.conv_transpose2d(net.conv(image), weight, stride=2, padding=1, output_padding=1)
    return F.conv_transpose2d(x, net.conv.weight.transpose(0, 1), dilation=2, groups=1)


def without_affine(net, image):
    x = net.conv(image)
    return F.batch_norm(x, net.norm.running_mean, net.norm.running_var, eps=0.1)


def enlarged(net, image):
    x = net.conv(image)
    y = F.interpolate(x, scale_factor=2, mode="nearest")
    z = F.interpolate(F.interpolate(x, size=8), size=y.shape[2:], mode="bilinear", align_corners=True)
    return (
        y,
        z,
        F.interpolate(x, scale_factor=(2, 3), mode="bicubic"),
        F.interpolate(x, scale_factor=2, mode="bilinear"),
    )


def pooled(net, image):
    x = net.conv(image)
    return F.adaptive_avg_pool2d(x, (None, 5)), F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(image[0], 3)


@pytest.mark.parametrize("function", [read_again, of_a_chain, transposed, without_affine, enlarged, pooled])
def test_operations_of_networks(tmp_path, function):
    run(function, tmp_path / "net.onnx")


def of_a_view(net, image):
    x = net.conv(image)
    view = x.flatten(2)
    x.relu_()
    return view + 1


def through_a_view(net, image):
    x = net.conv(image)
    x[:, :2].relu_()
    return x + 1


def of_what_dropout_gives(net, image):
    x = net.conv(image)
    dropped = F.dropout(x, training=False)
    x.relu_()
    return dropped + 1


def of_an_argument(net, image):
    same = image.view(image.shape)
    image.relu_()
    return net.conv(same)


def of_both(net, image):
    x = net.conv(image)
    parts = x.split(2, dim=1)
    y = x.relu_()
    return parts[1] + 1, y


def of_another_dtype(net, image):
    x = net.conv(image)
    x.add_(image.double().mean() * torch.ones(1, dtype=torch.float64))
    return net.norm(x)


@pytest.mark.parametrize(
    "function",
    sampled([of_a_view, through_a_view, of_what_dropout_gives, of_an_argument, of_both, of_another_dtype]),
)
def test_where_memory_is_shared_what_is_written_in_place_is_seen(tmp_path, function):
    run(function, tmp_path / "net.onnx")
