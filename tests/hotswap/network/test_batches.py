"""Data as data loaders give it, to every verb that takes some."""

import networks
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import hotswap
from hotswap.errors import HotswapError
from hotswap.network.batches import as_batches

IMAGES, LABELS = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(4)
LOADED = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=2)
MAPPINGS = [{"image": x, "label": y} for x, y in LOADED]


def convert(**options):
    return hotswap.convert(networks.Plain().eval(), "target", "guide", **options)


def scale(model):
    return hotswap.status(model).plan.swaps[0].guide_scale


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_pairs_and_mappings_are_taken_as_images_alone(method, tmp_path):
    torch.manual_seed(0)
    net = networks.Plain().eval()
    alone, (pairs, mappings) = [x for x, _ in LOADED], (LOADED, MAPPINGS)
    pick = {"inputs": lambda batch: batch["image"]}

    def calibrated(batches, **options):
        return hotswap.convert(net, "target", "guide", calibrate_on=batches, method=method, **options)

    converted = calibrated(alone)
    assert scale(calibrated(pairs)) == scale(calibrated(mappings, **pick)) == scale(converted)
    wanted = hotswap.verify(converted, alone)
    assert hotswap.verify(converted, pairs) == hotswap.verify(converted, mappings, **pick) == wanted
    again = [hotswap.calibrate(converted, *given, deviation=0.1) for given in ((alone,), (pairs,))]
    again.append(hotswap.calibrate(converted, mappings, deviation=0.1, **pick))
    assert len({result.targets[0].scale for result in again}) == 1
    reports = [
        hotswap.report(converted, data, tmp_path / "r.html", limit=1, **o)
        for data, o in ((pairs, {}), (mappings, pick))
    ]
    assert reports[0].content.targets[0].check.deviation == reports[1].content.targets[0].check.deviation


class Takes(torch.nn.Module):
    """Only its signature matters."""

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


A, B, C = (torch.full((1,), float(n)) for n in range(3))


@pytest.mark.parametrize(
    ("forward", "batch", "expected"),
    [
        (lambda x: x, A, (A,)),
        (lambda x: x, [A, B], (A,)),
        (lambda x, y: x, (A, B), (A, B)),
        (lambda x, y=None: x, (A, B, C), (A, B)),
        (lambda *x: x, (A, B, C), (A, B, C)),
        (lambda pixel_values, mask=7, labels=None: A, {"labels": B, "pixel_values": A}, (A, 7, B)),
        (lambda pixel_values, mask=7: A, {"pixel_values": A, "path": "x.png"}, (A,)),
    ],
)  # fmt: skip
def test_a_network_gets_what_its_forward_takes(forward, batch, expected):
    assert list(as_batches(Takes(forward), [batch])) == [expected]


@pytest.mark.parametrize(
    ("forward", "batch", "inputs", "reason"),
    [
        (lambda x: x, {"image": A, "label": B}, None, "a batch is a mapping with 'image', 'label', and the arguments of the network's forward are 'x'; .* inputs=lambda batch: batch\\['image'\\]"),
        (lambda x, y: x, {"y": A}, None, "are 'x', 'y'"),
        (lambda *, x: x, {"x": A}, None, r"takes 'x' by keyword alone, .* take away the \* before 'x'"),
        (lambda *x: x, {"x": A}, None, "are unnamed; give inputs"),
        (lambda x: x, 3, None, "a batch must be a tensor, a tuple or a mapping, got int"),
        (lambda x: x, {"picture": A}, lambda batch: batch["image"], "inputs fails on a batch that is a mapping with 'picture' \\(KeyError: 'image'\\)"),
        (lambda x: x, A, lambda batch: batch.image, "inputs fails on a batch that is a Tensor"),
        (lambda x: x, A, lambda batch: "a.png", "got str"),
    ],
)  # fmt: skip
def test_what_it_cannot_be_given_is_one_line(forward, batch, inputs, reason):
    with pytest.raises(HotswapError, match=reason):
        list(as_batches(Takes(forward), [batch], inputs))


def test_a_dead_guide_is_named():
    net = networks.Plain().eval()
    with torch.no_grad():
        net.guide.weight.zero_()
    with pytest.raises(
        HotswapError, match="the guide of target 'target', 'guide', is one value all over these batches.* dead"
    ):
        hotswap.convert(net, "target", "guide", calibrate_on=[IMAGES])
