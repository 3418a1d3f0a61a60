"""A pretrained network as onnx2torch imports it, from a file beside the repository: guided, saved, loaded, exported."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hotswap
from benchmarks.coverage.state import State
from hotswap.network.copying import deep_copy

SHARED = Path(__file__).parents[3] / "shared"
FILE, HORSES = SHARED / "nets" / "deeplabv3_mobilenetv2_voc_257.onnx", SHARED / "data" / "horses"
SIZE, HORSE = 257, 13

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnx2torch = pytest.importorskip(
    "onnx2torch", reason="onnx2torch is not installed (pip install --no-deps onnx2torch)"
)
pytestmark = pytest.mark.skipif(not (FILE.exists() and HORSES.exists()), reason=f"{SHARED} has no network and images")


@pytest.fixture(scope="module")
def network():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return onnx2torch.convert(onnx.load(FILE)).eval()


@pytest.fixture(scope="module")
def horses():
    """Images as the network reads them, each with a mask."""
    found = []
    for file in sorted(HORSES.glob("*.jpg"))[40:44]:
        image, mask = (
            Image.open(path).resize((SIZE, SIZE), Image.BILINEAR) for path in (file, HORSES / "masks" / file.name)
        )
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        found.append((pixels / 127.5 - 1, torch.from_numpy(np.array(mask.convert("L"))) > 127))
    return found


def iou(model, horses):
    """Mean over images."""
    found = []
    for image, mask in horses:
        with torch.no_grad():
            horse = model(image)[0].argmax(0) == HORSE
        found.append(float((horse & mask).sum() / (horse | mask).sum()))
    return sum(found) / len(found)


def test_guiding_its_last_enlargement_makes_it_better(network, horses, tmp_path):
    before, image = State(network), horses[0][0]
    plan = hotswap.plan(network, "resize", "input", example_inputs=image)
    assert [resize.target for resize in plan.resizes] == ["ResizeBilinear_3"]
    guided = hotswap.convert(network, "resize", "input", calibrate_on=[x for x, _ in horses[:2]])
    assert before.differences(network) == []
    assert before.differences(guided, copied=True) == []
    assert iou(guided, horses) > iou(network, horses) + 0.05
    (resize,) = hotswap.status(guided).plan.resizes
    assert (resize.footprint, resize.guide_scale) == ((6, 4, 2), 12.0)
    assert resize.space == hotswap.GuideSpace("lab", (0.5,) * 3, (0.5,) * 3)

    hotswap.save(guided, tmp_path / "w.safetensors")
    loaded = hotswap.load(tmp_path / "w.safetensors", model=network, example_inputs=image)
    with torch.no_grad():
        for twin in (loaded, deep_copy(guided)):
            assert torch.equal(twin(image), guided(image))
        assert torch.equal(hotswap.revert(guided)(image), network(image))
    made = hotswap.export(guided, tmp_path / "w.onnx", example_inputs=image, dynamic=False)
    assert made.largest_difference < 1e-4


def test_a_search_on_40_photographs_says_swap_this(network):
    images = {"labels": HORSES / "masks", "class_index": HORSE, "limit": 40, "input_size": (3, SIZE, SIZE)}
    result = hotswap.search(network, HORSES, **images, mean=(0.5,) * 3, std=(0.5,) * 3, family=[{}, {"footprint": 2}])
    assert result.sentence.startswith("Swap this: resize_3 with default options")
    everywhere, near = (result.chosen.gains[name] for name in ("iou", "edges"))
    assert everywhere.better > 0.05
    assert near.better > 0.12
    assert everywhere.images == near.images == 24


def test_its_convolutions_are_swapped(network, horses):
    image = horses[0][0]
    with torch.no_grad():
        expected = network(image)
        last = [path for path, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
        target = next(path for path in reversed(last) if network.get_submodule(path).kernel_size == (3, 3))
        for scale, changes in ((0, False), (1.0, True)):
            swapped = hotswap.convert(network, target, last[0], guide_scale=scale, example_inputs=image)
            assert hotswap.status(swapped).plan.method == "fx"
            assert (float((swapped(image) - expected).norm() / expected.norm()) > 1e-5) is changes


def test_a_search_says_that_it_helps_on_horses(network):
    before = State(network)
    result = hotswap.search(
        network,
        HORSES,
        labels=HORSES / "masks",
        class_index=HORSE,
        input_size=(3, SIZE, SIZE),
        mean=(0.5,),
        std=(0.5,),
        limit=40,
    )
    assert before.differences(network) == []
    assert result.sizes == ((SIZE, SIZE),)
    whole, near = (result.chosen.gains[name] for name in ("iou", "edges"))
    assert whole.images == near.images == 24
    assert result.swap
    assert whole.better > 0.02
    assert near.better > 0.06
    assert result.sentence.startswith("Swap this: resize_3 with ")
