"""Scales from data, and how far a swap moved things."""

import collections
import dataclasses
import json
import re
import types

import blobs
import networks
import pytest
import torch
import torch.nn.utils.prune as prune
import torchvision
from torch import nn

import hotswap
import pac_ops
from hotswap.zoo import image_stats


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 48, 40, generator=generator) for _ in range(2)]


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return networks.thin_vgg11().eval()


def spelt_out_deviation(guide, scale, size):
    """Mean of 1 - K over off-centre taps inside the image, tap by tap."""
    resized = torch.nn.functional.interpolate(guide, size, mode="bilinear", align_corners=False)
    k = pac_ops.packernel2d(scale * resized.double(), padding=1)[0]
    values = []
    for i in range(3):
        for j in range(3):
            for y in range(size[0]):
                for x in range(size[1]):
                    inside = 0 <= y + i - 1 < size[0] and 0 <= x + j - 1 < size[1]
                    if inside and (i, j) != (1, 1):
                        values.append(1 - k[:, 0, i, j, y, x])
    return torch.stack(values).mean().item()


@torch.no_grad()
def test_deviation_is_the_mean_over_off_centre_taps_inside_the_image(batches):
    net = networks.Plain().eval()
    converted = hotswap.convert(net, "target", "guide", guide_scale=0.7)
    guide = torch.relu(net.guide(torch.relu(net.stem(batches[0]))))
    (check,) = hotswap.verify(converted, batches[0]).targets
    assert check.deviation == pytest.approx(spelt_out_deviation(guide, 0.7, (24, 20)), rel=1e-5)


@pytest.mark.parametrize("learn_scale", [False, True])
@pytest.mark.parametrize("deviation", [0.05, 0.3, 0.7])
def test_calibration_hits_the_deviation_at_every_target(vgg, batches, deviation, learn_scale):
    converted = hotswap.convert(vgg, learn_scale=learn_scale)
    calibration = hotswap.calibrate(converted, batches, deviation=deviation)
    for target, check in zip(calibration.targets, hotswap.verify(converted, batches).targets, strict=True):
        assert check.deviation == pytest.approx(deviation, rel=1e-3)
        assert target.deviation == pytest.approx(deviation, rel=1e-3)
        assert target.scale_before == pytest.approx(1e-4)
        assert target.scale == pytest.approx(check.guide_scale)
    assert calibration.wanted == deviation
    assert json.loads(json.dumps(calibration.to_dict()))["targets"][0]["path"] == "8"
    assert "deviation (mean 1-K)" in str(calibration)


def test_convolutions_and_enlargements_have_deviations_of_their_own():
    enlarged = nn.Sequential(
        collections.OrderedDict(net=networks.Plain(), up=nn.Upsample(scale_factor=2, mode="bilinear"))
    ).eval()
    images = torch.rand(2, 3, 32, 32)
    guides = {"net.target": "net.guide", "up": "input"}
    swapped = hotswap.convert(enlarged, ["net.target", "up"], guides, calibrate_on=images, space=None)
    found = [check.deviation for check in hotswap.verify(swapped, images).targets]
    assert found == pytest.approx([0.3, 0.5], abs=0.01)
    # In a space whose units are known, the scale is too; a deviation that is asked for is reached all the same.
    swapped = hotswap.convert(enlarged, ["net.target", "up"], guides, calibrate_on=images)
    assert swapped.up.guide_scale == 12.0
    assert hotswap.verify(swapped, images).targets[0].deviation == pytest.approx(0.3, abs=0.01)
    hotswap.calibrate(swapped, images, deviation=0.2)
    assert [check.deviation for check in hotswap.verify(swapped, images).targets] == pytest.approx(
        [0.2, 0.2], abs=0.01
    )


def test_batches_weigh_by_their_taps(vgg, monkeypatch):
    """As verify weighs them, also where a large batch is sampled."""
    import sys

    monkeypatch.setattr(sys.modules["hotswap.measure.calibrate"], "_SAMPLES_PER_CALL", 2000)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=(96, 96), mode="bilinear")
    batches = [smooth, torch.rand(1, 3, 32, 32)]
    converted = hotswap.convert(vgg, "conv3_2", "conv2_1")
    hotswap.calibrate(converted, batches, deviation=0.3)
    (check,) = hotswap.verify(converted, batches).targets
    assert check.deviation == pytest.approx(0.3, abs=0.02)  # 2,000 of 41,000 distances


def test_calibration_changes_nothing_but_scales(vgg, batches):
    converted = hotswap.convert(vgg).train()
    state = {k: v.clone() for k, v in converted.state_dict().items()}
    hotswap.calibrate(converted, batches)
    assert all(torch.equal(v, state[k]) for k, v in converted.state_dict().items())
    assert all(m.training for m in converted.modules())
    assert not any(m._forward_pre_hooks for m in converted.modules())


def test_inert_swaps_are_warned_of(vgg, batches):
    inert = hotswap.verify(hotswap.convert(vgg), batches)
    assert all(check.inert for check in inert.targets)
    assert "3 of 3 swaps are inert" in str(inert)
    converted = hotswap.convert(vgg)
    hotswap.calibrate(converted, batches, deviation=0.2)
    assert hotswap.verify(converted, batches).warnings == ()


@torch.no_grad()
def test_verify_measures_the_outputs(vgg, batches):
    converted = hotswap.convert(vgg, guide_scale=2.0)
    verification = hotswap.verify(converted, batches)
    plain = torch.cat([vgg(x) for x in batches])
    swapped = torch.cat([converted(x) for x in batches])
    assert verification.output_max_abs == pytest.approx((plain - swapped).abs().max().item())
    assert verification.output_relative == pytest.approx(((plain - swapped).norm() / plain.norm()).item(), rel=1e-4)
    assert verification.output_relative > 1e-3
    assert verification.same_state
    zero = hotswap.verify(hotswap.convert(vgg, guide_scale=0), batches)
    assert zero.output_relative < 1e-5  # float32 rounding through eight convolutions
    assert {c.deviation for c in zero.targets} == {0.0}
    assert json.loads(json.dumps(verification.to_dict()))["targets"][2]["path"] == "18"


def test_verify_leaves_the_network_as_it_is(batches):
    converted = hotswap.convert(torchvision.models.resnet18(), example_inputs=batches[0]).train()
    state = {k: v.clone() for k, v in converted.state_dict().items()}
    hotswap.verify(converted, batches)
    assert all(torch.equal(v, state[k]) for k, v in converted.state_dict().items())
    assert all(m.training for m in converted.modules())
    assert hotswap.status(converted).plan is not None


def test_padding_modes_count_every_tap():
    net = networks.Plain(padding_mode="reflect").eval()
    converted = hotswap.convert(net, "target", "guide", guide_scale=1e3)
    (check,) = hotswap.verify(converted, torch.rand(1, 3, 8, 8)).targets
    assert 0.9 < check.deviation <= 1  # at such a scale every off-centre tap with another value counts as 1


def refused(call, message):
    with pytest.raises(hotswap.HotswapError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_refusals(vgg, batches):
    converted = hotswap.convert(vgg)
    scales = [s.guide_scale for s in hotswap.status(converted).plan.swaps]
    refused(lambda: hotswap.calibrate(vgg, batches), "nothing in this network is swapped")
    refused(lambda: hotswap.verify(vgg, batches), "nothing in this network is swapped")
    refused(lambda: hotswap.calibrate(converted, []), "at least one batch of inputs, got none")
    refused(lambda: hotswap.verify(converted, []), "at least one batch of inputs, got none")
    refused(lambda: hotswap.verify(converted, [3]), "must be a tensor, a tuple or a mapping, got int")
    for wrong in (0, 1, -0.1, "much"):
        refused(lambda wrong=wrong: hotswap.calibrate(converted, batches, deviation=wrong), "between 0 and 1, got")
    flat = torch.zeros(1, 3, 48, 40)
    refused(
        lambda: hotswap.calibrate(converted, flat, deviation=0.9), "constant around .* of taps .*; ask for less than"
    )
    blank = hotswap.convert(vgg, guide="input", guide_scale=0.1)
    refused(lambda: hotswap.calibrate(blank, flat), "is one value all over these batches, .*; choose another guide")
    refused(lambda: hotswap.calibrate(blank, flat[:0]), "no neighbours on these batches: they are empty, or")
    images = torch.utils.data.TensorDataset(flat)
    refused(lambda: hotswap.calibrate(converted, images), "got TensorDataset; a Dataset goes through a .*DataLoader")
    wide = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=9, dilation=9))
    lonely = hotswap.convert(wide, "1", "0", example_inputs=torch.rand(1, 3, 8, 8))
    refused(
        lambda: hotswap.calibrate(lonely, torch.rand(1, 3, 8, 8)), "target '1' has no neighbours on these batches"
    )
    refused(lambda: hotswap.calibrate(converted, flat + torch.nan), "not finite")
    assert [s.guide_scale for s in hotswap.status(converted).plan.swaps] == scales


def test_a_loaders_images_without_its_labels(vgg, batches):
    labelled = torch.utils.data.TensorDataset(batches[0], torch.arange(2))
    loader = torch.utils.data.DataLoader(labelled, batch_size=2)
    same = hotswap.status(hotswap.convert(vgg, calibrate_on=batches[0])).plan.swaps
    for data in (loader, (images for images, _ in loader)):
        assert hotswap.status(hotswap.convert(vgg, calibrate_on=data)).plan.swaps == same


def test_a_batch_of_no_image_counts_for_nothing():
    net = nn.Sequential(networks.conv(3, stride=2), networks.conv(), nn.Upsample(scale_factor=2, mode="bilinear"))
    batch = torch.rand(2, 3, 12, 14)
    scales = []
    for data in ([batch], [batch[:0], batch], [batch, batch[:0]]):
        found = hotswap.convert(net, ["1", "2"], "input", calibrate_on=data, example_inputs=batch)
        plan = hotswap.status(found).plan
        scales.append([target.guide_scale for target in plan.swaps + plan.resizes])
    assert scales[1:] == [pytest.approx(scales[0])] * 2


def test_nested_outputs_are_compared():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = networks.Plain()

        def forward(self, x):
            return {"a": [self.net(x), (x,)], "n": torch.ones(2, dtype=torch.int64)}

    converted = hotswap.convert(Nested(), "net.target", "net.guide", guide_scale=1.0)
    assert hotswap.verify(converted, torch.rand(1, 3, 8, 8)).output_max_abs > 1e-4


class Detector(nn.Module):
    """`scores` are as many as are found, and so differ between the plain and the swapped network."""

    def __init__(self, answer):
        super().__init__()
        self.net, self.answer = networks.Plain(), answer

    def forward(self, x):
        return self.answer(self.net(x))


@dataclasses.dataclass
class Answer:
    y: torch.Tensor


def answered(answer):
    torch.manual_seed(0)
    converted = hotswap.convert(Detector(answer), "net.target", "net.guide", guide_scale=30.0)
    return converted, torch.rand(1, 3, 48, 48)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            lambda y: {"scores": y[y > y.roll(1, -1)]},
            r"output\['scores'\] is \[\d+\] of the plain network and \[\d+\] of",
        ),
        (lambda y: list(y[y > y.roll(1, -1)]), r"only one of .* gives output\[\d+\]"),
        (lambda y: {"box": y.argmax()}, "no finite value was found in the outputs"),
        (lambda y: y.where(y > y.roll(1, -1), -torch.inf), "output is not finite in different places"),
    ],
)
def test_where_outputs_do_not_compare_the_drift_is_not_known(answer, reason, tmp_path):
    converted, image = answered(answer)
    calibration, verification = hotswap.calibrate(converted, image), hotswap.verify(converted, image)
    assert calibration.drift is verification.output_relative is verification.output_max_abs is None
    assert hotswap.status(converted).plan.drift is None
    for result in (calibration, verification):
        assert re.search(f"outputs\\): not known, as {reason}", str(result))
        assert re.search(reason, json.loads(json.dumps(result.to_dict(), allow_nan=False))["why_no_drift"])
    assert calibration.targets[0].deviation == pytest.approx(0.3, rel=1e-3)
    hotswap.save(converted, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "answer", [Answer, lambda y: types.MappingProxyType({"y": y}), lambda y: collections.deque([y])]
)
def test_outputs_are_found_wherever_they_are(answer):
    expected = hotswap.verify(*answered(lambda y: y))
    assert expected.output_relative > 1e-3
    assert hotswap.verify(*answered(answer)) == expected


def test_infinities_in_the_same_places_are_left_out(tmp_path):
    def masked(y):
        return torch.cat([y, torch.full_like(y, -torch.inf), torch.full_like(y, torch.nan)])

    converted, image = answered(masked)
    assert hotswap.verify(converted, image) == hotswap.verify(*answered(lambda y: y))
    assert hotswap.calibrate(converted, image).drift > 1e-3
    hotswap.save(converted, tmp_path / "x.safetensors")


def pruned(target):
    prune.l1_unstructured(target, "weight", 0.5)


@pytest.mark.parametrize("reparametrise", [pruned, nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # the older spectral and weight norms, which many networks have
def test_a_network_whose_weights_are_computed_anew_is_looked_at(reparametrise, method):
    """Such a weight is a tensor with a history, which `copy.deepcopy` refuses."""
    torch.manual_seed(0)
    net, image = networks.Plain().eval(), torch.rand(1, 3, 16, 16)
    reparametrise(net.target)
    expected, keys = net(image), net.state_dict().keys()
    converted = hotswap.convert(net, "target", "guide", guide_scale=0.5, method=method, inplace=True)
    net(image)  # the weight now has a history
    assert hotswap.verify(converted, image).output_max_abs > 0
    assert hotswap.calibrate(converted, image).targets[0].deviation == pytest.approx(0.3, abs=0.01)
    plain = hotswap.revert(converted)
    assert torch.equal(plain(image), expected)
    assert plain.state_dict().keys() == keys


# --- the space of images that a conversion without data left open ----------------------------------------------


def pictures(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
    images = torch.stack([blobs.picture(seed)[0] for seed in range(4)])
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("learn_scale", [False, True])
@pytest.mark.parametrize("how", [((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3), IMAGENET], ids=str)
def test_calibrate_finds_how_images_are_normalised_as_convert_does(tmp_path, how, learn_scale):
    net, images = blobs.Coarse().eval(), pictures(*how)
    later = hotswap.convert(net, "resize", "input", learn_scale=learn_scale, example_inputs=images)
    assert hotswap.status(later).plan.resizes[0].space is None
    calibration = hotswap.calibrate(later, images)
    at_once = hotswap.convert(net, "resize", "input", learn_scale=learn_scale, calibrate_on=images)
    plan, expected = (hotswap.status(each).plan for each in (later, at_once))
    assert plan == expected
    assert plan.resizes[0].space.name == "lab"
    (note,) = calibration.notes
    assert note in plan.notes
    assert note == f"the image guides as {plan.resizes[0].space}, by the range of the data"
    assert str(calibration).endswith(f"note: {note}")
    assert (calibration.targets[0].scale_before, calibration.targets[0].scale) == pytest.approx((1e-4, 12.0))
    with torch.no_grad():
        torch.testing.assert_close(later(images), at_once(images), rtol=0, atol=0)
    hotswap.save(later, tmp_path / "net.safetensors")
    loaded = hotswap.load(tmp_path / "net.safetensors", model=blobs.Coarse()).eval()
    assert hotswap.status(loaded).plan == plan
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), later(images), rtol=0, atol=0)
    assert hotswap.calibrate(later, images).notes == ()


def test_a_deviation_that_is_asked_for_is_reached_in_that_space():
    images = pictures()
    net = hotswap.convert(blobs.Coarse().eval(), "resize", "input", example_inputs=images)
    (target,) = hotswap.calibrate(net, images, deviation=0.4).targets
    assert target.deviation == pytest.approx(0.4, abs=0.01)
    assert hotswap.status(net).plan.resizes[0].space.name == "lab"


def test_it_is_found_after_more_targets_and_in_files_too(tmp_path):
    net, images = blobs.Coarse().eval(), pictures()
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), net).eval()
    swapped = hotswap.convert(net, "resize", "input", example_inputs=images)
    swapped = hotswap.convert(swapped, "0", "input", example_inputs=images)
    hotswap.save(swapped, tmp_path / "net.safetensors")
    loaded = hotswap.load(tmp_path / "net.safetensors", model=net)
    assert len(hotswap.calibrate(loaded, images).notes) == 1
    assert hotswap.status(loaded).plan.resizes[0].space.name == "lab"


@pytest.mark.parametrize(
    ("options", "calibration"),
    [
        ({"space": None, "guide_scale": 2.0}, {}),  # which was asked for
        ({"space": None}, {}),
        ({"space": "rgb", "guide_scale": 2.0}, {}),
        ({}, {"deviation": None}),  # which leaves everything
    ],
    ids=str,
)
def test_a_space_that_is_not_open_stays(options, calibration):
    net, images = blobs.Coarse().eval(), pictures()
    if options:
        image_stats.put(net, image_stats.ImageStats((0.0,) * 3, (1.0,) * 3))
    swapped = hotswap.convert(net, "resize", "input", example_inputs=images, **options)
    before = hotswap.status(swapped).plan
    vars(swapped).pop("pretrained_cfg", None)
    assert hotswap.calibrate(swapped, images, **calibration).notes == ()
    plan = hotswap.status(swapped).plan
    assert plan.notes == before.notes
    assert [resize.space for resize in plan.resizes] == [resize.space for resize in before.resizes]


@pytest.mark.parametrize("value", [0.0, 0.3, 0.7, 1.0])  # means of 0.3 and 0.7 are rounded
@pytest.mark.parametrize("space", [None, "auto"])
def test_a_flat_image_steers_nothing_whatever_its_value(value, space):
    flat = torch.full((1, 3, 64, 96), value)
    swapped = hotswap.convert(blobs.Coarse().eval(), "resize", "input", example_inputs=flat, space=space)
    with pytest.raises(hotswap.HotswapError, match="is one value all over these batches"):
        hotswap.calibrate(swapped, flat, deviation=0.5)


def test_batches_that_are_no_images_leave_it_open_and_a_failure_too():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, 4, 1), nn.Upsample(scale_factor=4, mode="bilinear")).eval()
    images = torch.rand(2, 4, 16, 24)
    swapped = hotswap.convert(net, "resize", "input", example_inputs=images)
    assert hotswap.calibrate(swapped, images).notes == ()
    assert hotswap.status(swapped).plan.resizes[0].deviation == pytest.approx(0.5, abs=0.01)
    flat = torch.zeros(1, 3, 64, 96)
    swapped = hotswap.convert(blobs.Coarse().eval(), "resize", "input", example_inputs=flat)
    before = hotswap.status(swapped).plan
    with pytest.raises(hotswap.HotswapError, match="is one value all over these batches"):
        hotswap.calibrate(swapped, flat, deviation=0.5)
    assert hotswap.status(swapped).plan == before


def test_the_input_of_a_part_that_was_converted_by_itself_is_no_image():
    part, images = blobs.Coarse().eval(), pictures()
    net = nn.Sequential(nn.Conv2d(3, 3, 1), hotswap.convert(part, "resize", "input", example_inputs=images)).eval()
    assert hotswap.calibrate(net, images).notes == ()
    assert hotswap.status(net[1]).plan.resizes[0].space is None
