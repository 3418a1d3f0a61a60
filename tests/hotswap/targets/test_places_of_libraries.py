"""What follows the enlargements of other people's networks, each with the verdict that reading its code gives."""

import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import hotswap
from recipes.backbones import SmallSegmenter
from recipes.networks.fcn8s import FCN8s

ONNX = Path(__file__).parents[4] / "shared" / "nets" / "deeplabv3_mobilenetv2_voc_257.onnx"
SCORES, MIXED, FEATURES = "scores", "mixed with a finer map", "features"


def places(model, size=128):
    """By number: factor, place, and whether "resize" takes it, of all that enlarge more than a pixel."""
    image = size if isinstance(size, torch.Tensor) else torch.empty(1, 3, size, size, device="meta")
    infos = hotswap.inspect(model.eval(), image).resizes
    assert all((info.verdict.partition(":")[0] == "taken") == info.automatic for info in infos)
    return {
        int(info.alias.removeprefix("resize_")): (
            round(info.factor, 1),
            info.place.partition(":")[0],
            info.automatic,
        )
        for info in infos
        if info.factor > 1 and info.input_size != (1, 1)
    }


def taken(listed):
    return {index: factor for index, (factor, _, automatic) in listed.items() if automatic}


def kinds(listed):
    return {place for _, place, _ in listed.values()}


# --- torchvision ----------------------------------------------------------------------------------------------


def test_fcn_enlarges_the_scores_of_each_output():
    model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    assert places(model) == dict.fromkeys((1, 2), (8, SCORES, True))


def test_deeplabv3_enlarges_scores_at_the_end_and_a_pixel_inside():
    model = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert places(model) == {2: (16, SCORES, True)}
    pooled = hotswap.inspect(model, torch.empty(1, 3, 128, 128, device="meta")).resizes[0]
    assert pooled.place == "features: classifier.1 follows"


def test_lraspp_adds_a_finer_map_to_its_inner_scores():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert places(model) == {1: (2, MIXED, False), 2: (8, SCORES, True)}


def test_a_detector_enlarges_features_and_its_image():
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    infos = hotswap.inspect(model.eval(), ([torch.rand(3, 64, 96)],)).resizes
    assert infos
    assert not any(info.automatic for info in infos)
    assert {info.place.partition(":")[0] for info in infos if info.factor > 1} <= {FEATURES, "unknown"}


def test_an_optical_flow_is_enlarged_at_each_turn():
    model = torchvision.models.optical_flow.raft_small(weights=None).eval()
    pair = (torch.rand(1, 3, 128, 128),) * 2
    assert {(r.factor, r.place, r.automatic) for r in hotswap.inspect(model, pair).resizes} == {(8, SCORES, True)}


# --- segmentation_models_pytorch ------------------------------------------------------------------------------


def smp(name, **options):
    library = pytest.importorskip("segmentation_models_pytorch", reason="pip install hotswap[smp]")
    return getattr(library, name)(encoder_name="resnet18", encoder_weights=None, **options)


@pytest.mark.parametrize(
    ("name", "interpolation"), [("Unet", "bilinear"), ("UnetPlusPlus", "nearest"), ("MAnet", "nearest")]
)
def test_decoders_that_climb_in_steps_of_2_are_left(name, interpolation):
    model = smp(name, decoder_interpolation=interpolation)
    listed = places(model)
    assert len(listed) >= 5
    assert kinds(listed) == {FEATURES}
    assert taken(listed) == {}
    with pytest.raises(
        hotswap.HotswapError, match=r'takes no enlargement .*"resize_\*" takes all .*: resize_1 \(x2, features: '
    ) as caught:
        hotswap.plan(model, "resize", "input")
    assert all(f"resize_{index} (x2, features: decoder.blocks." in str(caught.value) for index in listed)
    if interpolation == "bilinear":
        assert len(hotswap.plan(model, "resize_*", "input", check=False).resizes) == len(listed)


@pytest.mark.parametrize(
    ("name", "factor"),
    [("FPN", 4), ("DeepLabV3", 8), ("DeepLabV3Plus", 4), ("PSPNet", 8), ("PAN", 4), ("UPerNet", 4)],
)
def test_the_heads_of_others_enlarge_scores(name, factor):
    listed = places(smp(name))
    assert taken(listed) == {max(listed): factor}
    inner = {index: place for index, (_, place, _) in listed.items() if index != max(listed)}
    assert set(inner.values()) <= {FEATURES, MIXED}
    if name == "FPN":  # the sum of its levels is finer than all but one
        assert [index for index, place in inner.items() if place == MIXED] == [6, 8, 9]
    elif name != "DeepLabV3":
        assert set(inner.values()) == {FEATURES}


def test_linknet_enlarges_by_learned_convolutions_alone():
    model = smp("Linknet")
    assert places(model) == {}
    with pytest.raises(hotswap.HotswapError, match=r"enlarges no map by interpolation .* by transposed convolution"):
        hotswap.plan(model, "resize", "input")


def by_hand(x, n=2):
    batch, channels, height, width = x.shape
    x = x.view(batch, channels // n**2, n, n, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, channels // n**2, n * height, n * width)


def windows(x, n=4):
    """Into windows and back: no enlargement."""
    batch, channels, height, width = x.shape
    parts = x.view(batch, channels, height // n, n, width // n, n).permute(0, 2, 4, 3, 5, 1)
    back = parts.reshape(-1, n * n, channels).view(batch, height // n, width // n, n, n, channels)
    return back.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


class Shuffled(nn.Module):
    def __init__(self, shuffle):
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(3, 16, 3, stride=2, padding=1), shuffle

    def forward(self, image):
        return self.shuffle(self.conv(image), 2)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 4, 2, 1)), r"transposed .* \(1\)"),
        (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.PixelShuffle(2)), r"pixel shuffle \(1\)"),
        (Shuffled(F.pixel_shuffle), r"pixel shuffle \(its own forward\)"),
        (Shuffled(by_hand), r"pixel shuffle \(its own forward\)"),
    ],
)
def test_learned_enlargements_are_named(model, said):
    images = torch.rand(1, 3, 32, 48)
    for targets in ("resize", "resize_*"):
        with pytest.raises(hotswap.HotswapError, match=f"{said}: that is learned"):
            hotswap.plan(model, targets, "input", example_inputs=images)
    assert "that is learned" in str(hotswap.inspect(model, example_inputs=images))


@pytest.mark.parametrize("rearrange", [windows, lambda x, n: x.reshape(*x.shape[:2], 4, 4, 6, 4).reshape(x.shape)])
def test_what_only_goes_into_windows_and_back_enlarges_nothing(rearrange):
    info = hotswap.inspect(Shuffled(lambda x, n: rearrange(x, 4)), example_inputs=torch.rand(1, 3, 32, 48))
    assert "pixel shuffle" not in str(info)


def test_segformer_mixes_its_levels_and_enlarges_their_scores():
    assert places(smp("Segformer")) == {
        1: (8, MIXED, False),
        2: (4, MIXED, False),
        3: (2, MIXED, False),
        6: (4, SCORES, True),
    }


# --- transformers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="pip install hotswap[transformers]")


def segformer(transformers):
    options = {"depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16}
    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**options))


def test_a_network_whose_output_is_enlarged_afterwards_says_what_guides_that(transformers):
    model = segformer(transformers)
    images = torch.rand(1, 3, 64, 96)
    said = "output is 16 x 24, of an image of 64 x 96: what enlarges it runs after the network, and hotswap.enlarge"
    with pytest.raises(hotswap.HotswapError, match=re.escape(said)):
        hotswap.plan(model, "resize", "input", example_inputs=images)
    assert any(said in note for note in hotswap.plan(model, "resize_*", "input", example_inputs=images).notes)
    assert said in str(hotswap.inspect(model, example_inputs=images))


SWIN = {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2}
STAGES = [f"stage{stage}" for stage in range(1, 5)]
BEHIND = "output is 16 x 16, of an image of 64 x 64: what enlarges it runs after the network, and hotswap.enlarge"


def mask2former(transformers):
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN, out_features=STAGES), feature_size=32, mask_feature_size=32,
        hidden_dim=32, encoder_feedforward_dim=8, dim_feedforward=8, encoder_layers=1, decoder_layers=1,
        num_attention_heads=2, num_queries=4,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config), ()


POINT = torch.tensor([[[[20.0, 30.0]]]])


def sam(transformers):
    small = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16}
    vision = {"image_size": 64, "num_hidden_layers": 1, "output_channels": 16, "num_pos_feats": 8, "window_size": 2}
    config = transformers.SamConfig(
        vision_config={**small, **vision, "global_attn_indexes": [0]},
        prompt_encoder_config={"hidden_size": 16, "image_size": 64},
        mask_decoder_config={**small, "iou_head_hidden_dim": 16},
    )
    return transformers.SamModel(config), (POINT,)


def yolo(transformers):
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="pip install --no-deps ultralytics, beside an OpenCV")
    return tasks.SegmentationModel("yolov8n-seg.yaml", verbose=False), ()


@pytest.mark.parametrize("make", [mask2former, sam, yolo])
def test_masks_that_are_enlarged_after_the_network(make, transformers):
    model, others = make(transformers)
    given = (torch.rand(1, 3, 64, 64), *others)
    with pytest.raises(hotswap.HotswapError, match=rf'"resize" takes n.*{BEHIND}'):
        hotswap.plan(model, "resize", "input", example_inputs=given)
    if make is sam:
        assert BEHIND in str(hotswap.inspect(model.eval(), given))
        with pytest.raises(hotswap.HotswapError, match=rf"'resize_\*' matched .*{BEHIND}"):
            hotswap.plan(model, "resize_*", "input", example_inputs=given)


class Returns(nn.Module):
    """Scores at a quarter in a form of its own."""

    def __init__(self, form):
        super().__init__()
        self.conv, self.form = nn.Conv2d(3, 6, 4, 4), form

    def forward(self, image):
        return self.form(self.conv(image))


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (lambda y: y.unflatten(1, (2, 3)), True),  # prompts and masks
        (lambda y: y[:, 0], True),  # depth
        (lambda y: {"scores": y.mean((2, 3)), "masks": y[:, None, None]}, True),
        (lambda y: y.flatten(2).transpose(1, 2), False),  # tokens
        (lambda y: y.mean((2, 3)), False),
    ],
)
def test_maps_in_outputs_of_other_forms(form, told):
    said = "output is 8 x 12, of an image of 32 x 48"
    assert (said in str(hotswap.inspect(Returns(form), torch.rand(1, 3, 32, 48)))) == told


def test_what_nothing_can_guide_is_not_said_to_be_taken_by_another_target():
    model = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Upsample(scale_factor=4, mode="bicubic"))
    with pytest.raises(
        hotswap.HotswapError, match=r"takes no enlargement here: resize_1 \(x4, cannot be guided: its mode"
    ):
        hotswap.plan(model, "resize", "input", example_inputs=torch.rand(1, 3, 32, 48))


def test_the_segformer_of_transformers_leaves_its_scores_small(transformers):
    assert places(segformer(transformers)) == {2: (2, MIXED, False), 3: (4, MIXED, False), 4: (8, MIXED, False)}


@pytest.mark.parametrize(
    ("task", "last"), [("DepthEstimation", (2, FEATURES, False)), ("SemanticSegmentation", (2, SCORES, True))]
)
def test_dpt(transformers, task, last):
    config = transformers.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=64,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
    )  # fmt: skip
    model = getattr(transformers, f"DPTFor{task}")(config)
    assert places(model, 64) == {**dict.fromkeys(range(2, 6), (2, FEATURES, False)), 6: last}
    if last[2]:
        (said,) = (
            info.verdict for info in hotswap.inspect(model, torch.rand(1, 3, 64, 64)).resizes if info.automatic
        )
        assert said == "taken: by so small a factor little is gained as a rule (0 to +0.5 points)"


def test_upernet_has_an_auxiliary_head_whose_scores_are_no_output(transformers):
    stages = [f"stage{stage}" for stage in range(1, 5)]
    backbone = transformers.ConvNextConfig(depths=[1] * 4, hidden_sizes=[8] * 4, out_features=stages)
    options = {"hidden_size": 8, "auxiliary_channels": 8, "auxiliary_in_channels": 8}
    model = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=backbone, **options)
    )
    listed = places(model)
    assert taken(listed) == {11: 4}
    assert listed.pop(12) == (16, "unknown", False)
    del listed[11]
    assert kinds(listed) == {FEATURES}


# --- others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_ladder_of_scores_is_one_enlargement(steps):
    up = [nn.Upsample(scale_factor=2, mode="bilinear") for _ in range(steps)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 5, 1), *up, nn.Softmax(1))
    assert places(model) == dict.fromkeys(range(1, steps + 1), (2**steps, SCORES, True))
    plan = hotswap.plan(model, "resize", "input")
    assert [resize.target for resize in plan.resizes] == [str(index) for index in range(2, 2 + steps)]


def test_fcn8s_is_a_ladder_with_a_finer_map_at_each_step():
    model = FCN8s(num_classes=3, hidden=8).requires_grad_(False)
    assert places(model, 93) == {1: (2, MIXED, False), 2: (2, MIXED, False), 3: (8, SCORES, True)}
    assert [r.target for r in hotswap.plan(model, "resize", "input", check=False).resizes] == ["upscore8"]
    trained = FCN8s(num_classes=3, hidden=8)
    assert taken(places(trained)) == {}  # as its bilinear weights may be trained


def test_the_networks_of_the_recipes():
    assert places(SmallSegmenter(3)) == {1: (4, SCORES, True)}


def test_a_network_from_onnx():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    imported = pytest.importorskip("onnx2torch", reason="pip install --no-deps onnx2torch")
    if not ONNX.exists():
        pytest.skip(f"{ONNX} is not there")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = imported.convert(onnx.load(ONNX)).eval()
    assert places(model, torch.rand(1, 3, 257, 257)) == {3: (8, SCORES, True)}
