"""benchmarks/real: the comparison runs on scores made here, chooses as it says, and the page is what the rows say."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import hotswap
from benchmarks.evidence import page
from benchmarks.real import compare, cost, finetune, propagation, scores, solvers, train
from benchmarks.real import page as real_page
from benchmarks.real.camvid import Frame
from benchmarks.real.front import Front
from benchmarks.real.networks import fcn8s
from benchmarks.real.rivals import OURS, OWN, RIVALS, Coarse
from benchmarks.real.rows import read
from benchmarks.real.scores import PAIRS, Pair, Sample
from hotswap.errors import HotswapError

PAIR = Pair("discs", False, choosing=3, ignore=255)


def samples(count=6, side=64, factor=8):
    """Discs of one colour on another, and scores that are their average over coarse pixels."""
    draw = np.random.default_rng(0)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for index in range(count):
        top, left, radius = draw.uniform(20, 44), draw.uniform(20, 44), draw.uniform(10, 18)
        disc = ((y - top).square() + (x - left).square()).sqrt() < radius
        colours = torch.tensor([[200, 40, 40], [30, 90, 160]], dtype=torch.uint8)
        image = torch.where(disc, *colours[:, :, None, None]).contiguous()
        share = F.avg_pool2d(disc[None, None].float(), factor)
        yield Sample(f"{index}", image, disc.long(), torch.cat([1 - share, share], dim=1) * 4)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setitem(PAIRS, "horses", PAIR)  # a name the command knows
    scores.write(list(samples()), tmp_path / "horses.pt")
    return "horses"


@pytest.mark.parametrize("key", RIVALS)
def test_every_rival_gives_sharper_labels_than_bilinear_where_colours_tell(key):
    rival = RIVALS[key]
    if rival.is_missing:
        pytest.skip(f"{rival.package} is not installed")
    wrong, few = {}, list(samples(2 if key == "upsample_anything" else 6))  # it fits each image
    for name in ("bilinear", key):
        wrong[name] = min(
            sum(
                int((RIVALS[name].labels(Coarse(s.scores, s.image, PAIR.align_corners), setting) != s.labels).sum())
                for s in few
            )
            for setting in RIVALS[name].settings
        )
    assert wrong["bilinear"] > 0
    assert wrong[key] <= wrong["bilinear"] * (1 if key == "bilinear" else 0.9)


def test_the_command_keeps_rows_and_replaces_them(pair, tmp_path, monkeypatch):
    names = ("bilinear", OURS, "ours_chosen", "kopf")
    arguments = [pair, "--scores", str(tmp_path), "--output", str(tmp_path / "rows.csv")]
    arguments += [word for name in names for word in ("--rival", name)]
    for _ in range(2):
        result = CliRunner().invoke(compare.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        rows = {row.rival: row for row in read(compare.Row, tmp_path / "rows.csv")}
        assert list(rows) == list(names)
    assert all(row.images == 3 and row.ms > 0 for row in rows.values())
    assert rows["bilinear"].quality_gain == 0 < rows[OURS].quality_gain
    assert (rows[OURS].chosen_on, rows["kopf"].chosen_on, rows["kopf"].settings) == (0, 3, 6)
    assert rows[OURS].near > rows["bilinear"].near


def test_settings_are_chosen_on_the_first_images_alone(pair):
    """What is right for the others does not count: their labels may say anything."""
    given = list(samples())
    spoilt = given[:3] + [s._replace(labels=1 - s.labels) for s in given[3:]]
    rows = [compare.compare(pair, PAIR, part, {"kopf": RIVALS["kopf"]}) for part in (given, spoilt)]
    assert rows[0][0].setting == rows[1][0].setting
    assert rows[0][0].quality > rows[1][0].quality


def test_a_rival_without_its_package_is_left_out_and_named(pair, capsys):
    missing = dataclasses.replace(RIVALS["dense_crf"], package="a_package_nobody_has")
    rows = compare.compare(pair, PAIR, list(samples()), {"bilinear": RIVALS["bilinear"], "dense_crf": missing})
    assert [row.rival for row in rows] == ["bilinear"]
    assert "dense_crf: left out, as a_package_nobody_has is not installed" in capsys.readouterr().out


def test_missing_scores_and_too_few_images_are_one_line(pair, tmp_path):
    result = CliRunner().invoke(compare.main, [pair, "--scores", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "benchmarks.real.scores horses" in result.output
    with pytest.raises(HotswapError, match="more than 3 images, got 2"):
        compare.compare(pair, PAIR, list(samples(2)), {})


@pytest.mark.parametrize("align_corners", [False, True])
def test_joint_bilateral_upsampling_is_its_sum(align_corners):
    torch.manual_seed(0)
    coarse, image = torch.rand(2, 3, 4), torch.rand(3, 9, 12)
    out = propagation.joint_bilateral_upsampling(coarse, image, align_corners, 0.7, 0.3)
    for row, column in ((0, 0), (4, 7), (8, 11)):
        if align_corners:
            at, back = (row * 2 / 8, column * 3 / 11), lambda q: (round(q[0] * 4), round(q[1] * 11 / 3))
        else:
            at, back = ((row + 0.5) / 3 - 0.5, (column + 0.5) / 3 - 0.5), lambda q: (3 * q[0] + 1, 3 * q[1] + 1)
        total, weight = torch.zeros(2), 0.0
        for q in ((y, x) for y in range(3) for x in range(4)):
            if max(abs(a - b) for a, b in zip(q, map(round, at), strict=True)) > 2:
                continue
            y, x = back(q)
            colour = float((image[:, row, column] - image[:, y, x]).square().sum())
            k = np.exp(-sum((a - b) ** 2 for a, b in zip(at, q, strict=True)) / 0.98) * np.exp(-colour / 0.18)
            total, weight = total + k * coarse[:, q[0], q[1]], weight + k
        torch.testing.assert_close(out[:, row, column], total / weight, atol=1e-5, rtol=1e-4)


def test_propagation_keeps_probabilities_and_flat_maps():
    torch.manual_seed(0)
    probabilities, image = torch.rand(3, 10, 12).softmax(0), torch.rand(3, 10, 12)
    out = propagation.pamr(probabilities, image, (1, 2), 4, 0.1)
    torch.testing.assert_close(out.sum(0), torch.ones(10, 12))
    flat = torch.full((2, 10, 12), 0.5)
    torch.testing.assert_close(propagation.pamr(flat, image, (1, 2), 4, 0.1), flat)


def test_the_page_says_what_the_rows_say():
    text = page.PAGE.read_text(encoding="utf-8")
    rows = read(compare.Row, compare.RESULTS)
    assert rows
    assert page.filled(text, page.REAL, real_page.committed()) == text


def test_the_page_names_a_rival_that_is_ahead():
    rows = read(compare.Row, compare.RESULTS)
    name = rows[0].pair
    best = max(row.near_gain for row in rows if row.pair == name)
    ahead = [
        dataclasses.replace(row, near_gain=best + 1) if (row.pair, row.rival) == (name, "kopf") else row
        for row in rows
    ]
    assert f"**beaten by** joint bilateral upsampling {best + 1:+.2f}" in real_page.block(ahead)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("horses", "| scores by 8 at the end: DeepLabV3"),
        ("camvid_at_once", "| scores by 8 at the end: EfficientNet-Lite0"),
        ("camvid_pyramid", "| scores by 4 behind a feature pyramid: EfficientNet-Lite0"),
        ("camvid_ladder", "| scores by 2 behind a decoder: EfficientNet-Lite0"),
        ("camvid_fcn8s", "| scores by 8 at the end: FCN-8s on VGG16"),
    ],
)
def test_readme_says_what_the_rows_say(pair, words):
    lines = (page.PAGE.parents[1] / "README.md").read_text(encoding="utf-8").splitlines()
    rows = {row.rival: row for row in read(compare.Row, compare.RESULTS) if row.pair == pair}
    if not rows:
        pytest.skip(f"{pair} has no rows yet")
    (line,) = [line for line in lines if line.startswith(words)]
    own, old = rows[OURS], rows["at_once"]
    assert f"{own.quality_gain:+.1f}, near edges {own.near_gain:+.1f}" in line
    assert f"{old.quality_gain:+.1f}, near edges {old.near_gain:+.1f}" in line
    rivals = {key: row for key, row in rows.items() if key not in (*OWN, "bilinear")}
    best = max(rivals.values(), key=lambda row: row.quality_gain)
    assert f"{RIVALS[best.rival].title} {best.quality_gain:+.1f}, near edges {best.near_gain:+.1f}" in line


def test_crops_begin_where_pixels_of_both_maps_begin():
    """Enlarged, a crop of the scores is the crop of the enlarged scores, but for its border."""
    for align_corners, sizes in ((False, ((12, 16), (96, 128))), (True, ((13, 17), (97, 129)))):
        torch.manual_seed(0)
        pair = dataclasses.replace(PAIR, align_corners=align_corners, crop=8, choosing=1)
        scores, labels = torch.randn(1, 2, *sizes[0]), torch.zeros(sizes[1], dtype=torch.long)
        whole = F.interpolate(scores, sizes[1], mode="bilinear", align_corners=align_corners)
        sample = Sample("0", whole[0].clone(), labels, scores)  # an image of the enlarged scores themselves
        (crop,) = pair.parts(sample)
        assert crop.labels.shape == crop.image.shape[1:] == (64 + align_corners,) * 2
        out = F.interpolate(crop.scores, crop.image.shape[1:], mode="bilinear", align_corners=align_corners)[0]
        torch.testing.assert_close(out[:, 4:-4, 4:-4], crop.image[:, 4:-4, 4:-4])


def test_several_crops_lie_beside_each_other_about_the_middle():
    pair = dataclasses.replace(PAIR, crop=4, grid=(2, 3))
    places = torch.arange(96 * 128).view(96, 128)
    sample = Sample("0", places[None].expand(3, -1, -1), places, torch.arange(12 * 16).view(1, 1, 12, 16))
    parts = pair.parts(sample)
    assert [part.labels.shape for part in parts] == [(32, 32)] * 6
    assert (
        sorted(x for part in parts for x in part.labels.flatten().tolist())
        == places[16:80, 16:112].flatten().tolist()
    )
    assert all(
        part.labels[0, 0] == 8 * (128 * (part.scores[0, 0, 0, 0] // 16) + part.scores[0, 0, 0, 0] % 16)
        for part in parts
    )


def test_slow_rivals_run_on_crops_alone(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(scores.CROPS, "horses_crops", dataclasses.replace(PAIR, crop=4))
    fast = dataclasses.replace(
        RIVALS["upsample_anything"], run=lambda coarse: coarse.image[0].long() // 128, settings=[{}]
    )
    monkeypatch.setitem(RIVALS, "upsample_anything", fast)
    arguments = ["horses", "horses_crops", "--scores", str(tmp_path), "--output", str(tmp_path / "rows.csv")]
    arguments += [word for name in ("bilinear", OURS, "kopf", "upsample_anything") for word in ("--rival", name)]
    result = CliRunner().invoke(compare.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [(row.pair, row.rival) for row in read(compare.Row, tmp_path / "rows.csv")]
    assert rows == [("horses", name) for name in ("bilinear", OURS, "kopf")] + [
        ("horses_crops", name) for name in ("bilinear", OURS, "upsample_anything")
    ]


def test_label_propagation_solves_its_system():
    torch.manual_seed(0)
    scores, lab = torch.rand(2, 5, 6, dtype=torch.float64), torch.rand(3, 5, 6)
    out = solvers.label_propagation(scores, lab, alpha=0.9, width=0.3, radius=2)
    places = torch.cartesian_prod(torch.arange(5), torch.arange(6))
    far = (places[:, None] - places).abs().amax(-1)
    colours = lab.flatten(1).mT.double()
    affinity = (-(colours[:, None] - colours).norm(dim=-1) / 0.3).exp() * ((far > 0) & (far <= 2))
    root = affinity.sum(1).rsqrt()
    system = torch.eye(30, dtype=torch.float64) - 0.9 * root[:, None] * affinity * root
    expected = torch.linalg.solve(system, scores.flatten(1).mT).mT.view_as(scores)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_the_bilateral_solver_keeps_flat_maps_and_smooths_within_a_colour():
    torch.manual_seed(0)
    yuv = torch.full((3, 16, 16), 30.0)
    yuv[:, :, 8:] = 220
    noisy = (yuv[:1] > 100).float() + 0.2 * torch.randn(1, 16, 16)
    out = solvers.bilateral_solver(noisy, yuv, 16.0, 4.0, 8.0, 8.0)
    assert out[0, :, :8].std() < 0.5 * noisy[0, :, :8].std()
    assert out[0, :, 8:].mean() - out[0, :, :8].mean() == pytest.approx(1, abs=0.1)  # nothing crosses the edge
    flat = solvers.bilateral_solver(torch.ones(1, 16, 16), yuv, 16.0, 4.0, 8.0, 8.0)
    torch.testing.assert_close(flat, torch.ones_like(flat), atol=1e-2, rtol=0)


def test_fitted_gaussians_rebuild_the_image_better_than_at_first():
    """Where scores are the image's own means, enlarging them is what was fitted."""
    (sample,) = samples(1)
    image = sample.image / 255
    means = F.avg_pool2d(image, 8)
    errors = [
        float((solvers.fitted_gaussians(means, image, False, 0.7, 0.05, steps) - image).abs().mean())
        for steps in (0, 50)
    ]
    assert errors[1] < 0.8 * errors[0]


class Coarsest(torch.nn.Module):
    """Scores of eleven classes at 1/8, enlarged bilinearly."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Conv2d(8, 11, 1)

    def forward(self, image):
        return F.interpolate(self.head(self.encoder(image).relu()), image.shape[2:], mode="bilinear")


def test_fine_tuning_keeps_five_arms_a_seed_and_moves_the_decoder_alone(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = Coarsest().eval()
    drawn = [Frame(s.name, s.image, s.labels.to(torch.uint8)) for s in samples(52)]
    for module in (finetune, train):
        monkeypatch.setattr(module, "frames", lambda part: drawn)
    monkeypatch.setattr(finetune, "trained", lambda name, seed, folder: network)
    arguments = ["at_once", "--nets", str(tmp_path), "--steps", "2", "--output", str(tmp_path / "tuned.csv")]
    for seeds in ("1", "2"):  # the second run adds a seed
        result = CliRunner().invoke(finetune.main, [*arguments, "--seeds", seeds], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    rows = read(finetune.Tuned, tmp_path / "tuned.csv")
    assert [(row.seed, row.arm) for row in rows] == [(seed, arm) for seed in (1, 2) for arm in finetune.ARMS]
    assert all(row.images == 2 for row in rows)
    rivals = read(compare.Row, compare.RESULTS)
    assert "2 steps of the same images for both, 2 seeds" in real_page.block(rivals, rows)
    tuned = finetune.tuned(network, 1, 2, None)
    assert torch.equal(tuned.encoder.weight, network.encoder.weight)
    assert not torch.equal(tuned.head.weight, network.head.weight)


@torch.no_grad()
def test_behind_the_kept_stages_a_network_is_the_same():
    """What is trained there is the whole network's, swapped or not; kept maps are in 16 bits."""
    front = Front()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    drawn = [Frame(str(n), image, image[0] % 12) for n, image in enumerate(images)]
    network = fcn8s().eval()
    for head in (network.score_fr, network.score_pool4, network.score_pool3):
        torch.nn.init.normal_(head.weight, std=0.1)
    swapped = hotswap.convert(network, "resize", "input", guide_scale=4.0, example_inputs=images[:1] / 255)
    for model in (network, swapped):
        shown, labels = front.show((drawn[0], False), (drawn[1], True))
        expected = model(shown)
        with front.attached(model):
            found = model(shown)
        assert float((found - expected).abs().max()) < 1e-2 * float(expected.abs().max())
        assert torch.equal(model(shown), expected)
    assert torch.equal(labels[1], drawn[1].labels.flip(-1).long())


def test_the_page_says_what_guiding_costs():
    row = next(row for row in read(compare.Row, compare.RESULTS) if row.pair == "horses")
    times = {"bilinear": 10.0, OURS: 14.0, "dense_crf": 90.0}
    rows = [dataclasses.replace(row, rival=name, ms=ms) for name, ms in times.items()]
    measured = cost.Cost("horses", "257x257", 25.0, 27.0, "", "", "", "", "")
    assert measured.percent == pytest.approx(8)
    assert "| 25.0 | 27.0 | +8.0 % | 1/20 |" in real_page.block(rows, costs=[measured])
