"""Scores guided behind networks whose last layers are learned: nothing is trained, and with K = 1 nothing changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from saving import same
from torch import nn

import hotswap
from hotswap.errors import HotswapError
from pac_ops import pacresize2d, srgb_to_lab

IMAGE = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(3))
ODD = torch.rand(1, 3, 37, 51, generator=torch.Generator().manual_seed(4))


class Upsampling(nn.Module):
    """Scores by learned upsamplers, as a tensor or beside something else."""

    def __init__(self, kind="transposed", container=None, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, 8)
        self.up = {
            "transposed": lambda: nn.ConvTranspose2d(8, classes, 16, 8, 4),
            "shuffle": lambda: nn.Sequential(nn.Conv2d(8, classes * 64, 3, padding=1), nn.PixelShuffle(8)),
            "full resolution": lambda: nn.Sequential(
                nn.Upsample(scale_factor=8), nn.Conv2d(8, classes, 3, padding=1)
            ),
        }[kind]()
        self.container = container

    def forward(self, x):
        scores = 4 * self.up(F.relu(self.stem(x)))
        return scores if self.container is None else self.container(scores)


def network(*args, **kwargs):
    torch.manual_seed(0)
    return Upsampling(*args, **kwargs).eval()


def guided(net, **options):
    return hotswap.convert(net, "output_guided", **({"calibrate_on": [IMAGE]} | options))


@pytest.mark.parametrize("kind", ["transposed", "shuffle", "full resolution"])
def test_it_is_pacresize2d_of_the_scores(kind):
    net = network(kind)
    swapped = guided(net)
    for image in (IMAGE, IMAGE[:, :, :24]):
        scores, lab = net(image), srgb_to_lab(image)
        expected = pacresize2d(scores, lab, scale=12, footprint=(6, 4, 2, 2), halvings=3, residual=True)
        torch.testing.assert_close(swapped(image), expected)
        assert (expected - scores).abs().max() > 0.05
    assert torch.equal(hotswap.revert(swapped)(IMAGE), net(IMAGE))


@pytest.mark.parametrize("image", [IMAGE, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("halvings", [1, 2, 3, 4])
def test_with_k_1_nothing_changes(image, halvings):
    scores = torch.randn(image.shape[0], 4, *image.shape[2:])
    net = network("full resolution")
    layer = hotswap.convert(net, hotswap.Output("guided", halvings=halvings), calibrate_on=[IMAGE])._hotswap_output
    layer.rescale(0.0)
    torch.testing.assert_close(layer(scores, image), scores)
    layer.rescale(12.0)
    assert not torch.equal(layer(scores, image), scores)


def test_soft_scores_fall_where_the_image_has_its_edge():
    """A disc of one colour on another, and scores that are soft over 8 pixels about its edge."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = ((y - 30).square() + (x - 34).square()) < 18**2
    image = torch.where(disc, *torch.tensor([[0.8, 0.2, 0.2], [0.1, 0.4, 0.6]])[:, :, None, None])[None]
    soft = F.interpolate(F.avg_pool2d(disc[None, None].float(), 8), scale_factor=8, mode="bilinear")
    scores = torch.cat([1 - soft, soft], dim=1)

    class Known(nn.Module):
        def forward(self, _):
            return scores

    swapped = hotswap.convert(
        Known(), "output_guided", space=hotswap.GuideSpace("lab", (0, 0, 0), (1, 1, 1)), example_inputs=image
    )
    wrong = [int((out.argmax(1)[0] != disc).sum()) for out in (scores, swapped(image))]
    assert wrong[1] < wrong[0] / 4


def test_in_what_networks_return_saved_loaded_copied_learned(tmp_path):
    net = network("shuffle", lambda x: {"aux": x[:, :2], "out": x})
    swapped = guided(net)
    out = swapped(IMAGE)
    assert torch.equal(out["aux"], net(IMAGE)["aux"])
    assert not torch.equal(out["out"], net(IMAGE)["out"])
    nn.init.constant_(swapped._hotswap_output.gate, 0.25)  # learned, as all gates are
    moved = 0.25 * (out["out"] - net(IMAGE)["out"])
    torch.testing.assert_close(swapped(IMAGE)["out"], net(IMAGE)["out"] + moved)
    hotswap.save(swapped, tmp_path / "m.safetensors")
    loaded = hotswap.load(tmp_path / "m.safetensors", net)
    assert same(loaded.state_dict(), swapped.state_dict())
    for again in (loaded, copy.deepcopy(swapped)):
        assert torch.equal(again(IMAGE)["out"], swapped(IMAGE)["out"])
    status = hotswap.status(loaded)
    assert "output['out'], 4 classes: refined by guided steps behind 3 halvings" in str(status)
    assert not status.warnings
    assert hotswap.apply(net, status.plan)._hotswap_output.gate.flatten().tolist() == [0.25] * 4
    swapped(IMAGE)["out"].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in swapped.parameters())


def test_plans_of_files_that_are_older():
    plan = hotswap.status(guided(network())).plan.to_dict()
    del plan["refinement"]["halvings"]
    assert hotswap.Plan.from_dict(plan).output.halvings == 3


def test_verified_and_reported(tmp_path):
    swapped = guided(network())
    verified = hotswap.verify(swapped, [IMAGE])
    assert str(verified).startswith("drift (relative RMS change of the outputs): ")
    assert verified.output_relative > 0.01
    hotswap.report(swapped, [IMAGE], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "with its output refined</h1>" in page
    assert "Behind the network: output, 4 classes: refined by guided steps behind 3 halvings" in page
    assert 'id="targets"' not in page


def test_beside_a_swapped_convolution_and_a_guided_enlargement():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.AvgPool2d(4),
        nn.Upsample(scale_factor=4, mode="bilinear"),
    ).eval()
    swapped = hotswap.convert(
        net, ["1", "resize_*", "output_guided"], {"1": "0", "resize_*": "input"}, calibrate_on=[IMAGE]
    )
    plan = hotswap.status(swapped).plan
    assert (len(plan.swaps), len(plan.resizes), plan.output.kind) == (1, 1, "guided")
    assert torch.equal(hotswap.revert(swapped)(IMAGE), net(IMAGE))


@pytest.mark.parametrize("targets", ["output", "output_crf", "output_guided"])
def test_behind_a_sequential_which_calls_all_that_it_holds(targets, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    swapped = hotswap.convert(net, targets, calibrate_on=[IMAGE])
    nn.init.constant_(swapped._hotswap_output.gate, 0.5)
    layer = swapped._hotswap_output
    torch.testing.assert_close(swapped(IMAGE), layer(net(IMAGE), IMAGE))
    assert not torch.equal(swapped(IMAGE), net(IMAGE))
    hotswap.calibrate(swapped, [IMAGE], deviation=0.3)
    assert layer.guide_scale != 12
    for method in ("fx", "hooks"):
        both = hotswap.convert(swapped, "2", "0", calibrate_on=[IMAGE], method=method)
        assert not torch.equal(both(IMAGE), swapped(IMAGE))
        assert torch.equal(hotswap.revert(both)(IMAGE), net(IMAGE))
    hotswap.save(swapped, tmp_path / "m.safetensors")
    assert torch.equal(hotswap.load(tmp_path / "m.safetensors", net)(IMAGE), swapped(IMAGE))


@pytest.mark.parametrize(("dynamic", "sizes"), [(False, [IMAGE]), (True, [IMAGE, ODD, IMAGE[:, :, :33]])])
def test_onnx(dynamic, sizes, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")

    class Pixelwise(nn.Module):  # at any size
        def __init__(self):
            super().__init__()
            self.scores = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return 4 * F.avg_pool2d(self.scores(x), 5, 1, 2)

    torch.manual_seed(0)
    swapped, path = guided(Pixelwise().eval()), tmp_path / "net.onnx"
    hotswap.export(swapped, path, example_inputs=IMAGE, dynamic=dynamic)
    session = onnxruntime.InferenceSession(path)
    for image in sizes:
        (out,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), swapped(image), rtol=1e-4, atol=1e-4)


def test_compiled_and_in_bfloat16():
    swapped = guided(network())
    expected = swapped(IMAGE)
    torch._dynamo.reset()
    compiled = torch.compile(swapped, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGE), expected)
    narrow = copy.deepcopy(swapped).bfloat16()(IMAGE.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert (narrow - expected).abs().max() < 0.1 * expected.abs().max()


def test_refusals_name_it():
    for kind in ("transposed", "shuffle", "full resolution"):
        with pytest.raises(HotswapError, match='"output_guided" guides the scores that it ends with'):
            hotswap.convert(network(kind), "resize", "input", example_inputs=IMAGE)
    coarse = nn.Sequential(nn.Conv2d(3, 4, 3, 4, padding=1), nn.ConvTranspose2d(4, 4, 2, 2)).eval()  # at 1/2
    with pytest.raises(HotswapError, match="runs after the network, and hotswap.enlarge"):
        hotswap.convert(coarse, "resize", "input", example_inputs=IMAGE)
    larger = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)).eval()  # super-resolution
    with pytest.raises(HotswapError, match="by pixel shuffle .* is learned, and not guided$"):
        hotswap.convert(larger, "resize", "input", example_inputs=IMAGE)
    with pytest.raises(HotswapError, match="about as large; it is 80 x 112, of an image of 40 x 56"):
        guided(larger)
    four = nn.Sequential(nn.Conv2d(4, 4, 8, 8), nn.PixelShuffle(2)).eval()
    with pytest.raises(HotswapError, match="images of 3 channels, or 1 of grey ones, got 4"):
        hotswap.convert(four, "output_guided", calibrate_on=[torch.rand(1, 4, 32, 32)])
    for space in (None, lambda image: image):
        with pytest.raises(HotswapError, match='space must be "lab", "rgb" or a hotswap.GuideSpace where the output'):
            guided(network(), space=space)


def test_grey_images():
    net = nn.Sequential(nn.Conv2d(1, 8, 8, 8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 16, 8, 4)).eval()
    image = IMAGE[:, :1]
    swapped = hotswap.convert(net, "output_guided", calibrate_on=[image])
    expected = pacresize2d(
        net(image), srgb_to_lab(image), scale=12, footprint=(6, 4, 2, 2), halvings=3, residual=True
    )
    torch.testing.assert_close(swapped(image), expected)
