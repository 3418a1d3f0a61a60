"""Maps enlarged outside a network: against the operator, in every kind they come in, and what is refused."""

import numpy as np
import pytest
import torch
from memory_use import largest_tensor
from PIL import Image
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

import hotswap
from hotswap import HotswapError
from hotswap.enlarging import guides, labels
from pac_ops import pacresize2d, srgb_to_lab

OPTIONS = {"scale": 12, "footprint": (6, 4, 2), "residual": True}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def picture(height=64, width=96, channels=3):
    """A bright blob on a dark ground, with noise."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    inside = (x**2 + y**2 < 0.4).float()
    return (0.2 + 0.5 * inside + 0.1 * torch.rand(channels, height, width)).clamp(0, 1)


def by_hand(scores, image, **options):
    return pacresize2d(scores[None], srgb_to_lab(image[None]), **OPTIONS | options)[0]


# --- kinds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corners", [False, True])
def test_scores_are_those_of_the_operator_and_labels_their_argmax(corners):
    image, scores = picture(), torch.randn(5, 8, 12)
    expected = by_hand(scores, image, align_corners=corners)
    torch.testing.assert_close(hotswap.enlarge(scores, image, align_corners=corners), expected, rtol=0, atol=1e-6)
    chosen = hotswap.enlarge(scores, image, labels=True, align_corners=corners)
    assert torch.equal(chosen, expected.argmax(0))
    assert not torch.equal(chosen, hotswap.enlarge(scores, image, labels=True, align_corners=corners, scale=0))


@pytest.mark.parametrize(
    ("factor", "footprint", "halvings"),
    [(2, (6, 4, 2), 2), (4, (6, 4, 2), 1), (8, (6, 4, 2), 0), (16, (8, 6, 4, 2), 0)],
)
def test_each_factor_has_its_footprints(factor, footprint, halvings):
    image, scores = picture(64, 64), torch.randn(2, 64 // factor, 64 // factor)
    expected = by_hand(scores, image, footprint=footprint, halvings=halvings)
    assert torch.equal(hotswap.enlarge(scores, image), expected)
    assert torch.equal(hotswap.enlarge(scores, image, footprint=footprint), expected)


def test_depth_is_not_halved():
    image, depth = picture(64, 64), torch.rand(32, 32)
    expected = by_hand(depth[None], image, footprint=2, bounded=True)[0]
    assert torch.equal(hotswap.enlarge(depth, image), expected)


def test_one_channel_of_scores_is_a_logit():
    image, logit = picture(), torch.randn(8, 12)
    expected = by_hand(logit[None], image) > 0
    assert torch.equal(hotswap.enlarge(logit[None], image, labels=True), expected[0].long())
    assert torch.equal(hotswap.enlarge(logit, image, labels=True, kind="scores"), expected[0].long())


def test_depth_stays_in_range_and_keeps_its_dtype():
    image, depth = picture(), torch.rand(8, 12)
    enlarged = hotswap.enlarge(depth, image)
    assert torch.equal(enlarged, by_hand(depth[None], image, bounded=True)[0])
    assert depth.min() <= enlarged.min()
    assert enlarged.max() <= depth.max()
    assert not torch.equal(enlarged, hotswap.enlarge(depth, image, kind="scores"))
    whole = (depth * 60000).numpy().astype(np.uint16)
    rounded = hotswap.enlarge(whole, image, kind="depth")
    assert rounded.dtype == np.uint16
    expected = by_hand(torch.from_numpy(whole.astype(np.float32))[None], image, bounded=True)[0].round()
    assert np.array_equal(rounded, expected.numpy().astype(np.uint16))
    flow = torch.randn(1, 2, 8, 12)
    assert torch.equal(hotswap.enlarge(flow, image, kind="depth")[0], by_hand(flow[0], image, bounded=True))


@pytest.mark.parametrize("at_a_time", [1, labels.SCORES_AT_A_TIME])
def test_labels_are_the_best_of_one_hot_scores(at_a_time, monkeypatch):
    monkeypatch.setattr(labels, "SCORES_AT_A_TIME", at_a_time)
    image, names = picture(), torch.tensor([3, 7, 70, 254, -1])
    places = torch.randint(0, 5, (8, 12)).sort(dim=0).values
    one_hot = F.one_hot(places.unique(return_inverse=True)[1]).permute(2, 0, 1).float()
    order = names[places.unique()].sort()
    expected = order.values[by_hand(one_hot[order.indices], image).argmax(0)]
    given = names[places].to(torch.int16)
    enlarged = hotswap.enlarge(given, image)
    assert enlarged.dtype == torch.int16
    assert torch.equal(enlarged.long(), expected)


@pytest.mark.parametrize("batch", [1, 2])
def test_many_labels_are_enlarged_a_few_at_a_time(batch, monkeypatch):
    image, given = torch.rand(batch, 3, 64, 96), torch.randint(0, 9, (batch, 32, 48)) * 1000
    expected = hotswap.enlarge(given, image)
    limit = batch * 64 * 96 * 2  # so that of 9 small maps not all are held, and of full-size ones 2
    monkeypatch.setattr(labels, "SCORES_AT_A_TIME", limit)
    assert torch.equal(hotswap.enlarge(given, image), expected)
    assert 9 * given.numel() > limit


def test_labels_to_ignore_stay_where_they_are_and_are_no_class():
    given = torch.zeros(8, 12, dtype=torch.uint8)
    given[:, 6:], given[2:4, 4:8] = 1, 255
    enlarged = hotswap.enlarge(given, picture())
    void = given.eq(255).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(enlarged == 255, void)
    as_class = hotswap.enlarge(given, picture(), ignore=None)
    assert bool((as_class == 255).any())
    assert not torch.equal(as_class == 255, void)
    assert bool((hotswap.enlarge(torch.full((8, 12), 255), picture()) == 255).all())
    corners = hotswap.enlarge(given, picture(), align_corners=True) == 255
    rows = (torch.arange(64) * 7 / 63).round().long()
    columns = (torch.arange(96) * 11 / 95).round().long()
    assert torch.equal(corners, given.eq(255)[rows][:, columns])


# --- what comes in, goes out --------------------------------------------------------------------------------------


def test_arrays_pictures_and_batches_are_the_tensors():
    image, scores = (picture() * 255).to(torch.uint8), torch.randn(3, 8, 12)
    expected = hotswap.enlarge(scores, image)
    last = image.permute(1, 2, 0).numpy()
    for same in (image.numpy(), last, last[None], Image.fromarray(last), image / 255, image[None], last[::-1][::-1]):
        assert torch.equal(hotswap.enlarge(scores, same), expected)
    for back in (scores.numpy(), scores.numpy().astype(">f4")):
        array = hotswap.enlarge(back, image)
        assert isinstance(array, np.ndarray)
        assert np.array_equal(array, expected.numpy())
    frozen = scores.numpy().copy()
    frozen.flags.writeable = False
    assert np.array_equal(hotswap.enlarge(frozen, image), expected.numpy())
    several = hotswap.enlarge(torch.stack([scores, -scores]), torch.stack([image, image]))
    torch.testing.assert_close(several, torch.stack([expected, -expected]))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert hotswap.enlarge(scores.to(dtype), image).dtype == dtype


def test_a_grey_image_guides_by_its_lightness():
    grey, scores = picture(channels=1), torch.randn(3, 8, 12)
    expected = by_hand(scores, grey)
    for same in (grey, grey[0], grey[0].numpy()):
        assert torch.equal(hotswap.enlarge(scores, same), expected)
    levels = (grey[0] * 255).to(torch.uint8)
    assert torch.equal(hotswap.enlarge(scores, Image.fromarray(levels.numpy())), hotswap.enlarge(scores, levels))


def test_pictures_of_labels_and_depth_keep_mode_and_palette():
    image, values = picture(), np.tile(np.arange(12, dtype=np.uint8) // 4, (8, 1))
    expected = hotswap.enlarge(values, image)
    coloured = Image.fromarray(values)
    coloured.putpalette([9, 8, 7, 1, 2, 3, 200, 100, 0])
    enlarged = hotswap.enlarge(coloured, image)
    assert (enlarged.mode, enlarged.size) == ("P", (96, 64))
    assert enlarged.getpalette()[:9] == [9, 8, 7, 1, 2, 3, 200, 100, 0]
    assert np.array_equal(np.array(enlarged), expected)
    assert hotswap.enlarge(Image.fromarray(values), image).mode == "L"
    assert hotswap.enlarge(Image.fromarray(values > 0), image).mode == "1"
    deep = hotswap.enlarge(Image.fromarray(values.astype(np.uint16) * 1000), image)
    assert deep.mode == "I;16"
    assert np.array_equal(np.array(deep), hotswap.enlarge(values.astype(np.uint16) * 1000, image, kind="depth"))
    logit = Image.fromarray(values.astype(np.float32) - 1)
    assert hotswap.enlarge(logit, image).mode == "F"
    mask = hotswap.enlarge(logit, image, kind="scores", labels=True)
    assert mask.mode == "L"
    assert np.array_equal(np.array(mask), np.array(hotswap.enlarge(logit, image, kind="scores")) > 0)


def test_a_guide_in_bands_is_the_whole_and_spaces_are_said(monkeypatch):
    image, scores = picture(), torch.randn(2, 8, 12)
    expected = hotswap.enlarge(scores, image)
    monkeypatch.setattr(guides, "_ROWS_PIXELS", 96 * 5)
    torch.testing.assert_close(hotswap.enlarge(scores, image), expected)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)
    normal = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    space = hotswap.GuideSpace("lab", mean, std)
    torch.testing.assert_close(hotswap.enlarge(scores, normal, space=space), expected, rtol=1e-4, atol=1e-4)
    rgb = pacresize2d(scores[None], image[None], **OPTIONS | {"scale": 8})[0]
    torch.testing.assert_close(hotswap.enlarge(scores, image, space="rgb"), rgb)


def test_gradients_reach_scores_and_labels_need_none():
    scores = torch.randn(2, 8, 12, requires_grad=True)
    hotswap.enlarge(scores, picture()).sum().backward()
    assert scores.grad is not None
    assert bool(scores.grad.any())
    assert hotswap.enlarge(scores, picture(), labels=True).dtype == torch.int64


def test_labels_hold_no_full_size_scores():
    image, scores = picture(1024, 1024), torch.randn(32, 128, 128)
    held = largest_tensor(lambda: hotswap.enlarge(scores, image, labels=True))
    assert held < 32 * 1024 * 1024  # a quarter of the scores


# --- recipes of the docs --------------------------------------------------------------------------------------------


def test_without_a_guide_it_is_what_transformers_does():
    config = SegformerConfig(num_labels=19, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, decoder_hidden_size=16)
    model = SegformerForSemanticSegmentation(config).eval()
    processor = SegformerImageProcessor(size={"height": 64, "width": 64})
    image = Image.fromarray((picture(60, 80) * 255).to(torch.uint8).permute(1, 2, 0).numpy())
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    theirs = processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 80)])[0]
    ours = hotswap.enlarge(outputs.logits, image, labels=True, stretched=True, scale=0)[0]
    assert (ours == theirs).float().mean() > 0.999  # ties of rounding
    guided = hotswap.enlarge(outputs.logits, image, labels=True, stretched=True)[0]
    assert guided.shape == (60, 80)


def test_masks_of_prototypes_are_enlarged_each_by_itself():
    image, prototypes, coefficients = picture(64, 64), torch.randn(8, 16, 16), torch.randn(5, 8)
    logits = torch.einsum("nk,khw->nhw", coefficients, prototypes)
    masks = hotswap.enlarge(logits, image) > 0
    for mask, logit in zip(masks, logits, strict=True):
        assert torch.equal(mask.long(), hotswap.enlarge(logit[None], image, labels=True))


# --- refused --------------------------------------------------------------------------------------------------------

SCORES, IMAGE = torch.zeros(3, 8, 12), torch.zeros(3, 64, 96)


@pytest.mark.parametrize(
    ("map", "image", "options", "reason"),
    [
        (SCORES, IMAGE[:, :4], {}, "no smaller than the map"),
        (SCORES, torch.zeros(3, 64, 200), {}, "one aspect ratio, got a map of 8 x 12 and an image of 64 x 200"),
        (torch.zeros(3, 80, 80), torch.zeros(3, 160, 170), {}, "one aspect ratio"),
        (SCORES, IMAGE.permute(1, 2, 0), {}, "channels come before its rows"),
        (SCORES, torch.zeros(4, 64, 96), {}, "leave out alpha"),
        (SCORES, np.zeros((64, 96, 4), np.uint8), {}, "leave out alpha"),
        (SCORES, IMAGE + 200, {}, "divide it by 255"),
        (SCORES, IMAGE - 2, {}, r"undo its normalisation \(image \* std \+ mean\)"),
        (SCORES, IMAGE + torch.nan, {}, "must be in 0 to 1"),
        (SCORES, IMAGE.int(), {}, "must be uint8"),
        (SCORES, "photo.jpg", {}, "image must be a tensor"),
        ([1, 2], IMAGE, {}, "map must be a tensor"),
        (SCORES, IMAGE, {"kind": "masks"}, "kind must be one of auto, scores, labels, depth"),
        (SCORES, IMAGE, {"kind": "labels"}, "must hold whole numbers"),
        (SCORES[0].long(), IMAGE, {"kind": "scores"}, "must be floating"),
        (SCORES.long()[None], IMAGE, {}, r"a map of labels must be \[h, w\], \[B, h, w\], got \[1, 3, 8, 12\]"),
        (np.zeros((8, 12, 3), np.uint8), IMAGE, {}, "one aspect ratio|an image for each map|colours are no labels"),
        (SCORES[:, :0], IMAGE, {}, r"got \[3, 0, 12\]"),
        (SCORES + torch.nan, IMAGE, {}, "must be finite"),
        (SCORES[0] + torch.inf, IMAGE, {}, "must be finite"),
        (SCORES + torch.nan, IMAGE, {"labels": True}, "cannot be told"),
        (SCORES[0], IMAGE, {"labels": True}, "labels are of scores"),
        (torch.stack([SCORES] * 2), IMAGE, {}, "an image for each map, got 1 and 2"),
        (SCORES, IMAGE, {"scale": -1}, "scale must be"),
        (SCORES, IMAGE, {"scale": "strong"}, "scale must be"),
        (SCORES, IMAGE, {"scale": np.ones(2)}, "scale must be"),
        (SCORES[0].long(), IMAGE, {"ignore": "void"}, "ignore must be"),
        (SCORES.to("meta"), IMAGE, {}, "must be a dense tensor of float16 or wider, got torch.float32.*meta"),
        (SCORES.to_sparse(), IMAGE, {}, "map must be a dense tensor"),
        (SCORES.to(torch.float8_e4m3fn), IMAGE, {}, "float16 or wider, got torch.float8"),
        (SCORES, IMAGE.to_sparse(), {}, "image must be a dense tensor"),
        (SCORES, IMAGE, {"space": "hsv"}, "space must be"),
        (SCORES, IMAGE, {"footprint": 3}, "footprint must be"),
        (SCORES, IMAGE.byte(), {"space": hotswap.GuideSpace("lab")}, "undoes the normalisation"),
        (np.array([["a"]]), IMAGE, {}, "real numbers"),
        (SCORES + 0j, IMAGE, {}, "real numbers"),
        (Image.new("RGB", (12, 8)), IMAGE, {}, "give labels as indices"),
        (SCORES, Image.new("I;16", (96, 64)), {}, "8 bits a channel"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(map, image, options, reason):
    with pytest.raises(HotswapError, match=reason):
        hotswap.enlarge(map, image, **options)


@pytest.mark.parametrize("fine", [(33, 40), (57, 97), (8, 12)])
def test_sizes_that_rounding_explains_are_taken(fine):
    coarse = tuple(-(-n // 8) for n in fine)
    assert hotswap.enlarge(torch.randn(2, *coarse), torch.rand(3, *fine)).shape == (2, *fine)


def test_stretched_maps_are_enlarged_by_two_factors():
    assert hotswap.enlarge(torch.randn(2, 8, 20), torch.rand(3, 64, 24), stretched=True).shape == (2, 64, 24)
