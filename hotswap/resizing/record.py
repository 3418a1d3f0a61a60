"""What a network carries of guided enlargements: to be known, and undone, by."""

from dataclasses import dataclass, replace

from torch import nn

from hotswap.naming import INPUT
from hotswap.plan import Plan
from hotswap.resizing.layers import GuidedResize
from hotswap.resizing.plan import Resize

RECORD = "_hotswap_resize_record"  # a plain attribute of the rewritten module, not in its state_dict


@dataclass(frozen=True)
class Record:
    """Left in the module that was rewritten."""

    resizes: tuple[Resize, ...]
    notes: tuple[str, ...]
    root_path: str  # of that module, in the network the plan was made for
    plain_class: type[nn.Module]
    constants: tuple[str, ...]  # attributes added for tensors that the traced code makes
    drift: float | None = None  # as measured by `calibrate`


def of(module: nn.Module) -> Record | None:
    """What was left in a module."""
    found: Record | None = module.__dict__.get(RECORD)
    return found


def joined(plan: Plan | None, model: nn.Module) -> Plan | None:
    """The plan of a network's convolutions with the enlargements it guides; None where neither is swapped.

    With paths from this network and scales as they are.
    """
    resizes: list[Resize] = []
    notes: list[str] = []
    drift = None if plan is None else plan.drift
    for path, module in model.named_modules():
        record = of(module)
        if record is None:
            continue
        # The rewritten module may have moved since: into a wrapper, or out of the network.
        for resize in record.resizes:
            target = _moved(resize.target, record.root_path, path)
            guide = tuple(s if s == INPUT else _moved(s, record.root_path, path) for s in resize.guide)
            layer = model.get_submodule(replace(resize, target=target).layer_path)
            now = layer.swap if isinstance(layer, GuidedResize) else resize
            resizes.append(replace(now, target=target, guide=guide))
        notes += record.notes
        drift = record.drift if drift is None else drift
    if not resizes:
        return plan
    swaps = () if plan is None else plan.swaps
    measured = None not in [x.deviation for x in swaps] + [x.deviation for x in resizes]  # none was set by hand since
    others = () if plan is None else plan.notes
    made = Plan(swaps) if plan is None else plan
    return replace(made, drift=drift if measured else None, notes=(*notes, *others), resizes=tuple(resizes))


def record_drift(model: nn.Module, drift: float | None) -> None:
    """Keep how far the outputs are from the plain network's, for `joined` to tell."""
    for module in model.modules():
        record = of(module)
        if record is not None:
            module.__dict__[RECORD] = replace(record, drift=drift)


def detach(model: nn.Module) -> None:
    """Undo what steers a network's guided enlargements, in place; these stay swapped."""
    for module in list(model.modules()):
        record: Record | None = module.__dict__.pop(RECORD, None)
        if record is not None:
            for name in record.constants:
                del module.__dict__[name]
            module.__class__ = record.plain_class


def _moved(path: str, before: str, now: str) -> str:
    relative = path.removeprefix(before).removeprefix(".")
    return ".".join(part for part in (now, relative) if part)
