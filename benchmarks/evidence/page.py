"""The tables and plots of docs/evidence.md, between marks in it; the text around them is written by people."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import markdown
from benchmarks.evidence import config, plots, results, summary
from benchmarks.evidence.comparing import Compared, compared, signed
from benchmarks.evidence.config import Experiment
from benchmarks.evidence.runs import Row, known
from benchmarks.real import page as real_page
from benchmarks.real import trial_page
from hotswap.files.atomic import atomic_write

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
PLOTS = PAGE.parent / "evidence"
SUMMARY = "summary"  # the name of its marks, which are as an experiment's
REAL = "real"  # likewise, of real networks and labels
LEARNED = "learned"  # likewise, of networks whose last layers are learned
TRIAL = "trial"  # likewise, of the trial of swapped convolutions on them


def table(experiment: Experiment, arms: Sequence[Compared]) -> str:
    """Markdown: the control's figures, and what each arm adds to them."""
    control, *others = arms
    metrics, times = experiment.metrics, experiment.times
    digits = experiment.digits
    stated = ", ".join(f"{label} {times * control.values[name]:.{digits}f}" for name, label in metrics.items())
    rate = f" (learning rate {control.rate:g})" if control.rate else ""
    about = (
        f"`{control.name}` ({control.about}), after training: **{stated}**{rate}; {control.pairs} seeds. The others "
        "against it, as the mean of paired differences ± half of the 95 % confidence interval (Student's t), bold "
        "where that leaves out 0:"
    )
    first, *more = metrics
    head = ["arm", "what", *(["at the swap"] if control.before else []), f"{metrics[first]} after", "better in"]
    head += [f"{metrics[name]} after" for name in more]
    head += ["of its error"] if not experiment.higher_is_better else []
    head += ["rate"]
    lines = []
    for arm in others:
        cells = [f"`{arm.name}`", arm.about]
        cells += [signed(experiment, arm.before, bold=False)] if arm.before else []
        won = arm.after[first].positive if experiment.higher_is_better else arm.after[first].negative
        cells += [signed(experiment, arm.after[first]), f"{won} of {arm.after[first].pairs}"]
        cells += [signed(experiment, arm.after[name]) for name in more]
        cells += [f"{arm.relative:.2f}"] if not experiment.higher_is_better else []
        cells += [f"{arm.rate:g}" if arm.rate else "-"]
        lines.append(cells)
    return f"{about}\n\n{markdown.table(head, lines)}"


def block(name: str, experiment: Experiment, rows: Sequence[Row]) -> str:
    """What stands between an experiment's marks."""
    arms = compared(experiment, rows)
    if not arms:
        return f"{experiment.question}\n\nNot run yet: `python -m benchmarks.evidence run {name}`."
    needed = len(experiment.rates) + experiment.seeds
    total = sum(needed if arm.trained else 1 for arm in experiment.arms.values())
    done = len(known(experiment, rows))
    parts = [f"**{experiment.question}**", " ".join(experiment.setting.split())]
    if done < total:
        parts.append(f"Not finished: {done} of {total} runs are there.")
    parts += [table(experiment, arms), f"![differences to {experiment.against}](evidence/{name}.svg)"]
    return "\n\n".join(parts)


def write() -> list[Path]:
    """Write the page and its plots from the rows there are, and give what was written."""
    text, written = PAGE.read_text(encoding="utf-8"), [PAGE]
    for name in config.names():
        experiment, rows = config.read(name), results.read(name)
        text = filled(text, name, block(name, experiment, rows))
        if arms := compared(experiment, rows):
            written.append(plots.differences(experiment, arms, PLOTS / f"{name}.svg"))
    text = filled(text, SUMMARY, summary.table())
    text = filled(text, REAL, real_page.committed())
    text = filled(text, LEARNED, real_page.committed_learned())
    text = filled(text, TRIAL, trial_page.committed())
    with atomic_write(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return written


def filled(text: str, name: str, content: str) -> str:
    """See `markdown.filled`."""
    return markdown.filled(text, name, content, "benchmarks.evidence")
