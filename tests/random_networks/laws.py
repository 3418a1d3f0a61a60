"""What must hold for every network and plan."""

import copy
import random
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

import hotswap

from .exporting import largest_gap
from .oracle import Oracle, Target
from .outputs import gap, leaves
from .plan import Choice, look, name_of
from .program import Loaded, Program
from .refusals import EXPORTING, RUNNING, reason

# How far outputs may be from the oracle's, relative to their largest: rounding, and what a few layers make of it.
CLOSE = {"float64": 1e-8, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1.2e-1}
TRAINED = CLOSE | {
    "float64": 1e-6,
    "float32": 2e-3,
    "float16": 1e-1,
    "bfloat16": 4e-1,
}  # norms divide by what few pixels spread
SAME = {
    "float64": 1e-10,
    "float32": 2e-5,
    "float16": 1e-2,
    "bfloat16": 8e-2,
}  # and from the plain network's at scale 0
EXPORTED = 1e-3  # in float32, in another runtime
GRADIENTS = {"float64": 1e-7, "float32": 5e-3}  # of the norm


class FaultError(Exception):
    """A law that does not hold."""

    def __init__(self, law: str, what: str) -> None:
        super().__init__(f"{law}: {what}")
        self.law, self.what = law, what


@dataclass
class Outcome:
    """What came of one network."""

    method: str = ""  # by which it was converted: fx, hooks or mixed
    refused: str = ""  # the message, where it was not
    refused_running: list[str] = field(default_factory=list)  # and of laws that a converted network refused to try
    laws: list[str] = field(default_factory=list)
    moved: bool = False  # whether the guides changed the output
    dtype: str = ""
    sizes_exported: int = 0


def check(program: Program, choice: Choice, seed: int, *, export: bool = False) -> Outcome:
    """Hold one network and plan against all laws.

    Raises:
        Fault: the first that does not hold.
    """
    with program.loaded() as loaded:
        return _Case(loaded, choice, random.Random(seed), export=export).run()  # noqa: S311


class _Case:
    def __init__(self, loaded: Loaded, choice: Choice, rng: random.Random, *, export: bool) -> None:
        self.loaded, self.choice, self.rng, self.export = loaded, choice, rng, export
        self.program, self.dtype = loaded.program, loaded.program.dtype
        self.outcome = Outcome(dtype=self.dtype)
        self.more = (rng.randint(8, 24), rng.randint(8, 24))

    def run(self) -> Outcome:
        plain = self.loaded.network()
        self.seen = look(self.loaded).seen
        before = _described(plain)
        try:
            swapped = self._converted(plain, self.choice)
        except hotswap.HotswapError as error:
            self.outcome.refused = str(error)
            self._require(_described(plain) == before, "refusal", "the network was changed")
            return self.outcome
        except Exception as error:
            raise FaultError("convert", _brief(error)) from error
        self._require(_described(plain) == before, "convert", "the network that was converted has changed")
        plan = hotswap.status(swapped).plan
        self._named(plan)
        by_fx = {False: plan.method == "fx", True: not any(resize.taps for resize in plan.resizes)}
        ways = {by_fx[target.enlarges] for target in self.choice.targets}
        self.outcome.method = "mixed" if len(ways) == 2 else "fx" if True in ways else "hooks"
        self.oracle = Oracle(self.loaded.network(), self.choice.rules(plain, self.program.after, by_fx))
        if self.choice.learn_scale:
            self.oracle.scales = {t.place: log.detach().double().exp() for t, log in self._logs(swapped)}
        laws: Sequence[Callable[[nn.Module, nn.Module], bool]] = (
            self.state, self.called, self.example, self.other_size, self.training, self.gradients, self.scale_zero, self.deep_copy,
            self.files, self.exported, self.reverted,
        )  # fmt: skip
        for law in laws:
            try:
                if law(swapped, plain):
                    self.outcome.laws.append(law.__name__)
            except FaultError:
                raise
            except hotswap.HotswapError as error:
                if reason(str(error), RUNNING) is None:
                    raise FaultError(law.__name__, _brief(error)) from error
                self.outcome.refused_running.append(str(error))
            except Exception as error:
                raise FaultError(law.__name__, _brief(error)) from error
        return self.outcome

    def _converted(self, plain: nn.Module, choice: Choice) -> nn.Module:
        image = self.loaded.image(self.program.size)
        return hotswap.convert(plain, example_inputs=image, **choice.arguments(self.seen))

    def _named(self, plan: hotswap.Plan) -> None:
        wanted = sorted((t.place[0], t.enlarges) for t in self.choice.targets)
        found = sorted([(s.target, False) for s in plan.swaps] + [(r.target, True) for r in plan.resizes])
        self._require(wanted == found, "targets", f"{found} are swapped instead of {wanted}")

    # --- laws: whether they could be tried ---------------------------------------------------------------------

    def state(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """Class, names, shapes, modes and what can be trained are what they were."""
        ours = {k: v for k, v in swapped.state_dict().items() if not k.endswith("guide_log_scale")}
        theirs = plain.state_dict()
        self._require(list(ours) == list(theirs), "state", f"keys {sorted(set(ours) ^ set(theirs))}, or their order")
        self._require(all(torch.equal(ours[k], v) for k, v in theirs.items()), "state", "values")
        kind = (
            torch.fx.GraphModule if isinstance(plain, torch.fx.GraphModule) else type(plain)
        )  # each has its own class
        self._require(isinstance(swapped, kind), "state", f"class {type(swapped)}")
        found = dict(swapped.named_modules())
        for path, module in plain.named_modules():
            self._require(found[path].training == module.training, "state", f"mode of {path!r}")
        trained = {n: p.requires_grad for n, p in swapped.named_parameters() if not n.endswith("guide_log_scale")}
        self._require(trained == {n: p.requires_grad for n, p in plain.named_parameters()}, "state", "requires_grad")
        return True

    def called(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """Hooks that are put on now see the calls that those of the plain network see."""
        image = self.loaded.image(self.program.size)
        ours, theirs = (_calls(network, plain, image.clone()) for network in (swapped, plain))
        self._require(ours == theirs, "called", f"{ours} instead of {theirs}")
        return True

    def example(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """The oracle's numbers."""
        image = self.loaded.image(self.program.size)
        expected = self.oracle(image.clone())
        self._compare("example", swapped(image.clone()), expected, CLOSE)
        with torch.no_grad():
            self._compare("no_grad", swapped(image.clone()), expected, CLOSE)
            self.outcome.moved = gap(leaves(plain(image.clone())), leaves(expected)) > 10 * CLOSE[self.dtype]
        return True

    def other_size(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """At another size and batch."""
        return self._as_oracle("other_size", swapped, self.program.other, self.rng.choice((1, 3)), seed=2)

    def training(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """In training mode, with what it does to buffers."""
        reference = self.oracle.network
        kept = [{k: v.clone() for k, v in m.state_dict().items()} for m in (swapped, reference)]
        swapped.train()
        reference.train()
        try:
            done = self._as_oracle("training", swapped, self.program.size, 3, seed=3, bounds=TRAINED)
            theirs = dict(reference.named_buffers())
            for name, buffer in swapped.named_buffers():
                if name in theirs and buffer.is_floating_point():
                    self._compare(f"training, buffer {name}", buffer, theirs[name], TRAINED)
            return done
        finally:
            for module, state in zip((swapped, reference), kept, strict=True):
                module.load_state_dict(state)
                module.eval()

    def gradients(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """Of parameters, of scales that are learned, and of the image."""
        if self.dtype not in GRADIENTS:
            return False
        size, batch = (self.program.size, 2) if self.rng.random() < 0.6 else (self.program.other, 1)
        image = self.loaded.image(size, batch=batch, seed=4)
        before, learned = self.oracle.scales, list[Tensor]()
        if self.choice.learn_scale:
            learned = [log.detach().clone().requires_grad_() for _, log in self._logs(swapped)]
            pairs = zip(self.choice.targets, learned, strict=True)
            self.oracle.scales = {target.place: log.double().exp() for target, log in pairs}
        try:
            theirs = _gradients(self.oracle, self.oracle.network, image, learned)
        except (_ImpossibleError, RuntimeError):  # where the plain network overwrites what its own backward needs
            return False
        finally:
            self.oracle.scales = before
        try:
            ours = _gradients(swapped, swapped, image, [log for _, log in self._logs(swapped)] if learned else [])
        except RuntimeError:
            if _has_gradients(plain, image):
                raise
            return False  # a checkpointed part overwrites its input, in the plain network too
        self._require(ours.keys() == theirs.keys(), "gradients", f"only one has {ours.keys() ^ theirs.keys()}")
        largest = max((float(g.norm()) for g in theirs.values()), default=0.0)
        for name, expected in theirs.items():
            off = float((ours[name] - expected).norm()) / max(float(expected.norm()), 1e-3 * largest, 1e-30)
            bound = max(GRADIENTS[self.dtype], 1e-5 if learned else 0)
            self._require(off <= bound, "gradients", f"{name} is off by {off:.2e}")
        return True

    def scale_zero(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """Scale 0 is the plain network: but for nearest enlargements, which are bilinear then."""
        if any(resize.mode.startswith("nearest") for resize in hotswap.status(swapped).plan.resizes):
            return False
        targets = tuple(replace(target, scale=0.0) for target in self.choice.targets)
        if self.choice.learn_scale:
            zero = self._converted(plain, replace(self.choice, learn_scale=False, targets=targets))
        else:
            zero = copy.deepcopy(swapped)
            for layer in zero.modules():
                if hasattr(layer, "guide_scale"):
                    layer.guide_scale = 0.0
        image = self.loaded.image(self.program.size)
        self._compare("scale_zero", zero(image.clone()), plain(image.clone()), SAME)
        return True

    def deep_copy(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """A copy computes the same, and shares nothing."""
        image = self.loaded.image(self.program.size)
        copied = copy.deepcopy(swapped)
        shared = {id(p) for p in swapped.parameters()} & {id(p) for p in copied.parameters()}
        self._require(not shared, "deep_copy", "shares parameters")
        self._compare("deep_copy", copied(image.clone()), swapped(image.clone()))
        return True

    def files(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """A file holds it; one in three, as it is converted again to be loaded."""
        if self.rng.random() > 1 / 3:
            return False
        image = self.loaded.image(self.program.size)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "swapped.safetensors"
            hotswap.save(swapped, path)
            again = hotswap.load(path, model=self.loaded.network(), example_inputs=image)
        self._compare("files", again(image.clone()), swapped(image.clone()), SAME)
        return True

    def exported(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """ONNX Runtime computes the same at three sizes."""
        if not self.export:
            return False
        try:
            off, tried = largest_gap(swapped, self.loaded, self.more)
        except hotswap.HotswapError as error:
            if reason(str(error), EXPORTING) is None or not _is_refused(plain, self.loaded):
                raise  # what the exporters make of the plain network is no matter of hotswap's
            self.outcome.refused_running.append(str(error))
            return False
        self.outcome.sizes_exported = tried
        self._require(off <= EXPORTED, "exported", f"off by {off:.2e} of the largest, at {tried} sizes")
        return True

    def reverted(self, swapped: nn.Module, plain: nn.Module) -> bool:
        """The plain network again, exactly."""
        image = self.loaded.image(self.program.size)
        back = hotswap.revert(swapped)
        self._require(_described(back) == _described(plain), "reverted", "something is left")
        self._compare("reverted", back(image.clone()), plain(image.clone()))
        return True

    # --- parts -----------------------------------------------------------------------------------------------

    def _require(self, holds: bool, law: str, what: str) -> None:
        if not holds:
            raise FaultError(law, what)

    def _as_oracle(
        self,
        law: str,
        swapped: nn.Module,
        size: tuple[int, int],
        batch: int,
        seed: int,
        bounds: dict[str, float] = CLOSE,
    ) -> bool:
        """Compare both; False where the plain network itself cannot be run so, which must go for both then."""
        image = self.loaded.image(size, batch=batch, seed=seed)
        torch.manual_seed(seed)
        try:
            expected = self.oracle(image.clone())
        except Exception:  # noqa: BLE001 (whatever torch says of a size that does not fit)
            return False
        torch.manual_seed(seed)
        self._compare(law, swapped(image.clone()), expected, bounds)
        return True

    def _compare(self, law: str, found: Any, expected: Any, bounds: dict[str, float] | None = None) -> None:
        self._require(
            type(found) is type(expected), law, f"a {type(found).__name__}, not a {type(expected).__name__}"
        )
        ours, theirs = leaves(found), leaves(expected)
        self._require([x.shape for x in ours] == [x.shape for x in theirs], law, "shapes")
        self._require([x.dtype for x in ours] == [x.dtype for x in theirs], law, "dtypes")
        off, bound = gap(ours, theirs), bounds[self.dtype] if bounds else 0.0
        if self.choice.learn_scale and bounds:
            bound = max(bound, 1e-6)  # the scale is a number in float32
        self._require(off <= bound, law, f"off by {off:.2e} of the largest")

    def _logs(self, swapped: nn.Module) -> list[tuple[Target, Tensor]]:
        """The logarithms of scales that are learned."""
        own = {
            name.rpartition(".")[0]: p for name, p in swapped.named_parameters() if name.endswith("guide_log_scale")
        }
        resizes = {r.target_alias: r.layer_path for r in hotswap.status(swapped).plan.resizes}
        found = []
        for target in self.choice.targets:
            name = name_of(target, self.seen)
            found.append((target, own[resizes[name] if target.place[1] else name]))
        return found


def _calls(network: nn.Module, plain: nn.Module, image: Tensor) -> list[str]:
    """Paths of the modules of the plain network that a network calls, in order."""
    paths, calls, handles = dict(plain.named_modules()), list[str](), []
    for path, module in network.named_modules():
        if path in paths and not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_hook(lambda *_, path=path: calls.append(path)))
    try:
        with torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    return calls


class _ImpossibleError(Exception):
    """The plain network has no gradients."""


def _gradients(
    run: Callable[..., Any], module: nn.Module, image: Tensor, scales: Sequence[Tensor]
) -> dict[str, Tensor]:
    given = image.clone().requires_grad_()
    module.zero_grad()
    generator = torch.Generator().manual_seed(5)
    outputs = [y for y in leaves(run(given * 1.0)) if y.requires_grad]
    if not outputs:
        raise _ImpossibleError
    losses = [(y.double() * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum() for y in outputs]
    torch.stack(losses).sum().backward()
    named = {n: p for n, p in module.named_parameters() if not n.endswith("guide_log_scale")}
    named |= {"the image": given} | {f"scale {i}": scale for i, scale in enumerate(scales)}
    found = {name: x.grad.double() for name, x in named.items() if x.grad is not None}
    module.zero_grad()
    return found


def _is_refused(network: nn.Module, loaded: Loaded) -> bool:
    try:
        largest_gap(network, loaded, loaded.program.other)
    except hotswap.HotswapError:
        return True
    return False


def _has_gradients(network: nn.Module, image: Tensor) -> bool:
    try:
        _gradients(network, network, image, [])
    except RuntimeError:
        return False
    return True


def _described(network: nn.Module) -> list[Any]:
    """All that a verb must leave as it is, but for values of tensors: these by their sums."""
    found: list[Any] = []
    for path, module in network.named_modules(remove_duplicate=False):
        hooks = [len(getattr(module, name)) for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        kind = torch.fx.GraphModule if isinstance(module, torch.fx.GraphModule) else type(module)
        found.append((path, kind, module.training, hooks, sorted(vars(module))))
    for name, x in (*network.named_parameters(), *network.named_buffers()):
        found.append((name, x.dtype, tuple(x.shape), x.requires_grad, float(x.detach().double().sum())))
    return found


def _brief(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().splitlines()
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {text[0] if text else ''}"[:400]
