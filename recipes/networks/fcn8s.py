"""FCN-8s (Long, Shelhamer and Darrell, CVPR 2015) with the published layer names, on the layers of VGG16."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))  # channels in, out, convolutions
_ORIGINAL_PADDING = 100  # of the Caffe network, so that fc6's window never leaves the image
_CROPS = (5, 9, 31)  # what that padding adds before score_pool4, score_pool3 and the output


class FCN8s(nn.Module):
    """Scores of every pixel: [B, 3, H, W] -> [B, num_classes, H, W], any height and width.

    Args:
        num_classes: channels of the output.
        padding: of conv1_1. 1 keeps every size (fc6 is padded by 3 instead, and enlargements are cropped to the map
            they meet); 100 is the published network, whose weights fit either.
        hidden: channels of fc6 and fc7; nearly all parameters are theirs, and published weights have 4096.
        interpolate: the last enlargement, by 8, is `F.interpolate`, bilinear, and there is no upscore8; as in the
            published PAC-FCN. The two differ at the border, even where upscore8 is bilinear. Only with padding 1.
    """

    def __init__(self, num_classes: int = 21, padding: int = 1, hidden: int = 4096, interpolate: bool = False):
        super().__init__()
        if padding not in (1, _ORIGINAL_PADDING):
            raise ValueError(f"padding must be 1 or {_ORIGINAL_PADDING}, got {padding!r}")
        if interpolate and padding != 1:
            raise ValueError(f"padding must be 1 with interpolate=True, got {padding!r}")
        self.padding, self.interpolate = padding, interpolate
        for stage, (channels, outputs, count) in enumerate(STAGES, start=1):
            for index in range(1, count + 1):
                name = f"conv{stage}_{index}"
                pad = padding if name == "conv1_1" else 1
                self.add_module(name, nn.Conv2d(channels if index == 1 else outputs, outputs, 3, padding=pad))
                self.add_module(f"relu{stage}_{index}", nn.ReLU(inplace=True))
            self.add_module(f"pool{stage}", nn.MaxPool2d(2, ceil_mode=True))
        self.fc6 = nn.Conv2d(STAGES[4][1], hidden, 7, padding=3 if padding == 1 else 0)
        self.relu6, self.drop6 = nn.ReLU(inplace=True), nn.Dropout2d()
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.relu7, self.drop7 = nn.ReLU(inplace=True), nn.Dropout2d()
        self.score_fr = nn.Conv2d(hidden, num_classes, 1)
        self.score_pool3 = nn.Conv2d(STAGES[2][1], num_classes, 1)
        self.score_pool4 = nn.Conv2d(STAGES[3][1], num_classes, 1)
        self.upscore2 = _enlargement(num_classes, 2, padding)
        self.upscore_pool4 = _enlargement(num_classes, 2, padding)
        if not interpolate:
            self.upscore8 = _enlargement(num_classes, 8, padding)
        for score in (self.score_fr, self.score_pool3, self.score_pool4):  # as published: the scores start at 0
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the pixels of x; see the class."""
        return self.scores(*self.skips(x), x.shape[2], x.shape[3])

    def skips(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the third and the fourth stage end with."""
        pool3 = self._staged(x, 1, 3)
        return pool3, self._staged(pool3, 4, 4)

    def scores(self, pool3: Tensor, pool4: Tensor, height: int, width: int) -> Tensor:
        """Scores of an image's pixels, of what its third and its fourth stage end with."""
        x = self._staged(pool4, 5, 5)
        x = self.drop6(self.relu6(self.fc6(x)))
        x = self.drop7(self.relu7(self.fc7(x)))
        x = self.upscore2(self.score_fr(x))
        x = self._fused(x, self.score_pool4(pool4), _CROPS[0])
        x = self._fused(self.upscore_pool4(x), self.score_pool3(pool3), _CROPS[1])
        x = F.interpolate(x, scale_factor=8.0, mode="bilinear") if self.interpolate else self.upscore8(x)
        first = 0 if self.padding == 1 else _CROPS[2]
        return x[:, :, first : first + height, first : first + width].contiguous()

    def _staged(self, x: Tensor, first: int, last: int) -> Tensor:
        """What the last of some stages ends with."""
        for stage in range(first, last + 1):
            for index in range(1, STAGES[stage - 1][2] + 1):
                x = getattr(self, f"relu{stage}_{index}")(getattr(self, f"conv{stage}_{index}")(x))
            x = getattr(self, f"pool{stage}")(x)
        return x

    def _fused(self, enlarged: Tensor, skip: Tensor, crop: int) -> Tensor:
        """The sum of two maps where they overlap: with odd sizes, or the large padding, one is larger."""
        if self.padding == 1:
            return enlarged[:, :, : skip.shape[2], : skip.shape[3]] + skip
        height, width = enlarged.shape[2:]
        return enlarged + skip[:, :, crop : crop + height, crop : crop + width]

    def load_vgg16(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of torchvision's VGG16 (`vgg16().state_dict()`), its first two linear layers reshaped.

        Raises:
            KeyError: where one is missing.
        """
        ours = [
            f"conv{stage}_{index}" for stage, (*_, count) in enumerate(STAGES, 1) for index in range(1, count + 1)
        ]
        theirs = [f"features.{n}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
        pairs = dict(zip([*ours, "fc6", "fc7"], [*theirs, "classifier.0", "classifier.3"], strict=True))
        with torch.no_grad():
            for name, theirs_name in pairs.items():
                conv = self.get_submodule(name)
                assert isinstance(conv, nn.Conv2d)  # noqa: S101 (made so above)
                assert conv.bias is not None  # noqa: S101
                conv.weight.copy_(weights[f"{theirs_name}.weight"].view(conv.weight.shape))
                conv.bias.copy_(weights[f"{theirs_name}.bias"])


def _enlargement(channels: int, factor: int, padding: int) -> nn.ConvTranspose2d:
    """A transposed convolution, initialised as bilinear enlargement of each channel."""
    kept = factor // 2 if padding == 1 else 0
    layer = nn.ConvTranspose2d(channels, channels, 2 * factor, factor, kept, bias=False)
    ramp = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = ramp[:, None] * ramp[None]
    return layer
