"""The form of a guided enlargement: its steps and their footprints, its bounds, and the space of its guide."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hotswap.choices import LAB, RGB
from hotswap.errors import HotswapError
from hotswap.network.names import AUTO, INPUT
from hotswap.targets import footprints, guide_spaces
from hotswap.targets.dataflow import Kind
from hotswap.targets.entries import NEAREST, Footprint, check_footprint
from hotswap.targets.guide_spaces import GuideSpace, Space
from hotswap.targets.sites import VALUES, Site

GUIDES_AS = "the image guides as"  # how notes on the space begin, and that on one that could not be chosen:
AS_IT_IS = f"{GUIDES_AS} it is"


@dataclass(frozen=True)
class Form:
    """What was asked for, of all enlargements."""

    footprint: Footprint = AUTO
    space: Space | str | None = AUTO
    bounded: bool | str = AUTO

    @classmethod
    def checked(cls, footprint: Any, space: Any, bounded: Any) -> "Form":
        """Parse the arguments.

        Raises:
            HotswapError: where one is none of those that there are.
        """
        if isinstance(footprint, Sequence) and not isinstance(footprint, str):
            footprint = tuple(footprint)
        if footprint != AUTO:
            check_footprint(footprint)
        if not (space is None or space in (AUTO, LAB, RGB) or isinstance(space, GuideSpace) or callable(space)):
            raise HotswapError(
                f'space must be "{AUTO}", "{LAB}", "{RGB}", a hotswap.GuideSpace, a function of the image, or None, '
                f"got {space!r}"
            )
        if bounded not in (AUTO, True, False):
            raise HotswapError(f'bounded must be True, False or "{AUTO}", got {bounded!r}')
        return cls(footprint, space, bounded)

    def of(self, site: Site, space: Space | None) -> dict[str, Any]:
        """The entries of one enlargement's plan."""
        bounded = site.channels <= VALUES if isinstance(self.bounded, str) else self.bounded
        return {**self._steps(site), "bounded": bounded, "space": space}

    def _steps(self, site: Site) -> dict[str, Any]:
        """The footprint of each step, and how many of these follow halvings of the map."""
        if not isinstance(self.footprint, str):
            count = 1 if isinstance(self.footprint, int) else len(self.footprint)
            halvings = footprints.halvings(count, site.input_size, site.output_size)
            return {"footprint": self.footprint, "halvings": halvings}
        place = site.place
        scores = (
            place is not None and place.kind is Kind.SCORES and site.channels > VALUES and site.mode not in NEAREST
        )
        first = place is not None and place.start == tuple(site.input_size)
        end = None if place is None else place.end
        steps, halvings = footprints.by_factor(site.input_size, site.output_size, end, soft=scores and first)
        return {"footprint": steps[0] if len(steps) == 1 else steps, "halvings": halvings}

    def spaces(
        self, model: nn.Module, guides: Mapping[str, tuple[str, ...]], images: Callable[[], Iterable[Any]]
    ) -> tuple[dict[str, Space | None], tuple[str, ...]]:
        """The space of each enlargement's guide, by the target's name, and notes on what the image is taken for.

        Args:
            model: the network, which may declare how its images are normalised.
            guides: what guides each enlargement, by the target's name.
            images: gives images as the network receives them, where it does not.

        Raises:
            HotswapError: where a space was asked for and the guide is no image, or nothing says how it is normalised.
        """
        if isinstance(self.space, str) and self.space == AUTO:
            by_image = [name for name, guide in guides.items() if guide == (INPUT,)]
        else:
            by_image = list(guides)
        if self.space is None or not by_image:
            return dict.fromkeys(guides), ()
        if self.space != AUTO and (other := [name for name in by_image if INPUT not in guides[name]]):
            raise HotswapError(
                f'space must be "{AUTO}" or None where the guide is not "{INPUT}", the image, as of {other[0]!r}'
            )
        if not isinstance(self.space, str):
            return dict.fromkeys(guides) | dict.fromkeys(by_image, self.space), ()
        name = LAB if self.space == AUTO else self.space
        space, source = guide_spaces.declared(model, name), "as the network declares"
        if space is None:
            space, source = guide_spaces.seen(images(), name), "by the range of the data"
        if space is not None:
            note = f"{GUIDES_AS} {space}, {source}"
        elif self.space == AUTO:
            note = (
                f'{AS_IT_IS}: nothing says how it is normalised, so it cannot guide as "{LAB}", which is better; '
                "give calibrate_on, or hotswap.calibrate it afterwards, or give "
                f'space=hotswap.GuideSpace("{LAB}", mean, std)'
            )
        else:
            raise HotswapError(
                f'space="{name}" undoes the normalisation of images, which neither the network declares (as '
                f"pretrained_cfg) nor data show; give calibrate_on, or space=hotswap.GuideSpace({name!r}, mean, std)"
            )
        return dict.fromkeys(guides) | dict.fromkeys(by_image, space), (note,)
