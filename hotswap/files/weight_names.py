"""Matches the names of a checkpoint's weights to a network's: removes prefixes of wrappers, fills in tied weights."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from hotswap.errors import HotswapError

# DataParallel and accelerate, torch.compile, Lightning and its Fabric, FSDP; and what people call the attribute.
_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "model.", "net.", "network.")
# Wrappers of submodules, inside names.
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Parts of the names of copies that are not trained themselves.
_AVERAGES = ("ema", "averag", "swa", "teacher", "momentum")
_COUNTER = ".num_batches_tracked"  # missing for batch norms in old files
_COUNTS = ("total_ops", "total_params")  # buffers that thop leaves in every module it has counted
_AUXILIARY = re.compile(r"(.*\.)?aux[^.]*\.", re.IGNORECASE)  # a head that only helps to train the others
_SHOWN = 3  # names that a message lists


class Matched(NamedTuple):
    """Weights by the network's names."""

    weights: dict[str, Tensor]
    versions: dict[str, Any]  # of modules, by path
    notes: tuple[str, ...]


def matched(weights: Mapping[str, Tensor], versions: Mapping[str, Any], network: Mapping[str, Tensor]) -> Matched:
    """Remove prefixes of wrappers from the names of weights, with notes that say so.

    A prefix on all names goes where the network has no such names; one on some of them, whatever it is, where what is
    under it is the whole network. Names that are then still missing are filled from those they are tied to. Counts of
    operations, and auxiliary heads that the network has not, are left aside.

    Args:
        weights: by their names in the file.
        versions: of modules, by their path in the file.
        network: the network's state_dict, with parameters as they are, so that tied ones can be told.

    Raises:
        HotswapError: where several parts of the file are the whole network, and nothing says which one is meant.
    """
    file = _without_counts(Matched(dict(weights), dict(versions), ()), network)
    while prefix := wrapper(file.weights):
        if any(name.startswith(prefix) for name in network):
            break
        file = _under(prefix, file, f"took the prefix {prefix!r} off all names")
    for part in _INSIDE:
        file = _freed(part, file, network)
    file = _chosen(file, network)
    return _tied(_without_auxiliary(file, network), network)


def wrapper(names: Collection[str]) -> str | None:
    """The prefix of a wrapper that stands before all names; None where there is none."""
    return next((prefix for prefix in _WRAPPERS if names and all(name.startswith(prefix) for name in names)), None)


def _without_counts(file: Matched, network: Mapping[str, Tensor]) -> Matched:
    """Leave out the counts of operations that thop adds to networks."""
    extra = [name for name in file.weights if name not in network and name.rpartition(".")[2] in _COUNTS]
    missing = {
        name: x for name, x in network.items() if name not in file.weights and name.rpartition(".")[2] in _COUNTS
    }
    if not extra:
        return file._replace(weights=file.weights | missing)
    note = f"left aside {len(extra)} counts of operations: {listed(extra)}"
    return _without(extra, file._replace(weights=file.weights | missing), note)


def _without_auxiliary(file: Matched, network: Mapping[str, Tensor]) -> Matched:
    heads = [match[0] for name in file.weights if (match := _AUXILIARY.match(name)) is not None]
    absent = {head for head in heads if not any(name.startswith(head) for name in network)}
    extra = [name for name in file.weights if name not in network and name.startswith((*absent,))]
    if not extra:
        return file
    return _without(extra, file, f"left aside an auxiliary head, {len(extra)} weights: {listed(extra)}")


def _without(names: Iterable[str], file: Matched, note: str) -> Matched:
    weights = {name: x for name, x in file.weights.items() if name not in {*names}}
    return file._replace(weights=weights, notes=(*file.notes, note))


def _under(prefix: str, file: Matched, note: str) -> Matched:
    weights = {name.removeprefix(prefix): x for name, x in file.weights.items() if name.startswith(prefix)}
    inside = {path: version for path, version in file.versions.items() if f"{path}.".startswith(prefix)}
    versions = {f"{path}.".removeprefix(prefix).removesuffix("."): x for path, x in inside.items()}
    return Matched(weights, versions, (*file.notes, note))


def _freed(part: str, file: Matched, network: Iterable[str]) -> Matched:
    names = [name for name in file.weights if part in name]
    weights = {name.replace(part, ""): x for name, x in file.weights.items()}
    if not names or any(part in name for name in network) or len(weights) < len(file.weights):
        return file
    versions = {f"{path}.".replace(part, "").removesuffix("."): x for path, x in file.versions.items()}
    return Matched(weights, versions, (*file.notes, f"took {part!r} out of {len(names)} names"))


def _chosen(file: Matched, network: Mapping[str, Tensor]) -> Matched:
    """The weights under a prefix, if the whole network lies under it, beside other entries."""
    needed = {id(x) for name, x in network.items() if not name.endswith(_COUNTER)}
    under: dict[str, set[int]] = {}
    for name in file.weights:
        start = 0
        while True:
            if (rest := name[start:]) in network:
                under.setdefault(name[:start], set()).add(id(network[rest]))
            if not (start := name.find(".", start) + 1):
                break
    whole = [prefix for prefix, tensors in under.items() if tensors >= needed]
    if not whole or "" in whole:
        return file
    trained = [prefix for prefix in whole if not any(word in prefix.lower() for word in _AVERAGES)] or whole
    if len(trained) > 1:
        raise HotswapError(
            f"it holds the network's weights {len(trained)} times, under {listed(map(repr, trained))}; save the one "
            "you want alone"
        )
    prefix = trained[0]
    notes = [f"took the weights under {prefix!r}"]
    if averaged := [repr(other) for other in whole if other not in trained]:
        notes.append(f"it also holds averaged weights, under {listed(averaged)}, which were not taken")
    left = [name for name in file.weights if not name.startswith((*whole,))]
    if left:
        notes.append(f"left aside {len(left)} entries that are not under it: {listed(left)}")
    return _under(prefix, file, "; ".join(notes))


def _tied(file: Matched, network: Mapping[str, Tensor]) -> Matched:
    """Fill in the other names of tied tensors, which save functions such as transformers' write once."""
    by_tensor = {id(network[name]): x for name, x in file.weights.items() if name in network}
    filled = {
        name: by_tensor[id(x)] for name, x in network.items() if name not in file.weights and id(x) in by_tensor
    }
    if not filled:
        return file
    note = f"{len(filled)} names are tied to others, and were filled from them: {listed(filled)}"
    return Matched({**file.weights, **filled}, file.versions, (*file.notes, note))


def listed(names: Iterable[str]) -> str:
    """The first few of many names, each clipped."""
    names = list(names)
    shown = ", ".join(clipped(name, 120) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def clipped(text: str, length: int = 300) -> str:
    """The start of a text that came from a file."""
    return text if len(text) <= length else f"{text[:length]}..."
