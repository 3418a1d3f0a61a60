"""A search from its images to its result."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hotswap.choices import EPE, RMSE
from hotswap.errors import HotswapError
from hotswap.files.atomic import PathLike
from hotswap.measure.compare import run
from hotswap.network.names import AUTO
from hotswap.reporting.samples import Progress
from hotswap.searching import tasks
from hotswap.searching.family import Options, candidates, structures
from hotswap.searching.halving import Bench, choose
from hotswap.searching.ledger import Ledger, asked
from hotswap.searching.predictions import layout_of
from hotswap.searching.result import SearchResult, Tried
from hotswap.searching.samples import Source

_CALIBRATED_ON = 2  # images
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
) -> SearchResult:
    """Search as `hotswap.search` says.

    Raises:
        HotswapError: where there are too few images, or see there.
    """
    if len(source) < _LEAST:
        raise HotswapError(f"a search needs at least {_LEAST} labelled images, got {len(source)}")
    first = max(_LEAST // 2, min(len(source) - _LEAST // 2, round(question.choose_on * len(source))))
    to_choose, to_report = range(first), range(first, len(source))
    example = source.read(0).sample.arguments
    layout = layout_of(run(model, example), (example[0].shape[2], example[0].shape[3]))
    task = tasks.task_for(
        layout,
        question.metric,
        masks=source.about.masks,
        numbers=source.about.numbers,
        class_index=question.class_index,
        ignore=question.ignore,
        higher_is_better=question.higher_is_better,
    )
    few = to_choose[:: max(1, first // _CALIBRATED_ON)][:_CALIBRATED_ON]
    ways, notes = structures(model, family, [source.read(i).sample.arguments for i in few])
    ledger = Ledger(resume, "" if resume is None else asked(model, question, source.about.form))
    bench = Bench(model, ways, source, task, ledger, progress, [*source.about.notes, *notes])
    done = False
    try:
        ranked = choose(bench, candidates(ways), to_choose)
        best = ranked[0][0]
        bench.measure([best], to_report, f"the best of {len(ranked)} on {len(to_report)} other images")
        done = True
    finally:
        bench.close()
        ledger.close(done=done)
    chosen = Tried(best, bench.gains(best, to_report))
    tried = tuple(Tried(each, bench.gains(each, seen)) for each, seen in ranked)
    swap = chosen.gains[task.metrics[0].name].is_clear
    network = best.at_its_scale() if swap else None
    return SearchResult(
        swap, chosen, tried, task.metrics, layout.size, source.about.description, tuple(bench.notes), network
    )
