"""The networks that are tried: how each is built, without pretrained weights, and what it is fed."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded: read when huggingface_hub is imported

import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
import transformers
from timm.models import _registry
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

SIZES = (64, 96, 128, 224, 256, 384, 512)  # tried in this order, after none fits a network's own is
Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Network:
    """One network, not built yet."""

    library: str
    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module, int], Inputs]  # of a side length; seeded by the caller
    sizes: Sequence[int] = SIZES

    @property
    def id(self) -> str:
        """Such as timm:resnet18."""
        return f"{self.library}:{self.name}"


def all_networks() -> list[Network]:
    """Every network of the four libraries, one of each family first: what fails is seen early."""
    networks = [*_timm(), *_torchvision(), *_smp(), *_transformers()]
    seen: dict[tuple[str, str], int] = {}
    rank = {}
    for network in networks:
        key = network.library, network.family
        rank[network.id] = seen[key] = seen.get(key, -1) + 1
    return sorted(networks, key=lambda network: rank[network.id])


def image(channels: int, size: int) -> Tensor:
    """One image with edges and noise, about normalised; drawn from torch's generator."""
    coarse = torch.randn(1, channels, max(1, size // 8), max(1, size // 8))
    return nn.functional.interpolate(coarse, size=(size, size)) + 0.3 * torch.randn(1, channels, size, size)


# --- timm ---------------------------------------------------------------------------------------------


def _timm() -> Iterator[Network]:
    for name in sorted(timm.list_models(), key=_timm_order):
        family = _registry._model_to_module[name]
        config = timm.get_pretrained_cfg(name)
        channels, own = (config.input_size[0], config.input_size[-1]) if config else (3, 224)
        fixed = bool(config and config.fixed_input_size)
        sizes = ((own // 2,) * (own >= _LARGE) + (own,)) if fixed else (*(size for size in SIZES if size < own), own)
        build = partial(_built_for, name, own // 2) if fixed and own >= _LARGE else partial(timm.create_model, name)
        yield Network("timm", name, family, build, partial(_one_image, channels), sizes)


_LARGE = 384  # networks made for one size are made for half of it from here on, where they let themselves be


def _built_for(name: str, size: int) -> nn.Module:
    try:
        return timm.create_model(name, img_size=size)
    except TypeError:  # it takes no such argument
        return timm.create_model(name)


_SMALL = ("atto", "femto", "pico", "nano", "tiny", "small", "_xx", "_s", "_b0", "_t", "18", "26", "test", "002")


def _timm_order(name: str) -> tuple[bool, str]:
    """Small ones first within a family, by the words networks are named with."""
    return not any(word in name for word in _SMALL), name


def _one_image(channels: int, _model: nn.Module, size: int) -> Inputs:
    return (image(channels, size),)


# --- torchvision --------------------------------------------------------------------------------------

# By default these drop the detections that random weights are not sure of, and so whole branches' gradients.
# Proposals of every level, too. Masks are made of every box that is kept; NMS takes the square of the candidates.
_KEEP_ALL = {"score_thresh": 0.0, "nms_thresh": 1.0}
_BOXES, _CANDIDATES = {"box_detections_per_img": 1000}, {"detections_per_img": 10_000, "topk_candidates": 300}
_PROPOSALS = {"rpn_post_nms_top_n_test": 4000, "box_detections_per_img": 10_000}  # where there are no masks


def _torchvision() -> Iterator[Network]:
    for name in torchvision.models.list_models():
        builder = torchvision.models.get_model_builder(name)
        module = builder.__module__.removeprefix("torchvision.models.")
        options: dict[str, Any] = {"weights": None}
        if "weights_backbone" in inspect.signature(builder).parameters:
            options["weights_backbone"] = None
        inputs: Callable[[nn.Module, int], Inputs] = partial(_one_image, 3)
        if module.startswith("detection"):
            one_stage = any(word in name for word in ("ssd", "retinanet", "fcos"))
            prefix = "" if one_stage else "box_"
            options |= {prefix + key: value for key, value in _KEEP_ALL.items()}
            options |= _CANDIDATES if one_stage else _PROPOSALS if "faster" in name else _BOXES
            inputs = _detection_inputs
        elif module.startswith("optical_flow"):
            inputs = _two_images
        elif module.startswith("video"):
            inputs = _video
        sizes = (64, 96, 128, 224, 299, 256, 320)
        yield Network("torchvision", name, module, partial(builder, **options), inputs, sizes)


def _detection_inputs(_model: nn.Module, size: int) -> Inputs:
    return ([image(3, size)[0]],)


def _two_images(_model: nn.Module, size: int) -> Inputs:
    return image(3, size), image(3, size)


def _video(_model: nn.Module, size: int) -> Inputs:
    return (image(48, size).unflatten(1, (3, 16)),)


# --- segmentation_models_pytorch ----------------------------------------------------------------------

_ENCODERS = ("resnet18", "efficientnet-b0", "mit_b0")
_ENCODERS_OF = {"dpt": ("tu-vit_tiny_patch16_224", "tu-deit_tiny_patch16_224")}  # takes plain ViTs only


def _smp() -> Iterator[Network]:
    for name, architecture in smp.MODEL_ARCHITECTURES_MAPPING.items():
        for encoder in _ENCODERS_OF.get(name, _ENCODERS):
            build = partial(architecture, encoder, encoder_weights=None)
            yield Network("smp", f"{name}/{encoder}", name, build, partial(_one_image, 3))


# --- transformers -------------------------------------------------------------------------------------

_TASKS = (
    "IMAGE", "BACKBONE", "IMAGE_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "INSTANCE_SEGMENTATION",
    "UNIVERSAL_SEGMENTATION", "IMAGE_SEGMENTATION", "DEPTH_ESTIMATION", "NORMAL_ESTIMATION", "POINTMAP_ESTIMATION",
    "OBJECT_DETECTION", "ZERO_SHOT_OBJECT_DETECTION", "KEYPOINT_DETECTION", "KEYPOINT_MATCHING", "MASK_GENERATION",
    "MASKED_IMAGE_MODELING", "IMAGE_TO_IMAGE", "IMAGE_MATTING", "POSE_ESTIMATION", "TEXT_RECOGNITION",
    "TABLE_RECOGNITION",
)  # fmt: skip
# Of what comes after the convolutions, enough to have everything once. Layers of a backbone stay: others name them.
_CAPS = {"encoder_layers": 2, "decoder_layers": 2, "vocab_size": 1000, "num_queries": 20, "num_text_layers": 2}
_DEEP = {"num_hidden_layers": 8}  # of what is made for large images and has twice as many or more
_IMAGE_SIDE, _LARGEST_SIDE = 256, 512  # networks made for larger images are made for smaller ones
_OWN_SIZES = (640, 1024)  # of networks that take no smaller image
_MOST_CHANNELS = 4  # of an image


def _words(count: int) -> Tensor:
    return torch.arange(1, 7)[None].repeat(count, 1)


# What the networks ask for, by the names of their arguments.
_INPUTS: dict[str, Callable[[int, int], Tensor]] = {
    "pixel_values": image,
    "pixel_values_videos": lambda channels, size: torch.stack([image(channels, size)] * 2, 1),
    "inputs": image,
    "prompt_pixel_values": image,
    "prompt_masks": image,
    "prompt_depth": lambda _, size: image(1, size).abs(),
    "input_ids": lambda *_: _words(1),
    "task_inputs": lambda *_: torch.arange(1, 78)[None],
    "input_points": lambda _, size: torch.full((1, 1, 1, 2), size / 3),
    "classes_input_ids": lambda *_: _words(2),
    "classes_attention_mask": lambda *_: torch.ones(2, 6, dtype=torch.long),
    "tasks_input_ids": lambda *_: _words(1),
    "tasks_attention_mask": lambda *_: torch.ones(1, 6, dtype=torch.long),
    "classes_structure": lambda *_: torch.tensor([2]),
    "dataset_index": lambda *_: torch.tensor([0]),
}


def _transformers() -> Iterator[Network]:
    seen: set[str] = set()
    for task in _TASKS:
        mapping = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
        for kind, names in mapping.items():
            for name in (names,) if isinstance(names, str) else names:
                if name not in seen:
                    seen.add(name)
                    build = partial(_from_config, kind, name)
                    yield Network("transformers", name, kind, build, _named_inputs, (*SIZES, *_OWN_SIZES))


def _from_config(kind: str, name: str) -> nn.Module:
    """The class `name` at its default configuration, with fewer layers where it lets itself be cut."""
    architecture = getattr(transformers, name)
    try:
        return _cut(architecture, kind)
    except (ValueError, IndexError, KeyError, RuntimeError, AssertionError, AttributeError, TypeError):
        return architecture(_offline(transformers.AutoConfig.for_model(kind)))  # type: ignore[no-any-return]


def _cut(architecture: Any, kind: str) -> nn.Module:
    config = _offline(transformers.AutoConfig.for_model(kind))
    for part in _parts(config):
        for key, most in _CAPS.items():
            value = getattr(part, key, None)
            if isinstance(value, int) and value > most:
                setattr(part, key, most)
        if isinstance(side := getattr(part, "image_size", None), int) and side > _LARGEST_SIDE:
            part.image_size = _IMAGE_SIDE
            if hasattr(part, "image_embedding_size"):  # of prompts, which are laid over patches
                part.image_embedding_size = _IMAGE_SIDE // part.patch_size
            for key, most in _DEEP.items():
                if getattr(part, key, 0) >= 2 * most:
                    setattr(part, key, most)
    return architecture(config)  # type: ignore[no-any-return]


def _offline(config: Any) -> Any:
    for part in _parts(config):
        if getattr(part, "use_pretrained_backbone", False):
            part.use_pretrained_backbone = False
    return config


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if isinstance(value, transformers.PreTrainedConfig):
            yield from _parts(value)


def _named_inputs(model: nn.Module, size: int) -> Inputs:
    """Positional arguments, up to the last that is needed."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first is not None and first.in_channels <= _MOST_CHANNELS else 3
    parameters = list(inspect.signature(model.forward).parameters.values())
    made = {p.name: _INPUTS[p.name](channels, size) for p in parameters if p.name in _INPUTS}
    if "KeypointMatching" in type(model).__name__:  # of a pair of images
        made["pixel_values"] = torch.stack([image(channels, size), image(channels, size)], 1)
    last = max((index for index, p in enumerate(parameters) if p.name in made), default=-1)
    return tuple(made.get(p.name) for p in parameters[: last + 1])
