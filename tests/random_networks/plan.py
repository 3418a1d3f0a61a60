"""A random plan for a random network: what is swapped, and how."""

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .oracle import INPUT, Oracle, Place, Rules, Seen, Target
from .program import Loaded

_CONVOLUTIONS = ("Conv2d", "ConvTranspose2d", "AvgPool2d", "Own", "OwnWithParts", "Standardised", "Padded")
_CONVOLUTIONS += ("ParametrizedConv2d",)


@dataclass(frozen=True)
class Choice:
    """What convert is asked for, in terms that outlive changes of the program's text."""

    targets: tuple[Target, ...]
    method: str = "auto"
    after_activation: bool = False
    resize: str = "bilinear"
    footprint: int = 2
    kernel: str = "gaussian"
    learn_scale: bool = False

    def arguments(self, seen: list[Seen]) -> dict[str, Any]:
        """Of `hotswap.convert`; names of calls come from what a plain run has seen."""
        names = {target.place: name_of(target, seen) for target in self.targets}
        given: dict[str, Any] = {
            "targets": list(names.values()),
            "guide": {names[t.place]: list(t.guides) if len(t.guides) > 1 else t.guides[0] for t in self.targets},
            "guide_scale": {names[t.place]: t.scale for t in self.targets},
            "method": self.method,
            "after_activation": self.after_activation,
            "resize": self.resize,
            "learn_scale": self.learn_scale,
            "footprint": self.footprint,
        }
        if any(not t.enlarges for t in self.targets):
            given["kernel"] = self.kernel
        return given

    def rules(self, network: nn.Module, after: dict[str, str | None], by_fx: dict[bool, bool]) -> Rules:
        """For the oracle. `by_fx` tells how convolutions (False) and enlargements (True) are steered: hooks catch no
        function.
        """
        found: dict[tuple[bool, str], str] = {}
        if self.after_activation:
            for target in self.targets:
                for guide in target.guides:
                    follower = None if guide == INPUT else after[_key(network, guide)]
                    if follower is None:
                        continue
                    if not follower.startswith("t"):
                        found[target.enlarges, guide] = ".".join([*guide.split(".")[:-1], follower])
                    elif by_fx[target.enlarges]:
                        found[target.enlarges, guide] = follower
        return Rules(self.targets, self.resize, self.footprint, self.kernel, found)


def name_of(target: Target, seen: list[Seen]) -> str:
    """A module's path, or resize_{index} of a call of F.interpolate: the index counts enlargements of all kinds."""
    if not target.place[1]:
        return target.place[0]
    return f"resize_{list(_sites(seen)).index(target.place) + 1}"


def _sites(seen: list[Seen]) -> dict[Place, Seen]:
    """Whatever resizes, enlarging or not, by its first call, in order."""
    found: dict[Place, Seen] = {}
    for one in seen:
        resizes = one.kind.startswith("F.interpolate") or one.kind in ("Upsample", "bilinear transposed")
        if resizes and one.coarse is not None and one.fine is not None:
            found.setdefault(one.place, one)
    return found


def look(loaded: Loaded) -> Oracle:
    """What a plain run on the example sees."""
    network = loaded.network()
    oracle = Oracle(network, Rules(()))
    oracle.wanted = set(oracle.paths.values())  # to know how large guides are
    oracle(loaded.image(loaded.program.size))
    for one in oracle.seen:
        module = network.get_submodule(one.place[0])
        if one.kind == "ConvTranspose2d" and not module.weight.requires_grad:
            one.kind = "bilinear transposed"
    return oracle


def choose(rng: random.Random, loaded: Loaded) -> Choice | None:
    """A random plan; None where nothing can be swapped."""
    oracle = look(loaded)
    seen, modules = oracle.seen, {path: module for module, path in oracle.paths.items()}
    footprint = rng.choice((2, 2, 4))
    convolutions = {s.place: s for s in reversed(seen) if _is_convolution(s, modules[s.place[0]])}
    enlargements = {p: s for p, s in _sites(seen).items() if _can_be_guided(s, modules[p[0]], footprint)}
    kind = rng.choice(("convolutions", "enlargements", "both", "both"))
    chosen = []
    if kind != "enlargements" or not enlargements:
        chosen += rng.sample(list(convolutions.values()), min(len(convolutions), rng.randint(1, 3)))
    if kind != "convolutions" or not convolutions:
        chosen += rng.sample(list(enlargements.values()), min(len(enlargements), rng.randint(1, 2)))
    choice = Choice(
        (),
        method=rng.choice(("auto", "auto", "fx", "hooks")),
        after_activation=rng.random() < 0.5,
        resize=rng.choice(("bilinear", "bilinear", "area", "nearest")),
        footprint=footprint,
        kernel="inv_0.1_0.4_fixed" if rng.random() < 0.1 else "gaussian",
        learn_scale=rng.random() < 0.2,
    )
    targets = []
    for one in chosen:
        candidates = _guides(one, seen, oracle, loaded, after_activation=choice.after_activation)
        enlarges = one in enlargements.values()
        if enlarges:
            candidates = [g for g in candidates if _fine_enough(oracle.caught[g][0].value, one.fine)]
        if not candidates:
            continue
        wanted = 2 if rng.random() < 0.15 else 1
        guides = tuple(
            INPUT if rng.random() < 0.3 and INPUT in candidates else rng.choice(candidates) for _ in range(wanted)
        )
        guides = tuple(dict.fromkeys(guides))
        spread = sum(float(oracle.caught[g][0].value.detach().double().std()) for g in guides)
        scale = round(rng.uniform(0.4, 1.2) / max(spread, 1e-3), 3)
        targets.append(Target(one.place, guides, min(scale, 50.0), enlarges))
    if not targets:
        return None
    return replace(choice, targets=tuple(targets))


def _guides(one: Seen, seen: list[Seen], oracle: Oracle, loaded: Loaded, *, after_activation: bool) -> list[str]:
    found: dict[str, None] = {INPUT: None}
    for other in seen:
        path = other.place[0]
        if other.ended < one.began and not other.place[1] and other.fine is not None and path in oracle.caught:
            if min(other.fine) < 2 or ".parametrizations" in path:
                continue
            if not after_activation or _key(oracle.network, path) in loaded.program.after:
                found[path] = None
    return list(found)


def _key(network: nn.Module, path: str) -> str:
    parent, _, name = path.rpartition(".")
    return f"{type(network.get_submodule(parent)).__name__}.{name}"


def _is_convolution(one: Seen, module: nn.Module) -> bool:
    if one.kind not in _CONVOLUTIONS or one.place[1] or one.coarse is None or one.fine is None:
        return False
    size: Any = getattr(module, "kernel_size", 3)
    return size not in (1, (1, 1))


def _can_be_guided(one: Seen, module: nn.Module, footprint: int) -> bool:
    coarse, fine = one.coarse, one.fine
    assert coarse is not None
    assert fine is not None
    if fine == coarse or fine[0] < coarse[0] or fine[1] < coarse[1] or coarse == (1, 1):
        return False
    nearest = "nearest" in (module.mode if one.kind == "Upsample" else one.kind)
    return footprint == 4 or not nearest


def _fine_enough(guide: torch.Tensor, fine: tuple[int, int] | None) -> bool:
    assert fine is not None
    return guide.shape[2] >= fine[0] and guide.shape[3] >= fine[1]
