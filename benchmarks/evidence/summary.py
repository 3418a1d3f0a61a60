"""One table over several experiments: what each way of swapping adds, on each network."""

from collections.abc import Mapping, Sequence

from benchmarks import markdown
from benchmarks.evidence import config, results
from benchmarks.evidence.comparing import compared, signed

_NETWORKS = {"scenes": "small network, scenes", "landwater": "VGG16, land and water", "text": "CRAFT, text"}
_RESIZE = {"scenes": "resize-0.4", "landwater": "resize-last", "text": "resize-last"}
_WIDE = {"scenes": "resize-0.4-wide", "landwater": "resize-last-wide", "text": "resize-last-wide"}
_SKIP = {"scenes": "control-resize-skip-input", "landwater": "control-resize-skip", "text": "control-resize-skip"}


def _everywhere(arm: str) -> dict[str, str]:
    return dict.fromkeys(_NETWORKS, arm)


# What is done, and the arm of each experiment that does it.
ARMS: Sequence[tuple[str, Mapping[str, str]]] = [
    ("the last enlargement, guided by the image", _RESIZE),
    ("... by 4 x 4 coarse neighbours (`footprint=4`)", _WIDE),
    ("all enlargements, guided by the image", {"landwater": "resize-all", "text": "resize-all"}),
    ("the last enlargement, guided by its first activation", _everywhere("resize-conv1_2")),
    ("... by another image (control)", _everywhere("control-resize-shuffled")),
    ("no swap, but the image beside the output by a 3x3 convolution (control)", _SKIP),
    ("late convolutions by an activation (`auto`), the paper's 1e-4", _everywhere("conv-paper")),
    ("... deviation 0.3, nothing conserved", _everywhere("conv-0.3")),
    ("... deviation 0.3, mean conserved", _everywhere("conv-0.3-mean")),
    ("... deviation 0.3, window conserved", _everywhere("conv-0.3-window")),
    ("... mean conserved, learned scale", _everywhere("conv-0.3-mean-learned")),
    ("... by another image (control)", _everywhere("control-conv-shuffled")),
    ("... no guide, filters multiplied by the mean of K (control)", _everywhere("control-conv-frozen")),
    ("enlargement and late convolutions", _everywhere("resize-conv")),
]


def table() -> str:
    """Markdown: a row for each of `ARMS`, a column for each network, of the first metric after training."""
    experiments = {name: config.read(name) for name in _NETWORKS}
    found = {name: {arm.name: arm for arm in compared(e, results.read(name))} for name, e in experiments.items()}
    lines = []
    for what, arms in ARMS:
        cells = [what]
        for name, experiment in experiments.items():
            arm = found[name].get(arms.get(name, ""))
            cells.append("-" if arm is None else signed(experiment, arm.after[next(iter(experiment.metrics))]))
        lines.append(cells)
    return markdown.table(["points of mIoU over plain fine-tuning", *_NETWORKS.values()], lines)
