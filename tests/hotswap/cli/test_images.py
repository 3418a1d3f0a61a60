"""Images on the command line: sized, normalised, and refused by their names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import NET, error_of, run
from PIL import Image

import hotswap
from hotswap.errors import HotswapError
from hotswap.measure import verify
from hotswap.zoo import images, providers


def seen_by_network(monkeypatch):
    seen = []
    monkeypatch.setattr(verify, "verify", lambda model, batches: seen.extend(batches) or STILL)
    return seen


STILL = hotswap.Verification(0.0, 0.0, True, ())


def test_images_are_sized_and_normalised(swapped, monkeypatch):
    seen = seen_by_network(monkeypatch)
    Image.new("RGB", (9, 9), (255, 0, 51)).save("photos/0.png")
    Image.new("L", (9, 9), 51).save("photos/1.PNG")
    Path("photos/.hidden.png").write_text("no image")
    Path("photos/notes.txt").write_text("no image")
    base = ("verify", swapped, "--model", NET, "--images", "photos", "--input-size", "8x6")
    run(*base)
    assert [x.shape for x in seen] == [(4, 3, 8, 6), (2, 3, 8, 6)]
    mean, std = (torch.tensor(x) for x in (providers.IMAGENET_MEAN, providers.IMAGENET_STD))
    torch.testing.assert_close(seen[0][0, :, 2, 3], (torch.tensor([1, 0, 0.2]) - mean) / std)
    seen.clear()
    run(*base, "--mean", "0", "--std", "0.00392156862", "--limit", "3")
    assert [x.shape[0] for x in seen] == [3]
    torch.testing.assert_close(seen[0][0, :, 2, 3], torch.tensor([255.0, 0, 51]))
    seen.clear()
    run(*base, "--mean", "0.1,0.2,0.3", "--std", "1,2,4")
    torch.testing.assert_close(seen[0][1, :, 2, 3], torch.tensor([0.1, 0, -0.025]))


def test_noise_is_always_the_same_and_said(swapped, monkeypatch):
    seen = seen_by_network(monkeypatch)
    for _ in range(2):
        result = run("verify", swapped, "--model", NET, "--input-size", "8")
    assert "random noise" in result.stderr
    assert torch.equal(torch.stack(seen[:2]), torch.stack(seen[2:]))


def test_a_rotated_photograph_is_read_upright(tmp_path):
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "x.png", exif=exif)
    (batch,) = images.batches([tmp_path / "x.png"], images.Form((3, 2, 4), (0,), (1,), torch.float32), 4)
    assert batch[0, 0].argmax() == 7


def test_an_image_is_read_whole_only_where_that_fits_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MOST_PIXELS", 11)
    Image.new("RGB", (4, 3), (255, 0, 51)).save(tmp_path / "x.png")
    with pytest.raises(
        HotswapError, match=r"x\.png' has 4 x 3 pixels, and can have at most 0 million; make it smaller"
    ):
        images.read(tmp_path / "x.png")
    assert images.read(tmp_path / "x.png", size=(2, 2))[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])


def test_pillow_logs_nothing_beside_the_one_line(tmp_path, caplog):
    Image.new("RGB", (4, 3)).save(tmp_path / "x.tif")
    three_samples, many = (b"\x15\x01\x03\0\x01\0\0\0" + n for n in (b"\x03\0", b"\0\x08"))
    content = (tmp_path / "x.tif").read_bytes()
    assert content.count(three_samples) == 1
    (tmp_path / "x.tif").write_bytes(content.replace(three_samples, many))
    with pytest.raises(HotswapError, match="cannot identify image file"):
        images.read(tmp_path / "x.tif")
    assert caplog.text == ""
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(tmp_path / "x.tif")
    assert "More samples per pixel" in caplog.text  # others' reading is as it was


BAD_IMAGES = [
    ("broken.png", b"\x89PNG\r\n\x1a\nno", "broken.png"),
    ("cut.jpg", None, "cut.jpg"),
    ("deep.tif", None, "deep.tif' has more than 8 bits"),
    ("program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "cannot identify image file"),
]


@pytest.mark.parametrize(("name", "content", "reason"), BAD_IMAGES)
def test_a_bad_image_is_named(swapped, name, content, reason):
    if content is None and name.startswith("deep"):
        Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(f"photos/{name}")
    elif content is None:
        Image.effect_noise((64, 64), 50).save(f"photos/{name}")
        Path(f"photos/{name}").write_bytes(Path(f"photos/{name}").read_bytes()[:900])
    else:
        Path(f"photos/{name}").write_bytes(content)
    arguments = (swapped, "--model", NET, "--images", "photos", "--input-size", "8")
    assert reason in error_of(run("verify", *arguments, code=1))
    assert reason in error_of(run("calibrate", *arguments, "-o", "out.pt", code=1))
    assert not Path("out.pt").exists()
