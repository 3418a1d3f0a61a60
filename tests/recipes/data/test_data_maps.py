"""NYU depth, Sintel flow, and what joint upsampling makes of them."""

import pickle

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_datasets import SCENES, SIZE, flo, nyu, sintel
from torch.utils.data import TensorDataset
from torchvision.datasets._optical_flow import _read_flo

from hotswap.errors import HotswapError
from recipes.data import upsampling
from recipes.data.files import read_flo
from recipes.data.nyu import NyuDepth
from recipes.data.sintel import SINTEL, SintelFlow
from recipes.data.upsampling import JointUpsampling, shrink


@pytest.fixture(scope="module")
def nyu_root(tmp_path_factory):
    return nyu(tmp_path_factory.mktemp("nyu"))


@pytest.fixture(scope="module")
def sintel_root(tmp_path_factory):
    return sintel(tmp_path_factory.mktemp("sintel"))


# --- NYU --------------------------------------------------------------------------------------------------


def test_nyu_trains_on_the_first_thousand_and_tests_on_the_rest(nyu_root):
    train, test = NyuDepth(nyu_root, "train"), NyuDepth(nyu_root, "test")
    assert (len(train), len(test)) == (1000, 449)
    for data, index, number in ((train, 0, 0), (train, 999, 999), (test, 0, 1000), (test, 448, 1448)):
        image, depth = data[index]
        assert (image.shape, depth.shape, depth.dtype) == ((3, *SIZE), (1, *SIZE), torch.float32)
        assert depth[0, 0, 0] == number
        assert round(float(image[0, 0, 0]) * 255) == number % 256
    with pytest.raises(IndexError, match="index must be from 0 to 448, got 449"):
        test[449]


def test_nyu_is_turned_the_right_way(nyu_root):
    with h5py.File(nyu_root / "nyu_depth_v2_labeled.mat") as file:
        pixels, metres = file["images"][5], file["depths"][5]
    image, depth = NyuDepth(nyu_root, "train")[5]
    row, column = 7, 19
    assert (image[:, row, column] * 255).round().tolist() == pixels[:, column, row].tolist()
    assert depth[0, row, column] == metres[column, row]


def test_nyu_crops_image_and_depth_together(nyu_root):
    whole, crop = NyuDepth(nyu_root, "train")[3], NyuDepth(nyu_root, "train", crop=9)[3]
    places = [(r, c) for r in range(12) for c in range(16) if torch.equal(whole[1][:, r : r + 9, c : c + 9], crop[1])]
    assert len(places) == 1
    row, column = places[0]
    assert torch.equal(whole[0][:, row : row + 9, column : column + 9], crop[0])


def test_nyu_reads_nothing_early_and_names_a_missing_file(tmp_path):
    data = NyuDepth(tmp_path, "train")
    assert len(data) == 1000
    with pytest.raises(
        HotswapError, match=r"^NYU depth v2: '.*nyu_depth_v2_labeled.mat' is missing; get .*2.8 GB.*$"
    ):
        data[0]


def test_nyu_damaged_files_are_told(tmp_path):
    path = nyu(tmp_path, (4, 4), count=12) / "nyu_depth_v2_labeled.mat"
    with pytest.raises(
        HotswapError, match=r"must hold images \(1449, 3, W, H\) .* got \(12, 3, 4, 4\) and \(12, 4, 4\)"
    ):
        NyuDepth(tmp_path, "train")[0]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(HotswapError, match=r"nyu_depth_v2_labeled.mat' cannot be read \(OSError: [^\n]*; get"):
        NyuDepth(tmp_path, "train")[0]
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(HotswapError, match="must hold 'depths', got images; get"):
        NyuDepth(tmp_path, "train")[0]


def test_nyu_depth_that_is_not_finite_is_damage(tmp_path):
    path = nyu(tmp_path, (4, 4)) / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "a") as file:
        file["depths"][1002, 1, 1] = np.nan
    NyuDepth(tmp_path, "test")[1]
    with pytest.raises(HotswapError, match="depth 1002 of 4 x 4 pixels is not finite"):
        NyuDepth(tmp_path, "test")[2]


# --- Sintel -----------------------------------------------------------------------------------------------


def test_sintel_splits_are_the_issues(sintel_root):
    validation, train = SintelFlow(sintel_root, "validation"), SintelFlow(sintel_root, "train")
    assert len(validation) == 133
    assert len(validation) + len(train) == sum(SCENES.values())
    assert not set(validation.pairs) & set(train.pairs)
    for scene in ("ambush_6", "market_6"):
        assert sum(s == scene for s, _ in validation.pairs) == SCENES[scene]
    for scene in ("bamboo_2", "cave_4", "temple_2"):
        held_out = [frame for s, frame in validation.pairs if s == scene]
        assert held_out == [f"frame_{n:04d}" for n in range(25, 50)]
    assert ("alley_1", "frame_0001") in train.pairs
    # The 18 scenes that are not in the tree have 19 to 49 pairs: 1,041 in all.
    assert 1041 - 133 == 908


def test_sintel_pairs_a_frame_with_the_flow_to_the_next(sintel_root):
    data = SintelFlow(sintel_root, "validation")
    index = data.pairs.index(("cave_4", "frame_0031"))
    image, flow = data[index]
    assert (image.shape, flow.shape, flow.dtype) == ((3, *SIZE), (2, *SIZE), torch.float32)
    assert flow[:, 0, 0].tolist() == [31, -31]
    path = sintel_root / "training" / "flow" / "cave_4" / "frame_0031.flo"
    np.testing.assert_array_equal(flow.numpy(), _read_flo(str(path)))


@pytest.fixture
def small_sintel(tmp_path):
    scenes = {"ambush_6": 2, "market_6": 1, "bamboo_2": 1, "cave_4": 1, "temple_2": 1}
    return sintel(tmp_path, (6, 8), scenes)


def test_sintel_missing_files_are_named(small_sintel):
    with pytest.raises(HotswapError, match=r"^Sintel: '.*training/clean' is missing; get MPI-Sintel-complete.zip"):
        len(SintelFlow(small_sintel / "other", "train"))
    data = SintelFlow(small_sintel, "validation")
    (small_sintel / "training" / "flow" / "ambush_6" / "frame_0002.flo").unlink()
    with pytest.raises(HotswapError, match=r"flow/ambush_6/frame_0002.flo' is missing; get"):
        data[1]
    # The split counts from the end: a picture that is missing in the middle must not move it.
    (small_sintel / "training" / "clean" / "ambush_6" / "frame_0002.png").unlink()
    with pytest.raises(HotswapError, match=r"clean/ambush_6/frame_0002.png' is missing; get"):
        len(SintelFlow(small_sintel, "validation"))
    for file in (small_sintel / "training" / "clean" / "market_6").iterdir():
        file.unlink()
    (small_sintel / "training" / "clean" / "market_6").rmdir()
    with pytest.raises(HotswapError, match="has no scene market_6, which the split needs; get"):
        len(SintelFlow(small_sintel, "validation"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no .flo file: it must begin with b'PIEH', got b''"),
        (b"HEIP" + bytes(20), "got b'HEIP'"),
        (b"PIEH\x01", "is damaged: its header says 0 x 0 pixels"),
        (b"PIEH" + b"\xff" * 8, "is damaged: its header says -1 x -1 pixels"),
        (b"PIEH" + b"\x02\0\0\0\x03\0\0\0" + bytes(47), "is damaged: it must hold 60 bytes, got 59"),
        (b"PIEH" + b"\x02\0\0\0\x03\0\0\0" + bytes(49), "is damaged: it must hold 60 bytes, got 61"),
    ],
)
def test_damaged_flow_is_told(tmp_path, content, reason):
    (tmp_path / "a.flo").write_bytes(content)
    with pytest.raises(HotswapError) as caught:
        read_flo(tmp_path / "a.flo", SINTEL)
    assert reason in str(caught.value)
    assert "get MPI-Sintel-complete.zip" in str(caught.value)


def test_flow_and_frame_must_be_of_one_size(small_sintel):
    flo(small_sintel / "training" / "flow" / "ambush_6" / "frame_0001.flo", np.zeros((5, 8, 2)))
    with pytest.raises(HotswapError, match=r"frame_0001.flo' must be of its frame's size, \[6, 8\]"):
        SintelFlow(small_sintel, "validation")[0]


# --- joint upsampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [4, 8])
def test_low_resolution_is_the_pixel_at_the_centre_of_each_block(factor):
    x = torch.arange(16 * 24.0).view(1, 16, 24)
    low = shrink(x, factor, "centre_pixel")
    assert low.shape == (1, 16 // factor, 24 // factor)
    assert low[0, 1, 2] == x[0, factor + factor // 2, 2 * factor + factor // 2]


def test_the_protocols_differ():
    x = torch.rand(1, 16, 16)
    bilinear = shrink(x, 4, "bilinear")
    torch.testing.assert_close(bilinear[0, 1, 2], x[0, 5:7, 9:11].mean())  # the four pixels in the middle
    bicubic = shrink(x, 4, "antialiased_bicubic")
    torch.testing.assert_close(bicubic, F.interpolate(x[None], size=(4, 4), mode="bicubic", antialias=True)[0])
    assert not torch.allclose(bilinear, bicubic, atol=1e-3)


def test_depth_is_in_the_range_of_the_coarse_map(nyu_root):
    (low, guide), (target, unit) = upsampling.nyu(nyu_root, "test", factor=4)[7]
    image, depth = NyuDepth(nyu_root, "test")[7]
    coarse = depth[:, 2::4, 2::4]
    assert (low.min(), low.max()) == (0, 1)
    assert torch.equal(guide, image)
    torch.testing.assert_close(low * unit / 100 + coarse.min(), coarse)
    torch.testing.assert_close(target * unit / 100 + coarse.min(), depth, rtol=1e-5, atol=1e-5)  # centimetres
    assert target.max() > 1  # the fine map leaves the range: nobody but the coarse map was asked


def test_rows_and_columns_left_over_are_cut(nyu_root):
    (low, guide), (target, _) = upsampling.nyu(nyu_root, "train", factor=8)[0]
    assert (low.shape, guide.shape, target.shape) == ((1, 2, 3), (3, 16, 24), (1, 16, 24))


def test_a_flat_map_stays_finite():
    data = TensorDataset(torch.rand(1, 3, 8, 8), torch.full((1, 1, 8, 8), 2.0))
    (low, _), (target, unit) = JointUpsampling(data, 4, "centre_pixel", min_max=True)[0]
    assert (low.abs().max(), target.abs().max(), unit) == (0, 0, 1)


def test_flow_keeps_its_unit(sintel_root):
    data = upsampling.sintel(sintel_root, "validation", factor=4, crop=16)
    torch.manual_seed(3)
    (low, guide), (target, unit) = data[0]
    assert (low.shape, guide.shape, target.shape, unit) == ((2, 4, 4), (3, 16, 16), (2, 16, 16), 1)
    torch.testing.assert_close(low, F.interpolate(target[None], size=(4, 4), mode="bilinear")[0])


def test_loaders_in_other_processes_get_the_same(nyu_root, sintel_root):
    for data in (upsampling.nyu(nyu_root, "test"), upsampling.sintel(sintel_root, "validation")):
        (low, guide), (target, _) = data[3]
        (other_low, other_guide), (other_target, _) = pickle.loads(pickle.dumps(data))[3]
        assert torch.equal(low, other_low)
        assert torch.equal(guide, other_guide)
        assert torch.equal(target, other_target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: upsampling.nyu(".", "val"), "split must be one of train, test, got 'val'"),
        (lambda: upsampling.sintel(".", "test"), "split must be one of train, validation, got 'test'"),
        (lambda: upsampling.nyu(".", "train", factor=1), "factor must be at least 2, got 1"),
        (
            lambda: upsampling.nyu(".", "train", protocol="bicubic"),
            "protocol of nyu must be one of centre_pixel, published, antialiased_bicubic, got 'bicubic'",
        ),
        (
            lambda: upsampling.sintel(".", "train", protocol="centre_pixel"),
            "protocol of sintel must be one of bilinear, published, got 'centre_pixel'",
        ),
        (
            lambda: JointUpsampling(TensorDataset(), 4, "bicubic"),
            "low_resolution must be one of centre_pixel, upper_left_centre_pixel, antialiased_bicubic, bilinear, ant",
        ),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(HotswapError, match=message):
        make()


def test_a_factor_larger_than_the_map_is_refused(nyu_root):
    with pytest.raises(HotswapError, match="factor must be at most 20, the map's size, got 32"):
        upsampling.nyu(nyu_root, "train", factor=32)[0]
