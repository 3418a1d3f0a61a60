"""The arms of the trial: what each makes of a trained decoder, and what it lets that see."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import hotswap
from benchmarks.real.behind import Place
from benchmarks.real.camvid import MEAN, STD
from benchmarks.real.train import DECAY
from hotswap.errors import HotswapError
from hotswap.targets.convolution import SwappedLayer
from hotswap.targets.guided_layer import OUTPUT_LAYER

Inputs = tuple[Tensor, ...]  # the image, the guide, then the maps that a decoder begins with
See = Callable[[Inputs, Inputs], Inputs]  # what an arm sees of its own inputs and of another image's
START, PLAIN, UNGUIDED, ENLARGED = "start", "plain", "unguided", "enlargement"
OUTPUT_BEHIND, CRF_BEHIND = f"{ENLARGED}, output", f"{ENLARGED}, output_crf"
FLAT = ", flat guide"  # behind the name of what it is the control of
# Times the rate, for what an arm adds: as for the guide branch of probabilistic PAC, and so that a gate, which a
# step of Adam moves by no more than its rate, can open within a trial.
FASTER, GATES = 10, 100
LEARNED_GUIDE = 8  # channels
_LAB = hotswap.GuideSpace("lab", MEAN, STD)


def _own(own: Inputs, other: Inputs) -> Inputs:
    return own


def _others_guides(own: Inputs, other: Inputs) -> Inputs:
    return (*other[:2], *own[2:])


@dataclass(frozen=True)
class Arm:
    """A way to go on from a trained decoder."""

    about: str
    targets: Any = None  # of convert; "last" and "all" are the decoder's convolutions of 3 x 3; None: nothing swapped
    options: Mapping[str, Any] = field(default_factory=dict)
    gates: bool = False  # one for each output channel
    calibrated: bool = True
    constant: bool | None = None  # a `Constant` on all of them, whose taps are learned, or are not
    see: See = _own
    flat: bool = False  # what refines scores is guided by an image of one colour
    control: str = ""  # the arm that has the same without a guide
    trained: bool = True

    def network(self, decoder: nn.Module, place: Place, data: Sequence[Inputs]) -> nn.Module:
        """The arm's network of a trained decoder, which stays as it is, calibrated on data."""
        network = copy.deepcopy(decoder)
        if self.constant is not None:
            return _constant(network, place, data, self.constant)
        if self.targets is None:
            return network
        targets = {"last": [place.last], "all": list(place.all)}.get(self.targets, self.targets)
        options: dict[str, Any] = {"guide": "early"} if self.targets in ("last", "all") else {"space": _LAB}
        options |= {"calibrate_on": data} if self.calibrated else {}
        options |= {"gate": decoder.get_parameter(f"{place.last}.weight").shape[0]} if self.gates else {}
        swapped = hotswap.convert(network, targets, example_inputs=data[0], **options, **self.options)
        if self.flat:
            layer = swapped.get_submodule(OUTPUT_LAYER)
            layer.register_forward_pre_hook(lambda _, given: (given[0], torch.zeros_like(given[1])))
        return swapped


class Constant(nn.Module):
    """A weight times K' = 1 + a (m - 1): m is a constant for each tap, a one for each output channel, 0 at first."""

    def __init__(self, means: Tensor, channels: int, learned: bool) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(channels, 1, 1, 1, device=means.device))
        self.taps = nn.Parameter(means, requires_grad=learned)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with that, [O, I, kh, kw]."""
        return weight * (1 + self.gate * (self.taps - 1))


def _constant(network: nn.Module, place: Place, data: Sequence[Inputs], learned: bool) -> nn.Module:
    """Constants on all convolutions of 3 x 3 that begin at the mean of K in each tap, as calibrated."""
    swapped = hotswap.convert(network, list(place.all), "early", calibrate_on=data, example_inputs=data[0])
    for path in place.all:
        layer, convolution = swapped.get_submodule(path), network.get_submodule(path)
        assert isinstance(layer, SwappedLayer)
        assert isinstance(convolution, nn.Conv2d)
        means = torch.tensor(layer.swap.tap_means, device=convolution.weight.device).view(layer.swap.kernel_size)
        constant = Constant(means, convolution.out_channels, learned)
        parametrize.register_parametrization(convolution, "weight", constant)
    return network


def optimiser(network: nn.Module, decoder: nn.Module, rate: float, slower: int) -> torch.optim.Optimizer:
    """AdamW at a rate / slower, at `GATES` times the rate for gates, `FASTER` times it for what else was added."""
    plain = {name for name, _ in decoder.named_parameters()}
    own = 1 / slower
    groups: dict[float, list[nn.Parameter]] = {own: [], FASTER: [], GATES: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_plain = name.replace("parametrizations.weight.original", "weight") in plain
            groups[own if is_plain else GATES if name.endswith("gate") else FASTER].append(parameter)
    filled = [{"params": group, "lr": factor * rate} for factor, group in groups.items() if group]
    return torch.optim.AdamW(filled, weight_decay=DECAY, fused=True)


def added(network: nn.Module, decoder: nn.Module) -> int:
    """Trained parameters that an arm adds."""
    trained = (sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (network, decoder))
    ours, plain = trained
    return ours - plain


def opened(network: nn.Module) -> float:
    """The mean |a| of all gates; 0 where there are none."""
    gates = [parameter.detach().flatten() for name, parameter in network.named_parameters() if name.endswith("gate")]
    return float(torch.cat(gates).abs().mean()) if gates else 0.0


def arms(place: Place, chosen: Sequence[str] = ()) -> dict[str, Arm]:
    """The arms for a decoder, or those chosen; what would be the same where there is one convolution is there once.

    Raises:
        HotswapError: where one chosen is not there.
    """
    every = {key: arm for key, arm in ARMS.items() if key != "all" or len(place.all) > 1}
    if unknown := set(chosen) - set(every):
        raise HotswapError(f"arms are {', '.join(every)}; got {', '.join(sorted(unknown))}")
    return {key: arm for key, arm in every.items() if not chosen or key in chosen}


ARMS = {
    START: Arm("the trained network", trained=False),
    PLAIN: Arm("nothing swapped"),
    "paper": Arm("the last 3x3, guide scale 1e-4", "last", calibrated=False, control=UNGUIDED),
    "calibrated": Arm("the same, calibrated", "last", control=UNGUIDED),
    "gate": Arm("the same, with a gate", "last", {"gate": True}, control=UNGUIDED),
    "gates": Arm("a gate for each channel", "last", gates=True, control=UNGUIDED),
    "learned guide": Arm(
        f"the same, its guide projected to {LEARNED_GUIDE} channels",
        "last",
        {"projection": LEARNED_GUIDE},
        gates=True,
        control=UNGUIDED,
    ),
    "all": Arm("gates on all 3x3", "all", gates=True, control=UNGUIDED),
    "output": Arm("two PAC layers on the scores, after the enlargement", "output", control="output" + FLAT),
    "output_crf": Arm("a PAC-CRF there", "output_crf", control="output_crf" + FLAT),
    UNGUIDED: Arm("control: gates on all 3x3, K a learned constant in each tap", constant=True),
    "frozen": Arm("control: the same, its constants not learned", constant=False),
    "another's guide": Arm(
        "control: gates on all 3x3, guided by another image", "all", gates=True, see=_others_guides
    ),
    "output" + FLAT: Arm("control: `output`, of an image of one colour", "output", flat=True),
    "output_crf" + FLAT: Arm("control: `output_crf`, of the same", "output_crf", flat=True),
    # With a flat guide it is the plain network, which so is its control.
    ENLARGED: Arm("the enlargement guided by the image, nothing added", "resize", control=PLAIN),
    OUTPUT_BEHIND: Arm("`output` behind that", ("resize", "output"), control=OUTPUT_BEHIND + FLAT),
    CRF_BEHIND: Arm("`output_crf` behind it", ("resize", "output_crf"), control=CRF_BEHIND + FLAT),
    OUTPUT_BEHIND + FLAT: Arm(
        "control: `output` behind it, of an image of one colour", ("resize", "output"), flat=True
    ),
    CRF_BEHIND + FLAT: Arm("control: `output_crf` behind it, of the same", ("resize", "output_crf"), flat=True),
}
