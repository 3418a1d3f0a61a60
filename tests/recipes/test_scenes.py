"""Procedural scenes: the same each time, and true about themselves."""

import pytest
import torch

from recipes.scenes import CLASSES, FAR, NEAR, Scenes


@pytest.mark.parametrize("size", [16, 65, 128])
def test_shapes_and_ranges(size):
    scene = Scenes(3, size=size).scene(2)
    assert scene.image.shape == (3, size, size)
    assert scene.image.dtype == torch.float32
    assert 0 <= scene.image.min() < scene.image.max() <= 1
    assert scene.labels.shape == scene.depth.shape[1:] == (size, size)
    assert scene.labels.dtype == torch.int64
    assert scene.depth.min() >= NEAR
    assert scene.depth.max() <= FAR


def test_a_seed_and_an_index_make_a_scene():
    image, labels = Scenes(5, size=48)[3]
    again, same = Scenes(9, size=48)[3]
    assert torch.equal(image, again)
    assert torch.equal(labels, same)
    assert not torch.equal(image, Scenes(5, size=48, seed=1)[3][0])
    assert not torch.equal(image, Scenes(5, size=48)[4][0])
    depth = Scenes(5, size=48, truth="depth")[3][1]
    assert torch.equal(depth, Scenes(5, size=48).scene(3).depth)


def test_every_class_comes_up():
    seen = torch.zeros(len(CLASSES))
    for index in range(20):
        seen += torch.bincount(Scenes(20, size=32)[index][1].flatten(), minlength=len(CLASSES))
    assert (seen / seen.sum() > 0.03).all()


def test_depth_is_of_planes_and_the_background_is_farthest():
    for index in range(5):
        scene = Scenes(5, size=64).scene(index)
        labels, depth = scene.labels, scene.depth[0]
        inside = labels[:, 1:] == labels[:, :-1]  # but for two shapes of one class
        steps = (depth[:, 1:] - depth[:, :-1]).abs()
        assert (steps[inside] < 0.05).float().mean() > 0.97  # a plane
        assert (steps[~inside] > 0.05).float().mean() > 0.9
        assert (depth[labels == 0] == FAR).all()


def test_pictures_have_edges_at_boundaries():
    at, elsewhere = [], []
    for index in range(10):
        scene = Scenes(10, size=64).scene(index)
        step = (scene.image[:, :, 1:] - scene.image[:, :, :-1]).norm(dim=0)
        across = scene.labels[:, 1:] != scene.labels[:, :-1]
        at.append(step[across])
        elsewhere.append(step[~across])
    assert torch.cat(at).mean() > 2 * torch.cat(elsewhere).mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 1, "size": 8}, "size must be at least 16 pixels, got 8"),
        ({"count": 1, "truth": "flow"}, 'truth must be "labels" or "depth"'),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**arguments)
    with pytest.raises(IndexError):
        Scenes(2)[2]


def test_scenes_that_are_kept_are_drawn_once():
    kept, drawn = Scenes(3, size=16, keep=True), Scenes(3, size=16)
    assert kept.scene(1) is kept.scene(1)
    assert torch.equal(kept[1][0], drawn[1][0])
