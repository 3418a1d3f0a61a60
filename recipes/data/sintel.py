"""Optical flow: MPI Sintel's training scenes (Butler et al., ECCV 2012), clean pass.

Layout of the root, as the archive unpacks:

    training/clean/<scene>/frame_0001.png ...
    training/flow/<scene>/frame_0001.flo ...    from frame 1 to frame 2, and so on: one less than pictures
"""

from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor
from torch.utils.data import Dataset

from hotswap.errors import HotswapError
from recipes.data.cropping import Cropping
from recipes.data.files import PathLike, Source, read_flo, read_image

Split = Literal["train", "validation"]

SIZES = {"train": 908, "validation": 133}  # pairs of frames of the whole data set
WHOLE_SCENES = ("ambush_6", "market_6")  # validation takes all pairs of these
LAST_OF_SCENES = ("bamboo_2", "cave_4", "temple_2")  # and the last pairs of each of these
LAST = 25
SINTEL = Source("Sintel", "get MPI-Sintel-complete.zip from the page of the MPI Sintel Flow Dataset")


class SintelFlow(Dataset[tuple[Tensor, Tensor]]):
    """First frames [3, H, W] in 0..1 and the flow to the next frame [2, H, W], in pixels to the right and down.

    Args:
        root: the folder that holds `training`.
        split: "validation", 133 pairs (ambush_6 and market_6, the last 25 of bamboo_2, cave_4 and temple_2), or
            "train", the 908 others.
        crop: height and width of random crops; whole frames without it.

    Raises:
        HotswapError: where an argument is out of range; later, where a file is missing or damaged.
    """

    def __init__(self, root: PathLike, split: Split, *, crop: int | None = None) -> None:
        if split not in get_args(Split):
            raise HotswapError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        self.root, self.split = Path(root), split
        self.cropping = None if crop is None else Cropping(crop, flip=False)

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Scene and frame, such as ("alley_1", "frame_0001"), in order."""
        folder = self.root / "training" / "clean"
        with SINTEL.reading(folder):
            scenes = sorted(scene for scene in folder.iterdir() if scene.is_dir())
        missing = {*WHOLE_SCENES, *LAST_OF_SCENES} - {scene.name for scene in scenes}
        if missing:
            raise SINTEL.error(folder, f"has no scene {', '.join(sorted(missing))}, which the split needs")
        pairs = []
        for scene in scenes:
            frames = _frames(scene)[:-1]  # from the last there is no flow
            held_out = len(frames) if scene.name in WHOLE_SCENES else LAST if scene.name in LAST_OF_SCENES else 0
            first = max(0, len(frames) - held_out)
            pairs += [
                (scene.name, frame) for frame in (frames[first:] if self.split == "validation" else frames[:first])
            ]
        return pairs

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene, frame = self.pairs[index]
        flow_path = self.root / "training" / "flow" / scene / f"{frame}.flo"
        image = read_image(self.root / "training" / "clean" / scene / f"{frame}.png", SINTEL)
        flow = read_flo(flow_path, SINTEL)
        if flow.shape[1:] != image.shape[1:]:
            raise SINTEL.error(flow_path, f"must be of its frame's size, {list(image.shape[1:])}")
        return (image, flow) if self.cropping is None else self.cropping(image, flow)


def _frames(scene: Path) -> list[str]:
    """Names of a scene's frames. A missing frame is refused, because it would shift the split."""
    frames = sorted(file.stem for file in scene.glob("frame_*.png"))
    for number, frame in enumerate(frames, start=1):
        if frame != f"frame_{number:04d}":
            raise SINTEL.error(scene / f"frame_{number:04d}.png", "is missing")
    return frames
