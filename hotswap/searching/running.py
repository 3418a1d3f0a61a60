"""Runs of the plain network and of candidates on the same image, one image after another."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from hotswap.errors import HotswapError, one_line
from hotswap.measure.compare import run
from hotswap.network.predictions import Layout, layout_of
from hotswap.searching.family import Candidate, Structure
from hotswap.searching.replay import Replay

_SAME = 1e-4  # of the largest value: by how much a replayed output may differ from a whole run's


class Runner:
    """Runs the plain network on an image, then candidates on that image; to be used in a `with` statement."""

    def __init__(self, plain: nn.Module, structures: Sequence[Structure], layout: Layout, notes: list[str]) -> None:
        self._networks = [structure.network for structure in structures]
        self._replay = Replay(plain, self._networks)
        self._layout, self._notes = layout, notes
        self.sizes: dict[tuple[int, int], None] = {}  # of the plain network's maps
        self._checked: set[int] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._replay.installed(self._networks))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def plain(self, arguments: tuple[Any, ...]) -> Any:
        """The plain network's output.

        Raises:
            HotswapError: where it does not run on this image.
        """
        with _of_that_size(arguments):
            output = self._replay.plain(arguments)
        self.sizes[self.size_of(output)] = None
        return output

    def size_of(self, output: Any) -> tuple[int, int]:
        """Height and width of an output's map."""
        return self._layout.size_of(output)

    def swapped(self, candidate: Candidate, arguments: tuple[Any, ...]) -> Any:
        """A candidate's output for the image that the plain network has just been run on.

        The first of each structure is compared with a run of the whole network; where they differ, all are whole.
        """
        network = candidate.at_its_scale()
        output = self._replay.swapped(network, arguments)
        if id(network) in self._checked:
            return output
        self._checked.add(id(network))
        whole = self._replay.swapped(network, arguments, whole=True)
        if _differs(self._layout.map_of(output), self._layout.map_of(whole)):
            self._replay.forget()
            self._notes.append("the network does not repeat its own numbers, so every candidate was run as a whole")
        return whole


def layout_for(model: nn.Module, arguments: tuple[Any, ...]) -> Layout:
    """Where the map is in what a network makes of an image.

    Raises:
        HotswapError: where it does not run on this image, or gives no map.
    """
    image = arguments[0]
    if not isinstance(image, Tensor) or image.dim() != 4:
        raise HotswapError("the network's first argument must be an image, [B, C, H, W]")
    with _of_that_size(arguments):
        output = run(model, arguments)
    return layout_of(output, (image.shape[2], image.shape[3]))


def of_small_maps(layout: Layout, arguments: tuple[Any, ...]) -> list[str]:
    """A note where a network's map is smaller than its image, and so is enlarged by others."""
    height, width = layout.size
    rows, columns = arguments[0].shape[2:]
    if rows < 2 * height or columns < 2 * width:
        return []
    sizes = f"{height} x {width} is smaller than its image, {rows} x {columns}"
    return [f"the network's map of {sizes}: what enlarges it outside the network is not tried here"]


@contextmanager
def _of_that_size(arguments: tuple[Any, ...]) -> Iterator[None]:
    try:
        yield
    except HotswapError:
        raise
    except Exception as error:  # whatever a network raises
        shape = list(arguments[0].shape)
        raise HotswapError(
            f"the network does not run on an image {shape} ({one_line(error)}); give the size that it takes as "
            "input_size (on the command line: --input-size)"
        ) from error


def _differs(x: Tensor, whole: Tensor) -> bool:
    finite = whole[whole.isfinite()].abs()
    slack = _SAME * float(finite.max()) if finite.numel() else 0.0
    close = x.shape == whole.shape and torch.allclose(x.double(), whole.double(), rtol=0, atol=slack, equal_nan=True)
    return not close
