"""Every layer copied, moved, checkpointed, watched and trained in parallel."""

import copy
import io
import pickle

import forks
import pytest
import torch
from layer_cases import (
    CASES,
    assert_all_close,
    changed,
    every_layer,
    everything,
    floating,
    output,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint


def by_torch_save(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@every_layer
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), by_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies(copied, case):
    layer, arguments = case.layer(), case.arguments()
    expected = everything(layer, arguments)  # copied after use
    assert_all_close(everything(copied(layer), arguments), expected)
    assert repr(copied(layer)) == repr(layer)


@every_layer
def test_state_dict_saved_and_loaded(case):
    layer, arguments = case.layer(), case.arguments()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    other = case.make()
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(output(other(*arguments)), output(layer(*arguments)))
    empty = case.make(device="meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(output(empty(*arguments)), output(layer(*arguments)))


@every_layer
@pytest.mark.parametrize("made", ["there", "moved"])
def test_on_meta(made, case):
    layer = case.make(device="meta", dtype=torch.float16) if made == "there" else case.make().half().to("meta")
    assert {(x.device.type, x.dtype) for x in layer.state_dict().values()} <= {("meta", torch.float16)}
    arguments = case.arguments(dtype=torch.float16)
    expected = output(case.layer().half()(*arguments))
    actual = everything_on_meta(layer, changed(arguments, lambda x: x.to("meta")))
    assert (actual.shape, actual.dtype, actual.device.type) == (expected.shape, expected.dtype, "meta")


def everything_on_meta(layer, arguments):
    x, guide = (x.requires_grad_() for x in arguments[:2])
    out = output(layer(x, guide, *arguments[2:]))
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert guide.grad.shape == guide.shape
    return out.detach()


@every_layer
def test_half_and_double_reach_every_tensor(case):
    layer = case.layer()
    for dtype, move in ((torch.float16, nn.Module.half), (torch.float64, nn.Module.double)):
        assert {x.dtype for x in move(layer).state_dict().values()} <= {dtype}


@every_layer
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant, case):
    layer, arguments = case.layer(), case.arguments()
    run = lambda *arguments: checkpoint(layer, *arguments, use_reentrant=reentrant)  # noqa: E731
    assert_all_close(everything_by_backward(layer, arguments, run), everything(layer, arguments))


def everything_by_backward(layer, arguments, run):
    """As `everything`, by backward(): reentrant checkpoints refuse torch.autograd.grad."""
    x, guide = (x.detach().requires_grad_() for x in arguments[:2])
    out = output(run(x, guide, *arguments[2:]))
    incoming = torch.randint(-4, 5, out.shape, generator=torch.Generator().manual_seed(0)) / 4
    out.backward(incoming)
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    return {"output": out.detach(), "input": x.grad, "guide": guide.grad} | gradients


@pytest.fixture
def deterministic():
    """Which also fills what is allocated and not written with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_deterministic_algorithms(dtype, case, deterministic):
    layer, arguments = case.layer().to(dtype), case.arguments(dtype=dtype)
    once, again = (everything(layer, arguments) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    usual = everything(layer, arguments)
    for name, value in once.items():
        assert torch.equal(value, again[name]), name
        assert torch.equal(value, usual[name]), name


@every_layer
def test_without_gradients(case):
    layer, arguments = case.layer(), case.arguments()
    expected = output(layer(*arguments)).detach()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            actual = output(layer(*arguments))
        assert torch.equal(actual, expected)
        assert not actual.requires_grad
    layer.requires_grad_(False)
    assert not output(layer(*arguments)).requires_grad


class Calls(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        seen.append(str(function))
        return function(*arguments, **(options or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        seen.append(str(function))
        return function(*arguments, **(options or {}))


class Watched(Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        seen.append(str(function))
        return super().__torch_function__(function, types, arguments, options or {})


seen: list[str] = []


def by_the_profiler(run):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    seen.extend(event.key.replace("::", ".") for event in profile.key_averages())


def by_a_mode(mode):
    def watch(run):
        with mode():
            run()

    return watch


def by_a_subclass(run):
    run(lambda x: x.as_subclass(Watched))


@every_layer
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("watch", [by_a_mode(Calls), by_a_mode(Functions), by_the_profiler, by_a_subclass])
def test_who_watches_sees_the_operators(watch, gradients, case):
    """Where nothing watches and no gradient is wanted, kernels are called at once."""
    layer, arguments = case.layer(), case.arguments()

    def run(changed_to=lambda x: x):
        with torch.set_grad_enabled(gradients):
            layer(*changed(arguments, floating(changed_to)))

    seen.clear()
    watch(run)
    assert any(name.startswith("pac_ops.") for name in seen)


@every_layer
@pytest.mark.parametrize("wanted", ["input", "guide"])
def test_gradient_of_one_of_them(wanted, case):
    layer, arguments = case.layer(), case.arguments()
    both = everything(layer, arguments)
    actual = everything(layer, arguments, wanted=(wanted,))
    assert_all_close(actual, {name: value for name, value in both.items() if name in actual})
    layer.requires_grad_(False)
    x = {"input": arguments[0], "guide": arguments[1]}
    x[wanted] = x[wanted].clone().requires_grad_()
    output(layer(x["input"], x["guide"], None, arguments[3])).sum().backward()
    assert x[wanted].grad.isfinite().all()


@every_layer
def test_data_parallel(case):
    layer, arguments = case.layer(), case.arguments()
    assert torch.equal(output(nn.DataParallel(layer)(*arguments)), output(layer(*arguments)))


DISTRIBUTED = CASES["conv, asymmetric"]


def train_in_a_process(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)  # DDP gives everyone the first process's parameters
    layer = DISTRIBUTED.make()
    parallel = nn.parallel.DistributedDataParallel(layer)
    x, guide, _, _ = changed(DISTRIBUTED.arguments(batch=4), lambda x: x[2 * rank : 2 * rank + 2])
    parallel(x, guide).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    torch.save((layer.state_dict(), gradients), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    forks.both(train_in_a_process, str(tmp_path))
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    layer = DISTRIBUTED.make()
    layer.load_state_dict(saved[0][0])
    (layer(*DISTRIBUTED.arguments(batch=4)).square().sum() / 2).backward()  # DDP's gradient is the mean
    for _, gradients in saved:
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)
