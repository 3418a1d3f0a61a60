"""benchmarks/real/learned: K within learned upsamplers, and that its rows and the page say the same."""

import pytest
import torch
from click.testing import CliRunner

from benchmarks.evidence import page
from benchmarks.real import kept, learned
from benchmarks.real import page as real_page
from benchmarks.real.behind import AtOnceBehind
from benchmarks.real.rows import read
from pac_ops import pacresize2d


@pytest.mark.parametrize("name", ["transposed", "shuffle"])
@torch.no_grad()
def test_with_k_1_it_is_the_learned_layer(name):
    torch.manual_seed(0)
    layer, x = learned.UPSAMPLERS[name][1](), torch.rand(2, learned.WIDTH, 5, 6)
    weight = learned.as_transposed(layer)
    flat, guide = torch.zeros(2, 3, 40, 48), torch.rand(2, 3, 40, 48)
    torch.testing.assert_close(learned.guided_transposed(x, flat, weight, 8), layer(x))
    assert (learned.guided_transposed(x, guide, weight, 8) - layer(x)).abs().max() > 1e-3


def test_bilinear_weights_give_a_guided_enlargement():
    tent = 1 - (torch.arange(16) - 7.5).abs() / 8
    weight = torch.eye(3)[:, :, None, None] * (tent * tent[:, None])
    x, guide = torch.rand(2, 3, 5, 6), 3 * torch.rand(2, 3, 40, 48)
    out = learned.guided_transposed(x, guide, weight, 8)
    inside = (..., slice(4, -4), slice(4, -4))  # beyond its edge a transposed convolution reads zeros
    torch.testing.assert_close(out[inside], pacresize2d(x, guide)[inside])


def test_the_command_keeps_rows(tmp_path):
    def sample():
        image = torch.randint(256, (3, *kept.CROP), dtype=torch.uint8)
        labels = torch.randint(11, kept.CROP, dtype=torch.uint8)
        h, w = (n // 8 for n in kept.CROP)
        shapes = ((24, h, w), (40, h, w), (112, h // 2, w // 2), (320, h // 4, w // 4))
        return kept.Sample(image, labels, tuple(torch.rand(shape).half() for shape in shapes))

    torch.manual_seed(0)
    file, rows = tmp_path / "kept.pt", tmp_path / "rows.csv"
    kept.write("at_once", AtOnceBehind(), [[sample()], [sample()], [sample(), sample()]], file)
    for name in ("steps", "transposed"):
        arguments = [str(file), "--steps", "1", "--upsampler", name, "--output", str(rows)]
        result = CliRunner().invoke(learned.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    found = {(row.upsampler, row.arm): row for row in read(learned.Learned, rows)}
    assert list(found) == [
        *(("transposed", arm) for arm in (learned.PLAIN, learned.BEHIND, learned.TAPS)),
        *(("steps", arm) for arm in (learned.PLAIN, learned.BEHIND)),
    ]
    assert all(row.images == 2 and row.steps == 1 for row in found.values())
    assert found["steps", learned.PLAIN].quality_gain == 0 != found["steps", learned.BEHIND].quality_gain


def test_page_and_readme_say_what_the_rows_say():
    rows = read(learned.Learned, learned.RESULTS)
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.LEARNED, real_page.committed_learned()) == text
    (line,) = [
        line
        for line in (page.PAGE.parents[1] / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| scores that learned layers enlarge")
    ]
    gains = [(row.quality_gain, row.near_gain) for row in rows if row.arm == learned.BEHIND]
    (least, near_least), (most, near_most) = (tuple(map(f, zip(*gains, strict=True))) for f in (min, max))
    assert f"{least:+.1f} to {most:+.1f}, near edges {near_least:+.1f} to {near_most:+.1f}" in line
    assert all(row.quality_gain > row.quality_margin for row in rows if row.arm == learned.BEHIND)
