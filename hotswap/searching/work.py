"""A search from its images to its result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hotswap.choices import EPE, RMSE
from hotswap.errors import HotswapError
from hotswap.files.atomic import PathLike
from hotswap.files.image_files import spread
from hotswap.network.copying import checked_copy
from hotswap.network.names import AUTO
from hotswap.reporting.samples import Progress
from hotswap.searching import tasks
from hotswap.searching.drawing import draw
from hotswap.searching.family import CALIBRATED_ON, Options, candidates, structures
from hotswap.searching.halving import Bench, choose
from hotswap.searching.ledger import Ledger, asked
from hotswap.searching.result import SearchResult, Tried
from hotswap.searching.running import Runner, layout_for, of_small_maps
from hotswap.searching.samples import Source
from hotswap.surgery.prepare import IN_PLACE

_LEAST = 8  # images: four to choose on, four to report on


@dataclass(frozen=True)
class Question:
    """What a search chooses by; see `hotswap.search`."""

    metric: str | tasks.Function
    higher_is_better: bool
    class_index: int | None
    ignore: int
    choose_on: float

    @property
    def key(self) -> tuple[Any, ...]:
        """What measured rows depend on."""
        own = None if isinstance(self.metric, str) else f"{self.metric.__module__}.{self.metric.__qualname__}"
        return own or self.metric, self.class_index, self.ignore

    @property
    def numbers(self) -> bool | None:
        """Whether labels are depth or flow; None where the labels tell."""
        return None if self.metric == AUTO or callable(self.metric) else self.metric in (RMSE, EPE)


def carry_out(
    model: nn.Module,
    source: Source,
    question: Question,
    family: Sequence[Options],
    resume: PathLike | None,
    progress: Progress,
    *,
    pictured: bool,
) -> SearchResult:
    """Search as `hotswap.search` says.

    Raises:
        HotswapError: where there are too few images, or see there.
    """
    if not source.about.labelled:
        raise HotswapError(
            "a search needs labels to choose by, and the network gets all that these batches hold: pick by inputs "
            "and labels, as by inputs=lambda batch: batch[0], labels=lambda batch: batch[1]; without labels "
            "hotswap.preview says what swaps change"
        )
    if len(source) < _LEAST:
        raise HotswapError(f"a search needs at least {_LEAST} labelled images, got {len(source)}")
    first = max(_LEAST // 2, min(len(source) - _LEAST // 2, round(question.choose_on * len(source))))
    to_choose, to_report = range(first), range(first, len(source))
    example = source.read(0).sample.arguments
    layout = layout_for(model, example)
    task = tasks.task_for(
        layout,
        question.metric,
        masks=source.about.masks,
        numbers=source.about.numbers,
        class_index=question.class_index,
        ignore=question.ignore,
        higher_is_better=question.higher_is_better,
    )
    few = spread(to_choose, CALIBRATED_ON)
    data = [source.read(i).sample.arguments for i in few]
    ways, notes = structures(model, family, data, source.about.stats)
    ledger = Ledger(resume, "" if resume is None else asked(model, question.key, source.about.form))
    notes = [*source.about.notes, *of_small_maps(layout, example), *notes]
    done = False
    try:
        with Runner(model, ways, layout, notes) as runner:
            bench = Bench(runner, source, task, ledger, progress)
            ranked = choose(bench, candidates(ways), to_choose)
            best = ranked[0][0]
            bench.measure([best], to_report, f"the best of {len(ranked)} on {len(to_report)} other images")
            pictures = draw(bench, best, to_report) if pictured else ()
        done = True
    finally:
        ledger.close(done=done)
    chosen = Tried(best, bench.gains(best, to_report))
    tried = tuple(Tried(each, bench.gains(each, seen)) for each, seen in ranked)
    swap = chosen.gains[task.metrics[0].name].is_clear
    return SearchResult(
        swap=swap,
        chosen=chosen,
        tried=tried,
        metrics=task.metrics,
        sizes=tuple(runner.sizes) or (layout.size,),
        images=source.about.description,
        notes=tuple(notes),
        pictures=pictures,
        network=checked_copy(best.at_its_scale(), hint=IN_PLACE) if swap else None,
    )
