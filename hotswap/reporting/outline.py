"""The rows of a drawing of a network: one each for guides and targets; other modules are folded together."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from hotswap.network.dry_run import Call, Observation
from hotswap.network.names import INPUT
from hotswap.reporting.samples import Sample
from hotswap.targets.entries import Resize, Swap
from hotswap.targets.plan import Plan

OUTPUT = "output"
GROUP, FOLDED, GUIDE, TARGET, END = "group", "folded", "guide", "target", "end"
_KINDS = 3  # names of classes in a folded row, at most
_MANY = 45  # rows; longer drawings are made dense


@dataclass(frozen=True)
class Row:
    """One line of the drawing."""

    key: str  # a module's path, INPUT or OUTPUT
    label: str
    note: str  # the module's class, or the folded classes
    size: str  # of its output, for one image
    depth: int
    kind: str  # GROUP, FOLDED, GUIDE, TARGET or END, the network's input and output
    guides: tuple[str, ...] = ()  # keys of the rows that a target's guide comes from


def outline(model: nn.Module, plan: Plan, observation: Observation | None, sample: Sample) -> list[Row]:
    """The rows of a network, in the order in which its parts are first called.

    Args:
        model: the swapped network.
        plan: of its swaps.
        observation: one run of it; without, parts stand as they are registered and sizes are left out.
        sample: an image, for the size of the input.
    """
    targets: dict[str, Swap | Resize] = {swap.target: swap for swap in plan.swaps}
    targets |= {resize.layer_path: resize for resize in plan.resizes}
    guides = {source: alias for swap in targets.values() for source, alias in swap.guide_names if source != INPUT}
    calls = [] if observation is None else list(enumerate(observation.calls))
    tree = _Tree(targets, guides, {call.path: (order, call) for order, call in reversed(calls)})
    inside = list(tree.rows(model, "", 0))
    if len(inside) > _MANY:
        inside = list(replace(tree, dense=True).rows(model, "", 0))
    given = next((_by(tuple(x.shape)[1:]) for x in sample.arguments[:1] if hasattr(x, "shape")), "")
    last = observation.calls[-1].output_shape if observation is not None else None
    return [
        Row(INPUT, "input", "", given, 0, END),
        *inside,
        Row(OUTPUT, "output", "", _by(last[1:]) if last else "", 0, END),
    ]


@dataclass(frozen=True)
class _Tree:
    targets: Mapping[str, Swap | Resize]
    guides: Mapping[str, str | None]  # with their aliases
    called: Mapping[str, tuple[int, Call]]  # the first call of each module, with its place in the order of all
    dense: bool = False  # a lone guide or target stands for the modules around it

    def rows(self, module: nn.Module, path: str, depth: int) -> Iterator[Row]:
        """The rows of a module's children."""
        folded: list[tuple[str, nn.Module]] = []
        children = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
        for name, child in sorted(children, key=lambda item: self._order(item[0])):
            inside = self._held(name)
            if not inside and name not in self.targets and name not in self.guides:
                folded.append((name, child))
                continue
            if folded:
                yield self._folded(folded, depth)
                folded = []
            if self.dense and len(inside) == 1 and name not in self.targets and name not in self.guides:
                yield self._row(inside[0], child.get_submodule(inside[0].removeprefix(f"{name}.")), depth, path)
                continue
            yield self._row(name, child, depth, path)
            if inside:
                yield from self.rows(child, name, depth + 1)
        if folded:
            yield self._folded(folded, depth)

    def _held(self, path: str) -> list[str]:
        """The guides and targets inside."""
        return [name for name in {**self.targets, **self.guides} if name.startswith(f"{path}.")]

    def _order(self, path: str) -> float:
        inside = [order for name, (order, _) in self.called.items() if name == path or name.startswith(f"{path}.")]
        return min(inside, default=float("inf"))

    def _size(self, path: str) -> str:
        shape = self.called[path][1].output_shape if path in self.called else None
        return "" if shape is None else _by(shape[1:])

    def _row(self, path: str, module: nn.Module, depth: int, parent: str) -> Row:
        """The row of one module, labelled without its parent's path."""
        swap = self.targets.get(path)
        kind = TARGET if swap is not None else GUIDE if path in self.guides else GROUP
        if isinstance(swap, Resize) and swap.call is not None:  # a call, not a module, of the plain network
            label, note = f"F.interpolate {swap.call}", f"enlargement, {swap.mode}"
        else:
            label, note = path.removeprefix(f"{parent}."), plain_name(module)
        alias = swap.target_alias if swap is not None else self.guides.get(path)
        label += f" ({alias})" if alias not in (None, label) else ""
        return Row(path, label, note, self._size(path), depth, kind, () if swap is None else swap.guide)

    def _folded(self, modules: Sequence[tuple[str, nn.Module]], depth: int) -> Row:
        kinds = Counter(plain_name(module) for _, module in modules)
        shown = [f"{count} {kind}" if count > 1 else kind for kind, count in kinds.most_common(_KINDS)]
        note = ", ".join([*shown, *(["..."] if len(kinds) > _KINDS else [])])
        convolutions = sum(
            isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for _, module in modules for m in module.modules()
        )
        if convolutions and any(True for _, module in modules for _ in module.children()):
            note += f" ({convolutions} convolution{'s' if convolutions > 1 else ''})"
        first, last = modules[0][0], modules[-1][0]
        label = _last(first) if len(modules) == 1 else f"{_last(first)} to {_last(last)}"
        size = next((text for path, _ in reversed(modules) if (text := self._size(path))), "")
        return Row(first, label, note, size, depth, FOLDED)


def plain_name(module: nn.Module) -> str:
    """The name of a module's class, before it was swapped."""
    plain: type = type(module)
    while "hotswap." in plain.__module__ and plain.__bases__[-1] is not nn.Module:
        plain = plain.__bases__[-1]
    return plain.__name__


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _by(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
