"""Where a network gives scores, so that they can be refined: found in one run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hotswap.errors import HotswapError
from hotswap.measure.compare import run
from hotswap.network.dry_run import Inputs
from hotswap.network.example import with_numbers
from hotswap.network.names import INPUT
from hotswap.network.predictions import layout_of
from hotswap.targets.forms import Form
from hotswap.targets.guide_spaces import GuideSpace, scale_of
from hotswap.targets.output import TARGETS, Output, is_output


def without_output(targets: Sequence[Any]) -> tuple[list[Any], Output | None]:
    """Targets without the network's output, and the refinement that is asked for of that.

    Raises:
        HotswapError: where there are several.
    """
    asked = [x for x in targets if is_output(x)]
    if len(asked) > 1:
        raise HotswapError(f"targets must name one refinement of the output, got {len(asked)}")
    others = [x for x in targets if not any(x is each for each in asked)]
    if not asked:
        return others, None
    return others, asked[0] if isinstance(asked[0], Output) else Output(TARGETS[asked[0]])


def found(
    entry: Output,
    model: nn.Module,
    inputs: Inputs | None,
    form: Form,
    images: Callable[[], Iterable[Any]],
    given_scale: float | None,
) -> tuple[Output, tuple[str, ...]]:
    """The refinement for the network at hand, with its gates as they start; also returns notes.

    Args:
        entry: what is asked for.
        model: the plain network.
        inputs: what it is run on; None for a random image of its usual size.
        form: in which space the image guides.
        images: gives images as the network receives them.
        given_scale: what the image is multiplied by, where a person said it.

    Raises:
        HotswapError: where the network gives no scores, or it is not known how images are normalised.
    """
    arguments = with_numbers(model, inputs)
    image = next((x for x in arguments if isinstance(x, Tensor) and x.dim() == 4), None)
    if image is None or image is not arguments[0]:
        raise HotswapError("the output is refined along the network's first argument, which must be an image")
    layout = layout_of(run(model, arguments), (image.shape[2], image.shape[3]))
    if layout.labels or layout.channels_last or len(layout.shape) != 4:
        raise HotswapError(
            f"the output can be refined where the network gives scores, [B, C, H, W], got {list(layout.shape)}"
        )
    if all(n >= 2 * m for n, m in zip(layout.shape[2:], image.shape[2:], strict=True)):
        sizes = [" x ".join(map(str, x)) for x in (layout.shape[2:], image.shape[2:])]
        raise HotswapError(
            f"the output can be refined along an image about as large; it is {sizes[0]}, of an image of {sizes[1]}"
        )
    space, notes = entry.space, tuple[str, ...]()
    if space is None:
        spaces, notes = form.spaces(model, {"output": (INPUT,)}, images)
        chosen = spaces["output"]
        if not isinstance(chosen, GuideSpace):
            if image.shape[1] not in (1, 3):
                raise HotswapError(
                    f"the output is refined along images of 3 channels, or 1 of grey ones, got {image.shape[1]}"
                )
            if callable(chosen) or form.space is None:
                raise HotswapError(
                    'space must be "lab", "rgb" or a hotswap.GuideSpace where the output is refined, '
                    f"got {form.space!r}"
                )
            raise HotswapError(
                "the output is refined along the image, of which nothing says how it is normalised: give "
                "calibrate_on, or space=hotswap.GuideSpace('lab', mean, std)"
            )
        space = chosen
    scale = (entry.guide_scale or scale_of(space) or 1.0) if given_scale is None else given_scale
    resolved = replace(entry, where=layout.where, channels=layout.channels, space=space, guide_scale=scale)
    return replace(resolved, gate=(entry.first_gate,) * layout.channels), notes
