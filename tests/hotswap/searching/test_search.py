"""`hotswap.search`: what it chooses and what it says, on networks and pictures where the answer is known."""

import json

import blobs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hotswap
from hotswap.errors import HotswapError
from hotswap.searching import family
from hotswap.searching.family import STRENGTHS
from hotswap.zoo import image_stats


@pytest.fixture(scope="module")
def batches():
    images, labels = zip(*(blobs.picture(seed) for seed in range(20)), strict=True)
    return [(torch.stack(images[i : i + 3]), torch.stack(labels[i : i + 3])) for i in range(0, 20, 3)]


@pytest.fixture(scope="module")
def whole(batches):
    """What a search gives that nothing stops, and how many images it measured."""
    counts = []

    def counting(items, total, what):
        counts.append(total)
        return items

    return hotswap.search(blobs.Coarse().eval(), batches, progress=counting), sum(counts)


def mean_iou(model, pairs):
    hits, union, true = torch.zeros(4), torch.zeros(4), torch.zeros(4)
    for image, labels in pairs:
        with torch.no_grad():
            predicted = model(image[None])[0].argmax(0)
        for n in range(4):
            hits[n] += ((predicted == n) & (labels == n)).sum()
            union[n] += ((predicted == n) | (labels == n)).sum()
            true[n] += (labels == n).sum()
    return float((hits / union)[true > 0].mean())


def test_where_colours_tell_classes_it_says_which_swap(batches):
    net = blobs.Coarse().eval()
    result = hotswap.search(net, batches)
    assert result.swap
    assert not {id(x) for x in net.parameters()} & {id(x) for x in result.network.parameters()}
    assert result.sentence.startswith("Swap this: resize_1 with ")
    assert hotswap.status(net).plan is None
    others = [pair for batch in batches for pair in zip(*batch, strict=True)][
        8:
    ]  # those that had no part in the choice
    gain = result.chosen.gains["miou"]
    assert gain.images == len(others) == 12
    assert gain.plain == pytest.approx(mean_iou(net, others), abs=1e-6)
    assert gain.swapped == pytest.approx(mean_iou(result.network, others), abs=1e-6)
    assert gain.better > gain.margin > 0
    assert [each.gains["miou"].images for each in result.tried] == sorted(
        (each.gains["miou"].images for each in result.tried), reverse=True
    )
    keys = {each.candidate.key for each in result.tried}
    assert len(result.tried) == len(keys) >= 2 * len(STRENGTHS)


def test_where_the_image_says_nothing_it_says_leave_it():
    batches = [(blobs.picture(seed)[0][None], (torch.arange(96) > 48).long().expand(1, 64, 96)) for seed in range(12)]
    result = hotswap.search(blobs.Blind().eval(), batches)
    assert not result.swap
    assert result.network is None
    assert result.sentence.startswith("Leave it: ")


def test_a_network_without_an_enlargement_is_refused_where_its_output_is_left_out(batches):
    with pytest.raises(HotswapError, match="there is nothing to try: .*the network enlarges no map"):
        hotswap.search(torch.nn.Conv2d(3, 4, 3, padding=1), batches, family=[{"targets": "resize"}])


def test_a_network_that_enlarges_by_learned_layers_is_guided_behind_them(batches):
    class Learned(blobs.Coarse):
        def __init__(self):
            super().__init__()
            tent = 1 - (torch.arange(16) - 7.5).abs() / 8
            weight = 1.1 * (tent * tent[:, None]).expand(4, 1, 16, 16)  # near bilinear, as a trained one may be
            self.up = nn.ConvTranspose2d(4, 4, 16, 8, 4, groups=4, bias=False)
            self.up.weight = nn.Parameter(weight.clone())

        def forward(self, image):
            return self.up(self.conv(image))

    net = Learned().eval()
    result = hotswap.search(net, batches)
    assert result.swap
    assert result.sentence.startswith("Swap this: output_guided with default options, guide_scale=")
    assert [each.candidate.structure.targets for each in result.tried] == ["output_guided"] * len(STRENGTHS)
    assert hotswap.status(result.network).plan.output.guide_scale == result.chosen.candidate.scales[0]
    others = [pair for batch in batches for pair in zip(*batch, strict=True)][8:]
    assert result.chosen.gains["miou"].swapped == pytest.approx(mean_iou(result.network, others), abs=1e-6)


def test_refinements_of_the_output_are_ways_of_their_own(batches):
    ways = ["output_guided", "output_crf", hotswap.Output("guided", halvings=2)]
    result = hotswap.search(blobs.Coarse().eval(), batches, family=[{"targets": way} for way in ways])
    assert {each.candidate.structure.plan.output.kind for each in result.tried} == {"guided", "crf"}
    assert {each.candidate.structure.plan.output.halvings for each in result.tried} == {2, 3}
    assert len(result.tried) == len(ways) * len(STRENGTHS)


# --- other labels and metrics -------------------------------------------------------------------------------------


class Depth(nn.Module):
    """The grey of an image on cells of 8 x 8, enlarged: depth, where depth is grey."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 8, 8)
        nn.init.constant_(self.conv.weight, 1 / 192)
        nn.init.zeros_(self.conv.bias)

    def forward(self, image):
        return F.interpolate(self.conv(image), image.shape[-2:], mode="bilinear")[:, 0]


def colour_means(seed):
    image, labels = blobs.picture(seed)
    return image, blobs.COLOURS.mean(1)[labels]


def test_depth_is_better_where_its_error_is_less():
    pictures = [colour_means(seed) for seed in range(12)]
    result = hotswap.search(Depth().eval(), [(image[None], depth[None]) for image, depth in pictures])
    assert result.swap
    gain = result.chosen.gains["rmse"]
    assert gain.swapped < gain.plain
    assert gain.better == pytest.approx(gain.plain - gain.swapped)
    errors = [(result.network(image[None])[0] - depth).square().mean().sqrt().item() for image, depth in pictures[5:]]
    assert gain.swapped == pytest.approx(np.mean(errors), rel=1e-5)
    assert "of RMSE" in result.sentence


FEW = ({"guide_scale": 8.0}, {"guide_scale": 2.0})  # where it is not the family that counts


@pytest.mark.parametrize("higher", [True, False])
def test_a_function_is_a_metric(batches, higher):
    def share_right(scores, labels):
        return (scores.argmax(0) == labels).float().mean().item() * (1 if higher else -1)

    net = blobs.Coarse().eval()
    result = hotswap.search(net, batches, metric=share_right, higher_is_better=higher, family=FEW)
    assert result.swap
    assert [metric.title for metric in result.metrics] == ["share_right"]
    assert sorted(tried.candidate.scales for tried in result.tried) == [(2.0,), (8.0,)]


def test_labels_may_be_picked_and_be_arrays(batches, whole):
    mappings = [{"image": image, "truth": labels.numpy()} for image, labels in batches]
    options = {"inputs": lambda batch: batch["image"], "labels": lambda batch: batch["truth"]}
    one = hotswap.search(blobs.Coarse().eval(), mappings, **options)
    assert one.to_dict() == whole[0].to_dict()


def test_images_without_a_label_are_left_out(batches, whole):
    few = [batches[0], *[(image[None], None) for image in batches[1][0]], *batches[1:]]
    result = hotswap.search(blobs.Coarse().eval(), few)
    assert result.notes == ("3 of 23 images have no label",)
    assert result.to_dict() == whole[0].to_dict() | {"notes": list(result.notes)}


def test_what_need_not_be_measured_is_not(batches, whole, monkeypatch):
    """A kind of target is planned once for all spaces, and nothing calibrated where scales are known."""
    planned, calibrated = [], []
    plan = family.plan
    monkeypatch.setattr(family, "plan", lambda *a, **k: planned.append(1) or plan(*a, **k))
    monkeypatch.setattr("hotswap.api.calibrate", lambda *a, **k: calibrated.append(1))
    net = blobs.Coarse().eval()
    image_stats.put(net, image_stats.ImageStats((0.0,) * 3, (1.0,) * 3))
    result = hotswap.search(net, batches)
    assert (len(planned), calibrated) == (3, [])  # with the default footprint, 2 and 6
    assert [tried.candidate.row for tried in result.tried] == [tried.candidate.row for tried in whole[0].tried]


class Quarter(blobs.Coarse):
    """Its scores at a quarter of the image."""

    def forward(self, image):
        return {"logits": F.interpolate(self.conv(image), scale_factor=2, mode="bilinear")}


def test_a_map_that_is_enlarged_elsewhere_is_compared_at_its_own_size(batches):
    result = hotswap.search(Quarter().eval(), batches)
    assert result.sizes == ((16, 24),)
    assert result.notes[0].startswith("the network's map of 16 x 24 is smaller than its image, 64 x 96")


def test_a_family_of_ones_own(batches):
    ways = [{"targets": "last", "guide_scale": 8.0}, {"targets": "resize_1", "footprint": 4}, {"targets": "resize_9"}]
    result = hotswap.search(blobs.Coarse().eval(), batches, family=ways)
    assert len(result.tried) == 1 + len(STRENGTHS)
    assert [tried.candidate.scales for tried in result.tried if tried.candidate.structure.options == ways[0]] == [
        (8.0,)
    ]
    assert len(result.notes) == 1
    assert result.notes[0].startswith("not tried: targets=resize_9")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "dice"}, "metric must be one of auto, miou, iou, edges, rmse, epe or a function, got 'dice'"),
        ({"choose_on": 1.0}, "choose_on must be between 0 and 1"),
        ({"labels": "folder"}, "labels must be a function that picks them of a batch"),
        (
            {"labels": lambda batch: None},
            "a search needs labels to choose by, and .*; without labels hotswap.preview",
        ),
        ({"labels": lambda batch: batch[1][:, :, :50]}, "their aspect ratios must be the same"),
        ({"labels": lambda batch: batch[1] + 4}, "labels must be from 0 to 3"),
        (
            {"labels": lambda batch: torch.full_like(batch[1], 255)},
            "nothing counts in the labels of the first 4 images",
        ),
        ({"page": "page.txt"}, "must end in .html"),
        ({"family": []}, "there is nothing to try"),
        ({"limit": 0}, "limit must be a whole number of at least 1"),
        ({"unit": 0.0}, "unit must be a number > 0"),
    ],
)
def test_mistakes_are_one_line(batches, options, message):
    with pytest.raises(HotswapError, match=message):
        hotswap.search(blobs.Coarse().eval(), batches, **options)


def test_too_few_images_and_swapped_networks_are_refused(batches):
    net = blobs.Coarse().eval()
    with pytest.raises(HotswapError, match="at least 8 labelled images, got 6"):
        hotswap.search(net, batches[:2])
    with pytest.raises(HotswapError, match="a search begins with a plain network"):
        hotswap.search(hotswap.convert(net, "resize", "input", calibrate_on=batches[:1]), batches)


# --- going on -----------------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


def stops_after(count):
    def progress(items, total, what):
        nonlocal count
        for item in items:
            if count == 0:
                raise StopError
            count -= 1
            yield item

    return progress


def test_an_interrupted_search_goes_on(batches, whole, tmp_path):
    net, file = blobs.Coarse().eval(), tmp_path / "so_far"
    counts = []

    def counting(items, total, what):
        counts.append(total)
        return items

    with pytest.raises(StopError):
        hotswap.search(net, batches, resume=file, progress=stops_after(14))
    with file.open("a") as stream:
        stream.write('{"candidate": "cut o')
    with pytest.raises(StopError):
        hotswap.search(net, batches, resume=file, progress=stops_after(2))
    again = hotswap.search(net, batches, resume=file, progress=counting)
    assert again.to_dict() == whole[0].to_dict()
    assert whole[1] - sum(counts) == 16
    assert not file.exists()


def test_what_was_asked_otherwise_is_begun_anew(batches, tmp_path):
    net, file = blobs.Coarse().eval(), tmp_path / "so_far"
    with pytest.raises(StopError):
        hotswap.search(net, batches, family=FEW, resume=file, progress=stops_after(3))
    measured = file.read_text()
    one_image = 1 + 1 + len(FEW)  # lines: what was asked, the plain network, the swaps
    assert len(measured.splitlines()) > one_image
    for change in ({}, {"metric": "edges"}, {"ignore": 3}):
        file.write_text(measured)
        with pytest.raises(StopError):
            hotswap.search(net, batches, family=FEW, resume=file, progress=stops_after(1), **change)
        assert (len(file.read_text().splitlines()) == one_image) is bool(change)
    with torch.no_grad():
        net.conv.weight.mul_(1.1)
    file.write_text(measured)
    with pytest.raises(StopError):
        hotswap.search(net, batches, family=FEW, resume=file, progress=stops_after(1))
    assert len(file.read_text().splitlines()) == one_image
    assert json.loads(file.read_text().splitlines()[0])["format"] == 1


def test_another_file_is_not_overwritten(batches, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(HotswapError, match="is no file that a search left to go on from"):
        hotswap.search(blobs.Coarse().eval(), batches, resume=file)
    assert file.read_text() == "mine"


# --- without labels -----------------------------------------------------------------------------------------------


def test_a_preview_says_what_changes_and_where(batches, whole):
    net = blobs.Coarse().eval()
    result = hotswap.preview(net, [images for images, _ in batches])
    assert len(result.changes) == len(whole[0].tried)
    assert 0 < result.near_edges < 0.6
    for change in result.changes:
        assert 0 < change.changed < 0.2
        assert change.near_edges > 0.8
    assert str(result).endswith("only they can say whether a change is for the better.")
    strongest = result.changes[len(STRENGTHS) - 1]
    scale, options = strongest.candidate.scales[0], strongest.candidate.structure.options
    images = [images for images, _ in batches]
    swapped = hotswap.convert(net, guide="input", **options, calibrate_on=images)
    for resize in hotswap.status(swapped).plan.resizes:
        swapped.get_submodule(resize.layer_path).guide_scale = scale
    with torch.no_grad():
        changed = [(swapped(x).argmax(1) != net(x).argmax(1)).float().mean((1, 2)) for x, _ in batches]
    assert strongest.changed == pytest.approx(float(torch.cat(changed).mean()), abs=1e-4)


def test_a_preview_of_numbers(batches):
    result = hotswap.preview(Depth().eval(), [images for images, _ in batches])
    assert "by more than 1% of the map's range" in str(result)
    assert all(0 < change.changed < 1 for change in result.changes)


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_shows_the_sentence_and_six_images(batches, tmp_path):
    page = tmp_path / "page.html"
    result = hotswap.search(blobs.Coarse().eval(), batches, page=page)
    text = page.read_text()
    assert result.sentence in text
    assert text.count('<article class="output">') == 6
    better = [image.better for image in result.pictures]
    assert better == sorted(better, reverse=True)
    for caption in ("image", "label", "plain", "swapped"):
        assert text.count(f"<figcaption>{caption}</figcaption>") == 6
    assert text.count("green: right only when swapped") >= 6
    assert "http" not in text.replace("http-equiv", "")
