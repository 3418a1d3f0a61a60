"""Every layer under torch.func's transforms and in forward mode."""

import pytest
import torch
from layer_cases import changed, every_layer, every_learning_layer, floating, output
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap


def stacked(case, count):
    """The arguments of several calls, stacked: [count, B, ...]."""
    calls = [case.arguments(height=9, batch=2) for _ in range(count)]
    calls = [changed(call, floating(lambda x, n=n: x + 0.3 * n)) for n, call in enumerate(calls)]
    return calls, tuple(None if xs[0] is None else torch.stack(xs) for xs in zip(*calls, strict=True))


@every_layer
def test_functional_call(case):
    layer, arguments = case.layer(), case.arguments()
    torch.manual_seed(2)
    other = case.make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    state = dict(other.named_parameters()) | dict(other.named_buffers())
    assert torch.equal(output(functional_call(layer, state, arguments)), output(other(*arguments)))


@every_layer
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_vmap_over_input_and_guide(dim, case):
    layer = case.layer()
    calls, together = stacked(case, 3)
    in_dims = tuple(None if x is None else dim for x in together)
    moved = changed(together, lambda x: x.movedim(0, dim))
    actual = vmap(layer, in_dims)(*moved)
    expected = [layer(*call) for call in calls]
    torch.testing.assert_close(output(actual), torch.stack([output(out) for out in expected]))
    if case.masked:
        assert torch.equal(actual[1], torch.stack([out[1] for out in expected]))


@every_layer
@pytest.mark.parametrize("mapped", ["input", "guide"])
def test_vmap_over_one_of_them(mapped, case):
    layer = case.layer()
    calls, together = stacked(case, 3)
    which = ("input", "guide").index(mapped)
    in_dims = tuple(0 if n == which else None for n in range(4))
    arguments = tuple(x if n == which else calls[0][n] for n, x in enumerate(together))
    actual = output(vmap(layer, in_dims)(*arguments))
    for n, call in enumerate(calls):
        one = tuple(call[k] if k == which else calls[0][k] for k in range(4))
        torch.testing.assert_close(actual[n], output(layer(*one)))


@every_layer
def test_vmap_in_vmap(case):
    layer, arguments = case.layer(), case.arguments(batch=6)
    folded = changed(arguments, lambda x: x.unflatten(0, (3, 2))[:, :, None])
    in_dims = tuple(None if x is None else 0 for x in arguments)
    actual = vmap(vmap(layer, in_dims), in_dims)(*folded)
    torch.testing.assert_close(output(actual).flatten(0, 2), output(layer(*arguments)))


@every_learning_layer
def test_vmap_over_weights(case):
    """An ensemble: the parameters stacked, every member on the same batch or on a batch of its own."""
    layers = [case.make() for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    calls, together = stacked(case, 3)

    def run(parameters, buffers, *arguments):
        return output(functional_call(layers[0], (parameters, buffers), arguments))

    own = tuple(None if x is None else 0 for x in together)
    same = vmap(run, (0, 0, None, None, None, None))(parameters, buffers, *calls[0])
    each = vmap(run, (0, 0, *own))(parameters, buffers, *together)
    for n, layer in enumerate(layers):
        torch.testing.assert_close(same[n], output(layer(*calls[0])))
        torch.testing.assert_close(each[n], output(layer(*calls[n])))


def detached(layer):
    return {name: parameter.detach() for name, parameter in layer.named_parameters()}


@every_layer
def test_gradients_of_each_sample(case):
    layer, arguments = case.layer(), case.arguments(batch=4)

    def loss(parameters, *sample):
        batch = changed(sample, lambda x: x[None])
        return output(functional_call(layer, parameters, batch)).square().sum()

    parameters = detached(layer)
    of_one = grad(loss, (0, 1, 2) if parameters else (1, 2))
    in_dims = (None, *(None if x is None else 0 for x in arguments))
    actual = vmap(of_one, in_dims)(parameters, *arguments)
    expected = [of_one(parameters, *changed(arguments, lambda x, n=n: x[n])) for n in range(4)]
    flat, spec = torch.utils._pytree.tree_flatten(actual)
    for n, one in enumerate(expected):
        torch.testing.assert_close(spec.unflatten([x[n] for x in flat]), one, rtol=1e-4, atol=1e-4)


@every_layer
def test_jacobians(case):
    layer, (x, guide, _, mask) = case.layer().double(), case.arguments(1, 4, 5, torch.float64)
    names = tuple(detached(layer))

    def run(x, guide, *values):
        parameters = dict(zip(names, values, strict=True))
        return output(functional_call(layer, parameters, (x, guide, None, mask))).sum(dim=1)

    leaves = (x, guide, *detached(layer).values())
    actual = jacrev(run, tuple(range(len(leaves))))(*leaves)
    torch.testing.assert_close(actual, torch.autograd.functional.jacobian(run, leaves))


@every_layer
def test_hessians(case):
    """Of the guide: reverse over reverse, through vmap twice."""
    layer, (x, guide, _, mask) = case.layer().double(), case.arguments(1, 3, 3, torch.float64)

    def loss(first):  # the guide's first channel
        return output(layer(x, torch.cat([first, guide[:, 1:]], 1), None, mask)).square().sum()

    first = guide[:, :1]
    actual = jacrev(jacrev(loss))(first)
    torch.testing.assert_close(actual, torch.autograd.functional.hessian(loss, first))
    with pytest.raises(NotImplementedError, match=r"jacrev\(jacrev\(f\)\) in place of torch\.func\.hessian"):
        torch.func.hessian(loss)(first)  # forward over reverse


@every_layer
@pytest.mark.parametrize("tangent", ["input", "guide"])
def test_forward_mode(tangent, case):
    """Operators of torch.library drop tangents without a word unless something is done about it."""
    layer = case.layer().double().requires_grad_(False)
    x, guide, _, mask = case.arguments(1, dtype=torch.float64)

    def run(moved):
        return output(layer(moved, guide, None, mask) if tangent == "input" else layer(x, moved, None, mask))

    at = x if tangent == "input" else guide
    expected = (run(at + 1e-6 * at) - run(at - 1e-6 * at)) / 2e-6
    for forward in (in_functorch, in_autograd):
        actual = forward(run, at)
        assert actual is not None
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def in_functorch(run, at):
    return torch.func.jvp(run, (at,), (at,))[1]


def in_autograd(run, at):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(run(torch.autograd.forward_ad.make_dual(at, at))).tangent
